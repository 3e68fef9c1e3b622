"""Start one program so that it ends when its parent does, even after kill -9 of the parent.

Run as a file with `-I -S` (stdlib only, about 20 ms): `launch.py PARENT_PID PROGRAM ARG...`.
On Linux the kernel does it (PR_SET_PDEATHSIG outlives exec, so pid and signals are the
program's own). Elsewhere this process stays, looks for its parent and passes signals on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
LOOK_S = 0.5


def die_with_parent(parent: int) -> None:
    """End this process when `parent` ends; at once if it is gone already.

    On Linux the tie is to the *thread* that started us: see `processes.spawn`.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_look_for, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _look_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _run(parent: int, argv: list[str]) -> int:
    """Become the program (Linux), or stay beside it."""
    if sys.platform == "linux":
        die_with_parent(parent)
        os.execv(argv[0], argv)  # noqa: S606  a fixed program, no shell wanted
    child = subprocess.Popen(argv, close_fds=False)  # its lock file is among them
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None and os.getppid() == parent:
        time.sleep(LOOK_S)
    if child.poll() is None:
        child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(_run(int(sys.argv[1]), sys.argv[2:]))
