"""Start and end the warehouse process; it has the shape of `EmbeddedKafka`."""

from __future__ import annotations

import http.client
import sys
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.warehouse import VARIABLE

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


class EmbeddedWarehouse:
    """Own one warehouse process over one data directory.

    Arguments:
        data_dir: where chDB's files and the log live; made if missing.
        port: the loopback port; 0 picks a free one and keeps it for the life of this object.
    """

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        self.data_dir = data_dir.absolute()
        self.log = self.data_dir / "warehouse.log"
        self.port = port or processes.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for `Settings.clickhouse_url`."""
        return f"http://{processes.LOOPBACK}:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process, once started; it may have ended since."""
        return self._process

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the process lives; not whether it answers."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 60) -> None:
        """Start it and return when it answers; does nothing if it runs.

        Raises:
            PortTaken: another process holds the port.
            PlatformError: it ended or did not answer in time; the text ends with its log.
        """
        if self.running:
            return
        processes.require_port(self.port, "the warehouse", VARIABLE)
        module = ["-m", "tokenline.platform.warehouse", "--die-with-parent"]
        place = ["--data", str(self.data_dir / "chdb"), "--port", str(self.port)]
        self._process = processes.spawn([sys.executable, *module, *place], log=self.log)
        if not processes.wait_for(self._settled, timeout_s=timeout_s):
            self.kill()
            raise PlatformError(f"the warehouse did not answer within {timeout_s:.0f} s")
        if not self.running:
            raise PlatformError(processes.last_lines(self.log, 1) or "the warehouse ended")

    def stop(self, timeout_s: float = 10) -> None:
        """End it cleanly, with SIGKILL after `timeout_s`; does nothing if it is down."""
        if self._process is not None:
            processes.end(self._process, timeout_s)

    def kill(self) -> None:
        """End it with kill -9, as a crash would; `start` brings it back."""
        if self._process is not None:
            processes.kill(self._process)

    def answers(self) -> bool:
        """Say whether it serves requests now."""
        link = http.client.HTTPConnection(processes.LOOPBACK, self.port, timeout=2)
        try:
            link.request("GET", "/ping")
            return link.getresponse().status == 200
        except OSError:
            return False
        finally:
            link.close()

    def _settled(self) -> bool:
        return not self.running or self.answers()
