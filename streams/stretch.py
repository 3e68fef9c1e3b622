"""Hold a stretch of a topic's offsets: the records there are, and what is known of offsets without one.

What is charged has no gaps, so each stretch begins where the one before it ended. An offset without a
record is absent (the marker of a transaction, compaction) or was deleted before it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np

from streams.records import Damaged, Unreadable, is_plain
from tokenline.metering.spans import NO_SPANS, Spans, between, clipped, span, spans_of

# Fields of a record, taken by C code: there are ten thousand in a stretch.
KEY, VALUE, OFFSET, TIMESTAMP = map(attrgetter, ("key", "value", "offset", "timestamp"))

# A step is one batch of the journal, which holds 16 MiB (`STATE_MAX_BYTES`): at most this much of raw
# records in base64, if all are refused, and the rows of `max_chunk_records` accounts.
RUN_MAX_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Hold the records there are of offsets `lo` to `hi`, in order.

    Offsets below `deleted_to` and before the first record are gone: they were deleted, and had been
    appended by `deleted_until_ms` as far as is known.
    """

    lo: int
    hi: int
    records: Sequence[Any]
    deleted_to: int = 0
    deleted_until_ms: int = 0

    @cached_property
    def plain(self) -> bool:
        """Say whether all records are what the parser made."""
        return is_plain(self.records)

    def gaps(self) -> tuple[Spans, Spans]:
        """Return the runs that are absent, and those that were deleted or that nobody can read."""
        records = self.records
        if len(records) == self.hi - self.lo + 1 and self.plain:
            return NO_SPANS, NO_SPANS
        edges = [edge for one in records for edge in (_from(one), one.offset)]
        places = spans_of(edges)
        gone = span(self.lo, min(self.deleted_to, *edges[:1], self.hi + 1) - 1)
        lost = places[[type(one) is Damaged for one in records]]
        absent = between(
            np.concatenate((gone, clipped(places, self.lo, self.hi))), self.lo, self.hi
        )
        return absent, np.concatenate((gone, clipped(lost, self.lo, self.hi)))


def parts_of(
    stretch: Stretch, max_records: int, max_bytes: int = RUN_MAX_BYTES
) -> Iterator[Stretch]:
    """Cut a stretch into parts that are no larger than a step may be; nearly all are one part."""
    runs = list(runs_of(stretch.records, max_records, max_bytes))
    if len(runs) < 2:
        yield stretch
        return
    lo, deleted_to = stretch.lo, stretch.deleted_to
    for run in runs:
        hi = stretch.hi if run is runs[-1] else run[-1].offset
        yield replace(stretch, lo=lo, hi=hi, records=run, deleted_to=deleted_to)
        lo, deleted_to = hi + 1, 0


def runs_of(
    records: Sequence[Any], max_records: int, max_bytes: int = RUN_MAX_BYTES
) -> Iterator[Sequence[Any]]:
    """Cut records into runs within both bounds, or of one larger record; nearly all fetches are one run."""
    if len(records) <= max_records and _bytes_of(records) <= max_bytes:
        if records:
            yield records
        return
    first, held = 0, 0
    for at, record in enumerate(records):
        size = _bytes_of((record,))
        if at - first >= max_records or (held and held + size > max_bytes):
            yield records[first:at]
            first, held = at, 0
        held += size
    yield records[first:]


def first_of(record: Any) -> int:
    """Return the first offset that a record stands for."""
    offset: int = record.first if type(record) in (Damaged, Unreadable) else record.offset
    return offset


def _from(record: Any) -> int:
    """Return the first offset of which a record says what becomes: of what is unreadable, the last."""
    return first_of(record) if type(record) is Damaged else int(record.offset)


def _bytes_of(records: Sequence[Any]) -> int:
    return sum(map(len, filter(None, chain(map(KEY, records), map(VALUE, records)))))
