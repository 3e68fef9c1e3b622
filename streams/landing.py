"""Land what was charged: the Faust agents of the landing role. There is no arithmetic here.

Each agent hands micro-batches to a flow of `tokenline.landing.flow` and never acknowledges one
itself: the flow does, when the rows are in the warehouse. So a crash at any point brings the same
records again, and a warehouse that is away stops nothing but landing.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from streams.line_app import LineApp, position_of
from streams.readiness import READY, UNASSIGNED, Readiness
from streams.servers import Server
from streams.topics import raw_topic
from tokenline.clock import SystemClock
from tokenline.errors import WarehouseUnavailable
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.flow import Flow, TableFlow, UsageFlow
from tokenline.landing.line import join_line, landed_before
from tokenline.landing.metrics import LandingMetrics
from tokenline.landing.progress import LandingProgress
from tokenline.landing.tools import Tools
from tokenline.landing.topics import TopicLander, is_verdict
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.line import read_line
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import (
    BALANCES,
    CHARGED,
    COMMANDS,
    CONTROL,
    DEAD_LETTERS,
    DECISIONS,
    LINE,
    USAGE,
    WINDOWS,
)

if TYPE_CHECKING:
    from faust.types.tuples import TP

    from tokenline.landing.lander import Step
    from tokenline.settings import Settings
    from tokenline.wire.line import Line

GC_OBJECTS = 200_000
Fatal = Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Be what a flow takes: the records of one Faust event, and a note when they are done."""

    app: LineApp
    event: Any
    progress: LandingProgress

    @property
    def value(self) -> Sequence[Any]:
        """Return the records."""
        return cast("Sequence[Any]", self.event.value)

    @property
    def topic(self) -> str:
        """Return where the records come from."""
        return str(self.event.message.topic)

    @property
    def partition(self) -> int:
        """Return the partition of all of them."""
        return int(self.event.message.partition)

    def ack(self) -> None:
        """Allow the offset behind the last record to be committed."""
        self.event.ack()
        message = self.event.message
        self.progress.acked[(message.topic, message.partition)] = message.offset + 1

    def taken(self) -> None:
        """Let the consumer fetch more of this partition."""
        self.app.taken(self.event.message)


