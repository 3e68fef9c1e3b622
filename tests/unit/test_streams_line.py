"""A line that ends lets go of whoever waits before it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from streams.charging import ChargingWorker
from streams.line import INBOX_CHUNKS, PartitionLine
from tests.strategies import BOUNDS


class Opening(PartitionLine):
    async def _open(self):
        await asyncio.Event().wait()


async def test_a_line_that_is_stopped_with_a_full_inbox_frees_the_agent():
    worker = SimpleNamespace(
        settings=SimpleNamespace(),
        journal=None,
        producer=None,
        codec=None,
        columns=None,
        bounds=BOUNDS,
        lines={},
        fatal=None,
    )
    line = worker.lines[0] = Opening(worker, 0)
    line.start()

    async def deliver():
        for offset in range(INBOX_CHUNKS + 4):
            await ChargingWorker.deliver(worker, "usage", 0, [offset], None)

    agent = asyncio.create_task(deliver())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert line.inbox.full()
    assert not agent.done()
    del worker.lines[0]
    await line.stop()
    await asyncio.wait_for(agent, 2)
