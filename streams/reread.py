"""Read a run of offsets again, beside the consumer group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from tokenline.settings import Settings

log = structlog.get_logger(__name__)


async def read_range(
    settings: Settings, topic: str, partition: int, lo: int, end: int
) -> list[Any]:
    """Return the records of offsets `lo` to `end - 1` that exist.

    None exist where a transaction left its markers, or where retention was shorter than the line was
    away: that is said in the log, because no worker can bring it back.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    await consumer.start()
    try:
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        first = (await consumer.beginning_offsets([tp]))[tp]
        if first > lo:
            log.error(
                "records were deleted before they were read",
                topic=topic,
                partition=partition,
                lo=lo,
                first=first,
            )
        consumer.seek(tp, max(lo, first))
        records: list[Any] = []
        while await consumer.position(tp) < end:
            records += (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
        return [record for record in records if record.offset < end]
    finally:
        await consumer.stop()
