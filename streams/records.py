"""Take records out of Kafka's batches as they are, and know which of them came in a transaction.

aiokafka's consumers of this process yield the parser's own records: they have `offset`, `timestamp`,
`key` and `value`, and no topic or partition. Dressing each up as a `ConsumerRecord` of eleven fields
took an eighth of a worker's time.

A batch says whether it belongs to a transaction; its records do not. Nobody here waits for what
becomes of a transaction: one that is left open would hold everybody behind it for as long as the
producer likes. So its records are handed over marked, and whoever reads a topic that takes no
transactions refuses them, committed or not.

What a batch holds is bounded when it is opened (see `tokenline.wire.inflate`), and what one poll takes
is bounded in bytes: a fetch of 4 MiB may hold a thousand batches that become 16 MiB each.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords

from tokenline.wire.inflate import bound_inflation, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = structlog.get_logger(__name__)

# What the batches may become that one poll opens of a partition, before the one that goes beyond it: as much
# as a step may hold. What is not compressed is bounded by the fetch.
POLL_MAX_BYTES = 4 << 20


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


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stand for records that nobody can take out of their batch, `first` to `offset`; `why` says it."""

    first: int
    offset: int
    timestamp: int
    why: str
    key: None = None
    value: None = None


class Taken(list[Any]):
    """Be the records that one poll took of a partition; what it opened became so many bytes."""

    inflated_bytes = 0


def inflated_bytes_of(records: Sequence[Any]) -> int:
    """Return how many bytes batches became for these records to be taken; 0 where they were not polled."""
    return records.inflated_bytes if isinstance(records, Taken) else 0


class Producers:
    """Know which producer sent which offset of late; a batch says it, and its records do not.

    A producer that is idempotent has an id; others have -1. What was read long ago is forgotten.
    """

    CHANGES_MAX = 100_000

    def __init__(self) -> None:
        self._changes: dict[tuple[str, int], tuple[list[int], list[int]]] = {}

    def note(self, topic: str, partition: int, first: int, producer_id: int) -> None:
        """Note who sent the batch that begins at an offset."""
        firsts, ids = self._changes.setdefault((topic, partition), ([], []))
        if ids and (ids[-1] == producer_id or first <= firsts[-1]):
            return
        firsts.append(first)
        ids.append(producer_id)
        if len(firsts) > self.CHANGES_MAX:
            half = self.CHANGES_MAX // 2
            self._changes[topic, partition] = firsts[half:], ids[half:]

    def of(self, topic: str, partition: int, offset: int) -> int:
        """Return the id of the producer of an offset; -1 when it has none or nobody knows."""
        firsts, ids = self._changes.get((topic, partition), ((), ()))
        at = bisect_right(firsts, offset) - 1
        return ids[at] if at >= 0 else -1


# Of all consumers of this process.
PRODUCERS = Producers()
ODD = frozenset({OfTransaction, Damaged, Unreadable})


def is_plain(records: Sequence[Any]) -> bool:
    """Say whether all records are what the parser made: nearly always, and looked at in C."""
    return ODD.isdisjoint(map(type, records))


def hand_over_raw_records() -> None:
    """Let aiokafka's consumers of this process yield the parser's own records (aiokafka 0.14, pinned)."""
    bound_inflation()
    PartitionRecords._unpack_records = unpacked
    PartitionRecords.room_bytes = math.inf  # for who takes one by one
    FetchResult.getall = taken


def taken(fetched: Any, max_records: int | None = None) -> Taken:
    """Return what a poll takes of one partition's fetch; the rest is for the next poll."""
    found = Taken()
    if not fetched.check_assignment(fetched._topic_partition) or not fetched.has_more():
        return found
    records, most = fetched._partition_records, max_records or sys.maxsize
    records.room_bytes = POLL_MAX_BYTES
    found.extend(islice(records._records_iterator, most))
    found.inflated_bytes = POLL_MAX_BYTES - records.room_bytes
    fetched._update_position()
    if len(found) < most:
        # There are no more batches, or no more room.
        records._records_iterator = records._unpack_records()
        fetched._partition_records = records if records._records.has_next() else None
    return found


def unpacked(fetched: Any) -> Iterator[Any]:
    """Yield the records of one partition's fetch, and keep the position behind each.

    Ends before a batch for which the poll has no room.
    """
    batches = fetched._records
    while batches.has_next() and fetched.room_bytes > 0:
        batch = batches.next_batch()
        if fetched._check_crcs and not batch.validate_crc():
            yield from _damaged(fetched, batch)
        elif not batch.is_control_batch:
            tp = fetched._tp
            PRODUCERS.note(tp.topic, tp.partition, batch.base_offset, batch.producer_id)
            marked, due = batch.is_transactional, fetched.next_fetch_offset
            try:
                found = opened(batch)
                fetched.room_bytes -= found.inflated_bytes
                for record in found.records:
                    # A batch that is asked for from its middle comes whole.
                    if record.offset >= due:
                        fetched.next_fetch_offset = record.offset + 1
                        yield _marked(record) if marked else record
            except Exception as error:  # noqa: BLE001  bytes that are wrong raise whatever the parser trips over
                yield _unreadable(fetched, batch, error)
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


def _unreadable(fetched: Any, batch: Any, error: Exception) -> Unreadable:
    """Give one record for what is left of a batch: it would be asked for, and opened, for ever."""
    first, last = max(batch.base_offset, fetched.next_fetch_offset), batch.next_offset - 1
    fetched.next_fetch_offset = batch.next_offset
    return Unreadable(first, last, batch.max_timestamp, f"{type(error).__name__}: {error}")
