"""Say whether the positions a journal remembers can be those of the topics there are.

A topic that was made again under a journal is shorter than the position in it, or has other records
below it. Then the position is none: what lies below it was never charged, and nothing may be skipped
for it. Nobody can know what a person wants then, so the partition waits, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.wire.kafka import client_options
from tokenline.wire.topics import USAGE

if TYPE_CHECKING:
    from streams.metrics import ChargingMetrics
    from tokenline.charging.partition import PartitionState
    from tokenline.clock import Clock
    from tokenline.settings import Settings

LOOK_MS = 2_000
TELL_S = 30.0

log = structlog.get_logger(__name__)


class Standing:
    """Remember whether one partition's positions are right, and say so loudly while they are not.

    `astray` says why they cannot be; empty when they can. Nothing is charged meanwhile.
    """

    def __init__(
        self, settings: Settings, clock: Clock, metrics: ChargingMetrics, partition: int
    ) -> None:
        self._settings, self._clock, self._partition = settings, clock, partition
        self._metrics = metrics
        self._told_s: float | None = None
        self.astray = ""

    async def check(self, state: PartitionState) -> str:
        """Look again, and return `astray`."""
        try:
            self.astray = await why_astray(self._settings, self._partition, state)
        except KafkaError as error:
            self.astray = f"Kafka does not answer: {error!r}"
        self._metrics.stands(self._partition, astray=bool(self.astray))
        now_s = self._clock.monotonic_s()
        if self.astray and (self._told_s is None or now_s - self._told_s >= TELL_S):
            self._told_s = now_s
            log.error("a remembered position is none: nothing is charged", why=self.astray)
        return self.astray


async def why_astray(settings: Settings, partition: int, state: PartitionState) -> str:
    """Say which position cannot be one of its topic, and why; empty when all can.

    Raises:
        KafkaError: the broker does not answer.
    """
    nexts = {
        TopicPartition(settings.topic(stem), partition): offset
        for stem, offset in state.next_offsets.items()
        if offset
    }
    if not nexts:
        return ""
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with consumer:
        ends = await consumer.end_offsets(list(nexts))
        for tp, offset in nexts.items():
            if offset > ends[tp]:
                return (
                    f"{tp.topic}/{partition} ends at {ends[tp]}, and it was read to {offset}: "
                    "the topic was made again, or lost its end"
                )
        usage = TopicPartition(settings.topic(USAGE), partition)
        if usage in nexts and await _is_newer(consumer, usage, nexts[usage] - 1, state.usage_ms):
            return (
                f"the last record of {usage.topic}/{partition} that was charged is newer than all "
                "that was charged: the topic was made again"
            )
    return ""


async def _is_newer(
    consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int, newest_ms: int
) -> bool:
    """Say whether a record, if it is still there, was appended after a moment."""
    if (await consumer.beginning_offsets([tp]))[tp] > offset:
        return False
    consumer.assign([tp])
    consumer.seek(tp, offset)
    found = await consumer.getmany(tp, timeout_ms=LOOK_MS, max_records=1)
    records = [one for one in found.get(tp, []) if one.offset == offset]
    return any(record.timestamp > newest_ms for record in records)
