"""Read the orders and holds of all partitions a worker owns, as soon as they come.

Usage is fetched in company: a step costs the same for one event as for fifty. An order waits for
nobody: a call that asks for its first grant stands still until it is answered. So the topics `commands`
and `holds` have a reader of their own, beside the consumer group, which begins where the journal says;
the group only says whose partition it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.wire.kafka import client_options
from tokenline.wire.topics import COMMANDS, HOLDS

if TYPE_CHECKING:
    from tokenline.settings import Settings

FETCH_WAIT_MS = 100
POLL_MS = 200
# While a partition is crowded, what others bring is waited for no longer than this: then it may have room.
LOOK_AGAIN_MS = 50
RETRY_S = 0.5

FED = (COMMANDS, HOLDS)

Deliver = Callable[[str, int, Sequence[Any]], None]
Found = tuple[TopicPartition, Sequence[Any]]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Place:
    """Say how far a partition of a topic was read for the line that follows it now."""

    next_offset: int


class CommandFeed:
    """Deliver orders and holds, each in the order of its partition.

    What is `crowded`, the orders or the holds of a partition, holds up no other.
    """

    def __init__(
        self, settings: Settings, deliver: Deliver, crowded: Callable[[int, str], bool]
    ) -> None:
        self._settings = settings
        self._deliver = deliver
        self._crowded = crowded
        self._stems = {settings.topic(stem): stem for stem in FED}
        self._read_to: dict[TopicPartition, _Place] = {}
        self._changed = asyncio.Event()

    def follow(self, partition: int, next_offsets: Mapping[str, int]) -> None:
        """Begin to read a partition of each topic at its offset."""
        for topic, stem in self._stems.items():
            self._read_to[TopicPartition(topic, partition)] = _Place(next_offsets[stem])
        self._changed.set()

    def leave(self, partition: int) -> None:
        """Read a partition no more."""
        for topic in self._stems:
            self._read_to.pop(TopicPartition(topic, partition), None)
        self._changed.set()

    async def run(self) -> None:
        """Read for ever; a broker that is away is waited for."""
        while True:
            try:
                await self._read()
            except KafkaError as error:
                log.warning("commands are not read: the broker is away", error=repr(error))
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_poll_records=self._settings.max_chunk_records,
        )
        self._changed.set()
        try:
            await consumer.start()
            while True:
                await self._stand(consumer)
                if not self._read_to:
                    await self._changed.wait()
                    continue
                # An order that was there before a hold is folded before it.
                for tp, records in sorted(await self._fetch(consumer), key=_first_ms):
                    self._hand_on(tp, records)
        finally:
            await consumer.stop()

    async def _stand(self, consumer: AIOKafkaConsumer) -> None:
        """Read the partitions that are followed now, each from where it was read to."""
        if not self._changed.is_set():
            return
        self._changed.clear()
        if not self._read_to:
            consumer.unsubscribe()
            return
        consumer.assign(list(self._read_to))
        for tp, place in self._read_to.items():
            consumer.seek(tp, place.next_offset)

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[Found]:
        """Return what came for the partitions that have room for more."""
        roomy = [
            tp for tp in self._read_to if not self._crowded(tp.partition, self._stems[tp.topic])
        ]
        if not roomy:
            await asyncio.sleep(LOOK_AGAIN_MS / 1000)
            return []
        wait_ms = POLL_MS if len(roomy) == len(self._read_to) else LOOK_AGAIN_MS
        found = await consumer.getmany(*roomy, timeout_ms=wait_ms)
        return list(found.items())

    def _hand_on(self, tp: TopicPartition, records: Sequence[Any]) -> None:
        place = self._read_to.get(tp)
        # What was fetched for a line that has ended since is read again for the next.
        if place is not None and records[-1].offset >= place.next_offset:
            self._deliver(self._stems[tp.topic], tp.partition, records)
            place.next_offset = records[-1].offset + 1


def _first_ms(found: Found) -> tuple[int, str]:
    tp, records = found
    return int(records[0].timestamp), tp.topic
