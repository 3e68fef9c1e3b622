"""Say what each event of a charged range was charged, by which catalog and which buckets paid.

A range names no offset for it: its columns have one entry for each offset that was counted or is late,
in their order. So the place of an offset is its distance from the first, less what was judged otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tokenline.quota.charge import NOTHING_PAID, SEVERAL_PAID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.row import Int64s
    from tokenline.landing.verdicts import Verdicts

NO_SPLITS: Int64s = np.zeros((0, 3), np.int64)
NO_NUMBERS: Int64s = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Hold, of events in offset order, charge in µtok, catalog version and who paid (see `quota.charge.Paid`).

    `splits` has a row of offset, bucket number and µtok for each part of what several buckets paid.
    """

    utok: Int64s
    versions: Int64s
    buckets: Int64s
    splits: Int64s = field(default_factory=lambda: NO_SPLITS)

    @classmethod
    def none(cls, count: int) -> Charges:
        """Return that nothing was to be paid."""
        utok, versions = np.zeros((2, count), np.int64)
        return cls(utok=utok, versions=versions, buckets=np.full(count, NOTHING_PAID, np.int64))

    def paid(self, offsets: Int64s) -> tuple[pa.ListArray, pa.ListArray]:
        """Return of each event, which lies at this offset, the buckets that paid and how much."""
        sizes = (self.buckets != NOTHING_PAID).astype(np.int32)
        events = np.searchsorted(offsets, self.splits[:, 0])
        np.add.at(sizes, events, 1)
        # One of several is in the count already.
        sizes[self.buckets == SEVERAL_PAID] -= 1
        ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
        numbers, amounts = np.zeros((2, int(ends[-1])), np.int64)
        alone = np.flatnonzero((self.buckets != NOTHING_PAID) & (self.buckets != SEVERAL_PAID))
        numbers[ends[alone]], amounts[ends[alone]] = self.buckets[alone], self.utok[alone]
        # The parts of one event lie together: each behind as many as it is away from the first.
        at = ends[events] + np.arange(len(events)) - np.searchsorted(events, events)
        numbers[at], amounts[at] = self.splits[:, 1], self.splits[:, 2]
        parts = [pa.ListArray.from_arrays(ends, pa.array(each)) for each in (numbers, amounts)]
        return parts[0], parts[1]

    def parts_of(self, position: int, offset: int) -> list[tuple[int, int]]:
        """Return which buckets paid one event, and how much."""
        bucket = int(self.buckets[position])
        if bucket == SEVERAL_PAID:
            mine = self.splits[self.splits[:, 0] == offset]
            return [(number, amount) for _, number, amount in mine.tolist()]
        return [] if bucket == NOTHING_PAID else [(bucket, int(self.utok[position]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeCharges:
    """Hold the columns of one range; empty ones say 0 of all, and that nothing was to be paid."""

    lo: int
    hi: int
    verdicts: Verdicts
    utok: Int64s = field(default_factory=lambda: NO_NUMBERS)
    version_runs: Int64s = field(default_factory=lambda: NO_NUMBERS)
    buckets: Int64s = field(default_factory=lambda: NO_NUMBERS)
    splits: Int64s = field(default_factory=lambda: NO_SPLITS)

    def fault(self) -> str:
        """Say why this cannot be true whatever was charged; empty when it can."""
        count = self.hi - self.lo + 1 - self.verdicts.not_charged
        runs = self.version_runs.reshape(-1, 2)
        if len(self.utok) not in (0, count) or len(self.buckets) != len(self.utok):
            return (
                f"charges of {len(self.utok)} events and payers of {len(self.buckets)}, not {count}"
            )
        if len(runs) and (runs.min() < 0 or int(runs[:, 1].sum()) != count):
            return f"catalog versions of other than {count} events"
        if len(self.utok) and self.utok.min() < 0:
            return "a charge below zero"
        return self._unequal_parts()

    def of(self, offsets: Int64s) -> Charges:
        """Return the charges of these offsets of the range; 0 of those that were not charged."""
        charged = self.verdicts.charged(offsets)
        places = (offsets - self.lo - self.verdicts.not_charged_below(offsets))[charged]
        found = Charges.none(len(offsets))
        if len(self.utok):
            found.utok[charged] = self.utok[places]
            found.buckets[charged] = self.buckets[places]
        if len(self.version_runs):
            runs = self.version_runs.reshape(-1, 2)
            at = np.searchsorted(np.cumsum(runs[:, 1]), places, side="right")
            found.versions[charged] = runs[at, 0]
        here = np.isin(self.splits[:, 0], offsets)
        return Charges(
            utok=found.utok,
            versions=found.versions,
            buckets=found.buckets,
            splits=self.splits[here],
        )

    def _unequal_parts(self) -> str:
        """Say where parts do not add up to what was charged."""
        nothing, several = self.buckets == NOTHING_PAID, self.buckets == SEVERAL_PAID
        if (self.utok[nothing] != 0).any() or (self.utok[~nothing] == 0).any():
            return "a charge that nobody paid, or a payer of nothing"
        offsets, which = np.unique(self.splits[:, 0], return_inverse=True)
        outside = len(offsets) and (offsets[0] < self.lo or offsets[-1] > self.hi)
        if len(offsets) != int(several.sum()) or outside:
            return "parts of other events than those that several buckets paid"
        if not len(offsets):
            return ""
        sums = np.zeros(len(offsets), np.int64)
        np.add.at(sums, which.ravel(), self.splits[:, 2])
        if not self.verdicts.charged(offsets).all():
            return "parts of an event that was not charged"
        places = offsets - self.lo - self.verdicts.not_charged_below(offsets)
        if (places >= len(self.utok)).any() or self.splits[:, 2].min() <= 0:
            return "parts of nothing"
        return (
            ""
            if (sums == self.utok[places]).all() and several[places].all()
            else "parts that do not add up"
        )


def joined_charges(ranges: Sequence[RangeCharges], offsets: Int64s) -> Charges:
    """Return the charges of these ascending offsets; 0 where no range speaks of one."""
    found, splits = Charges.none(len(offsets)), []
    for one in ranges:
        start, end = np.searchsorted(offsets, [one.lo, one.hi + 1])
        if start < end:
            part = one.of(offsets[start:end])
            found.utok[start:end], found.versions[start:end] = part.utok, part.versions
            found.buckets[start:end] = part.buckets
            splits.append(part.splits)
    return Charges(
        utok=found.utok,
        versions=found.versions,
        buckets=found.buckets,
        splits=np.concatenate([NO_SPLITS, *splits]),
    )