class LandingWorker:
    """Own the flows of one landing process.

    Usage flows are made anew with each generation of the consumer group: after a rebalance
    everything not committed comes again and another worker may have landed some of it, so the old
    flow is dropped where it stands and the new one looks at the rows. Tables need no such care: a
    row landed twice is one.
    """

    TOPICS: ClassVar = (
        USAGE,
        CHARGED,
        WINDOWS,
        BALANCES,
        DECISIONS,
        DEAD_LETTERS,
        COMMANDS,
        CONTROL,
        LINE,
    )

    def __init__(self, settings: Settings, fatal: Fatal, step: Step) -> None:
        self.progress = LandingProgress()
        self.metrics = LandingMetrics(self.progress)
        self._settings = settings
        self._store = ClickHouseStore(settings)
        self._registry = open_registry(settings)
        self._tools = Tools(
            settings=settings,
            store=self._store,
            codec=ColumnCodec(self._registry),
            clock=SystemClock(),
            progress=self.progress,
            fatal=fatal,
            step=step,
        )
        self._usage: dict[int, UsageFlow] = {}
        self._tables: dict[str, TableFlow] = {}
        self._generation = -1
        self._line: Line | None = None

    async def land_usage(self, app: LineApp, stream: Any) -> None:
        """Hand charged ranges to the flow of their partition."""
        async for event in stream.noack().events():
            generation = event.message.generation_id
            if generation > self._generation:
                await self.drop_usage()
                self._generation = generation
            if generation == self._generation:
                batch = MicroBatch(app, event, self.progress)
                self._usage_flow(event.message.partition).offer(batch)

    def land_table(
        self,
        app: LineApp,
        table: str,
        insert: Callable[[Any], int],
        lands: Callable[[Any], bool] = lambda _: True,
    ) -> Callable[[Any], Awaitable[None]]:
        """Return an agent that hands micro-batches to the flow of `table`."""

        async def land(stream: Any) -> None:
            flow = self._tables[table] = TableFlow(self._tools, table, insert, lands)
            async for event in stream.noack().events():
                flow.offer(MicroBatch(app, event, self.progress))

        return land

    async def drop_usage(self) -> None:
        """End the usage flows where they stand; what they did not acknowledge comes again."""
        flows, self._usage = self._usage, {}
        await _stop(flows.values())
        for partition in flows:
            self.progress.forget(partition)

    def forget(self, revoked: set[TP]) -> None:
        """Forget positions in partitions that are no longer ours."""
        for tp in revoked:
            self.progress.acked.pop((tp.topic, tp.partition), None)

    async def start(self) -> None:
        """Compare Kafka's line with the warehouse's, and make the garbage collector patient.

        A warehouse that is away is waited for and compared by the first flow that uses it. If it turns up
        new then, and landing has landed before, this process ends: the next one begins from the beginning.
        A fetch makes tens of thousands of record objects that live for a moment and are in no
        cycle. Looking at them again and again takes as long as making them.
        """
        gc.set_threshold(GC_OBJECTS, 50, 100)
        line = self._line or await self._meet_line()
        self._store.hold_to(line)
        try:
            await join_line(self._settings, line)
        except WarehouseUnavailable as error:
            self.progress.last_error = str(error)
            self._store.may_adopt = not await landed_before(self._settings)

    async def stop(self) -> None:
        """End all flows and let go of the warehouse."""
        await self.drop_usage()
        await _stop(self._tables.values())
        self._store.close()

    async def watch(self) -> None:
        """Do nothing: each flow reports its own end."""

    def ready(self, app: LineApp) -> Readiness:
        """Say whether the group has given us partitions, the servers answer and no seal is astray."""
        if self.progress.away_since_s is not None:
            return Readiness(ready=False, why=f"waits: {self.progress.last_error}")
        if astray := self.astray():
            return Readiness(ready=False, why=astray[0])
        return READY if app.consumer.assignment() else UNASSIGNED

    def astray(self) -> list[str]:
        """Return why partitions wait whose last seal cannot be of the topic there is."""
        return list(self.progress.astray.values())

    def servers(self) -> list[Server]:
        """Return what this worker needs before it begins, beside Kafka."""
        settings = self._tools.settings
        return [
            Server("the schema registry", partial(asyncio.to_thread, self._registry.ask)),
            Server("the line's id", self._meet_line),
            Server(
                f"the warehouse at {settings.clickhouse_url}",
                partial(asyncio.to_thread, self._store.ask),
            ),
        ]

    async def _meet_line(self) -> Line:
        self._line = await read_line(self._settings, registry=self._registry)
        return self._line

    def positions(self, app: LineApp) -> dict[str, tuple[int, int]]:
        """Return for each partition the first offset not landed, and what lies behind it."""
        acked = self.progress.acked
        return {
            f"{tp.topic}/{tp.partition}": position
            for tp in app.consumer.assignment()
            if (position := position_of(app, tp, acked.get((tp.topic, tp.partition)))) is not None
        }

    def _usage_flow(self, partition: int) -> UsageFlow:
        if partition not in self._usage:
            self._usage[partition] = UsageFlow(self._tools, partition, self._generation)
        return self._usage[partition]


def register(
    app: LineApp, settings: Settings, fatal: Fatal, *, step: Step = lambda _: None
) -> LandingWorker:
    """Add the landing agents to `app`.

    `step` is called with the name of each finished step of a usage batch (read, ledger, duplicates,
    seal, ack); tests end the process there.
    """
    worker = LandingWorker(settings, fatal, step)
    rows = TopicLander(worker._store, worker._tools.codec, worker.progress, settings.partitions)
    land_usage = partial(worker.land_usage, app)
    app.take_by(raw_topic(app, settings, CHARGED), "landing-charged", land_usage)
    for stem, table, insert, *lands in (
        (WINDOWS, "windows", rows.windows),
        (BALANCES, "balance_changes", rows.balances),
        (DECISIONS, "decisions", rows.decisions, is_verdict),
        (DEAD_LETTERS, "dead_letters", rows.dead_letters),
        (COMMANDS, "accounts", rows.accounts),
        (CONTROL, "gateway_totals", rows.gateway_totals),
    ):
        land = worker.land_table(app, table, insert, *lands)
        app.take_by(raw_topic(app, settings, stem), f"landing-{stem}", land)

    async def disown(_: Any, revoked: set[TP], **__: Any) -> None:
        worker.forget(revoked)
        await worker.drop_usage()

    # Faust keeps only a weak reference to a receiver: the app must hold a strong one.
    app.keep(disown)
    app.on_partitions_revoked.connect(disown)
    app.run_beside(worker.start, worker.stop, worker.watch)
    return worker


async def _stop(flows: Iterable[Flow]) -> None:
    await asyncio.gather(*(flow.stop() for flow in list(flows)))
