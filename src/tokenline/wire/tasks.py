"""End tasks and clients in bounded time, whatever they wait for.

A cancellation may be swallowed: before Python 3.12 `asyncio.wait_for` returns what it waited for when
that comes in the same moment, and aiokafka waits so. Who then waits for the task waits for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

END_TRIES = 4
END_TRY_S = 1.5


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, again where that had no effect, and wait for their end; what they raise is dropped."""
    waiting = set(tasks)
    for _ in range(END_TRIES):
        if not waiting:
            return
        for task in waiting:
            task.add_done_callback(drop)
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=END_TRY_S)


async def try_for(work: Coroutine[Any, Any, object], within_s: float) -> None:
    """Do what may hang or fail, for so long at most; what it raises is dropped.

    Who is cancelled meanwhile ends it first: it frees what nobody else would.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(drop)
    try:
        await asyncio.wait((task,), timeout=within_s)
    except asyncio.CancelledError:
        await asyncio.wait((task,), timeout=within_s)
        raise
    finally:
        task.cancel()


def drop(task: asyncio.Future[Any]) -> None:
    """Read what a task or future raised, as one does who has no use for it."""
    if not task.cancelled():
        task.exception()
