"""Keep micro-batches moving into the warehouse, and acknowledge them when they are in.

Runs beside the event loop of a Faust worker and knows no Faust: an `Event` is whatever holds the
records of one partition and can be acknowledged. Work that blocks runs in threads. While a server
is away it is tried again for ever and nothing is acknowledged; any other error ends the flow and is
handed to `fatal`.

Flows of one worker take turns at landing usage. A flow that waits for its turn has written nothing
of its batch, so its death leaves what a death before the first step leaves.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import structlog

from tokenline.errors import BrokenLog, Unavailable
from tokenline.landing.batch import Batch, ChargedRange, Filling
from tokenline.landing.lander import Lander, Step
from tokenline.landing.reader import UsageReader
from tokenline.landing.row import codes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenline.clock import Clock
    from tokenline.landing.progress import LandingProgress
    from tokenline.landing.seal import Seal
    from tokenline.landing.store import Store
    from tokenline.settings import Settings
    from tokenline.wire.columns import ColumnCodec

RETRY_FIRST_S = 0.2
RETRY_LAST_S = 5.0
# Micro-batches that may wait for one partition or table; behind them the consumer waits.
WAITING_MAX = 16
# Usage batches of a worker on their way at once: one is decoded, one inserted, one ready for either.
# More would only hold more decoded rows in memory; one that waits holds the raw records.
LANDS_AT_ONCE = 3

_log = structlog.get_logger("tokenline.landing")
ResultT = TypeVar("ResultT")


class Event(Protocol):
    """Be one micro-batch: records of one partition, in offset order."""

    @property
    def value(self) -> Sequence[Any]:
        """Return the records: each has an offset, a timestamp, a key and a value."""
        ...

    @property
    def topic(self) -> str:
        """Return where the records come from; they do not know it themselves."""
        ...

    @property
    def partition(self) -> int:
        """Return the partition of all of them."""
        ...

    def ack(self) -> object:
        """Allow the offset behind the last record to be committed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Hold what every flow of a worker shares."""

    settings: Settings
    store: Store
    codec: ColumnCodec
    clock: Clock
    progress: LandingProgress
    fatal: Callable[[BaseException], None]
    step: Step
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LANDS_AT_ONCE))


async def until_answered(
    tools: Tools, work: Callable[[], ResultT], *, first: Callable[[], object] | None = None
) -> ResultT:
    """Run blocking `work` in a thread until a server answers; `first` before every repetition."""
    delay_s = RETRY_FIRST_S
    repeated = False

    def attempt() -> ResultT:
        if repeated and first is not None:
            first()
        return work()

    while True:
        try:
            result = await asyncio.to_thread(attempt)
        except Unavailable as error:
            note_away(tools, error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
            repeated = True
        else:
            note_back(tools)
            return result


def note_away(tools: Tools, error: Exception) -> None:
    """Remember an unanswered call; only the first of a row is logged."""
    progress = tools.progress
    progress.retries += 1
    progress.last_error = str(error)
    if progress.away_since_s is None:
        progress.away_since_s = tools.clock.monotonic_s()
        _log.warning("a server is away; landing waits and keeps trying", error=str(error)[:300])


def note_back(tools: Tools) -> None:
    """Remember an answered call."""
    progress = tools.progress
    if progress.away_since_s is not None:
        away_s = tools.clock.monotonic_s() - progress.away_since_s
        progress.away_since_s = None
        _log.info("the server is back; landing goes on", away_s=round(away_s, 1))


class Flow:
    """Own one task and its queue; an error in the task is fatal for the worker."""

    def __init__(self, tools: Tools, name: str) -> None:
        self._tools = tools
        self._queue: asyncio.Queue[Event] = asyncio.Queue(WAITING_MAX)
        self._task = asyncio.create_task(self._guarded(), name=name)

    async def offer(self, event: Event) -> None:
        """Hand a micro-batch over; waits while too many are waiting."""
        await self._queue.put(event)

    async def stop(self) -> None:
        """End the task where it stands; what is not acknowledged comes again."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _guarded(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # the worker's edge: nothing fails silently
            self._tools.progress.last_error = str(error)
            self._tools.fatal(error)

    async def _run(self) -> None:
        raise NotImplementedError

    async def _next(self, wait_s: float | None) -> Event | None:
        """Return the next micro-batch, or None after `wait_s` (never, when that is None)."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        if wait_s is not None and wait_s <= 0:
            return None
        try:
            return await asyncio.wait_for(self._queue.get(), wait_s)
        except TimeoutError:
            return None


class UsageFlow(Flow):
    """Land the usage of one partition as charged ranges say, for one generation of the group."""

    def __init__(self, tools: Tools, partition: int, generation: int) -> None:
        settings = tools.settings
        self._partition = partition
        self._topic = settings.topic("usage")
        self._lander = Lander(
            tools.store, tools.codec, topic=self._topic, partition=partition,
            generation=generation, clock=tools.clock, step=tools.step,
        )  # fmt: skip
        self._reader = UsageReader(settings, self._topic, partition)
        super().__init__(tools, f"landing.usage.{partition}")

    async def _run(self) -> None:
        try:
            filling = await self._resumed()
            while True:
                event = await self._next(filling.wait_s(self._now_s()))
                if event is not None:
                    await self._take(filling, event)
                if filling.wait_s(self._now_s()) == 0:
                    await self._flush(filling)
        finally:
            await self._reader.stop()

    async def _resumed(self) -> Filling[Event]:
        """Find out from the rows where to go on; no record of what landed is believed but they."""
        settings = self._tools.settings
        next_lo = await until_answered(self._tools, self._lander.resume)
        first = await self._connected()
        next_lo = first if next_lo is None else next_lo
        self._tools.progress.next_offset[self._partition] = next_lo
        return Filling(
            next_lo=next_lo,
            max_rows=settings.landing_max_rows,
            max_wait_s=settings.landing_max_wait_ms / 1000,
        )

    async def _connected(self) -> int:
        while True:
            try:
                first = await self._reader.start()
            except Unavailable as error:
                note_away(self._tools, error)
                await asyncio.sleep(RETRY_LAST_S)
            else:
                note_back(self._tools)
                return first

    async def _take(self, filling: Filling[Event], event: Event) -> None:
        for charged in await self._ranges(event.value):
            filling.offer(charged, self._now_s())
            if filling.full:
                await self._flush(filling)
        filling.ack_after(event, self._now_s())

    async def _ranges(self, records: Sequence[Any]) -> list[ChargedRange]:
        frames = [record.value for record in records]
        codec = self._tools.codec
        decoded = await until_answered(self._tools, lambda: codec.decode("charged_range", frames))
        if decoded.failures:
            raise BrokenLog(f"a charged range cannot be decoded: {decoded.failures[0].detail}")
        return ranges_of(decoded.batch, self._topic, self._partition)

    async def _flush(self, filling: Filling[Event]) -> None:
        batch = filling.take()
        if batch.rows:
            run = await self._reader.read(batch.lo, batch.hi)
            async with self._tools.turns:
                seal = await until_answered(
                    self._tools,
                    lambda: self._lander.land(batch, run),
                    first=lambda: self._lander.look(batch.lo),
                )
            self._note(batch, seal)
        for event in batch.acks:
            event.ack()
        self._tools.step("ack")

    def _note(self, batch: Batch[Event], seal: Seal) -> None:
        progress = self._tools.progress
        progress.landed("ledger", seal.counted + seal.late, self._now_s())
        if seal.duplicate:
            progress.landed("duplicates", seal.duplicate, self._now_s())
        progress.next_offset[self._partition] = batch.hi + 1
        progress.lag[self._partition] = self._reader.lag()
        progress.as_of_ms[self._partition] = batch.as_of_ms

    def _now_s(self) -> float:
        return self._tools.clock.monotonic_s()


class TableFlow(Flow):
    """Land the records of one topic, many micro-batches at a time, through `insert`.

    `insert` blocks, takes the events in order and returns the rows written.
    """

    def __init__(self, tools: Tools, table: str, insert: Callable[[Sequence[Event]], int]) -> None:
        self._table = table
        self._insert = insert
        super().__init__(tools, f"landing.{table}")

    async def _run(self) -> None:
        settings = self._tools.settings
        while True:
            events = await self._gathered(
                settings.landing_max_rows, settings.landing_max_wait_ms / 1000
            )
            rows = await until_answered(self._tools, lambda: self._insert(events))  # noqa: B023  # awaited here
            if rows:
                self._tools.progress.landed(self._table, rows, self._tools.clock.monotonic_s())
            for event in events:
                event.ack()

    async def _gathered(self, max_rows: int, max_wait_s: float) -> list[Event]:
        """Return the micro-batches of one insert; small ones wait for company."""
        events = [await self._queue.get()]
        until_s = self._tools.clock.monotonic_s() + max_wait_s
        while sum(len(event.value) for event in events) < max_rows:
            event = await self._next(until_s - self._tools.clock.monotonic_s())
            if event is None:
                break
            events.append(event)
        return events


def ranges_of(batch: Any, topic: str, partition: int) -> list[ChargedRange]:  # noqa: ANN401  # Arrow
    """Return the charged ranges of a decoded batch.

    Raises:
        BrokenLog: a range speaks of another partition.
    """
    scalars = batch.select(["topic", "partition", "lo_offset", "hi_offset"]).to_pylist()
    as_of = batch.column("as_of").cast("int64").to_pylist()
    lists = [batch.column(f"{kind}_offsets") for kind in ("late", "duplicate", "rejected")]
    ranges = []
    for row, one in enumerate(scalars):
        if (one["topic"], one["partition"]) != (topic, partition):
            raise BrokenLog(
                f"partition {partition} of charged speaks of {one['topic']}[{one['partition']}]"
            )
        lo, hi = one["lo_offset"], one["hi_offset"]
        offsets = [np.asarray(column[row].values.to_numpy(), np.int64) for column in lists]
        ranges.append(
            ChargedRange(lo=lo, hi=hi, codes=codes_of(lo, hi, *offsets), as_of_ms=as_of[row])
        )
    return ranges
