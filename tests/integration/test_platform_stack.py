"""The supervisor on a real broker and warehouse; its workers are stand-ins (fake_worker.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
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
    assert any("charging ended: exit -9 (SIGKILL)" in line for line in said)
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


def state_of(stack, name):
    return next(one for one in stack.status() if one.component == name)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(supervision, "HEALTH_EVERY_S", 0.3)
    monkeypatch.setattr("tokenline.platform.restarts.WAIT_MAX_S", 0.5)


@pytest.mark.usefixtures("hasty")
def test_workers_that_stall_are_started_again(make_stack, fake_dir):
    stack = make_stack()
    stack.start()
    before = pids(stack)
    stall = fake_dir / "landing.stall"
    stall.touch()
    assert processes.wait_for(lambda: pids(stack)["landing"] != before["landing"], timeout_s=10)
    stall.unlink()
    assert pids(stack)["charging"] == before["charging"]


@pytest.mark.usefixtures("hasty")
def test_a_worker_that_keeps_dying_is_tried_for_ever_and_the_others_run_on(make_stack, fake_dir):
    """The fifth death within a minute ended broker, warehouse and all."""
    stack = make_stack()
    stack.start()
    before = pids(stack)
    die = fake_dir / "charging.die"
    die.write_text("70")
    stack.kill("charging", restart=True)

    def says(words):
        return words in state_of(stack, "charging").detail

    assert processes.wait_for(lambda: says("restarting, died 7 times"), timeout_s=20)
    now = state_of(stack, "charging")
    assert now.detail.endswith("last exit 70: charging cannot go on"), now
    assert now.state == "down"
    die.unlink()
    assert processes.wait_for(lambda: state_of(stack, "charging").state == "ready", timeout_s=10)
    assert processes.wait_for(lambda: says("times, last exit 70"), timeout_s=5)
    after = pids(stack)
    assert {name for name in before if before[name] != after[name]} == {"charging"}


@pytest.mark.usefixtures("hasty")
def test_a_worker_with_a_wrong_setting_is_stopped_alone_and_not_tried_again(make_stack, fake_dir):
    said = []
    stack = make_stack(say=said.append)
    stack.start()
    before = pids(stack)
    (fake_dir / "landing.die").write_text("2")
    stack.kill("landing", restart=True)
    words = "stopped, exit 2: landing cannot go on; mend that, then start the stack again"
    assert processes.wait_for(lambda: f"landing is {words}" in said, timeout_s=10)
    (fake_dir / "landing.die").unlink()
    time.sleep(1.5)  # three pauses
    now = state_of(stack, "landing")
    assert (now.state, now.detail) == ("down", words)
    assert pids(stack) == before | {"landing": None}


def test_a_worker_that_does_not_start_is_an_error_and_leaves_nothing(make_stack, fake_dir):
    (fake_dir / "landing.die").write_text("3")
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


@contextmanager
def started(fake_dir, *, untied=False):
    """Run a supervisor as a process; `untied` lets its children outlive it."""
    program = "from tokenline.platform import processes\nprocesses.tied = list\n" if untied else ""
    process = subprocess.Popen(
        [sys.executable, "-c", program + SUPERVISOR, str(fake_dir / "data")],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture
def supervisor(fake_dir):
    with started(fake_dir) as process:
        yield process


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


def lines_until(supervisor, words):
    """Return what a supervisor says up to the line with these words."""
    said = []
    while not said or words not in said[-1]:
        line = supervisor.stdout.readline()
        assert line, said
        said.append(line)
    return said


def test_up_leaves_the_others_running_when_a_worker_never_becomes_ready(fake_dir):
    (fake_dir / "landing.die").write_text("3")
    with started(fake_dir) as supervisor:
        lines_until(supervisor, "landing is not ready, the others run")
        now = {one.component: one for one in status(fake_dir / "data")}
        assert [now[name].state for name in ("kafka", "warehouse", "charging")] == ["ready"] * 3
        assert "last exit 3: landing cannot go on" in now["landing"].detail
        assert find_stack(fake_dir / "data").charging_health_port == now["charging"].port
        (fake_dir / "landing.die").unlink()
        await_stack(fake_dir / "data")


def test_up_ends_with_a_line_when_a_setting_is_wrong(fake_dir):
    (fake_dir / "landing.die").write_text("2")
    with started(fake_dir) as supervisor:
        (*_, last) = lines_until(supervisor, "error: ")
        assert "error: landing is stopped, exit 2: landing cannot go on" in last
        assert supervisor.wait(20) == 1


def test_up_ends_what_a_killed_stack_left_running_and_takes_its_ports(fake_dir):
    """Where nothing ties children to their parent they live on, with the ports and the data."""
    with started(fake_dir, untied=True) as supervisor:
        await_stack(fake_dir / "data")
        found = {one.component: psutil.Process(one.pid) for one in status(fake_dir / "data")[1:]}
        supervisor.kill()
        supervisor.wait()
        # The warehouse looks after its parent itself.
        gone = found.pop("warehouse")
        assert processes.wait_for(lambda: not gone.is_running(), timeout_s=5)
        left = list(found.values())
        assert all(one.is_running() for one in left)
    with started(fake_dir) as supervisor:
        said = lines_until(supervisor, "starting broker and warehouse")
        assert {line for line in said if "which a dead stack had left" in line} == {
            f"ended process {one.pid}, which a dead stack had left\n" for one in left
        }
        await_stack(fake_dir / "data")
        assert not any(one.is_running() for one in left)


def test_the_file_holds_no_secret(tmp_path):
    settings = Settings(
        kafka_security="SASL_SSL",
        kafka_username="u",
        kafka_password="hidden",
        schema_registry_password="hidden",
    )
    seen = (stack_file.see("charging", os.getpid()),)
    stack_file.StackFile(seen, stack_file.storable(settings)).write(tmp_path)
    text = (tmp_path / stack_file.FILE).read_text()
    assert "hidden" not in text
    assert json.loads(text)["components"][0]["pid"] == os.getpid()
