"""What waits for a client that is gone ends in bounded time."""

from __future__ import annotations

import asyncio
import time

import pytest

from tokenline import Emitter, Settings
from tokenline.wire import tasks as tasks_module
from tokenline.wire.tasks import end_tasks, try_for


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(tasks_module, "END_TRY_S", 0.05)


async def swallow(times):
    """Wait on, as one who loses a cancellation does."""
    while times:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            times -= 1


async def test_a_task_that_loses_a_cancellation_is_cancelled_again():
    task = asyncio.create_task(swallow(2))
    await asyncio.sleep(0)
    await end_tasks([task])
    assert task.done()


async def test_a_task_that_never_ends_is_waited_for_in_vain_and_not_for_ever():
    task = asyncio.create_task(swallow(100))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_tasks([task])
    assert not task.done()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


async def test_what_fails_or_hangs_is_tried_for_a_while_and_raises_nothing():
    async def fails():
        raise KeyError

    await try_for(fails(), 1)
    async with asyncio.timeout(5):
        await try_for(swallow(1), 0.01)


async def test_who_is_cancelled_while_something_is_freed_frees_it_first():
    freed = []

    async def free():
        await asyncio.sleep(0.02)
        freed.append(1)

    task = asyncio.create_task(try_for(free(), 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert freed == [1]


@pytest.mark.parametrize("wait_s", [0, 0.005, 0.05])
async def test_an_emitter_whose_broker_is_nowhere_closes_at_once(tmp_path, wait_s):
    """It never did when it was closed in the moment in which the broker refused it."""
    settings = Settings(kafka_bootstrap="127.0.0.1:1", data_dir=tmp_path)
    for number in range(3):
        sender = Emitter(
            settings, source="s", gateway_id=f"g{number}", on_outage="spool", close_ms=10
        )
        await sender.start()
        await asyncio.sleep(wait_s)
        began = time.monotonic()
        await sender.close()
        assert time.monotonic() - began < 3
