"""A worker that stops opens no partition any more, whatever the group assigns to it meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from streams import charging
from streams.charging import ChargingWorker
from tokenline.settings import Settings


class Line:
    """Be a line whose last steps take until `settled`."""

    settled: asyncio.Event

    def __init__(self, _, partition):
        self.partition, self.stopped = partition, False

    def start(self):
        pass

    async def stop(self):
        await self.settled.wait()
        self.stopped = True


@pytest.fixture
def worker(monkeypatch):
    async def nothing():
        pass

    Line.settled = asyncio.Event()
    monkeypatch.setattr(charging, "PartitionLine", Line)
    worker = ChargingWorker(Settings(), pytest.fail)
    worker.journal = worker.producer = worker.ends = SimpleNamespace(stop=nothing)
    return worker


async def test_what_is_assigned_while_the_last_steps_settle_is_not_opened(worker):
    await worker.assign({0})
    (line,) = worker.lines.values()
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    await worker.assign({0, 1})
    Line.settled.set()
    await stopping
    assert (worker.lines, line.stopped) == ({}, True)
