"""Read a run of offsets again, beside the consumer group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tokenline.settings import Settings

log = structlog.get_logger(__name__)


async def read_range(
    settings: Settings, topic: str, partition: int, lo: int, end: int
) -> list[Any]:
    """Return the records of offsets `lo` to `end - 1` that exist.

    None exist where a transaction left its markers, or where retention was shorter than the line was
    away: that is said in the log, because no worker can bring it back.
    """
    records: list[Any] = []
    async with _consumer(settings) as consumer:
        tp = TopicPartition(topic, partition)
        async for some in _read(consumer, tp, lo, end):
            records += some
    return [record for record in records if record.offset < end]


async def read_waiting(
    settings: Settings, topic: str, partition: int, lo: int
) -> AsyncGenerator[list[Any], None]:
    """Yield the records from `lo` to the present end, at most `max_chunk_records` at a time."""
    async with _consumer(settings) as consumer:
        tp = TopicPartition(topic, partition)
        end = (await consumer.end_offsets([tp]))[tp]
        if lo < end:
            async for records in _read(consumer, tp, lo, end):
                yield records


def _consumer(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        max_poll_records=settings.max_chunk_records,
    )


async def _read(
    consumer: AIOKafkaConsumer, tp: TopicPartition, lo: int, end: int
) -> AsyncIterator[list[Any]]:
    """Yield what exists from `lo` on until `end` is passed; the last may go beyond it."""
    consumer.assign([tp])
    first = (await consumer.beginning_offsets([tp]))[tp]
    if first > lo:
        log.error(
            "records were deleted before they were read",
            topic=tp.topic,
            partition=tp.partition,
            lo=lo,
            first=first,
        )
    consumer.seek(tp, max(lo, first))
    while await consumer.position(tp) < end:
        found = await consumer.getmany(tp, timeout_ms=500)
        if records := found.get(tp):
            yield records
