"""Read the commands of all partitions a worker owns, as soon as they come.

Usage is fetched in company: a step costs the same for one event as for fifty. An order waits for
nobody: a call that asks for its first grant stands still until it is answered. So commands have a
reader of their own, beside the consumer group, which begins where the journal says; the group only
says whose partition it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.wire.kafka import client_options
from tokenline.wire.topics import COMMANDS

if TYPE_CHECKING:
    from tokenline.settings import Settings

FETCH_WAIT_MS = 100
POLL_MS = 200
# While a partition is crowded, what others bring is waited for no longer than this: then it may have room.
LOOK_AGAIN_MS = 50
RETRY_S = 0.5

Deliver = Callable[[int, Sequence[Any]], None]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Place:
    """Say how far a partition was read for the line that follows it now."""

    next_offset: int


class CommandFeed:
    """Deliver commands in the order of each partition; one that is `crowded` holds up no other."""

    def __init__(
        self, settings: Settings, deliver: Deliver, crowded: Callable[[int], bool]
    ) -> None:
        self._settings = settings
        self._deliver = deliver
        self._crowded = crowded
        self._topic = settings.topic(COMMANDS)
        self._read_to: dict[int, _Place] = {}
        self._changed = asyncio.Event()

    def follow(self, partition: int, next_offset: int) -> None:
        """Begin to read a partition at an offset."""
        self._read_to[partition] = _Place(next_offset)
        self._changed.set()

    def leave(self, partition: int) -> None:
        """Read a partition no more."""
        self._read_to.pop(partition, None)
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
                for partition, records in await self._fetch(consumer):
                    self._hand_on(partition, records)
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
        consumer.assign([TopicPartition(self._topic, partition) for partition in self._read_to])
        for partition, place in self._read_to.items():
            consumer.seek(TopicPartition(self._topic, partition), place.next_offset)

    async def _fetch(self, consumer: AIOKafkaConsumer) -> list[tuple[int, Sequence[Any]]]:
        """Return what came for the partitions that have room for more."""
        roomy = [
            TopicPartition(self._topic, one) for one in self._read_to if not self._crowded(one)
        ]
        if not roomy:
            await asyncio.sleep(LOOK_AGAIN_MS / 1000)
            return []
        wait_ms = POLL_MS if len(roomy) == len(self._read_to) else LOOK_AGAIN_MS
        found = await consumer.getmany(*roomy, timeout_ms=wait_ms)
        return [(tp.partition, records) for tp, records in found.items()]

    def _hand_on(self, partition: int, records: Sequence[Any]) -> None:
        place = self._read_to.get(partition)
        # What was fetched for a line that has ended since is read again for the next.
        if place is not None and records[-1].offset >= place.next_offset:
            self._deliver(partition, records)
            place.next_offset = records[-1].offset + 1
