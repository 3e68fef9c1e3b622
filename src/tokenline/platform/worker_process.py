"""Start and end one worker process; it has the shape of `EmbeddedKafka`."""

from __future__ import annotations

import http.client
import json
import sys
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.environment import worker_environment
from tokenline.platform.kafka_config import as_role
from tokenline.settings import PREFIX, Settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from pathlib import Path

PROGRAM = (sys.executable, "-m", "tokenline.platform.worker")


class WorkerProcess:
    """Own one worker of a role.

    Arguments:
        role: `charging`, `landing` or `notify`.
        settings: what the worker is to read from its environment; it logs in at Kafka as its role.
        log: where its output is appended.
        port: its health port.
        program: what to run; the role is its last argument.
    """

    def __init__(
        self,
        role: str,
        settings: Settings,
        log: Path,
        *,
        port: int,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.role = role
        self.log = log
        self.port = port
        self._program = program
        own = {f"{role}_health_port": port, "health_host": "127.0.0.1"}
        self._environment = worker_environment(role, as_role(settings, role).model_copy(update=own))
        self._process: subprocess.Popen[bytes] | None = None

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
        """Whether the process lives; not whether it is ready."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start it and return at once; does nothing if it runs.

        Raises:
            PortTaken: another process holds the health port.
        """
        if self.running:
            return
        variable = f"{PREFIX}{self.role.upper()}_HEALTH_PORT"
        processes.require_port(self.port, f"{self.role} health", variable)
        self._process = processes.spawn(
            [*self._program, self.role], log=self.log, env=self._environment
        )

    def start(self, timeout_s: float = 60) -> None:
        """Start it and return when it says that it is ready.

        Raises:
            PlatformError: it ended or was not ready in time; the text ends with its log.
        """
        self.spawn()
        self.await_ready(timeout_s)

    def await_ready(
        self, timeout_s: float = 60, give_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Return when a started worker says that it is ready, or `give_up` says yes.

        Raises:
            PlatformError: it ended or was not ready in time; the text ends with its log.
        """

        def settled() -> bool:
            return not self.running or self.answers() or give_up()

        if not processes.wait_for(settled, timeout_s=timeout_s, every_s=0.1):
            raise PlatformError(
                f"{self.role} was not ready within {timeout_s:.0f} s; its log {self.log} ends:\n"
                + processes.last_lines(self.log)
            )
        if not self.running:
            raise PlatformError(f"{self.role} ended:\n{processes.last_lines(self.log)}")

    def stop(self, timeout_s: float = 10) -> None:
        """End it cleanly, with SIGKILL after `timeout_s`; does nothing if it is down."""
        if self._process is not None:
            processes.end(self._process, timeout_s)

    def kill(self) -> None:
        """End it with kill -9, as a crash would; `start` brings it back."""
        if self._process is not None:
            processes.kill(self._process)

    def answers(self) -> bool:
        """Say whether it is ready: it has its partitions and has recovered their state."""
        return ask_health(self.port, "/readyz")[0] == 200


def ask_health(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a health endpoint; (0, "") if nobody answers within 2 s."""
    link = http.client.HTTPConnection(processes.LOOPBACK, port, timeout=2)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.read(65_536).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        link.close()


def in_words(text: str) -> str:
    """Return a health endpoint's answer as one short line."""
    try:
        fields = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:120]
    if not isinstance(fields, dict):
        return str(fields)[:120]
    return " ".join(
        f"{name}={_scalar(value)}" for name, value in fields.items() if value not in ([], "")
    )


def _scalar(value: object) -> object:
    """Return a mapping of numbers as their sum, a list as one text."""
    if isinstance(value, dict):
        return sum(number for number in value.values() if isinstance(number, int))
    return "; ".join(map(str, value)) if isinstance(value, list) else value
