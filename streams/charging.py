"""Charge: follow usage and commands, one writer an account, every step durable before it is told.

fetch -> inbox -> fold -> journal batch --ack--> publish outputs --ack--> commit offset
                             |                        |                       |
crash here:          nothing happened       published again           skipped by offset
                                            from the journal          (next_offsets)
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka.errors import KafkaError

from streams.ends import LogEnds
from streams.intake import decode_commands, decode_usage
from streams.memory import give_back
from streams.metrics import ChargingMetrics
from streams.outputs import Outputs, output_producer
from streams.reread import read_range
from streams.state import JournalLog, journal_producer
from streams.topics import raw_topic
from streams.transport import LineApp, tps_of
from streams.warm import warm_up
from tokenline.charging.fold import by_minute, fold_commands, fold_usage
from tokenline.charging.journal import JournalWriter, Message
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovered, Recovery
from tokenline.charging.step import Flush, Step, UsageChunk
from tokenline.clock import SystemClock
from tokenline.errors import FencedOut, PoisonedInput
from tokenline.metering.judge import Bounds
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import COMMANDS, USAGE

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer
    from faust.types.tuples import TP

    from tokenline.settings import Settings

STEPS_IN_FLIGHT = 8
INBOX_CHUNKS = 4
DRAIN_S = 5.0
GC_OBJECTS = 100_000
SWITCH_S = 0.0005

log = structlog.get_logger(__name__)
Fatal = Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one micro-batch on its way to its partition."""

    stem: str
    records: Sequence[Any]
    done: Callable[[], Any]


@dataclass(slots=True)
class Commit:
    """Hold one step between its journal batch and its acknowledgement."""

    step: Step
    out: list[Message]
    sent: asyncio.Future[int]
    records: int
    next_usage: int


