"""Turn what is delivered of one partition into stretches that follow each other without a gap."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError

from streams.inbox import Delivery, nothing
from streams.reread import Found, look_for_any, read_range
from streams.stretch import Stretch, first_of
from tokenline.wire.topics import USAGE

if TYPE_CHECKING:
    from streams.metrics import ChargingMetrics
    from tokenline.clock import Clock
    from tokenline.settings import Settings

log = structlog.get_logger(__name__)


class Gatherer:
    """Fetch what a rebalance let slip, and find out what became of offsets without a record."""

    def __init__(
        self, settings: Settings, clock: Clock, metrics: ChargingMetrics, partition: int
    ) -> None:
        self._settings, self._clock, self._metrics = settings, clock, metrics
        self._partition = partition

    async def stretch(self, delivery: Delivery, due: int) -> Stretch | None:
        """Return what a delivery brings from `due` on; None when that is nothing.

        What was applied already is dropped, and what slipped is fetched.
        """
        records = delivery.records
        if records and records[0].offset < due:
            records = [record for record in records if record.offset >= due]
        hi = records[-1].offset if records else delivery.through
        if hi < due:
            return None
        if records and first_of(records[0]) <= due:
            return Stretch(lo=due, hi=hi, records=records)
        found = Found(delivery.deleted_to, [])
        if records:
            topic, end = self._settings.topic(delivery.stem), first_of(records[0])
            found = await read_range(self._settings, topic, self._partition, due, end)
        stretch = Stretch(lo=due, hi=hi, records=[*found.records, *records], deleted_to=found.begin)
        return self._noted(delivery.stem, stretch)

    async def nothing_before(self, end: int, due: int) -> Delivery | None:
        """Return a delivery that says so, if there is no record of usage from `due` up to `end`."""
        settings, topic = self._settings, self._settings.topic(USAGE)
        try:
            found = await look_for_any(settings, topic, self._partition, due, end)
        except KafkaError as error:
            log.warning("nobody can say what lies before the end", error=repr(error))
            return None
        if found.records:
            return None  # they are on their way
        return Delivery(USAGE, (), nothing, through=end - 1, deleted_to=found.begin)

    def _noted(self, stem: str, stretch: Stretch) -> Stretch:
        """Count what was deleted before it was read, and say until when it can have been appended."""
        if stretch.deleted_to <= stretch.lo:
            return stretch
        records = stretch.records
        behind = first_of(records[0]) if records else stretch.hi + 1
        self._metrics.deleted(stem, min(stretch.deleted_to, behind) - stretch.lo)
        until_ms = records[0].timestamp if records else self._clock.wall_ms()
        return replace(stretch, deleted_until_ms=until_ms)
