"""Look after the components of a stack: start again what dies, end what makes no progress.

Each component has a keeper with a thread of its own, so that one that starts slowly, or never, keeps
nobody else waiting. A keeper never gives up, except on a wrong setting; see `platform.restarts`.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.restarts import Restarts
from tokenline.platform.worker_process import WorkerProcess, ask_health

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenline.platform.kafka import EmbeddedKafka
    from tokenline.platform.warehouse_process import EmbeddedWarehouse

    Component = EmbeddedKafka | EmbeddedWarehouse | WorkerProcess
    Say = Callable[[str], None]

LOOK_S = 0.25
HEALTH_EVERY_S = 5.0
STALLS_MAX = 3
SILENCES_MAX = 24  # two minutes; a worker that loads a large state answers all the while
JOIN_S = 35.0
# A broker that reads back a large log, or a warehouse with many parts, takes minutes and is not dead.
SERVER_READY_S = 600.0
EXIT_SETTINGS = 2  # a setting is wrong: starting again gives the same
REASON_CHARS = 200
LITTLE_ROOM_BYTES = 64 << 20


class Keeper:
    """Keep one component running.

    `lock` keeps it from acting while somebody else changes the component.

    Arguments:
        name: what people call it.
        say: takes one line for people.
        changed: called when what `note` or `ready` says is another.
        servers_answer: says whether all servers do; a worker that stalls meanwhile is not at fault.
    """

    def __init__(
        self,
        name: str,
        component: Component,
        say: Say,
        changed: Callable[[], None],
        servers_answer: Callable[[], bool],
    ) -> None:
        self.lock = threading.RLock()
        self.wanted = True
        self.stopped = False
        self._name = name
        self._component = component
        self._say = say
        self._changed = changed
        self._servers_answer = servers_answer
        self._restarts = Restarts(time.monotonic)
        self._stalls = ("", 0)
        self._last_exit = ""
        self._next_health_s = 0.0
        self._starting = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"keeper-{name}", daemon=True)

    @property
    def deaths(self) -> int:
        """How often it died."""
        return self._restarts.deaths

    @property
    def ready(self) -> bool:
        """Whether it was seen ready since it was started last."""
        return self._restarts.ready

    @property
    def note(self) -> str:
        """What there is to say of its deaths, empty if nothing."""
        if self.stopped:
            return f"stopped, {self._last_exit}; mend that, then start the stack again"
        if not self._restarts.deaths:
            return ""
        times = f"died {self._restarts.deaths} times, last {self._last_exit}"
        return times if self.ready else f"restarting, {times}"

    def start(self) -> None:
        """Begin to keep it."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Start nothing any more."""
        self._stopping.set()

    def join(self) -> None:
        """Return when the last action has ended; a server that is starting is asked to end."""
        until_s = time.monotonic() + JOIN_S
        while self._thread.is_alive() and time.monotonic() < until_s:
            if self._starting and self._component.process is not None:
                self._component.process.terminate()
            self._thread.join(LOOK_S)

    def look(self) -> None:
        """Do what is due now."""
        if self.wanted and not self.stopped and not self._component.running:
            self._revive()
        elif self._component.running:
            self._look_at_health()

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                with self.lock:
                    self.look()
            except Exception as error:  # noqa: BLE001  the thread's edge: it must never end
                self._say(f"{self._name} cannot be looked after: {error!r}")
                self._stopping.wait(HEALTH_EVERY_S)

    def _revive(self) -> None:
        """Start it again when its wait is over."""
        if not self._restarts.noted:
            self._note_death()
        elif self._restarts.due:
            self._restarts.started()
            self._start_again()

    def _note_death(self) -> None:
        code = self._component.process.poll() if self._component.process else None
        self._last_exit = _exit_in_words(code, self._component.log) + _room_in_words(
            self._component.log.parent
        )
        wait_s = self._restarts.died()
        self.stopped = code == EXIT_SETTINGS
        if self.stopped:
            self._say(f"{self._name} is {self.note}")
        else:
            self._say(f"{self._name} ended: {self._last_exit}; starting it again in {wait_s:.1f} s")
        self._changed()

    def _start_again(self) -> None:
        self._stalls = ("", 0)
        self._starting = not isinstance(self._component, WorkerProcess)
        try:
            if isinstance(self._component, WorkerProcess):
                self._component.spawn()  # it becomes ready in its own time
            else:
                self._component.start(SERVER_READY_S)
        except (PlatformError, OSError) as error:
            if not self._stopping.is_set():
                # The rest of it is in the log.
                self._say(f"{self._name} did not start: {str(error).splitlines()[0]}")
        finally:
            self._starting = False
        self._changed()

    def _look_at_health(self) -> None:
        if not self.ready and self._component.answers():
            self._restarts.became_ready()
            self._changed()
        if time.monotonic() >= self._next_health_s:
            self._next_health_s = time.monotonic() + HEALTH_EVERY_S
            self._count_stall(self._trouble())

    def _trouble(self) -> str:
        """Return `silent`, `stalled` or nothing; while a server is away that is no worker's fault."""
        component = self._component
        if not isinstance(component, WorkerProcess):
            return "" if component.answers() else "silent"
        if not self._servers_answer():
            return ""
        return {0: "silent", 503: "stalled"}.get(ask_health(component.port, "/healthz")[0], "")

    def _count_stall(self, trouble: str) -> None:
        """End what says that it makes no progress, or says nothing for two minutes."""
        before, count = self._stalls
        count = count + 1 if trouble == before else 1
        self._stalls = (trouble, count)
        if trouble and count >= (STALLS_MAX if trouble == "stalled" else SILENCES_MAX):
            why = "has lag and makes no progress" if trouble == "stalled" else "does not answer"
            self._say(f"{self._name} {why}: ending it")
            self._component.kill()


class Supervision:
    """Keep all components of a stack running, each with a keeper of its own."""

    def __init__(
        self, components: dict[str, Component], say: Say, changed: Callable[[], None]
    ) -> None:
        self._components = components
        self.keepers = {
            name: Keeper(name, component, say, changed, self._servers_answer)
            for name, component in components.items()
        }

    def start(self) -> None:
        """Begin to keep them."""
        for keeper in self.keepers.values():
            keeper.start()

    def stop(self) -> None:
        """Start nothing any more; returns when the last action has ended."""
        for keeper in self.keepers.values():
            keeper.ask_to_stop()
        for keeper in self.keepers.values():
            keeper.join()

    def _servers_answer(self) -> bool:
        servers = [one for one in self._components.values() if not isinstance(one, WorkerProcess)]
        return all(server.running and server.answers() for server in servers)


def _exit_in_words(code: int | None, log: Path) -> str:
    """Return how a process ended, with the last line of its log unless it was killed."""
    if code is None:
        return "exit unknown"
    if code < 0:
        return f"exit {code} ({signal.Signals(-code).name})"
    reason = processes.last_lines(log, 1).strip()[:REASON_CHARS]
    return f"exit {code}: {reason}" if reason else f"exit {code}"


def _room_in_words(folder: Path) -> str:
    """Return that a disk is full, which no log on it can tell; nothing if it is not."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" (only {free >> 20} MiB are free at {folder})" if free < LITTLE_ROOM_BYTES else ""
