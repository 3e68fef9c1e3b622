"""Know a process again, whatever happens to the machine's clock.

A pid alone proves nothing: systems use it again. A start time by the wall clock moves when the clock is
set. So who counts holds a lock on a file for as long as it lives, which the system lets go at its death,
and the file names it: its pid, and on Linux the tick since boot at which it began.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOOK_S = 0.02
# Whoever looks at a lock holds it for a moment.
TAKE_S = 0.5
END_S = 10.0
_STATE, _START_TICK = 0, 19  # fields of /proc/PID/stat behind the name


@dataclass(frozen=True, slots=True)
class Process:
    """Name a process; `tick` is empty where the system does not tell it."""

    pid: int
    tick: str = ""

    @property
    def alive(self) -> bool:
        """Whether it lives; a pid that another process has now is not it."""
        if sys.platform == "linux":
            return bool(self.tick) and _tick(self.pid) == self.tick
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return self.pid > 0


def process_of(pid: int) -> Process:
    """Return a process that runs now."""
    return Process(pid, _tick(pid))


def take(path: Path) -> IO[str] | None:
    """Hold a lock file until the returned file is closed or the process ends; None: another holds it.

    Raises:
        OSError: it can be no file of ours.
    """
    handle = open(path, "a+", encoding="utf-8", opener=private)  # noqa: SIM115  held
    until_s = time.monotonic() + TAKE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                handle.close()
                return None
            time.sleep(LOOK_S)
        else:
            return handle


def private(path: str, flags: int) -> int:
    """Open a file; one that is made now is its owner's alone."""
    return os.open(path, flags, 0o600)


def sign(handle: IO[str], process: Process) -> None:
    """Write down who holds a lock file; on a full disk it is held all the same."""
    try:
        handle.truncate(0)
        handle.write(f"{process.pid} {process.tick}\n")
        handle.flush()
    except OSError:
        return


def holder(path: Path) -> Process | None:
    """Return who holds a lock file, None if nobody; a holder who did not sign has pid 0."""
    try:
        with path.open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signed(path)
    except OSError:
        return None
    return None


def end_holder(path: Path) -> int:
    """End who holds a lock file, with its whole process group; return its pid, 0 if nobody held it.

    Who only looks like the holder is not touched: then the pid stays, and nothing is done.

    Raises:
        TimeoutError: the lock is held still after 10 s.
    """
    found = holder(path)
    if found is None:
        return 0
    until_s = time.monotonic() + END_S
    while holder(path) is not None:
        if found.pid and found.alive:
            os.killpg(found.pid, signal.SIGKILL)
        if time.monotonic() > until_s:
            raise TimeoutError(f"process {found.pid} holds {path} and cannot be ended")
        time.sleep(LOOK_S)
    return found.pid


def _signed(path: Path) -> Process:
    pid, _, tick = path.read_text(encoding="utf-8").strip().partition(" ")
    return Process(int(pid) if pid.isdigit() else 0, tick)


def _tick(pid: int) -> str:
    """Return when a process began, in ticks since boot; empty if it has ended or nobody tells."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name stands in brackets and may hold anything, brackets too.
    fields = text.rpartition(")")[2].split()
    return "" if fields[_STATE] in "ZX" else fields[_START_TICK]
