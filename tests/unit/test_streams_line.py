"""Totals of a partition go out in the order they were taken."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace

from streams.line import PartitionLine
from streams.metrics import ChargingMetrics
from tests.strategies import BOUNDS, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.fold import by_minute, fold_commands, fold_usage
from tokenline.settings import Settings


class PaperOutputs:
    """Note which minutes were published, and whether they were over."""

    def __init__(self):
        self.published = []
        self.both = asyncio.Event()

    async def publish_flush(self, _, flush):
        self.published.append((flush.segment_start_ms // MINUTE * MINUTE, flush.closed))
        if len(self.published) == 2:
            self.both.set()
        return 0


def quiet_line():
    """Return a line with a closed minute still to be published, and usage in the open one."""
    worker = SimpleNamespace(
        settings=Settings(idle_flush_ms=50), journal=None, codec=None, columns=None, producer=None,
        bounds=BOUNDS, metrics=ChargingMetrics(), flush_turn=asyncio.Lock(),
    )  # fmt: skip
    line = PartitionLine(worker, 0)
    line.outputs = PaperOutputs()
    fold_commands(line.state, [command()], 0)
    steps = [
        fold_usage(line.state, part)
        for offset in range(2)
        for part in by_minute(
            chunk_of([record(offset, NOON + offset * MINUTE, event_id=str(offset))])
        )
    ]
    line.state.published_seq = line.state.seq
    return line, steps[-1].flush


async def test_a_closed_minute_goes_out_before_the_open_one_even_if_it_came_as_the_wait_ended():
    """The journal keeps only how far the last one went: months of the first would be missing."""
    line, closed = quiet_line()
    line._flushes.put_nowait(closed)
    get, turns = line._flushes.get, iter([TimeoutError()])

    async def get_as_the_timer_fires():
        for error in turns:
            raise error
        return await get()

    line._flushes.get = get_as_the_timer_fires
    task = asyncio.create_task(line._publish_flushes())
    async with asyncio.timeout(10):
        await line.outputs.both.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    minute = NOON // MINUTE * MINUTE
    assert line.outputs.published == [(minute, True), (minute + MINUTE, False)]
