"""The wheel runs outside the checkout: all of it with every extra, and with none it says what to install."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tokenline.platform.processes import free_port, wait_for

ROOT = Path(__file__).parents[2]
PLACES = "import tokenline, importlib.util as u; print(tokenline.__file__, u.find_spec('streams'))"
UV = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def install(wheel, tmp_path_factory):
    """Make an environment of its own with the wheel in it; return what runs a command there."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("apart")
    (folder / "pins.txt").write_text("\n".join(pins["tool"]["uv"]["constraint-dependencies"]))

    def make(extras):
        home = folder / (extras or "bare")
        python = home / "bin" / "python"
        made = subprocess.run(
            [*UV, "venv", "--quiet", "--python", sys.executable, str(home)], check=False
        )
        assert made.returncode == 0
        what = f"tokenline[{extras}] @ {wheel.as_uri()}" if extras else str(wheel)
        pip = [*UV, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*pip, "-c", str(folder / "pins.txt"), what], check=True, timeout=240)
        return home / "bin"

    return make


def plain_environment(**more):
    """Return an environment in which nothing leads to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOKENLINE_")}
    kept.pop("PYTHONPATH", None)
    kept.pop("VIRTUAL_ENV", None)
    return kept | more


def run(place, folder, *words, timeout=120, **more):
    return subprocess.run(
        [place / "tokenline", *words],
        cwd=folder,
        env=plain_environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("demo", "--seconds", "5"), "all"),
        (("up", "--data", "line"), "all"),
        (("bench",), "all"),
        (("worker", "charging"), "worker"),
        (("sql", "SELECT 1"), "worker"),
    ],
)
def test_a_bare_install_says_what_to_install(bare, tmp_path, words, extra):
    done = run(bare, tmp_path, *words)
    assert done.returncode == 1
    assert f"pip install 'tokenline[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.fixture(scope="module")
def bare(install):
    return install("")


@pytest.mark.timeout(300)
def test_a_wheel_with_its_extras_runs_the_whole_line(install, tmp_path):
    place = install("all")
    here = subprocess.run(
        [place / "python", "-c", PLACES],
        cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(place.parent) in here
    assert here.split()[-1] == "None"

    demo = run(
        place,
        tmp_path,
        *("demo", "--seconds", "5", "--rate", "60", "--accounts", "30", "--json", "demo.json"),
    )
    assert demo.returncode == 0, demo.stdout[-2000:] + demo.stderr[-2000:]
    assert json.loads((tmp_path / "demo.json").read_text())["conservation"] is True

    line = subprocess.Popen(
        [place / "tokenline", "up", "--data", "line", "--free-ports"],
        cwd=tmp_path, env=plain_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert wait_for(
            lambda: run(place, tmp_path, "status", "--data", "line").returncode == 0 or line.poll(),
            timeout_s=60,
            every_s=0.5,
        ), line.poll()
        answer = run(place, tmp_path, "sql", "SELECT 1 AS one", "--format", "csv", "--data", "line")
        assert answer.stdout == '"one"\n1\n', answer.stderr
        assert worker_is_ready(place, tmp_path)
    finally:
        line.send_signal(signal.SIGINT)
        said = line.communicate(timeout=60)[1]
    assert line.returncode == 0, said


def worker_is_ready(place, folder):
    """Run one worker by hand beside the line's own, as its address and passwords say."""
    program = (
        "import json, pathlib; from tokenline.platform.stack_file import find_stack; "
        "print(json.dumps(find_stack(pathlib.Path('line'), 'notify').to_env()))"
    )
    found = subprocess.run(
        [place / "python", "-c", program],
        cwd=folder, env=plain_environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    port = free_port()
    settings = json.loads(found) | {"TOKENLINE_NOTIFY_HEALTH_PORT": str(port)}
    worker = subprocess.Popen(
        [place / "tokenline", "worker", "notify"], cwd=folder, env=plain_environment(**settings)
    )
    try:
        return wait_for(lambda: answers(port), timeout_s=60, every_s=0.2)
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
