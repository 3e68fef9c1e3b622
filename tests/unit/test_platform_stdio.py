"""A full disk under its log ends no process, and no flow of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = "/dev/full"  # each write to it fails: no space left on device
TALK = """
import logging, sys
import structlog
from pathlib import Path
from tokenline.platform.stdio import never_fail
never_fail()
for number in range(1000):
    print("x" * 1000)
    print("y", file=sys.stderr)
    structlog.get_logger("line").warning("a server is away")
    logging.getLogger("line").error("z")
Path(sys.argv[1]).touch()
"""
END = """
from streams.app import end_process
from tokenline.errors import BrokenLog
end_process(BrokenLog("offsets contradict"))
"""


def run(program, *words, sink=FULL):
    with Path(sink).open("ab") as target:
        return subprocess.run(
            [sys.executable, "-c", program, *words], stdout=target, stderr=target, check=False
        ).returncode


def test_who_talks_to_a_full_disk_goes_on(tmp_path):
    assert run(TALK, str(tmp_path / "done")) == 0
    assert (tmp_path / "done").exists()


def test_what_is_said_arrives_where_there_is_room(tmp_path):
    run(TALK, str(tmp_path / "done"), sink=tmp_path / "log")
    text = (tmp_path / "log").read_text()
    assert (text.count("x"), text.count("a server is away"), text.count("z")) == (10**6, 1000, 1000)


def test_a_closed_pipe_is_no_error(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", TALK, str(tmp_path / "done")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    process.stdout.close()
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("sink", [FULL, "/dev/null"])
def test_a_worker_that_must_end_ends_even_if_it_cannot_say_why(sink):
    """It lived on without the flow that had failed, and looked well."""
    assert run(END, sink=sink) == 70
