"""Files of people are UTF-8, whatever the locale and whatever their editor puts in front."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tokenline.accounts.file import read_accounts
from tokenline.errors import BadData, SettingsError
from tokenline.notify.endpoints import read_webhooks
from tokenline.rating.catalog import read_catalog
from tokenline.settings import Settings
from tokenline.wire.kafka import client_options

CATALOG = Path(__file__).parents[2] / "schemas" / "catalog.toml"
ACCOUNTS = '[[accounts]]\nid = "词元"\n'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOKS = """# 词元
[[endpoints]]
name = "crm"
url = "https://crm.example/hooks"
secret_file = ["crm.key"]
"""


def read_certificate(path):
    return client_options(Settings(kafka_security="SSL", kafka_ca_file=path))


def read_endpoints(path):
    return [endpoint for endpoint, _ in read_webhooks(path, {})]


READERS = [
    pytest.param(read_accounts, ACCOUNTS, BadData, id="accounts"),
    pytest.param(read_catalog, CATALOG.read_text(encoding="utf-8"), BadData, id="catalog"),
    pytest.param(read_endpoints, WEBHOOKS, SettingsError, id="webhooks"),
]


@pytest.fixture
def key(tmp_path):
    (tmp_path / "crm.key").write_text(SECRET)


@pytest.mark.parametrize(("read", "text", "error"), READERS)
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, key, read, text, error):
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    plain = read(path)
    path.write_text(text, encoding="utf-8-sig")
    assert read(path) == plain


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize(("read", "text", "error"), READERS)
def test_a_file_in_another_encoding_is_one_clear_line(tmp_path, key, read, text, error, encoding):
    path = tmp_path / "file.toml"
    if encoding == "latin-1":
        path.write_bytes(b"# caf\xe9\n" + text.encode())
    else:
        path.write_bytes(text.encode(encoding))
    with pytest.raises(error, match="UTF-8") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_file_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "crm.key").write_text(SECRET + "\n", encoding="utf-8-sig")
    (tmp_path / "webhooks.toml").write_text(WEBHOOKS, encoding="utf-8")
    ((endpoint, (secret,)),) = read_webhooks(tmp_path / "webhooks.toml", {})
    assert endpoint.name == "crm"
    assert secret


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_certificate_in_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\n", encoding=encoding)
    with pytest.raises(SettingsError, match="save it as UTF-8") as caught:
        read_certificate(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read, error in (
        (read_accounts, BadData),
        (lambda path: read_webhooks(path, {}), SettingsError),
    ):
        with pytest.raises(error, match=r"nothing\.toml: No such file"):
            read(tmp_path / "nothing.toml")


def test_the_locale_decides_nothing(tmp_path):
    """In the C locale without Python's UTF-8 mode, text would be read as ASCII."""
    (tmp_path / "crm.key").write_text(SECRET)
    (tmp_path / "webhooks.toml").write_text(WEBHOOKS, encoding="utf-8")
    program = (
        "import sys, pathlib; from tokenline.notify.endpoints import read_webhooks; "
        "assert sys.flags.utf8_mode == 0; "
        "print(len(read_webhooks(pathlib.Path(sys.argv[1]), {})))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program, tmp_path / "webhooks.toml"],
        env={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
