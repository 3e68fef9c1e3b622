"""A container keeps a worker that must not be started again from being so, and passes signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

RUN = "from tokenline.platform.container import main; import sys; sys.exit(main(sys.argv[3:], sys.argv[1:3]))"


def contained(path, body):
    script = path / "worker.py"
    script.write_text(f"import os, signal, sys, time\n{body}\n")
    return subprocess.Popen(
        [sys.executable, "-c", RUN, sys.executable, str(script), "charging"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("code", [0, 1, 70, 75])
def test_an_end_that_a_start_helps_against_is_passed_on(tmp_path, code):
    assert (
        contained(tmp_path, f"sys.exit({code} if sys.argv[1] == 'charging' else 99)").wait(20)
        == code
    )


def test_a_worker_that_was_killed_looks_killed(tmp_path):
    assert contained(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)").wait(20) == 137


@pytest.mark.parametrize("code", [2])
def test_an_end_that_no_start_helps_against_is_kept_until_somebody_stops_it(tmp_path, code):
    process = contained(tmp_path, f"print('TOKENLINE_X is wrong', flush=True); sys.exit({code})")
    assert process.stdout.readline() == "TOKENLINE_X is wrong\n"
    assert f"exit code {code}: starting again does not help" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == code
    process.communicate()


def test_a_signal_is_the_workers(tmp_path):
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(os.getpid(), flush=True); time.sleep(60)"
    process = contained(tmp_path, body)
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.communicate()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_worker_that_ends_so_when_asked_to_stop_is_not_kept(tmp_path):
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(2)); print(1, flush=True); time.sleep(60)"
    process = contained(tmp_path, body)
    process.stdout.readline()
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 2
    assert time.monotonic() - began_s < 10
    process.communicate()
