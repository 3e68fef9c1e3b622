"""Keep micro-batches moving into the warehouse, and acknowledge them when they are in.

Runs beside the event loop of a Faust worker and knows no Faust: an `Event` is whatever holds the
records of one partition and can be acknowledged. Work that blocks runs in threads. While a server
is away it is tried again for ever and nothing is acknowledged; any other error ends the flow and is
handed to `fatal`.

A charged range is held against the usage it names and against those before it. One that contradicts
them is put into the quarantine; it stops nothing behind it.

Flows of one worker take turns at landing usage. A flow that waits for its turn has written nothing
of its batch, so its death leaves what a death before the first step leaves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from aiokafka.errors import KafkaError

from tokenline.errors import BrokerUnavailable, Unavailable
from tokenline.landing.batch import Batch, ChargedRange, Filling
from tokenline.landing.lander import Lander
from tokenline.landing.ranges import Fault, ranges_of
from tokenline.landing.reader import NO_RUN, UsageReader
from tokenline.landing.tools import RETRY_LAST_S, Tools, note_away, note_back, until_answered
from tokenline.wire.topics import CHARGED, USAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenline.landing.reader import Bounds, Run
    from tokenline.landing.seal import Seal

# Micro-batches that may wait for one partition or table; behind them the consumer waits.
WAITING_MAX = 16
# A leader that was just chosen may not know for a moment how long its partition is.
END_WAIT_S = 10.0
END_ASK_S = 0.5
ASTRAY_TELL_S = 30.0
# Rows of one insert, as they came: a dead letter may have 1.4 MB, and an insert holds each several times.
GATHER_MAX_BYTES = 32 << 20

_log = structlog.get_logger("tokenline.landing")


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

    def taken(self) -> object:
        """Make room for more of this partition: work on the records begins."""
        ...


class Flow:
    """Own one task and its queue; an error in the task is fatal for the worker."""

    def __init__(self, tools: Tools, name: str) -> None:
        self._tools = tools
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._task = asyncio.create_task(self._guarded(), name=name)

    def offer(self, event: Event) -> None:
        """Hand a micro-batch over; whoever reads gives a partition no more than is `taken`."""
        self._queue.put_nowait(event)

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
        if self._queue.empty() and wait_s is not None and wait_s <= 0:
            return None
        try:
            async with asyncio.timeout(wait_s):
                event = await self._queue.get()
        except TimeoutError:
            return None
        event.taken()
        return event


class UsageFlow(Flow):
    """Land the usage of one partition as charged ranges say, for one generation of the group."""

    def __init__(self, tools: Tools, partition: int, generation: int) -> None:
        settings = tools.settings
        self._partition = partition
        self._topic = settings.topic(USAGE)
        self._lander = Lander(
            tools.store, tools.codec, tools.quarantine, tools.teller,
            topic=self._topic, partition=partition,
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
                await self._give_up_waiting(filling)
                if filling.wait_s(self._now_s()) == 0:
                    await self._flush(filling)
        finally:
            await self._reader.stop()

    async def _resumed(self) -> Filling[Event]:
        """Find out from the rows where to go on; no record of what landed is believed but they."""
        settings = self._tools.settings
        sealed = await until_answered(self._tools, self._lander.resume)
        bounds = await self._connected()
        if sealed is not None:
            await self._until_it_fits(sealed, bounds)
        next_lo = bounds.begin if sealed is None else sealed.hi + 1
        self._tools.progress.next_offset[self._partition] = next_lo
        return Filling(
            next_lo=next_lo,
            max_rows=settings.landing_max_rows,
            max_wait_s=settings.landing_max_wait_ms / 1000,
            fresh=sealed is None,
        )

    async def _connected(self) -> Bounds:
        while True:
            try:
                found = await self._reader.start()
            except Unavailable as error:
                note_away(self._tools, error)
                await asyncio.sleep(RETRY_LAST_S)
            else:
                note_back(self._tools)
                return found

    async def _until_it_fits(self, sealed: Seal, bounds: Bounds) -> None:
        """Wait, loudly, while the last seal cannot be of the usage that Kafka has.

        A topic that was made again is shorter, or has other records below the seal. Those would be taken
        for landed, and be in no ledger; only a person knows what to do.
        """
        astray, told_s = self._tools.progress.astray, self._now_s() - ASTRAY_TELL_S
        while why := await self._why_astray(sealed, bounds):
            astray[self._partition] = why
            if self._now_s() - told_s >= ASTRAY_TELL_S:
                told_s = self._now_s()
                _log.error("a seal is not of this topic: nothing of it lands", why=why)
            await asyncio.sleep(RETRY_LAST_S)
            bounds = await self._reader.ask_bounds()
        astray.pop(self._partition, None)

    async def _why_astray(self, sealed: Seal, bounds: Bounds) -> str:
        place = f"{self._topic}/{self._partition}"
        if sealed.hi >= bounds.end:
            return (
                f"{place} ends at {bounds.end}, and it has landed to {sealed.hi + 1}: the topic was "
                "made again, or lost its end"
            )
        run = await self._reader.read(sealed.hi, sealed.hi) if sealed.hi >= bounds.begin else NO_RUN
        if len(run.appended_ms) and run.appended_ms[0] > sealed.as_of_ms:
            return f"offset {sealed.hi} of {place} is newer than its seal: the topic was made again"
        return ""

    async def _take(self, filling: Filling[Event], event: Event) -> None:
        faults: list[Fault] = []
        for charged in await self._ranges(event, faults):
            if not await self._is_in_kafka(charged):
                detail = f"it names usage up to {charged.hi}, which Kafka does not have"
                faults.append(Fault(record=charged.record, reason="no_such_usage", detail=detail))
                continue
            filling.offer(charged, self._now_s())
            if filling.full:
                await self._flush(filling)
        await self._put_aside(filling, faults)
        filling.ack_after(event, self._now_s())

    async def _ranges(self, event: Event, faults: list[Fault]) -> list[ChargedRange]:
        """Return the ranges of a micro-batch; what cannot be one is added to `faults`."""
        frames, codec = [record.value for record in event.value], self._tools.codec
        decoded = await until_answered(self._tools, lambda: codec.decode("charged_range", frames))
        faults += [
            Fault(record=event.value[bad.position], reason=bad.reason, detail=bad.detail)
            for bad in decoded.failures
        ]
        records = [event.value[at] for at in decoded.kept]
        found = list(ranges_of(decoded.batch, records, self._topic, self._partition))
        faults += [one for one in found if isinstance(one, Fault)]
        return [one for one in found if isinstance(one, ChargedRange)]

    async def _is_in_kafka(self, charged: ChargedRange) -> bool:
        """Say whether the usage topic was ever as long as a range says."""
        until_s = self._now_s() + END_WAIT_S
        while True:
            try:
                if await self._reader.has(charged.hi):
                    return True
                if self._now_s() >= until_s:
                    return False
            except KafkaError as error:
                note_away(self._tools, BrokerUnavailable(f"asking for the end of usage: {error}"))
                until_s = self._now_s() + END_WAIT_S
            await asyncio.sleep(END_ASK_S)

    async def _put_aside(self, filling: Filling[Event], faults: list[Fault]) -> None:
        """Put records into the quarantine: these, and those of ranges that were refused."""
        faults = [
            *faults,
            *(
                Fault(record=charged.record, reason="contradiction", detail=why)
                for charged, why in filling.take_refused()
            ),
        ]
        if faults:
            put, topic = self._tools.quarantine.put, self._tools.settings.topic(CHARGED)
            await until_answered(self._tools, lambda: put(topic, self._partition, faults))

    async def _give_up_waiting(self, filling: Filling[Event]) -> None:
        lost = filling.give_up_waiting(self._now_s())
        if lost is not None:
            await self._put_aside(filling, [])
            self._tools.progress.unjudged += lost[1] - lost[0] + 1
            _log.error(
                "charged ranges are lost: nobody knows how these offsets were judged",
                topic=self._topic,
                partition=self._partition,
                lo=lost[0],
                hi=lost[1],
            )

    async def _flush(self, filling: Filling[Event]) -> None:
        batch = filling.take()
        if batch.rows:
            run = await self._read(batch) if batch.has_records else NO_RUN
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

    async def _read(self, batch: Batch[Event]) -> Run:
        return await self._reader.read(batch.lo, batch.hi, batch.verdicts.rejected)

    def _note(self, batch: Batch[Event], seal: Seal) -> None:
        progress = self._tools.progress
        progress.landed("ledger", seal.counted + seal.late, self._now_s())
        if seal.duplicate:
            progress.landed("duplicates", seal.duplicate, self._now_s())
        if seal.unlanded:
            progress.unlanded += seal.unlanded
            _log.error(
                "usage was charged and is gone before it landed",
                topic=self._topic,
                partition=self._partition,
                lo=seal.lo,
                hi=seal.hi,
                records=seal.unlanded,
            )
        progress.next_offset[self._partition] = batch.hi + 1
        progress.lag[self._partition] = self._reader.lag()
        progress.as_of_ms[self._partition] = batch.as_of_ms

    def _now_s(self) -> float:
        return self._tools.clock.monotonic_s()


class TableFlow(Flow):
    """Land the records of one topic, many micro-batches at a time, through `insert`.

    `insert` blocks, takes the events in order and returns the rows written. `lands` says whether a record
    can become a row; micro-batches without such records are acknowledged at once, when none wait before
    them: else a line at rest would never look as if all had landed.
    """

    def __init__(
        self,
        tools: Tools,
        table: str,
        insert: Callable[[Sequence[Event]], int],
        lands: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._table = table
        self._insert = insert
        self._lands = lands
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
        events = [await self._first()]
        until_s = self._tools.clock.monotonic_s() + max_wait_s
        rows, size_bytes = len(events[0].value), _bytes_of(events[0])
        while rows < max_rows and size_bytes < GATHER_MAX_BYTES:
            event = await self._next(until_s - self._tools.clock.monotonic_s())
            if event is None:
                break
            events.append(event)
            rows, size_bytes = rows + len(event.value), size_bytes + _bytes_of(event)
        return events

    async def _first(self) -> Event:
        """Return the next micro-batch with a record that lands."""
        while True:
            event = await self._next(None)
            if event is not None and any(map(self._lands, event.value)):
                return event
            if event is not None:
                event.ack()


def _bytes_of(event: Event) -> int:
    return sum(len(record.value or b"") for record in event.value)