class PartitionLine:
    """Be the single writer of one partition's accounts."""

    def __init__(self, worker: ChargingWorker, partition: int) -> None:
        self._worker = worker
        self.partition = partition
        self.log = JournalLog(worker.settings, worker.journal, partition)
        self.outputs = Outputs(
            worker.settings, worker.codec, worker.columns, worker.producer, partition
        )
        self.inbox: asyncio.Queue[Delivery] = asyncio.Queue(INBOX_CHUNKS)
        self._commits: asyncio.Queue[Commit | Callable[[], Any]] = asyncio.Queue(STEPS_IN_FLIGHT)
        self.state = PartitionState(worker.bounds)
        self.ready = asyncio.Event()
        self.published_next = 0
        self.published_ms = 0
        self._folding = asyncio.Lock()
        self._flushing = asyncio.Lock()
        self._held = False
        self._unreadable_in_a_row = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to recover and, once that is done, to work."""
        self._tasks = [asyncio.create_task(self._guarded(self._run()))]

    async def hold(self) -> None:
        """Fold nothing more and finish the steps in flight, for a while: who owns the partition is asked."""
        try:
            async with asyncio.timeout(DRAIN_S):
                if not self._held:
                    await self._folding.acquire()
                    self._held = True
                await self._commits.join()
        except TimeoutError:
            log.warning("steps in flight are left to the next owner", partition=self.partition)

    def resume(self) -> None:
        """Fold on: the partition is still ours."""
        if self._held:
            self._held = False
            self._folding.release()

    async def stop(self) -> None:
        """Finish the steps in flight, for a while, and end."""
        await self.hold()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Say whether nothing waits to be folded or published."""
        return self.inbox.empty() and self._commits.empty()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  the worker's edge: any error here ends the process
            if isinstance(error, FencedOut) and self._worker.lines.get(self.partition) is not self:
                log.info("the next owner was faster than our last steps", partition=self.partition)
                return
            self._worker.fatal(error)

    async def _run(self) -> None:
        await self._open()
        self._tasks.append(asyncio.create_task(self._guarded(self._commit_steps())))
        self._tasks.append(asyncio.create_task(self._guarded(self._flush_when_idle())))
        self.ready.set()
        while True:
            delivery = await self.inbox.get()
            async with self._folding:
                await self._fold(delivery)
            # Folding is pure CPU: let heartbeats and other partitions in between.
            await asyncio.sleep(0)

    # Recovery

    async def _open(self) -> None:
        """Read the journal, open the next epoch and publish what the last owner may not have."""
        clock, began = self._worker.clock, self._worker.clock.monotonic_s()
        while True:
            self.state = PartitionState(self._worker.bounds)
            found = await self._recover()
            self._writer = JournalWriter(
                self.state.epoch,
                self._worker.bounds.horizon_ms + self._worker.bounds.future_skew_ms + 120_000,
                stale_keys=found.stale_keys,
                timed_keys=found.timed_keys,
            )
            if await self.log.open_epoch(self._writer.opening(self.state)):
                break
            log.info(
                "another worker wrote while this one read; reading again", partition=self.partition
            )
        await self._publish_again(found)
        self.published_next, self.published_ms = (
            self.state.next_offsets["usage"],
            self.state.minute_ms,
        )
        self._worker.metrics.recovered(found.rows, began, clock.monotonic_s())
        log.info(
            "partition open",
            partition=self.partition,
            epoch=self.state.epoch,
            accounts=len(self.state.cells),
            rows=found.rows,
            seconds=round(clock.monotonic_s() - began, 3),
        )

    async def _recover(self) -> Recovered:
        recovery = Recovery(self.state)
        await self.log.read(recovery.take)
        found = await asyncio.to_thread(recovery.finish)
        await asyncio.to_thread(give_back)
        return found

    async def _publish_again(self, found: Recovered) -> None:
        for seq, messages in found.out:
            await self.outputs.publish(messages)
            self.state.published_seq = seq
        for tally in found.unflushed:
            flush = Flush(
                segment_start_ms=tally.segment_start_ms,
                through_offset=self.state.flushed_offset,
                tally=tally,
            )
            await self._publish_flush(flush, closed=True)

    # Folding

    async def _fold(self, delivery: Delivery) -> None:
        records = await self._contiguous(delivery)
        if records:
            work = self._usage_steps if delivery.stem == USAGE else self._command_steps
            steps = work(records)
            while (step := await self._worker.take_turn(steps)) is not None:
                await self._commits.put(await self._journal(step, records))
        await self._commits.put(delivery.done)

    async def _contiguous(self, delivery: Delivery) -> Sequence[Any]:
        """Drop what was applied already and fetch what a rebalance let slip."""
        due = self.state.next_offsets[delivery.stem]
        records = delivery.records
        if records[0].offset < due:
            records = [record for record in records if record.offset >= due]
        if not records or records[0].offset == due:
            return records
        topic = self._worker.settings.topic(delivery.stem)
        missed = await read_range(
            self._worker.settings, topic, self.partition, due, records[0].offset
        )
        return [*missed, *records]

    def _usage_steps(self, records: Sequence[Any]) -> Iterator[Step]:
        chunk = decode_usage(self._worker.columns, records)
        self._stop_when_poisoned(chunk)
        for part in by_minute(chunk):
            yield fold_usage(self.state, part)

    def _command_steps(self, records: Sequence[Any]) -> Iterator[Step]:
        commands, refused = decode_commands(self._worker.columns, records)
        step = fold_commands(self.state, commands, records[-1].offset)
        step.refused = refused + step.refused
        yield step

    async def _journal(self, step: Step, records: Sequence[Any]) -> Commit:
        out = self.outputs.messages(self.state, step, records)
        if step.flush is not None:
            # One closed minute at a time: the keys of its `part` records are used again in three minutes.
            await self._commits.join()
        written = self._writer.records(self.state, step, out)
        sent = await self.log.append(written)
        return Commit(step, out, sent, len(written), self.state.next_offsets["usage"])

    def _stop_when_poisoned(self, chunk: UsageChunk) -> None:
        unreadable = len(chunk.refused)
        self._unreadable_in_a_row = (
            0 if len(chunk.offsets) else self._unreadable_in_a_row + unreadable
        )
        if self._unreadable_in_a_row >= self._worker.settings.max_bad_in_a_row:
            raise PoisonedInput(
                f"{self._unreadable_in_a_row} records in a row of partition {self.partition} cannot be decoded "
                f"(last: {chunk.refused[-1].detail}); code or schema is bad. TOKENLINE_MAX_BAD_IN_A_ROW is the bound"
            )

    # Publishing

    async def _commit_steps(self) -> None:
        while True:
            commit = await self._commits.get()
            if isinstance(commit, Commit):
                await self._publish(commit)
            else:
                commit()
            self._commits.task_done()

    async def _publish(self, commit: Commit) -> None:
        await self.log.settle(commit.sent, commit.records, self.state.epoch)
        await self.outputs.publish(commit.out)
        self.state.published_seq = commit.step.seq
        if commit.step.flush is not None:
            async with self._flushing:
                await self._publish_flush(commit.step.flush, closed=True)
        if commit.step.judged is not None:
            self.published_ms = commit.step.as_of_ms
        self.published_next = commit.next_usage
        self._worker.metrics.charged(commit.step, self._worker.clock.wall_ms())

    async def _publish_flush(self, flush: Flush, *, closed: bool) -> None:
        rows = await self.outputs.publish_flush(self.state, flush)
        self._worker.metrics.flushed_rows.inc(rows)
        self.state.flushed_offset = max(self.state.flushed_offset, flush.through_offset)
        if closed:
            self.state.flushed_minute_ms = max(self.state.flushed_minute_ms, flush.segment_start_ms)

    async def _flush_when_idle(self) -> None:
        """Publish the open minute's totals when the partition has been quiet for a while."""
        quiet_s = self._worker.settings.idle_flush_ms / 1000
        while True:
            seq = self.state.seq
            await asyncio.sleep(quiet_s)
            if self.idle and self.state.seq == seq and self.state.published_seq == seq:
                # Flushes go out in the order they were taken: the journal keeps only how far the last one went.
                async with self._flushing:
                    flush = self.state.flush()
                    if flush is not None:
                        await self._publish_flush(flush, closed=False)


