"""Start and end the warehouse process; it has the shape of `EmbeddedKafka`."""

from __future__ import annotations

import http.client
import sys
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.environment import server_environment
from tokenline.platform.secrets import make_secrets
from tokenline.platform.warehouse import VARIABLE

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


class EmbeddedWarehouse:
    """Own one warehouse process over one data directory.

    Arguments:
        data_dir: where chDB's files and the log live; made if missing.
        port: the loopback port; 0 picks a free one and keeps it for the life of this object.
        database: the one whose views a reader may see.
        secrets_dir: where the passwords of the roles are kept; `data_dir` if not given.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        database: str = "tokenline",
        secrets_dir: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._secrets_dir = (secrets_dir or data_dir).absolute()
        self._database = database
        self.log = self.data_dir / "warehouse.log"
        self.port = port or processes.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for `Settings.clickhouse_url`; it has no credentials in it."""
        return f"http://{processes.LOOPBACK}:{self.port}"

    def password(self, role: Role) -> str:
        """Return the password of a role; drawn when it is first asked for."""
        return make_secrets(self._secrets_dir, "warehouse", Role)[role]

    def dsn(self, role: Role = Role.WRITER) -> str:
        """Return the address with a role's credentials in it."""
        return f"http://{role}:{self.password(role)}@{processes.LOOPBACK}:{self.port}"

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
        make_secrets(self._secrets_dir, "warehouse", Role)
        module = ["-m", "tokenline.platform.warehouse", "--die-with-parent"]
        place = ["--data", str(self.data_dir / "chdb"), "--port", str(self.port)]
        rights = ["--secrets", str(self._secrets_dir), "--database", self._database]
        self._process = processes.spawn(
            [sys.executable, *module, *place, *rights], log=self.log, env=server_environment()
        )
        if not processes.wait_for(self._settled, timeout_s=timeout_s):
            self.kill()
            raise PlatformError(f"the warehouse did not answer within {timeout_s:.0f} s")
        if not self.running:
            raise PlatformError(processes.last_lines(self.log, 1) or "the warehouse ended")

    def show(self, database: str) -> None:
        """Let readers see the views of this database; if it runs for another, it is started again.

        Raises:
            PlatformError: as `start`.
        """
        if database == self._database:
            return
        self._database = database
        if self.running:
            self.stop()
            self.start()

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
