"""Keep what a topic of ours holds and cannot hold: the record as it is, and why it is not believed.

Only our workers write these topics. What cannot be read there, or contradicts itself, was written by
somebody else or is broken: it changes no table, stops nothing behind it, and a person looks.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.progress import LandingProgress
    from tokenline.landing.ranges import Fault
    from tokenline.landing.store import Store

_log = structlog.get_logger("tokenline.landing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Be a record of which only these fields are known."""

    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None = None


class Quarantine:
    """Put records aside; blocking, called in threads. A record put aside twice is one row."""

    def __init__(self, store: Store, progress: LandingProgress) -> None:
        self._store = store
        self._progress = progress

    def put(self, topic: str, partition: int, faults: Sequence[Fault]) -> None:
        """Keep the records of `faults`, count them and raise an alarm.

        Raises:
            WarehouseUnavailable: try again.
        """
        if not faults:
            return
        self._store.insert("quarantine", _rows(topic, partition, faults))
        counts = self._progress.quarantined
        counts[topic] = counts.get(topic, 0) + len(faults)
        first = faults[0]
        _log.error(
            "records are quarantined: only our workers write this topic, and this is not theirs",
            topic=topic,
            partition=partition,
            records=len(faults),
            offset=first.record.offset,
            reason=first.reason,
            detail=first.detail[:300],
        )


def _rows(topic: str, partition: int, faults: Sequence[Fault]) -> pa.Table:
    records = [fault.record for fault in faults]
    return pa.table(
        {
            "topic": pa.array([topic] * len(faults)),
            "partition": pa.array([partition] * len(faults), pa.int64()),
            "offset": pa.array([record.offset for record in records], pa.int64()),
            "at": pa.array([record.timestamp for record in records], pa.int64()).cast(
                pa.timestamp("ms", "UTC")
            ),
            "reason": pa.array([fault.reason for fault in faults]),
            "detail": pa.array([fault.detail for fault in faults]),
            "key_base64": pa.array([_base64(record.key) for record in records]),
            "value_base64": pa.array([_base64(record.value) for record in records]),
        }
    )


def _base64(raw: bytes | None) -> str:
    return base64.b64encode(raw or b"").decode()
