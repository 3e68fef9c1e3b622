"""Read a run of offsets again, beside the consumer group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tokenline.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """Hold records, and the first offset that the broker still has."""

    begin: int
    records: list[Any]


async def read_range(settings: Settings, topic: str, partition: int, lo: int, end: int) -> Found:
    """Return the records of offsets `lo` to `end - 1` that exist.

    None exist where a transaction left its markers, or where they were deleted before they were read:
    that is said in the log, because no worker can bring them back.
    """
    records: list[Any] = []
    async with _consumer(settings) as consumer:
        tp = TopicPartition(topic, partition)
        begin = await _begin(consumer, tp, lo, end)
        async for some in _read(consumer, tp, max(lo, begin), end):
            records += some
    return Found(begin, [record for record in records if record.offset < end])


async def look_for_any(settings: Settings, topic: str, partition: int, lo: int, end: int) -> Found:
    """Return the first records of offsets `lo` to `end - 1`, none if none exists."""
    async with _consumer(settings) as consumer:
        tp = TopicPartition(topic, partition)
        begin = await _begin(consumer, tp, lo, end)
        async for some in _read(consumer, tp, max(lo, begin), end):
            return Found(begin, some)
    return Found(begin, [])


async def read_waiting(
    settings: Settings, topic: str, partition: int, lo: int
) -> AsyncGenerator[list[Any], None]:
    """Yield the records from `lo` to the present end, at most `max_chunk_records` at a time."""
    async with _consumer(settings) as consumer:
        tp = TopicPartition(topic, partition)
        end = (await consumer.end_offsets([tp]))[tp]
        if lo < end:
            begin = await _begin(consumer, tp, lo, end)
            async for records in _read(consumer, tp, max(lo, begin), end):
                yield records


def _consumer(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        # What is deleted while it is read is deleted; what lies behind it is still to be read.
        auto_offset_reset="earliest",
        max_poll_records=settings.max_chunk_records,
    )


async def _begin(consumer: AIOKafkaConsumer, tp: TopicPartition, lo: int, end: int) -> int:
    """Return the first offset that the broker still has; says in the log what it has not."""
    begin = int((await consumer.beginning_offsets([tp]))[tp])
    if begin > lo:
        log.error(
            "records were deleted before they were read",
            topic=tp.topic,
            partition=tp.partition,
            lo=lo,
            first=begin,
            records=min(begin, end) - lo,
        )
    return begin


async def _read(
    consumer: AIOKafkaConsumer, tp: TopicPartition, lo: int, end: int
) -> AsyncIterator[list[Any]]:
    """Yield what exists from `lo` on until `end` is passed; the last may go beyond it."""
    consumer.assign([tp])
    consumer.seek(tp, lo)
    while await consumer.position(tp) < end:
        found = await consumer.getmany(tp, timeout_ms=500)
        if records := found.get(tp):
            yield records
