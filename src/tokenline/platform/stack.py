"""Supervise the embedded line: broker, warehouse, charging, landing and, if it has a webhooks file, notify workers.

`up` is the command; tests and the demo hold a `Stack`. Every process ends with the supervisor.
A component that dies is started again, for ever and with pauses that grow; the others keep running.
"""

from __future__ import annotations

import shutil
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

from tokenline.errors import NotRunning, PlatformError, TokenlineError
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.books import database_of
from tokenline.platform.crew import READY_S, await_all, await_kept, make_workers, names_of
from tokenline.platform.kafka import VARIABLE as KAFKA_VARIABLE
from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.kafka_config import ADMIN, as_role
from tokenline.platform.stack_file import (
    FILE,
    ComponentStatus,
    Seen,
    StackFile,
    down,
    find_stack,
    logs_of,
    see,
    status,
    storable,
)
from tokenline.platform.stdio import unfailing
from tokenline.platform.supervision import SERVER_READY_S, Keeper, Supervision
from tokenline.platform.warehouse import VARIABLE as WAREHOUSE_VARIABLE
from tokenline.platform.warehouse import loopback_port
from tokenline.platform.warehouse_process import EmbeddedWarehouse
from tokenline.platform.worker_process import PROGRAM, WorkerProcess

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import FrameType, TracebackType
    from typing import IO

    from tokenline.platform.supervision import Component, Say
    from tokenline.settings import Settings

__all__ = ["ComponentStatus", "Stack", "down", "find_stack", "status", "up"]

DISK_BYTES_MIN = 1 << 30
LOOK_S = 1.0
WORKER_GRACE_S = 8.0
SERVER_GRACE_S = 5.0


