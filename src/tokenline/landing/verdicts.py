"""Say what charging, or nobody, made of each offset of a range; as large as what it names, never as the range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tokenline.landing.row import Bools, Codes, Int64s, Verdict
from tokenline.metering.spans import NO_SPANS, Spans, size_of, within

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_OFFSETS: Int64s = np.zeros(0, np.int64)
# In the order in which the later says what becomes of an offset that two name.
_NAMED = (Verdict.LATE, Verdict.CORRECTION, Verdict.DUPLICATE, Verdict.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Name the offsets of a range that were not counted; all others were.

    `late`, `correction`, `duplicate` and `rejected` are offsets; a correction that is late is in both.
    `absent`, `deleted` and `unjudged` are runs: without a
    record, gone before charging read them, and named by no charged range.
    """

    late: Int64s = field(default_factory=lambda: NO_OFFSETS)
    correction: Int64s = field(default_factory=lambda: NO_OFFSETS)
    duplicate: Int64s = field(default_factory=lambda: NO_OFFSETS)
    rejected: Int64s = field(default_factory=lambda: NO_OFFSETS)
    absent: Spans = field(default_factory=lambda: NO_SPANS)
    deleted: Spans = field(default_factory=lambda: NO_SPANS)
    unjudged: Spans = field(default_factory=lambda: NO_SPANS)

    def codes(self, offsets: Int64s) -> Codes:
        """Return the verdict of each of these offsets."""
        codes = np.zeros(len(offsets), np.int8)
        for verdict in _NAMED:
            named: Int64s = getattr(self, verdict.name.lower())
            codes[np.isin(offsets, named)] = verdict
        for verdict in (Verdict.ABSENT, Verdict.DELETED, Verdict.UNJUDGED):
            spans: Spans = getattr(self, verdict.name.lower())
            if len(spans):
                codes[within(spans, offsets)] = verdict
        return codes

    def charged(self, offsets: Int64s) -> Bools:
        """Say which of these offsets were charged at once: counted, or late."""
        found: Bools = self.codes(offsets) <= Verdict.LATE
        return found

    @property
    def not_charged(self) -> int:
        """Return how many offsets were not charged at once."""
        named = (self.correction, self.duplicate, self.rejected)
        return sum(map(len, named)) + self.without_record

    def not_charged_below(self, offsets: Int64s) -> Int64s:
        """Return for each of these charged offsets how many below it were not."""
        points = np.sort(np.concatenate((self.correction, self.duplicate, self.rejected)))
        below: Int64s = np.searchsorted(points, offsets)
        spans = np.concatenate((self.absent, self.deleted, self.unjudged))
        if len(spans):
            spans = spans[np.argsort(spans[:, 0])]
            sizes = np.concatenate(([0], np.cumsum(spans[:, 1] - spans[:, 0] + 1)))
            below = below + sizes[np.searchsorted(spans[:, 0], offsets)]
        return below

    @property
    def without_record(self) -> int:
        """Return how many offsets charging read no record of."""
        return size_of(self.absent) + size_of(self.deleted) + size_of(self.unjudged)


def joined(parts: Sequence[Verdicts]) -> Verdicts:
    """Return the verdicts of ranges that follow each other as those of one."""
    if len(parts) == 1:
        return parts[0]
    names = Verdicts.__slots__
    empty = Verdicts()
    return Verdicts(
        **{
            name: np.concatenate([getattr(empty, name), *(getattr(one, name) for one in parts)])
            for name in names
        }
    )
