"""Take records out of Kafka's batches as they are, and know which of them came in a transaction.

aiokafka's consumers of this process yield the parser's own records: they have `offset`, `timestamp`,
`key` and `value`, and no topic or partition. Dressing each up as a `ConsumerRecord` of eleven fields
took an eighth of a worker's time.

A batch says whether it belongs to a transaction; its records do not. Nobody here waits for what
becomes of a transaction: one that is left open would hold everybody behind it for as long as the
producer likes. So its records are handed over marked, and whoever reads a topic that takes no
transactions refuses them, committed or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from aiokafka.consumer.fetcher import PartitionRecords

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OfTransaction:
    """Be a record that came in a transaction; no other record has the field that says so."""

    in_transaction: ClassVar[bool] = True
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """Stand for the records of a batch that the broker's disk has damaged: `first` to `offset`."""

    first: int
    offset: int
    timestamp: int
    key: None = None
    value: None = None


ODD = frozenset({OfTransaction, Damaged})


def is_plain(records: Sequence[Any]) -> bool:
    """Say whether all records are what the parser made: nearly always, and looked at in C."""
    return ODD.isdisjoint(map(type, records))


def hand_over_raw_records() -> None:
    """Let aiokafka's consumers of this process yield the parser's own records (aiokafka 0.14, pinned)."""
    PartitionRecords._unpack_records = unpacked


def unpacked(fetched: Any) -> Iterator[Any]:
    """Yield the records of one partition's fetch, and keep the position behind each."""
    batches = fetched._records
    while batches.has_next():
        batch = batches.next_batch()
        if fetched._check_crcs and not batch.validate_crc():
            yield from _damaged(fetched, batch)
        elif not batch.is_control_batch:
            marked, due = batch.is_transactional, fetched.next_fetch_offset
            for record in batch:
                # A batch that is asked for from its middle comes whole.
                if record.offset >= due:
                    fetched.next_fetch_offset = record.offset + 1
                    yield _marked(record) if marked else record
        # Behind a batch, and not behind its last record: compaction or a marker may be in between.
        fetched.next_fetch_offset = batch.next_offset


def _marked(record: Any) -> OfTransaction:
    return OfTransaction(record.offset, record.timestamp, record.key, record.value)


def _damaged(fetched: Any, batch: Any) -> Iterator[Damaged]:
    """Give one record for all of a batch: without them a consumer would ask for it for ever."""
    last = batch.next_offset - 1
    log.error(
        "a record batch has a wrong checksum: the broker's disk has damaged it",
        topic=fetched._tp.topic,
        partition=fetched._tp.partition,
        first=batch.base_offset,
        last=last,
    )
    fetched.next_fetch_offset = batch.next_offset
    yield Damaged(batch.base_offset, last, batch.max_timestamp)