@dataclass
class ChargingWorker:
    """Hold what all partitions of one process share."""

    settings: Settings
    fatal: Fatal
    metrics: ChargingMetrics = field(default_factory=ChargingMetrics)
    clock: SystemClock = field(default_factory=SystemClock)
    lines: dict[int, PartitionLine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        registry = open_registry(self.settings)
        self.codec, self.columns = Codec(registry), ColumnCodec(registry)
        settings = self.settings
        self.bounds = Bounds(
            horizon_ms=settings.dedup_horizon_s * 1000,
            future_skew_ms=settings.future_skew_s * 1000,
            max_age_ms=settings.max_age_days * 86_400_000,
            max_tokens=settings.max_tokens_per_event,
        )
        self.journal: AIOKafkaProducer = None
        self.producer: AIOKafkaProducer = None
        self.ends = LogEnds(settings, settings.topic(USAGE))
        self._stopping = False
        self._turn = asyncio.Lock()

    async def take_turn(self, steps: Iterator[Step]) -> Step | None:
        """Fold one step, one partition at a time, so that what waits for the broker gets in between.

        Four folds in one turn of the loop would make each of the dozen hops of a cut-off wait for four.
        In a thread of its own the fold fights the loop for the interpreter: measured, six times slower.
        """
        async with self._turn:
            return next(steps, None)

    async def start(self) -> None:
        """Connect the two producers, and what looks after the ends."""
        # Records by the ten thousand, all gone a moment later and in no cycle, are not worth a look each.
        gc.set_threshold(GC_OBJECTS, 50, 100)
        # The fetch thread needs the interpreter several times for each fetch, and waits this long for each.
        sys.setswitchinterval(SWITCH_S)
        self.journal, self.producer = (
            journal_producer(self.settings),
            output_producer(self.settings),
        )
        warm_up(self)
        await asyncio.gather(self.journal.start(), self.producer.start(), self.ends.start())

    async def stop(self) -> None:
        """Finish what is in flight and disconnect."""
        await self.assign(set())
        self._stopping = True
        await asyncio.gather(self.journal.stop(), self.producer.stop(), self.ends.stop())

    async def hold(self) -> None:
        """Come to rest before the group deals the partitions out anew, so that no owner meets another."""
        await asyncio.gather(*(line.hold() for line in self.lines.values()))

    async def assign(self, partitions: set[int]) -> None:
        """Own exactly these partitions: keep what stays, let go of what left, open what is new."""
        gone = [self.lines.pop(partition) for partition in set(self.lines) - partitions]
        for line in self.lines.values():
            line.resume()
        await asyncio.gather(*(line.stop() for line in gone))
        for partition in sorted(partitions - set(self.lines)) if not self._stopping else ():
            line = self.lines[partition] = PartitionLine(self, partition)
            line.start()

    async def deliver(
        self, stem: str, partition: int, records: Sequence[Any], done: Callable[[], Any]
    ) -> None:
        """Hand a micro-batch to its partition; waits while that one is busy. Not ours: dropped."""
        line = self.lines.get(partition)
        if line is not None:
            await line.inbox.put(Delivery(stem, records, done))

    async def send_heartbeats(self) -> None:
        """Tell guards for ever how fresh decisions are; a partition that lags tells its lag."""
        while True:
            await asyncio.sleep(self.settings.heartbeat_ms / 1000)
            try:
                await self._send_heartbeats()
            except KafkaError as error:
                log.warning("no heartbeat: the broker is away", error=repr(error))

    async def _send_heartbeats(self) -> None:
        # The moment is taken before the look: all that was appended earlier lies before the ends found.
        now_ms = self.clock.wall_ms()
        await self.ends.look(self.lines)
        for line in [line for line in self.lines.values() if line.ready.is_set()]:
            lag = max(self.ends.of(line.partition) - line.published_next, 0)
            self.metrics.progress(line.partition, line.published_next, lag)
            as_of_ms = line.published_ms if lag else now_ms
            await line.outputs.publish_heartbeat(line.published_next, as_of_ms, line.state.epoch)

    def ready(self, app: LineApp) -> bool:
        """Say whether every partition assigned to this process is open."""
        return bool(app.consumer.assignment()) and all(
            line.ready.is_set() for line in self.lines.values()
        )

    def positions(self, _: LineApp) -> dict[str, tuple[int, int]]:
        """Return for each partition the first usage offset not yet published, and its lag."""
        usage = self.settings.topic(USAGE)
        return {
            f"{usage}/{partition}": (
                line.published_next,
                max(self.ends.of(partition) - line.published_next, 0),
            )
            for partition, line in self.lines.items()
        }


def register(app: LineApp, settings: Settings, fatal: Fatal) -> ChargingWorker:
    """Add the charging agents to `app`."""
    worker = ChargingWorker(settings, fatal)
    usage = settings.topic(USAGE)

    @app.agent(raw_topic(app, settings, USAGE), name="charging-usage", concurrency=1)
    async def charge_usage(stream: Any) -> None:
        async for event in stream.noack().events():
            await worker.deliver(USAGE, event.message.partition, event.value, event.ack)

    @app.agent(raw_topic(app, settings, COMMANDS), name="charging-commands", concurrency=1)
    async def charge_commands(stream: Any) -> None:
        async for event in stream.noack().events():
            await worker.deliver(COMMANDS, event.message.partition, event.value, event.ack)

    async def own(_: Any, assigned: set[TP], **__: Any) -> None:
        await worker.assign(tps_of(usage, assigned))

    async def hold(_: Any, __: set[TP], **___: Any) -> None:
        await worker.hold()

    # Faust keeps only a weak reference to a receiver: the app must hold a strong one.
    for receiver in (own, hold):
        app.keep(receiver)
    app.on_partitions_assigned.connect(own)
    app.on_partitions_revoked.connect(hold)
    app.run_beside(worker.start, worker.stop, worker.send_heartbeats)
    return worker
