"""A line tells totals in order, and lets nobody wait before it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

from aiokafka import TopicPartition

from streams import charging
from streams.inbox import Delivery
from streams.line import STEPS_IN_FLIGHT, PartitionLine
from streams.metrics import ChargingMetrics
from streams.readiness import READY, UNASSIGNED, Readiness
from tests.strategies import BOUNDS, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.journal import HEADS_KEPT, OUT_KEPT
from tokenline.clock import FrozenClock
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
        bounds=BOUNDS, metrics=ChargingMetrics(), flush_turn=asyncio.Lock(), clock=FrozenClock(),
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


def test_steps_on_their_way_use_no_key_that_a_next_owner_needs():
    """Those late of a fenced owner, those not settled, those not told: none may use the key of another."""
    assert min(HEADS_KEPT, OUT_KEPT) > 3 * STEPS_IN_FLIGHT + 4


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


def test_what_comes_for_a_line_that_is_busy_waits_in_its_inbox_and_what_is_not_ours_is_dropped():
    """Who brought it stood before the full inbox, and all other partitions behind him."""
    line, _ = quiet_line()
    worker, taken = SimpleNamespace(lines={0: line}), []
    for partition in (0, 0, 0, 0, 0, 0, 7):
        delivery = Delivery("usage", [partition], taken=partial(taken.append, partition))
        charging.ChargingWorker.deliver(worker, partition, delivery)
    assert taken == [7]
    assert not line.idle


class StillLine:
    """Note which lines were started, and end when told to."""

    let_go = asyncio.Event()

    def __init__(self, _, partition):
        self.partition, self.started = partition, False
        self.ready = asyncio.Event()
        self.standing = SimpleNamespace(astray="")

    def start(self):
        self.started = True

    def resume(self):
        pass

    async def stop(self):
        await self.let_go.wait()


async def test_new_partitions_have_their_lines_while_old_ones_still_end(monkeypatch):
    """Faust delivers at once: records without a line would be dropped, and missed until the next."""
    monkeypatch.setattr(charging, "PartitionLine", StillLine)
    monkeypatch.setattr(StillLine, "let_go", asyncio.Event())
    worker = charging.ChargingWorker(Settings(), fatal=None)
    await worker.assign({0})
    moving = asyncio.create_task(worker.assign({1}))
    await asyncio.sleep(0)

    assert (set(worker.lines), worker.lines[1].started, moving.done()) == ({1}, True, False)
    StillLine.let_go.set()
    await moving


def test_a_worker_is_ready_when_each_partition_it_was_given_is_open():
    worker = charging.ChargingWorker(Settings(), fatal=None)
    given = {TopicPartition(Settings().topic("usage"), 0)}
    app = SimpleNamespace(consumer=SimpleNamespace(assignment=lambda: given))

    closed = Readiness(ready=False, why="partitions that open or catch up: 0")
    assert worker.ready(app) == closed
    worker.lines[0] = StillLine(worker, 0)
    assert worker.ready(app) == closed
    worker.lines[0].ready.set()
    assert worker.ready(app) == READY
    worker.lines[0].standing.astray = "the topic was made again"
    assert worker.ready(app) == Readiness(ready=False, why="the topic was made again")
    assert worker.astray() == ["the topic was made again"]
    worker.lines[0].standing.astray = ""
    given.clear()
    assert worker.ready(app) == UNASSIGNED
