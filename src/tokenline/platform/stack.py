"""Supervise the embedded line: broker, warehouse, charging, landing and, if it has a webhooks file, notify workers.

`up` is the command; tests and the demo hold a `Stack`. Every process ends with the supervisor.
A component that dies is started again; one that dies five times in a minute ends the stack.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tokenline.errors import NotRunning, PlatformError, SettingsError, TokenlineError
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.kafka import VARIABLE as KAFKA_VARIABLE
from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.stack_file import (
    FILE,
    ComponentStatus,
    Seen,
    StackFile,
    down,
    find_stack,
    see,
    status,
    storable,
)
from tokenline.platform.supervision import Supervision
from tokenline.platform.warehouse import VARIABLE as WAREHOUSE_VARIABLE
from tokenline.platform.warehouse import is_loopback
from tokenline.platform.warehouse_process import EmbeddedWarehouse
from tokenline.platform.worker_process import PROGRAM, WorkerProcess

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType, TracebackType
    from typing import IO

    from tokenline.platform.supervision import Component, Say
    from tokenline.settings import Settings

__all__ = ["ComponentStatus", "Stack", "down", "find_stack", "status", "up"]

DISK_BYTES_MIN = 1 << 30
LOOK_S = 0.25
READY_S = 120.0
WORKER_GRACE_S = 8.0
SERVER_GRACE_S = 5.0


class Stack:
    """Own the processes of one embedded line.

    Arguments:
        settings: ports, topics and behaviour; the servers' addresses must be loopback.
        data_dir: where everything is kept; a second stack on it is refused.
        free_ports: pick free ports instead of those in `settings`.
        charging_workers: processes of that role; only the first has the settings' health port.
        landing_workers: as `charging_workers`.
        supervise: start again what dies, from a thread; else only `start_component` does.
        say: takes one line for people at each change.
        worker_program: what runs a worker; the role is appended.
    """

    def __init__(
        self,
        settings: Settings,
        data_dir: Path,
        *,
        free_ports: bool = False,
        charging_workers: int = 1,
        landing_workers: int = 1,
        supervise: bool = True,
        say: Say = print,
        worker_program: Sequence[str] = PROGRAM,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.settings = settings
        self._free_ports = free_ports
        self._workers = {"charging": charging_workers, "landing": landing_workers}
        if settings.webhooks_file is not None:
            self._workers["notify"] = 1
        self._supervise = supervise
        self._say = say
        self._worker_program = tuple(worker_program)
        self._components: dict[str, Component] = {}
        self._supervision: Supervision | None = None
        self._asked_to_stop = threading.Event()
        self._held: IO[str] | None = None
        self._started = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and return when all of it is ready.

        Raises:
            PortTaken: a port is taken; the text names holder and variable.
            NoJava: no Java runtime was found.
            PlatformError: no room on the disk, the data is in use, or a component did not start.
        """
        self._held = processes.hold(self.data_dir, "stack")
        try:
            _require_room(self.data_dir)
            self._write_file()
            for step in (self._start_servers, self._prepare, self._start_workers):
                step()
                self._go_on()
                self._write_file()
        except BaseException:
            self.stop()
            raise
        self._started = True
        self._write_file()
        self._supervision = Supervision(self._components, self._say, self._write_file)
        if self._supervise:
            self._supervision.start()

    def stop(self) -> None:
        """End everything, workers first; at most about 15 s, then by SIGKILL."""
        if self._supervision is not None:
            self._supervision.stop()
            self._supervision = None
        workers = [one for one in self._components.values() if isinstance(one, WorkerProcess)]
        servers = [one for one in self._components.values() if one not in workers]
        _together([partial(one.stop, WORKER_GRACE_S) for one in workers])
        _together([partial(one.stop, SERVER_GRACE_S) for one in servers])
        if self._components:
            self._say("stopped")
        self._components = {}
        self._started = False
        # Who never held the directory may not take the file of the stack that does.
        if self._held is not None:
            (self.data_dir / FILE).unlink(missing_ok=True)
            self._held.close()
            self._held = None

    def run(self) -> None:
        """Start, watch until SIGINT or SIGTERM, stop; a second signal kills at once.

        Call it from the main thread.

        Raises:
            PlatformError: as `start`, or a component died five times in a minute.
        """
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            self._start_unless_asked_to_stop()
            while not self._asked_to_stop.wait(LOOK_S) and self.failure is None:
                pass
            failure = self.failure
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        if failure is not None:
            raise failure

    @property
    def failure(self) -> TokenlineError | None:
        """Why the supervisor gave up, if it did."""
        return self._supervision.failure if self._supervision else None

    def component(self, name: str) -> Component:
        """Return `kafka`, `warehouse`, `charging`, `charging-2`, ...

        Raises:
            NotRunning: there is none of that name.
        """
        try:
            return self._components[name]
        except KeyError:
            known = ", ".join(self._components) or "none"
            raise NotRunning(f"no component {name}; there are: {known}") from None

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return the process of a component that was started."""
        process = self.component(name).process
        if process is None:
            raise NotRunning(f"{name} was not started")
        return process

    def kill(self, name: str, *, restart: bool = False) -> None:
        """End a component with kill -9; the supervisor brings it back only if `restart`."""
        with self._watched() as supervision:
            supervision.want(name, restart)
            self.component(name).kill()

    def start_component(self, name: str, timeout_s: float = READY_S) -> None:
        """Start a component that is down and return when it is ready."""
        with self._watched() as supervision:
            self.component(name).start(timeout_s)
            supervision.want(name, wanted=True)
            self._write_file()

    def status(self) -> list[ComponentStatus]:
        """Look at each component."""
        return status(self.data_dir)

    @contextmanager
    def _watched(self) -> Iterator[Supervision]:
        """Keep the supervisor still while somebody else changes a component."""
        if self._supervision is None:
            raise NotRunning("the stack was not started")
        with self._supervision.lock:
            yield self._supervision

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Ask for an orderly stop; asked twice, kill."""
        if self._asked_to_stop.is_set():
            for component in list(self._components.values()):
                if component.running and component.process is not None:
                    component.process.kill()
        self._asked_to_stop.set()

    def _start_unless_asked_to_stop(self) -> None:
        try:
            self.start()
        except TokenlineError:
            if not self._asked_to_stop.is_set():
                raise

    def _go_on(self) -> None:
        if self._asked_to_stop.is_set():
            raise PlatformError("asked to stop while starting")

    def _start_servers(self) -> None:
        kafka_port = 0 if self._free_ports else _port(self.settings.kafka_bootstrap, KAFKA_VARIABLE)
        warehouse_port = (
            0 if self._free_ports else _port(self.settings.clickhouse_url, WAREHOUSE_VARIABLE)
        )
        kafka = EmbeddedKafka(self.data_dir / "kafka", kafka_port)
        warehouse = EmbeddedWarehouse(
            self.data_dir / "warehouse",
            warehouse_port,
            database=self.settings.clickhouse_database,
            secrets_dir=self.data_dir,
        )
        self._components = {"kafka": kafka, "warehouse": warehouse}
        if not kafka.prepared:
            self._say("fetching Kafka, once for this user: 43 MB, about half a minute")
        self._say(f"starting broker and warehouse in {self.data_dir}")
        _together([kafka.start, warehouse.start])
        self.settings = self.settings.model_copy(
            update={
                "kafka_bootstrap": kafka.bootstrap,
                "kafka_security": "PLAINTEXT",
                "clickhouse_url": warehouse.url,
                "clickhouse_username": Role.WRITER,
                "clickhouse_password": warehouse.password(Role.WRITER),
                "clickhouse_cluster": "",
                "data_dir": self.data_dir,
            }
        )
        self._say(f"kafka      {kafka.bootstrap}")
        self._say(f"warehouse  {warehouse.url}")

    def _prepare(self) -> None:
        from tokenline.platform.prepare import prepare  # noqa: PLC0415  loads the servers' clients

        prepare(self.settings, self._say)

    def _start_workers(self) -> None:
        workers = {
            name: worker for role in self._workers for name, worker in self._workers_of(role)
        }
        first = {role: workers[role].port for role in self._workers if role in workers}
        ports = {f"{role}_health_port": port for role, port in first.items()}
        self.settings = self.settings.model_copy(update=ports)
        self._components |= workers
        for worker in workers.values():
            worker.spawn()
        self._write_file()
        for name, worker in workers.items():
            worker.await_ready(READY_S, self._asked_to_stop.is_set)
            self._say(f"{name:<10} ready, health on port {worker.port}")

    def _workers_of(self, role: str) -> list[tuple[str, WorkerProcess]]:
        asked = getattr(self.settings, f"{role}_health_port")
        workers = []
        for number in range(self._workers[role]):
            name = _name(role, number)
            port = asked if number == 0 and asked and not self._free_ports else 0
            worker = WorkerProcess(
                role,
                self.settings,
                self.data_dir / "logs" / f"{name}.log",
                port=port or processes.free_port(),
                program=self._worker_program,
            )
            workers.append((name, worker))
        return workers

    def _write_file(self) -> None:
        seen = {name: self._see(name) for name in (*self._planned(), *self._components)}
        own = see("supervisor", os.getpid())
        file = StackFile(own, tuple(seen.values()), storable(self.settings), self._started)
        file.write(self.data_dir)

    def _see(self, name: str) -> Seen:
        component = self._components.get(name)
        if component is None or component.process is None:
            return see(name, None)
        return see(name, component.process.pid, component.port)

    def _planned(self) -> list[str]:
        """Return the names of all components, started or not."""
        workers = [
            _name(role, one) for role, count in self._workers.items() for one in range(count)
        ]
        return ["kafka", "warehouse", *workers]


def up(
    settings: Settings,
    data_dir: Path,
    *,
    free_ports: bool = False,
    charging_workers: int = 1,
    landing_workers: int = 1,
    say: Say = print,
) -> None:
    """Run the embedded line in the foreground until SIGINT or SIGTERM.

    Raises:
        PlatformError: it could not start, or a component died five times in a minute.
    """
    Stack(
        settings,
        data_dir,
        free_ports=free_ports,
        charging_workers=charging_workers,
        landing_workers=landing_workers,
        say=say,
    ).run()


def _name(role: str, number: int) -> str:
    """Return `charging`, `charging-2`, ..."""
    return f"{role}-{number + 1}" if number else role


def _together(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs at the same time, let all end, then raise the first error."""
    if not jobs:
        return
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
    for future in futures:
        future.result()


def _require_room(data_dir: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < DISK_BYTES_MIN:
        raise PlatformError(f"only {free >> 20} MiB are free at {data_dir}; 1024 MiB are needed")


def _port(address: str, variable: str) -> int:
    """Return the port of a loopback address."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if port is None or not is_loopback(parts.hostname or ""):
        raise SettingsError(
            f"{variable}={address!r}: `up` runs its own servers; this must be loopback with a port"
        )
    return port
