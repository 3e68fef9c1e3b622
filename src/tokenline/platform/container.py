"""Run a worker in a container that is started again whenever it ends.

`python -m tokenline.platform.container charging|landing|notify`. Container runtimes start again by whether a
process ended, not by the exit code's meaning (`streams/README.md`). So a worker that must not be started again
is not let end: this process stays in its place, without a health page, and so unhealthy, until it is asked to
stop. Whoever has mended the setting starts the container again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

# A setting is wrong.
FINAL = frozenset((2,))
PROGRAM = (sys.executable, "-m", "tokenline.platform.worker")


def main(argv: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Run the worker, pass signals on, and return its exit code, at once or when asked to stop."""
    asked = threading.Event()
    worker = subprocess.Popen([*program, *argv])

    def stop(number: int, _frame: object) -> None:
        asked.set()
        if worker.poll() is None:
            worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    code = worker.wait()
    if code in FINAL and not asked.is_set():
        print(
            f"exit code {code}: starting again does not help; mend what the line above says, then "
            "start this container again",
            file=sys.stderr,
            flush=True,
        )
        asked.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
