"""Say what a partition's journal held, when it is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from streams.metrics import ChargingMetrics
    from tokenline.charging.recover import Recovered

log = structlog.get_logger(__name__)


def tell_opened(
    metrics: ChargingMetrics, partition: int, found: Recovered, began_s: float, ended_s: float
) -> None:
    """Count and log what was read, and raise an alarm for what is not ours."""
    metrics.recovered(found.rows, began_s, ended_s)
    state = found.state
    if found.ignored:
        metrics.ignored.labels("state").inc(found.ignored)
        log.error(
            "the journal has records that are not ours: they are left out",
            partition=partition,
            records=found.ignored,
            first=found.ignored_first,
        )
    if state.strays:
        log.error(
            "the journal has accounts of other partitions: they are left out here",
            partition=partition,
            accounts=state.strays,
        )
    log.info(
        "partition open",
        partition=partition,
        epoch=state.epoch,
        accounts=len(state.cells),
        rows=found.rows,
        seconds=round(ended_s - began_s, 3),
    )