class Stack:
    """Own the processes of one embedded line.

    Once started, `settings` log in as an operator; `as_role` gives those of another role.

    Arguments:
        settings: ports, topics and behaviour; the servers' addresses must be loopback.
        data_dir: where everything is kept; a second stack on it is refused.
        free_ports: pick free ports instead of those in `settings`.
        charging_workers: processes of that role; only the first has the settings' health port.
        landing_workers: as `charging_workers`.
        new_line: if Kafka was lost and made again, go on beside the old line's books (see `platform.books`).
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
        new_line: bool = False,
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
        self._new_line = new_line
        self._supervise = supervise
        self._say = unfailing(say)
        self._worker_program = tuple(worker_program)
        self._components: dict[str, Component] = {}
        self._supervision: Supervision | None = None
        self._asked_to_stop = threading.Event()
        self._held: IO[str] | None = None
        self._started = False
        self._writing = threading.Lock()
        self._written = True
        self._workers_began = False

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
        self._start(self._await_workers)

    def _start(
        self, await_workers: Callable[[dict[str, WorkerProcess], Supervision], None]
    ) -> None:
        self._held = processes.hold(self.data_dir, "stack")
        try:
            for pid in processes.end_orphans(logs_of(self.data_dir)):
                self._say(f"ended process {pid}, which a dead stack had left")
            _require_room(self.data_dir)
            self._write_file()
            for step in (self._start_servers, self._prepare):
                step()
                self._go_on()
                self._write_file()
            workers = self._start_workers()
            self._supervision = Supervision(self._components, self._say, self._write_file)
            await_workers(workers, self._supervision)
            self._go_on()
        except BaseException:
            self.stop()
            raise
        self._started = True
        self._write_file()

    def stop(self) -> None:
        """End everything, workers first; at most about 15 s, then by SIGKILL."""
        if self._supervision is not None:
            self._supervision.stop()
            self._supervision = None
        workers = [one for one in self._components.values() if isinstance(one, WorkerProcess)]
        servers = [one for one in self._components.values() if one not in workers]
        processes.together([partial(one.stop, WORKER_GRACE_S) for one in workers])
        processes.together([partial(one.stop, SERVER_GRACE_S) for one in servers])
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
            PlatformError: as `start`, except that a worker that does not become ready ends nothing: it is
                told, and tried again.
        """
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            self._start_unless_asked_to_stop()
            while not self._asked_to_stop.wait(LOOK_S):
                if not self._written:
                    self._write_file()
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

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
        keeper = self._keeper(name)
        with keeper.lock:
            keeper.wanted = restart
            self.component(name).kill()

    def start_component(self, name: str, timeout_s: float = READY_S) -> None:
        """Start a component that is down and return when it is ready."""
        keeper = self._keeper(name)
        with keeper.lock:
            self.component(name).start(timeout_s)
            keeper.wanted = True
        self._write_file()

    def status(self) -> list[ComponentStatus]:
        """Look at each component."""
        return status(self.data_dir)

    def _keeper(self, name: str) -> Keeper:
        if self._supervision is None:
            raise NotRunning("the stack was not started")
        self.component(name)
        return self._supervision.keepers[name]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Ask for an orderly stop; asked twice, kill."""
        again = self._asked_to_stop.is_set()
        self._asked_to_stop.set()
        for component in list(self._components.values()):
            if component.running and component.process is not None:
                if again:
                    component.process.kill()
                elif not self._workers_began:
                    component.process.terminate()  # else a server that starts would be waited for

    def _start_unless_asked_to_stop(self) -> None:
        try:
            self._start(self._keep_workers)
        except TokenlineError:
            if not self._asked_to_stop.is_set():
                raise

    def _go_on(self) -> None:
        if self._asked_to_stop.is_set():
            raise PlatformError("asked to stop while starting")

    def _start_servers(self) -> None:
        kafka_port = (
            0 if self._free_ports else loopback_port(self.settings.kafka_bootstrap, KAFKA_VARIABLE)
        )
        warehouse_port = (
            0
            if self._free_ports
            else loopback_port(self.settings.clickhouse_url, WAREHOUSE_VARIABLE)
        )
        kafka = EmbeddedKafka(self.data_dir / "kafka", kafka_port, secrets_dir=self.data_dir)
        warehouse = EmbeddedWarehouse(
            self.data_dir / "warehouse",
            warehouse_port,
            database=database_of(self.data_dir, self.settings.clickhouse_database),
            secrets_dir=self.data_dir,
        )
        self._components = {"kafka": kafka, "warehouse": warehouse}
        if not kafka.prepared:
            self._say("fetching Kafka, once for this user: 43 MB, about half a minute")
        self._say(f"starting broker and warehouse in {self.data_dir}")
        processes.together([partial(one.start, SERVER_READY_S) for one in (kafka, warehouse)])
        self.settings = self.settings.model_copy(
            update={
                **kafka.access("operator"),
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
        """Make topics and tables; servers that have only just begun to answer may need a moment more."""
        from tokenline.platform.books import in_its_database  # noqa: PLC0415  loads the servers' clients
        from tokenline.platform.prepare import patiently, prepare  # noqa: PLC0415  as above

        def step(warehouse: EmbeddedWarehouse) -> None:
            self.settings = in_its_database(settings, self._say, new_line=self._new_line)
            warehouse.show(self.settings.clickhouse_database)
            prepare(as_role(self.settings, ADMIN), self._say, rights=True)

        settings, found = self.settings, self._components["warehouse"]
        assert isinstance(found, EmbeddedWarehouse)  # noqa: S101  made as one
        patiently(partial(step, found), self._asked_to_stop.is_set)

    def _start_workers(self) -> dict[str, WorkerProcess]:
        workers = make_workers(
            self._workers,
            self.settings,
            self.data_dir / "logs",
            self._worker_program,
            free_ports=self._free_ports,
        )
        first = {role: workers[role] for role in self._workers if role in workers}
        ports = {f"{role}_health_port": worker.port for role, worker in first.items()}
        self.settings = self.settings.model_copy(update=ports)
        self._workers_began = True
        self._components |= workers
        for worker in workers.values():
            worker.spawn()
        self._write_file()
        return workers

    def _await_workers(self, workers: dict[str, WorkerProcess], supervision: Supervision) -> None:
        """Return when all are ready, and then begin to keep everything running."""
        await_all(workers, self._say, self._asked_to_stop.is_set)
        if self._supervise:
            supervision.start()

    def _keep_workers(self, workers: dict[str, WorkerProcess], supervision: Supervision) -> None:
        """Keep everything running at once, and return when all are ready or had the time to be."""
        supervision.start()
        await_kept(workers, supervision.keepers, self._say, self._asked_to_stop.is_set)

    def _write_file(self) -> None:
        """Tell other commands how things stand; on a full disk they are told later."""
        with self._writing:
            seen = {name: self._see(name) for name in (*self._planned(), *self._components)}
            file = StackFile(tuple(seen.values()), storable(self.settings), self._started)
            before, self._written = self._written, True
            try:
                file.write(self.data_dir)
            except PlatformError as error:
                self._written = False
                if before:
                    self._say(str(error))

    def _see(self, name: str) -> Seen:
        component = self._components.get(name)
        if component is None or component.process is None:
            return see(name, None)
        note = self._supervision.keepers[name].note if self._supervision else ""
        return see(name, component.process.pid, component.port, note)

    def _planned(self) -> list[str]:
        """Return the names of all components, started or not."""
        return ["kafka", "warehouse", *names_of(self._workers)]


def up(
    settings: Settings,
    data_dir: Path,
    *,
    free_ports: bool = False,
    charging_workers: int = 1,
    landing_workers: int = 1,
    new_line: bool = False,
    say: Say = print,
) -> None:
    """Run the embedded line in the foreground until SIGINT or SIGTERM.

    Raises:
        PlatformError: it could not start.
    """
    Stack(
        settings,
        data_dir,
        free_ports=free_ports,
        charging_workers=charging_workers,
        landing_workers=landing_workers,
        new_line=new_line,
        say=say,
    ).run()


def _require_room(data_dir: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < DISK_BYTES_MIN:
        raise PlatformError(f"only {free >> 20} MiB are free at {data_dir}; 1024 MiB are needed")
