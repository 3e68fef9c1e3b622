"""Make the workers of a stack, and wait until they are ready."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tokenline.platform.supervision import Keeper, Say
    from tokenline.settings import Settings

READY_S = 120.0
DEATHS_SEEN = 3  # of a worker that never was ready: who waits for it waits no longer


def names_of(counts: Mapping[str, int]) -> list[str]:
    """Return `charging`, `charging-2`, ... for so many workers of each role."""
    return [_name(role, number) for role, count in counts.items() for number in range(count)]


def make_workers(
    counts: Mapping[str, int],
    settings: Settings,
    logs: Path,
    program: Sequence[str],
    *,
    free_ports: bool,
) -> dict[str, WorkerProcess]:
    """Return workers by name, not started; the first of a role gets the health port of the settings."""
    workers = {}
    for role, count in counts.items():
        asked = 0 if free_ports else getattr(settings, f"{role}_health_port")
        for number in range(count):
            name, port = _name(role, number), 0 if number else asked
            workers[name] = WorkerProcess(
                role,
                settings,
                logs / f"{name}.log",
                port=port or processes.free_port(),
                program=program,
            )
    return workers


def await_all(workers: Mapping[str, WorkerProcess], say: Say, give_up: Callable[[], bool]) -> None:
    """Return when all are ready, or `give_up` says yes.

    Raises:
        PlatformError: one ended or was not ready in time.
    """
    for name, worker in workers.items():
        worker.await_ready(READY_S, give_up)
        _say_ready(name, worker, say)


def await_kept(
    workers: Mapping[str, WorkerProcess],
    keepers: Mapping[str, Keeper],
    say: Say,
    give_up: Callable[[], bool],
) -> None:
    """Return when all are ready or were given the time to be; their keepers start again what dies.

    Raises:
        PlatformError: one cannot work with these settings.
    """
    until_s = time.monotonic() + READY_S
    for name, worker in workers.items():
        keeper = keepers[name]
        left_s = max(until_s - time.monotonic(), 0)
        processes.wait_for(partial(_settled, keeper, give_up), timeout_s=left_s)
        if keeper.stopped:
            raise PlatformError(f"{name} is {keeper.note}")
        if keeper.ready:
            _say_ready(name, worker, say)
        elif not give_up():
            say(f"{name} is not ready, the others run; `tokenline status` says why")


def _settled(keeper: Keeper, give_up: Callable[[], bool]) -> bool:
    hopeless = keeper.deaths >= DEATHS_SEEN and not keeper.ready
    return keeper.ready or keeper.stopped or hopeless or give_up()


def _say_ready(name: str, worker: WorkerProcess, say: Say) -> None:
    say(f"{name:<10} ready, health on port {worker.port}")


def _name(role: str, number: int) -> str:
    return f"{role}-{number + 1}" if number else role
