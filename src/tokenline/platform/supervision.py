"""Look after the components of a stack: start again what dies, end what makes no progress."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError, TokenlineError
from tokenline.platform import processes
from tokenline.platform.restarts import Restarts
from tokenline.platform.worker_process import WorkerProcess, ask_health

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenline.platform.kafka import EmbeddedKafka
    from tokenline.platform.warehouse_process import EmbeddedWarehouse

    Component = EmbeddedKafka | EmbeddedWarehouse | WorkerProcess
    Say = Callable[[str], None]

LOOK_S = 0.25
HEALTH_EVERY_S = 5.0
STALLS_MAX = 3
SILENCES_MAX = 24  # two minutes; a worker that loads a large state answers all the while
JOIN_S = 35.0
EXIT_POISONED = 65  # streams.app: code or schema is bad, starting again will not help


class Supervision:
    """Watch components from a thread of its own.

    `lock` keeps it from acting while somebody else changes a component.

    Arguments:
        components: what to watch, by name.
        say: takes one line for people.
        changed: called after a component was started again.
    """

    def __init__(
        self, components: dict[str, Component], say: Say, changed: Callable[[], None]
    ) -> None:
        self.lock = threading.RLock()
        self.failure: TokenlineError | None = None
        self._components = components
        self._wanted = set(components)
        self._say = say
        self._changed = changed
        self._restarts = {name: Restarts(time.monotonic) for name in components}
        self._stalls: dict[str, tuple[str, int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervision", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; returns when the last action has ended."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def want(self, name: str, wanted: bool) -> None:
        """Say whether a component is to be started again when it dies."""
        if wanted:
            self._wanted.add(name)
        else:
            self._wanted.discard(name)

    def _watch(self) -> None:
        next_health_s = time.monotonic() + HEALTH_EVERY_S
        try:
            while not self._stopping.wait(LOOK_S):
                with self.lock:
                    self._revive()
                    if time.monotonic() >= next_health_s:
                        self._end_stalled()
                        next_health_s = time.monotonic() + HEALTH_EVERY_S
        except TokenlineError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  the thread's edge: it must never die unseen
            self.failure = PlatformError(f"the supervisor failed: {error!r}")

    def _revive(self) -> None:
        """Start again what died, each when its wait is over."""
        for name in [name for name in self._components if name in self._wanted]:
            component, restarts = self._components[name], self._restarts[name]
            if component.running:
                continue
            if not restarts.noted:
                self._note_death(name, component, restarts)
            if restarts.due:
                restarts.started()
                self._start_again(name, component)

    def _note_death(self, name: str, component: Component, restarts: Restarts) -> None:
        code = component.process.poll() if component.process else None
        wait_s = restarts.died()
        if restarts.hopeless or code == EXIT_POISONED:
            raise PlatformError(
                f"{name} ended with code {code}, {restarts.count} times in the last minute; "
                f"its log {component.log} ends:\n" + processes.last_lines(component.log)
            )
        self._say(f"{name} ended with code {code}; starting it again in {wait_s:.1f} s")

    def _start_again(self, name: str, component: Component) -> None:
        self._stalls.pop(name, None)
        try:
            if isinstance(component, WorkerProcess):
                component.spawn()  # it becomes ready in its own time
            else:
                component.start(30)
        except PlatformError as error:
            self._say(f"{name} did not start: {error}")
        self._changed()

    def _end_stalled(self) -> None:
        """End a worker that says it makes no progress, or that says nothing for two minutes.

        While a server is away that is nobody's fault but the server's.
        """
        servers = [one for one in self._components.values() if not isinstance(one, WorkerProcess)]
        if not all(server.running and server.answers() for server in servers):
            self._stalls.clear()
            return
        for name in self._wanted:
            component = self._components[name]
            if isinstance(component, WorkerProcess) and component.running:
                self._count_stall(name, component)

    def _count_stall(self, name: str, worker: WorkerProcess) -> None:
        status = ask_health(worker.port, "/healthz")[0]
        kind = {0: "silent", 503: "stalled"}.get(status)
        before, count = self._stalls.pop(name, ("", 0))
        if kind is None:
            return
        count = count + 1 if kind == before else 1
        self._stalls[name] = (kind, count)
        if count >= (STALLS_MAX if kind == "stalled" else SILENCES_MAX):
            why = "has lag and makes no progress" if kind == "stalled" else "does not answer"
            self._say(f"{name} {why}: ending it")
            worker.kill()
