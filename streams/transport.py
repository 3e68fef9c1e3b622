"""Deliver each fetch of a partition to the agents as one micro-batch.

Stock Faust hands records over one by one, at about 90 µs each. Here one Faust event carries all
records that one fetch gave for one partition, in offset order, as `event.value`. Acknowledging that
event commits the offset after its last record; nothing else is ever committed, so the committed
offset is never past work that is done (guards 1, 11, 13 of reference/faust.md).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.tables import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage

from tokenline.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from faust.types.tuples import TP

LOG_APPEND_TIME = 1  # as all topics are made
FETCH_WAIT_MS = 25
FETCH_MIN_BYTES = 256 * 1024


class PromptConsumerThread(driver.AIOKafkaConsumerThread):
    """Fetch without dawdling, and own equal partitions of all topics."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # One fetch is in flight a broker: a partition that was just read waits until the poll that is
        # out for the others returns. Faust makes that up to 1.5 s on a quiet line. A step costs the
        # same 2 ms for one event as for fifty, so taking each event at once leaves no time for any:
        # the broker gathers for 25 ms, or until there is plenty (at 5,000/s p99 207 ms without, 83 with).
        consumer._fetch_max_wait_ms = self.app.fetch_wait_ms
        consumer._fetch_min_bytes = self.app.fetch_min_bytes
        # Commands and usage of an account must reach one worker. Faust deals partitions of all topics
        # out in turn when it has no tables; by range, partition p of each topic goes to one member.
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        return consumer


class MicroBatchConsumer(driver.Consumer):
    """Yield one message a partition and fetch; commit what was acknowledged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: dict[TP, int] = {}

    async def getmany(
        self,
        timeout: float,  # noqa: ASYNC109  Faust's signature
    ) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Fetch once and yield each partition's records as one message.

        What a rebalance interrupts is fetched again by whoever owns the partition next.
        """
        records, active = await self._wait_next_records(timeout)
        if not active:
            self._stay()
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()
            return
        for tp, batch in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if batch and (active is None or tp in active or tp in self._buffered_partitions):
                yield tp, self._micro_batch(tp, batch, generation)

    def _stay(self) -> None:
        """Tell aiokafka that we live though nobody fetches: all our partitions have enough in hand.

        It leaves the group after `broker_max_poll_interval` without a fetch and joins it with the next
        one. A line that catches up takes longer, and waits for that group before it goes on.
        """
        # As a fetch of aiokafka 0.14 notes it (pinned).
        state = self._thread._ensure_consumer()._subscription
        state._last_fetch_ended = SystemClock().monotonic_s()

    def _new_consumer_thread(self) -> PromptConsumerThread:
        return PromptConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def ack(self, message: ConsumerMessage) -> bool:
        """Note that a micro-batch is done; one of an earlier generation is not ours to commit."""
        if message.acked or message.generation_id != self.app.consumer_generation_id:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._done[message.tp] = max(message.offset + 1, self._done.get(message.tp, 0))
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget what was done in partitions that are no longer ours."""
        for tp in revoked:
            self._done.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    def _filter_tps_with_pending_acks(self, topics: Iterable[Any] | None = None) -> Iterator[TP]:
        return (
            tp for tp in list(self._done) if topics is None or tp in topics or tp.topic in topics
        )

    def _new_offset(self, tp: TP) -> int | None:
        return self._done.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: a micro-batch is one message, so every jump of offsets is expected."""

    def _micro_batch(self, tp: TP, batch: list[Any], generation: int) -> ConsumerMessage:
        last = batch[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            LOG_APPEND_TIME,
            (),
            None,
            batch,
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )


class MicroBatchTransport(driver.Transport):
    """Make Faust use `MicroBatchConsumer`."""

    Consumer = MicroBatchConsumer


class PromptTables(TableManager):
    """Start without the second that Faust waits for tables to turn up: there are none."""

    async def on_start(self) -> None:
        """Let the conductor subscribe, and rebalances begin."""
        await self._update_channels()
        await self.recovery.start()


class LineApp(faust.App):
    """Be a Faust app whose topics deliver micro-batches, with work that runs beside the agents."""

    def __init__(
        self,
        *args: Any,
        fatal: Callable[[BaseException], None],
        fetch_wait_ms: int = FETCH_WAIT_MS,
        fetch_min_bytes: int = FETCH_MIN_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, TableManager=PromptTables, **kwargs)
        self.fetch_wait_ms, self.fetch_min_bytes = fetch_wait_ms, fetch_min_bytes
        self._fatal = fatal
        self._kept: list[Any] = []
        self._starts: list[Callable[[], Awaitable[None]]] = []
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._loops: list[Callable[[], Awaitable[None]]] = []

    def keep(self, thing: Any) -> None:
        """Hold a strong reference for the life of the app."""
        self._kept.append(thing)

    def run_beside(
        self,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        *loops: Callable[[], Awaitable[None]],
    ) -> None:
        """Call `start` before any record is delivered, keep `loops` running, call `stop` before leaving the group.

        An error in one of `loops` ends the process.
        """
        self._starts.append(start)
        self._stops.append(stop)
        self._loops.extend(loops)

    def take_by(self, topic: Any, name: str, agent: Callable[[Any], Awaitable[None]]) -> None:
        """Let `agent` take the micro-batches of `topic`; an error in it ends the process.

        Faust would start it again behind the micro-batch it failed at, which is then done by nobody.
        """

        async def watched(stream: Any) -> None:
            await self._watched(partial(agent, stream))

        self.agent(topic, name=name, concurrency=1)(watched)

    async def on_start(self) -> None:
        """Start what runs beside, then Faust."""
        for start in self._starts:
            await start()
        await super().on_start()
        self._tasks = [asyncio.create_task(self._watched(loop)) for loop in self._loops]

    async def on_stop(self) -> None:
        """Finish what is in flight while the partitions are still ours, then let Faust go."""
        for task in self._tasks:
            task.cancel()
        for stop in self._stops:
            await stop()
        await super().on_stop()

    async def _watched(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  the worker's edge: no work of a worker must end unseen
            self._fatal(error)

    def _new_transport(self) -> MicroBatchTransport:
        return MicroBatchTransport(self.conf.broker_consumer, self, loop=self.loop)


class PassThrough(faust.Schema):
    """Hand the records over as they are: agents decode whole batches themselves."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        """Return nothing: each record keeps its own key."""

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:  # noqa: ARG002  Faust's signature
        """Return the list of records."""
        return message.value


def position_of(app: LineApp, tp: TP, done: int | None) -> tuple[int, int] | None:
    """Return the first offset of a partition that is not done and what lies behind it; None: unknown.

    `done` is what the caller knows; before its first ack Faust's memory of what was committed is all
    there is.
    """
    next_offset = app.consumer._committed_offset.get(tp) if done is None else done
    if next_offset is None:
        return None
    return next_offset, max((app.consumer.highwater(tp) or 0) - next_offset, 0)


def tps_of(topic: str, assigned: Iterable[TP]) -> set[int]:
    """Return the partitions of `topic` among the assigned ones."""
    return {tp.partition for tp in assigned if tp.topic == topic}
