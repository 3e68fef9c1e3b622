"""The passwords of the embedded servers: made once, kept, and for their owner alone."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenline.errors import PlatformError
from tokenline.platform.secrets import FILE, make_secrets, read_secrets


def test_passwords_are_drawn_once_and_stay(tmp_path):
    first = make_secrets(tmp_path, "kafka", ["gateway", "charging"])
    again = make_secrets(tmp_path, "kafka", ["gateway", "charging", "landing"])
    assert {"gateway", "charging"} == set(first)
    assert again | first == again
    assert len(set(again.values())) == 3
    assert min(map(len, again.values())) >= 32


def test_two_servers_share_the_file(tmp_path):
    kafka = make_secrets(tmp_path, "kafka", ["gateway"])
    warehouse = make_secrets(tmp_path, "warehouse", ["writer"])
    assert read_secrets(tmp_path) == {"kafka": kafka, "warehouse": warehouse}


def test_only_the_owner_may_read_the_file(tmp_path):
    make_secrets(tmp_path, "kafka", ["gateway"])
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_file_that_others_may_read_is_refused_in_one_line(tmp_path):
    make_secrets(tmp_path, "kafka", ["gateway"])
    (tmp_path / FILE).chmod(0o644)
    with pytest.raises(PlatformError, match=r"chmod 600") as caught:
        read_secrets(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"kafka": 1}', '{"kafka": {"gateway": 1}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / FILE).touch(mode=0o600)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PlatformError, match=FILE):
        read_secrets(tmp_path)


def test_nothing_was_made_yet(tmp_path):
    assert read_secrets(tmp_path) == {}


def test_threads_that_ask_at_once_get_the_same_passwords(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(make_secrets, tmp_path, server, ["one", "two"])
            for server in ("kafka", "warehouse") * 8
        ]
        found = {json.dumps(one.result(), sort_keys=True) for one in asked}
    assert found == {json.dumps(one, sort_keys=True) for one in read_secrets(tmp_path).values()}
