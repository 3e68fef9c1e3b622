"""The supervisor on a real broker and warehouse; its workers are stand-ins (fake_worker.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tokenline.errors import NotRunning, PlatformError, PortTaken, SettingsError
from tokenline.landing.connect import connect
from tokenline.platform import processes, stack_file, supervision
from tokenline.platform.stack import Stack, down, find_stack, status
from tokenline.settings import Settings

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
SUPERVISOR = f"""
import sys
from pathlib import Path
from tokenline.errors import TokenlineError
from tokenline.platform.stack import Stack
from tokenline.settings import Settings
try:
    Stack(Settings.from_env(), Path(sys.argv[1]), free_ports=True, worker_program={FAKE!r},
          say=lambda line: print(line, flush=True)).run()
except TokenlineError as error:
    print(f"error: {{error}}", flush=True)
    sys.exit(1)
"""


@pytest.fixture
def fake_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def make_stack(fake_dir):
    made = []

    def make(**options):
        stack = Stack(
            options.pop("settings", Settings()),
            fake_dir / "data",
            worker_program=FAKE,
            **{"free_ports": True, "say": lambda _: None} | options,
        )
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.stop()


def readable_by_others(folder):
    """Return what of a data directory another user could open; below closed folders nobody can."""
    return [str(one) for one in (folder, *folder.iterdir()) if one.stat().st_mode & 0o077]


def pids(stack):
    return {one.component: one.pid for one in stack.status()}


def test_a_stack_with_a_webhooks_file_runs_a_notify_worker(make_stack, tmp_path):
    (tmp_path / "webhooks.toml").touch()
    stack = make_stack(settings=Settings(webhooks_file=tmp_path / "webhooks.toml"))
    stack.start()
    now = {one.component: one for one in status(stack.data_dir)}
    assert list(now)[-2:] == ["landing", "notify"]
    assert now["notify"].state == "ready"
    assert find_stack(stack.data_dir).notify_health_port == now["notify"].port


def test_a_stack_starts_is_found_heals_and_ends(make_stack):
    said = []
    stack = make_stack(say=said.append, charging_workers=2)
    stack.start()

    now = {one.component: one for one in status(stack.data_dir)}
    assert list(now) == ["supervisor", "kafka", "warehouse", "charging", "charging-2", "landing"]
    assert {one.state for one in now.values()} == {"ready"}
    assert now["charging"].detail == "healthy=True lag=5"
    assert now["charging"].port != now["charging-2"].port
    found = find_stack(stack.data_dir, warehouse="writer")
    assert found == stack.settings
    assert found.charging_health_port == now["charging"].port
    client = connect(found)
    tables = client.query(f"SHOW TABLES FROM {found.clickhouse_database}").result_rows
    client.close()
    assert ("ledger",) in tables
    assert readable_by_others(stack.data_dir) == []
    assert found.clickhouse_password not in (stack.data_dir / "stack.json").read_text()

    with pytest.raises(PlatformError, match=f"in use by process {os.getpid()}"):
        make_stack().start()

    before = pids(stack)
    stack.kill("charging", restart=True)
    assert processes.wait_for(
        lambda: pids(stack)["charging"] not in (None, before["charging"]), timeout_s=10
    )
    assert any("charging ended with code -9" in line for line in said)
    stack.kill("landing")
    time.sleep(1.5)
    assert pids(stack)["landing"] is None
    stack.start_component("landing")
    assert stack.process("landing").pid not in (None, before["landing"])

    os.kill(before["kafka"], signal.SIGKILL)
    os.kill(before["warehouse"], signal.SIGKILL)

    def healed():
        now = {one.component: one for one in stack.status()}
        fresh = all(now[name].pid != before[name] for name in ("kafka", "warehouse"))
        return fresh and all(one.state == "ready" for one in now.values())

    assert processes.wait_for(healed, timeout_s=30)
    now = pids(stack)
    assert find_stack(stack.data_dir, warehouse="writer") == found

    last = [psutil.Process(pid) for name, pid in now.items() if name != "supervisor"]
    begun = time.monotonic()
    stack.stop()
    assert time.monotonic() - begun < 15
    assert not any(process.is_running() for process in last)
    with pytest.raises(NotRunning):
        find_stack(stack.data_dir)


def test_workers_that_stall_are_started_again_and_one_that_keeps_dying_ends_the_stack(
    make_stack, fake_dir, monkeypatch
):
    monkeypatch.setattr(supervision, "HEALTH_EVERY_S", 0.3)
    monkeypatch.setattr("tokenline.platform.restarts.WAIT_MAX_S", 0.5)
    stack = make_stack()
    stack.start()
    before = pids(stack)
    stall = fake_dir / "landing.stall"
    stall.touch()
    assert processes.wait_for(lambda: pids(stack)["landing"] != before["landing"], timeout_s=10)
    stall.unlink()
    assert pids(stack)["charging"] == before["charging"]

    (fake_dir / "charging.die").touch()
    stack.kill("charging", restart=True)
    assert processes.wait_for(lambda: stack.failure is not None, timeout_s=20)
    assert "5 times in the last minute" in str(stack.failure)
    assert "charging cannot go on" in str(stack.failure)


def test_a_worker_that_does_not_start_is_an_error_and_leaves_nothing(make_stack, fake_dir):
    (fake_dir / "landing.die").touch()
    stack = make_stack()
    with pytest.raises(PlatformError, match="landing cannot go on"):
        stack.start()
    children = psutil.Process().children(recursive=True)
    assert not [one for one in children if str(stack.data_dir) in " ".join(one.cmdline())]


def test_a_taken_port_is_an_error_before_anything_runs(make_stack, kafka):
    settings = Settings(kafka_bootstrap=kafka.bootstrap, clickhouse_url="http://127.0.0.1:1")
    with pytest.raises(PortTaken, match="TOKENLINE_KAFKA_BOOTSTRAP"):
        make_stack(settings=settings, free_ports=False).start()


def test_a_server_of_somebody_else_is_not_started(make_stack):
    settings = Settings(kafka_bootstrap="kafka.example.org:9092")
    with pytest.raises(SettingsError, match="TOKENLINE_KAFKA_BOOTSTRAP"):
        make_stack(settings=settings, free_ports=False).start()


def test_a_full_disk_is_an_error_before_anything_runs(make_stack, monkeypatch):
    monkeypatch.setattr("tokenline.platform.stack.DISK_BYTES_MIN", 1 << 60)
    with pytest.raises(PlatformError, match="MiB are free"):
        make_stack().start()


@pytest.fixture
def supervisor(fake_dir):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(fake_dir / "data")],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def await_stack(data_dir):
    def ready():
        try:
            return all(one.state == "ready" for one in status(data_dir))
        except NotRunning:
            return False

    assert processes.wait_for(ready, timeout_s=60, every_s=0.1)


def test_nothing_outlives_a_supervisor_that_is_killed(supervisor, fake_dir):
    data_dir = fake_dir / "data"
    await_stack(data_dir)
    children = [psutil.Process(one.pid) for one in status(data_dir)[1:]]
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    assert processes.wait_for(lambda: not any(one.is_running() for one in children), timeout_s=5)
    with pytest.raises(NotRunning, match="has ended"):
        status(data_dir)


def test_down_ends_a_stack_in_the_foreground(supervisor, fake_dir):
    await_stack(fake_dir / "data")
    down(fake_dir / "data")
    assert supervisor.wait(5) == 0
    with pytest.raises(NotRunning):
        down(fake_dir / "data")


def test_a_signal_while_starting_ends_it_cleanly(supervisor, fake_dir):
    assert supervisor.stdout.readline().startswith("starting")
    now = {one.component: one for one in status(fake_dir / "data")}
    assert list(now) == ["supervisor", "kafka", "warehouse", "charging", "landing"]
    assert (now["landing"].state, now["landing"].pid) == ("not ready", None)
    with pytest.raises(NotRunning, match="still starting"):
        find_stack(fake_dir / "data")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(20) == 0
    assert not (fake_dir / "data" / "stack.json").exists()


def test_a_pid_that_is_used_again_is_never_hit(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        seen = stack_file.Seen("supervisor", bystander.pid, time.time() - 3600)
        stack_file.StackFile(seen, (), {}).write(tmp_path)
        with pytest.raises(NotRunning):
            down(tmp_path)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_file_holds_no_secret(tmp_path):
    settings = Settings(kafka_password="hidden", schema_registry_password="hidden")
    own = stack_file.see("supervisor", os.getpid())
    stack_file.StackFile(own, (), stack_file.storable(settings)).write(tmp_path)
    text = (tmp_path / stack_file.FILE).read_text()
    assert "hidden" not in text
    assert json.loads(text)["supervisor"]["pid"] == os.getpid()
