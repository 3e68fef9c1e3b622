"""Deliver each fetch of a partition to the agents as one micro-batch.

Stock Faust hands records over one by one, at about 90 µs each. Here one Faust event carries all
records that one fetch gave for one partition, in offset order, as `event.value`. Acknowledging that
event commits the offset after its last record; nothing else is ever committed, so the committed
offset is never past work that is done (guards 1, 11, 13 of reference/faust.md). A partition that does
not take up what it is given is not fetched for, and holds up no other (`streams.room`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage

from streams.records import inflated_bytes_of
from streams.room import Room
from tokenline.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from faust.types.tuples import TP

LOG_APPEND_TIME = 1  # as all topics are made
FETCH_WAIT_MS = 25
FETCH_MIN_BYTES = 256 * 1024
# While a partition has no room, what others bring is waited for no longer than this: then it may have.
LOOK_AGAIN_S = 0.05


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

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        """Seek each partition that is ours to what is committed; return that.

        aiokafka's own seek asks for one partition after the other and raises on one that a rebalance
        has taken meanwhile, or when there is none. Behind a rebalance comes a seek of its own.
        """
        found: dict[TP, int | None] = await self.call_thread(self._seek_to_committed)
        return found

    async def _seek_to_committed(self) -> dict[TP, int | None]:
        consumer = self._ensure_consumer()
        partitions = list(consumer.assignment())
        found = await asyncio.gather(*map(consumer.committed, partitions))
        # Nothing is awaited from here on, and assignments change on this thread only.
        ours = consumer.assignment()
        kept = {tp: at for tp, at in zip(partitions, found, strict=True) if tp in ours}
        for tp, offset in kept.items():
            if offset:
                consumer.seek(tp, offset)
        return kept


class MicroBatchConsumer(driver.Consumer):
    """Yield one message a partition and fetch; commit what was acknowledged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: dict[TP, int] = {}
        self._room = Room()
        self._generation = -1

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
        generation = self._present_generation()
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()
            return
        for tp, batch in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if batch and (active is None or tp in active or tp in self._buffered_partitions):
                self._room.give(tp, batch[-1].offset, len(batch), inflated_bytes_of(batch))
                yield tp, self._micro_batch(tp, batch, generation)

    def taken(self, message: ConsumerMessage) -> None:
        """Note that work on a micro-batch begins, or that it is dropped: its partition has room for more."""
        if message.generation_id == self._generation:
            self._room.take(message.tp, message.offset)

    async def _getmany(
        self,
        active_partitions: set[TP] | None,
        timeout: float,  # noqa: ASYNC109  Faust's signature
    ) -> Any:
        """Fetch for the partitions that have room; with none, wait until one has."""
        active = active_partitions or set()
        roomy = self._room.among(active)
        if not roomy:
            self._stay()
            await self._room.wait(timeout)
            return {}
        within_s = timeout if len(roomy) == len(active) else min(timeout, LOOK_AGAIN_S)
        return await super()._getmany(roomy, within_s)

    def _present_generation(self) -> int:
        """Return the group's generation; what an earlier one was given is nobody's."""
        generation = int(self.app.consumer_generation_id)
        if generation != self._generation:
            self._generation = generation
            self._room.clear()
        return generation

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


class PassThrough(faust.Schema):
    """Hand the records over as they are: agents decode whole batches themselves."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        """Return nothing: each record keeps its own key."""

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:  # noqa: ARG002  Faust's signature
        """Return the list of records."""
        return message.value
