"""Start the gateway processes, listen to what they say, and end them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from tokenline.errors import PlatformError
from tokenline.platform.kafka_config import as_role
from tokenline.platform.processes import tied

if TYPE_CHECKING:
    from tokenline.demo.run import DemoOptions
    from tokenline.settings import Settings

GRACE_S = 30.0


class Crowd:
    """Own the gateway processes of one demo."""

    def __init__(self, settings: Settings, gateways: int, options: DemoOptions) -> None:
        self._environment = {**os.environ, **as_role(settings, "gateway").to_env()}
        self._logs = Path(settings.data_dir) / "logs"
        self._names = [f"gw-{number}" for number in range(1, gateways + 1)]
        self._argv = [str(options.rate / gateways), str(options.seconds), str(options.accounts)]
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._listeners: list[threading.Thread] = []
        self._last: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        for name in self._names:
            self._launch(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            process.wait(GRACE_S)

    @property
    def running(self) -> bool:
        """Say whether a gateway still works.

        Raises:
            PlatformError: one ended with an error; the text ends with its log.
        """
        for name, process in self._processes.items():
            if process.poll():
                raise PlatformError(
                    f"gateway {name} ended with {process.returncode}: {self._log_end(name)}"
                )
        return any(process.poll() is None for process in self._processes.values())

    def wait(self, seconds: float) -> None:
        """Wait a moment, or until all are done."""
        working = [listener for listener in self._listeners if listener.is_alive()]
        for listener in working:
            listener.join(seconds / len(working))

    def kill_one(self, rng: random.Random) -> str:
        """End one gateway with kill -9 and start it again on the same outbox; return its name."""
        name = rng.choice(self._names)
        process = self._processes[name]
        process.kill()
        process.wait(GRACE_S)
        self._launch(name)
        return name

    def stop_calling(self) -> None:
        """Let every gateway end its calls and flush, as on SIGTERM.

        Raises:
            PlatformError: one did not end in time.
        """
        for process in self._processes.values():
            process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                raise PlatformError(f"gateway {name} did not end: {self._log_end(name)}") from None

    def counts(self) -> dict[str, int]:
        """Return the sum of what all gateways count."""
        lines = list(self._last.values())
        names = {name for line in lines for name, value in line.items() if isinstance(value, int)}
        return {name: sum(int(line.get(name, 0)) for line in lines) for name in names}

    def finals(self) -> list[Mapping[str, Any]]:
        """Return the last word of each gateway.

        Raises:
            PlatformError: one ended without it.
        """
        for listener in self._listeners:
            listener.join(GRACE_S)
        silent = [name for name in self._names if not self._last.get(name, {}).get("final")]
        if silent:
            raise PlatformError(
                f"gateway {silent[0]} gave no final count: {self._log_end(silent[0])}"
            )
        return [self._last[name] for name in self._names]

    def _launch(self, name: str) -> None:
        with (self._logs / f"{name}.log").open("a", encoding="utf-8") as log:
            process = self._processes[name] = self._start(name, log)
        listener = threading.Thread(target=self._listen, args=(name, process.stdout), daemon=True)
        listener.start()
        self._listeners.append(listener)

    def _start(self, name: str, log: IO[str]) -> subprocess.Popen[str]:
        """Start one that ends with us; call it on the main thread only, which outlives the crowd."""
        return subprocess.Popen(
            tied([sys.executable, "-m", "tokenline.demo.gateway", name, *self._argv]),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # A Ctrl-C on the terminal is for the demo alone.
            start_new_session=True,
        )

    def _listen(self, name: str, lines: IO[str] | None) -> None:
        for line in lines or ():
            if line.startswith("{"):
                self._last[name] = json.loads(line)

    def _log_end(self, name: str) -> str:
        return (
            (self._logs / f"{name}.log")
            .read_text(encoding="utf-8", errors="replace")[-600:]
            .strip()
        )
