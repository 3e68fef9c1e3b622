"""Charge: hold the shared clients, open and stop lines as partitions come and go, route deliveries.

fetch -> agent -> line of the partition (see `streams.line`) -> journal, decisions, windows
commands, holds -> feed --^
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from aiokafka.errors import KafkaError

from streams.ends import LogEnds
from streams.feed import CommandFeed
from streams.inbox import Delivery
from streams.line import PartitionLine
from streams.line_app import LineApp, tps_of
from streams.metrics import ChargingMetrics
from streams.outputs import output_producer
from streams.readiness import READY, UNASSIGNED, Readiness
from streams.servers import Server
from streams.state import journal_producer
from streams.topics import raw_topic
from streams.warm import warm_up
from tokenline.clock import SystemClock
from tokenline.metering.judge import Bounds
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.line import Line, read_line
from tokenline.wire.registry import open_registry
from tokenline.wire.registry_server import known_only
from tokenline.wire.topics import (
    BALANCES,
    CHARGED,
    COMMANDS,
    DEAD_LETTERS,
    DECISIONS,
    HOLDS,
    LINE,
    REPLIES,
    STATE,
    USAGE,
    WINDOWS,
)

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer
    from faust.types.tuples import TP

    from tokenline.charging.step import Step
    from tokenline.settings import Settings

GC_OBJECTS = 100_000
SWITCH_S = 0.0005

log = structlog.get_logger(__name__)
Fatal = Callable[[BaseException], None]


@dataclass
class ChargingWorker:
    """Hold what all partitions of one process share."""

    TOPICS: ClassVar = (
        *(USAGE, COMMANDS, HOLDS, STATE, LINE),
        *(DECISIONS, CHARGED, WINDOWS, BALANCES, DEAD_LETTERS, REPLIES),
    )

    settings: Settings
    fatal: Fatal
    metrics: ChargingMetrics = field(default_factory=ChargingMetrics)
    clock: SystemClock = field(default_factory=SystemClock)
    lines: dict[int, PartitionLine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asking = open_registry(self.settings)
        # Nobody waits behind a record whose schema a server does not answer for.
        self.registry = registry = known_only(self._asking)
        self.codec, self.columns = Codec(registry), ColumnCodec(registry)
        settings = self.settings
        self.bounds = Bounds(
            horizon_ms=settings.dedup_horizon_s * 1000,
            future_skew_ms=settings.future_skew_s * 1000,
            max_age_ms=settings.max_age_days * 86_400_000,
            max_tokens=settings.max_tokens_per_event,
            max_charge_utok=settings.max_charge_utok_per_event,
        )
        self.line = Line(line_id="")
        self.journal: AIOKafkaProducer = None
        self.producer: AIOKafkaProducer = None
        self.ends = LogEnds(settings, *map(settings.topic, (USAGE, COMMANDS, HOLDS)))
        self.feed = CommandFeed(settings, self._deliver_orders, self._crowded)
        self._stopping = False
        self._turn = asyncio.Lock()
        # The minute ends for all partitions at once; their totals go out one after the other.
        self.flush_turn = asyncio.Lock()

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
        await asyncio.gather(self.journal.start(), self.producer.start(), self.ends.start())

    async def stop(self) -> None:
        """Finish what is in flight and disconnect; what is assigned from now on is another's."""
        self._stopping = True
        await self.assign(set())
        await asyncio.gather(self.journal.stop(), self.producer.stop(), self.ends.stop())

    async def hold(self) -> None:
        """Come to rest before the group deals the partitions out anew, so that no owner meets another."""
        await asyncio.gather(*(line.hold() for line in self.lines.values()))

    async def assign(self, partitions: set[int]) -> None:
        """Own exactly these partitions: keep what stays, let go of what left, open what is new."""
        gone = [self.lines.pop(partition) for partition in set(self.lines) - partitions]
        for line in gone:
            self.feed.leave(line.partition)
        for line in self.lines.values():
            line.resume()
        # First: records of the new partitions may come while the old lines still end.
        for partition in sorted(partitions - set(self.lines)) if not self._stopping else ():
            line = self.lines[partition] = PartitionLine(self, partition)
            line.start()
        await asyncio.gather(*(line.stop() for line in gone))

    def deliver(self, partition: int, delivery: Delivery) -> None:
        """Hand a micro-batch to its partition, however busy that is. Not ours: dropped.

        What is dropped is not acknowledged, so the next owner reads it.
        """
        line = self.lines.get(partition)
        if line is None:
            delivery.taken()
        else:
            line.inbox.put(delivery)

    def _deliver_orders(self, stem: str, partition: int, records: Sequence[Any]) -> None:
        self.deliver(partition, Delivery(stem, records))

    def _crowded(self, partition: int, stem: str) -> bool:
        line = self.lines.get(partition)
        return line is not None and line.inbox.crowded(stem)

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
        read_to = {number: dict(line.state.next_offsets) for number, line in self.lines.items()}
        await self.ends.look(self.lines)
        self.metrics.state_rows.set(sum(len(line.state.cells) for line in self.lines.values()))
        for line in [line for line in self.lines.values() if line.ready.is_set()]:
            if line.standing.astray or self._is_behind_end(line, read_to.get(line.partition, {})):
                await line.standing.check(line.state)
            if line.standing.astray:
                continue  # nobody may take this for fresh
            end = self.ends.of(self.settings.topic(USAGE), line.partition)
            lag = max(end - line.published_next, 0)
            self.metrics.progress(line.partition, line.published_next, lag)
            line.look_behind(end)
            as_of_ms = line.published_ms if lag else now_ms
            await line.outputs.publish_heartbeat(line.published_next, as_of_ms, line.state.epoch)

    def _is_behind_end(self, line: PartitionLine, read_to: dict[str, int]) -> bool:
        """Say whether a position that we had before the look lies behind the end that it found."""
        ends = {stem: self.ends.of(self.settings.topic(stem), line.partition) for stem in read_to}
        return any(offset > ends[stem] for stem, offset in read_to.items())

    def ready(self, app: LineApp) -> Readiness:
        """Say whether every partition assigned to this process is open, and stands where it may."""
        owned = tps_of(self.settings.topic(USAGE), app.consumer.assignment())
        if astray := self.astray():
            return Readiness(ready=False, why=astray[0])
        closed = owned - {line.partition for line in self.lines.values() if line.ready.is_set()}
        if closed:
            names = ", ".join(map(str, sorted(closed)))
            return Readiness(ready=False, why=f"partitions that open or catch up: {names}")
        return READY if owned else UNASSIGNED

    def servers(self) -> list[Server]:
        """Return what this worker needs before it begins, beside Kafka: the schemas, and which line it is."""
        return [
            Server("the schema registry", partial(asyncio.to_thread, warm_up, self)),
            Server("the line's id", self._meet_line),
        ]

    async def _meet_line(self) -> None:
        self.line = await read_line(self.settings, registry=self._asking)

    def astray(self) -> list[str]:
        """Return why partitions wait whose positions cannot be right."""
        return [line.standing.astray for line in self.lines.values() if line.standing.astray]

    def positions(self, _: LineApp) -> dict[str, tuple[int, int]]:
        """Return for each partition the first usage offset not yet published, and its lag."""
        usage = self.settings.topic(USAGE)
        return {
            f"{usage}/{partition}": (
                line.published_next,
                # One that stands astray is no stall: starting again would mend nothing.
                max(self.ends.of(usage, partition) - line.published_next, 0)
                * (not line.standing.astray),
            )
            for partition, line in self.lines.items()
        }


def register(app: LineApp, settings: Settings, fatal: Fatal) -> ChargingWorker:
    """Add the charging agents to `app`."""
    worker = ChargingWorker(settings, fatal)
    usage = settings.topic(USAGE)

    async def charge_usage(stream: Any) -> None:
        async for event in stream.noack().events():
            taken = partial(app.taken, event.message)
            delivery = Delivery(USAGE, event.value, done=event.ack, taken=taken)
            worker.deliver(event.message.partition, delivery)

    app.take_by(raw_topic(app, settings, USAGE), "charging-usage", charge_usage)

    async def own(_: Any, assigned: set[TP], **__: Any) -> None:
        await worker.assign(tps_of(usage, assigned))

    async def hold(_: Any, __: set[TP], **___: Any) -> None:
        await worker.hold()

    # Faust keeps only a weak reference to a receiver: the app must hold a strong one.
    for receiver in (own, hold):
        app.keep(receiver)
    app.on_partitions_assigned.connect(own)
    app.on_partitions_revoked.connect(hold)
    app.run_beside(worker.start, worker.stop, worker.send_heartbeats, worker.feed.run)
    return worker
