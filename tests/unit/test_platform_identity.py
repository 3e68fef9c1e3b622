"""A process is known again by a lock and by the tick at which it began, never by the wall clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tokenline.errors import NotRunning, PlatformError
from tokenline.platform import identity, processes, stack_file
from tokenline.platform.secrets import make_secrets

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Holds a data directory, as a supervisor does, and says so.
SUPERVISOR = """
import sys, time
from pathlib import Path
from tokenline.platform import processes
held = processes.hold(Path(sys.argv[1]), "stack")
print("held", flush=True)
time.sleep(60)
"""
# Starts a child that is tied to nobody, and dies.
DEAD_SUPERVISOR = """
import os, signal, sys
from pathlib import Path
from tokenline.platform import processes
processes.tied = list
held = processes.hold(Path(sys.argv[1]), "stack")
child = processes.spawn(sys.argv[2:], log=Path(sys.argv[1]) / "logs" / "charging.log")
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def bystander():
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def supervisor(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def stepped_clock(monkeypatch):
    """Let the wall clock be an hour off, and with it each start time that is computed from it."""
    now, created = time.time, psutil.Process.create_time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 3600)


@pytest.mark.usefixtures("stepped_clock")
def test_a_step_of_the_clock_changes_nothing_for_status_quota_and_down(supervisor, tmp_path):
    """All of them said that the stack has ended, and `up` that it runs."""
    stack_file.StackFile((stack_file.see("charging", os.getpid()),), {}).write(tmp_path)
    make_secrets(tmp_path, "kafka", ["operator"])
    own, charging = stack_file.status(tmp_path)
    assert (own.state, own.pid, charging.pid) == ("ready", supervisor.pid, os.getpid())
    assert stack_file.find_stack(tmp_path).partitions == 2
    with pytest.raises(PlatformError, match=f"in use by process {supervisor.pid}"):
        processes.hold(tmp_path, "stack")
    stack_file.down(tmp_path)
    assert supervisor.wait(5) == -signal.SIGTERM
    with pytest.raises(NotRunning, match="no stack runs"):
        stack_file.down(tmp_path)


def test_a_pid_that_another_process_has_now_is_not_the_one_that_was_seen(bystander):
    seen = identity.process_of(bystander.pid)
    assert seen.alive
    assert not identity.Process(bystander.pid, str(int(seen.tick) - 1)).alive
    assert not identity.Process(bystander.pid, "").alive
    bystander.kill()
    assert processes.wait_for(lambda: not seen.alive, timeout_s=5), "not even before it is reaped"


def test_down_touches_nobody_whose_pid_only_looks_like_the_holders(bystander, supervisor, tmp_path):
    """In a container pids are others: what the file says is another process here."""
    (tmp_path / processes.LOCK).write_text(f"{bystander.pid} 1\n")
    stack_file.StackFile((), {}).write(tmp_path)
    with pytest.raises(PlatformError, match=f"process {bystander.pid} of another container"):
        stack_file.down(tmp_path)
    assert (bystander.poll(), supervisor.poll()) == (None, None)


def test_a_dead_stack_whose_pid_another_process_has_now_is_not_running(bystander, tmp_path):
    (tmp_path / processes.LOCK).write_text(f"{bystander.pid} 1\n")
    stack_file.StackFile((), {}).write(tmp_path)
    with pytest.raises(NotRunning, match="has ended"):
        stack_file.find_stack(tmp_path)
    with pytest.raises(NotRunning):
        stack_file.down(tmp_path)
    assert bystander.poll() is None


def orphan(folder, argv):
    """Return the pid of a program whose supervisor was killed."""
    dead = subprocess.run(
        [sys.executable, "-c", DEAD_SUPERVISOR, str(folder), *argv],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert dead.returncode == -signal.SIGKILL
    return int(dead.stdout)


def test_down_ends_exactly_what_a_killed_supervisor_left(bystander, tmp_path):
    left = identity.process_of(orphan(tmp_path, SLEEP))
    stranger = identity.process_of(orphan(tmp_path / "another", SLEEP))
    assert left.alive
    stack_file.down(tmp_path)
    assert (left.alive, stranger.alive, bystander.poll()) == (False, True, None)
    with pytest.raises(NotRunning):
        stack_file.down(tmp_path)
    assert processes.end_orphans(stack_file.logs_of(tmp_path / "another")) == [stranger.pid]


def test_an_orphan_of_another_pid_than_its_lock_says_is_told_and_nobody_is_touched(
    bystander, tmp_path, monkeypatch
):
    monkeypatch.setattr(identity, "END_S", 0.1)
    left = identity.process_of(orphan(tmp_path, SLEEP))
    (tmp_path / "logs" / "charging.lock").write_text(f"{bystander.pid} 1\n")
    with pytest.raises(PlatformError, match="cannot be ended"):
        stack_file.down(tmp_path)
    assert (left.alive, bystander.poll()) == (True, None)
    os.kill(left.pid, signal.SIGKILL)


def test_nothing_is_started_twice_with_one_log(tmp_path):
    first = processes.spawn(SLEEP, log=tmp_path / "charging.log")
    with pytest.raises(PlatformError, match="runs still"):
        processes.spawn(SLEEP, log=tmp_path / "charging.log")
    processes.kill(first)
    processes.kill(processes.spawn(SLEEP, log=tmp_path / "charging.log"))


def test_down_leaves_no_file_in_a_folder_that_is_no_stacks(tmp_path):
    with pytest.raises(NotRunning):
        stack_file.down(tmp_path)
    assert list(tmp_path.iterdir()) == []
