"""Run a stack on a disk that fills up under load, and say how its books stand when there is room again.

    full_disk.py FOLDER HOW      HOW is `mount`: on a small tmpfs of this process's own mount namespace
                                 (`unshare -m`); or `limit`: by a bound on the size of files (no rights needed)

The outbox of the gateway lies elsewhere: what a full disk does to it is a test of its own.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from test_stack_kills import ACCOUNTS, BACK_S, load

from tokenline.accounts.apply import apply_accounts
from tokenline.demo.plans import sample_accounts
from tokenline.landing.reconcile import reconcile
from tokenline.platform import processes, stack
from tokenline.platform.kafka_config import as_role
from tokenline.settings import Settings

DISK_MB = 700
FULL_S = 12
CHUNK = 1 << 16


class Mounted:
    """Be a small disk."""

    def __init__(self, folder):
        self.folder = folder / "disk"
        self.folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.folder)]
        subprocess.run(mount, check=True)

    def fill(self, _):
        """Leave not one byte, and take what is given back."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (CHUNK, 1):
                with suppress(OSError):
                    while True:
                        ballast.write(b"\0" * size)

    def empty(self, _):
        (self.folder / "ballast").unlink()


class Limited:
    """Let no file of broker, workers and supervisor grow. The warehouse is left out: it minds no error."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, running):
        self._limit(running, 0)

    def empty(self, running):
        self._limit(running, resource.RLIM_INFINITY)

    def _limit(self, running, most):
        bound = (most, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
        for one in running.status()[1:]:
            if one.pid and one.component != "warehouse":
                with suppress(psutil.Error):
                    psutil.Process(one.pid).rlimit(psutil.RLIMIT_FSIZE, bound)


def main():
    folder, disk = Path(sys.argv[1]), {"mount": Mounted, "limit": Limited}[sys.argv[2]]
    disk, said = disk(folder), []
    stack.DISK_BYTES_MIN = 0
    settings = Settings(session_timeout_ms=2000, idle_flush_ms=200, data_dir=folder / "gateway")
    with stack.Stack(settings, disk.folder / "line", free_ports=True, say=said.append) as running:
        asyncio.run(apply_accounts(running.settings, sample_accounts(ACCOUNTS).commands()))
        with load(running, folder / "outbox"):
            time.sleep(3)  # usage of a while
            until = time.monotonic() + FULL_S
            while time.monotonic() < until:
                disk.fill(running)
                time.sleep(0.2)
            during = {one.component: one.state for one in running.status()}
            disk.empty(running)
            back = processes.wait_for(
                lambda: all(one.state == "ready" for one in running.status()), timeout_s=BACK_S
            )
        report = reconcile(as_role(running.settings, "reader"), 60)
        after = {one.component: f"{one.state}: {one.detail}" for one in running.status()}
    found = {"said": said, "during": during, "back": back, "after": after}
    print(json.dumps(found | {"ok": report.ok, "report": report.to_dict()}))


if __name__ == "__main__":
    main()
