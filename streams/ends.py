"""Ask the broker where partitions end, beside the consumer group.

What a worker's own consumer knows of the end is what it fetched last. One that has died in a process
that lives on (guard 21 of reference/faust.md) would look caught up for ever: healthy, and its guards
fresh. So the end is asked for, and by another client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenline.settings import Settings

REQUEST_TIMEOUT_MS = 5_000


class LogEnds:
    """Hold the offset behind the last record of each partition, as of the last look."""

    def __init__(self, settings: Settings, *topics: str) -> None:
        self._settings = settings
        self._topics = topics
        self._client: AIOKafkaConsumer = None
        self._ends: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Connect."""
        self._client = AIOKafkaConsumer(
            **client_options(self._settings),
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            enable_auto_commit=False,
        )
        await self._client.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.stop()

    async def look(self, partitions: Collection[int]) -> None:
        """Ask for these partitions.

        Raises:
            KafkaError: the broker is away; what is held stays as it was.
        """
        tps = [TopicPartition(topic, one) for topic in self._topics for one in partitions]
        if tps:
            self._ends.update(await self._client.end_offsets(tps))

    def of(self, topic: str, partition: int) -> int:
        """Return the end of a partition; 0 before the first look."""
        return self._ends.get(TopicPartition(topic, partition), 0)
