"""Keep the windows that an account had begun when it moved to another zone: nothing restarts early.

An hour or a day goes on, with all its counts, until both it and the one that the new zone is in at the
move are over; a month until it is over in both zones. Then the new zone's windows hold. What a move
leaves of a day or an hour of the new zone, behind the one that was kept, is a window of its own; of
a month it belongs to that month. Few accounts ever move: those that did are looked at one by one.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS, Spans, spans_at
from tokenline.quota.table import FREE, OWNER, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Int64s = npt.NDArray[np.int64]

# So long after its windows a move is remembered: usage of them may be reported, and days behind them are cut.
REMEMBERED_MS = 5 * 86_400_000


class Move(IntEnum):
    """Name the columns; the order is part of the journal's format. An END of 0 keeps nothing."""

    OWNER = 0
    HOUR_START = 1
    HOUR_END = 2
    DAY_START = 3
    DAY_END = 4
    MONTH_START = 5
    MONTH_END = 6


class Moves(Table):
    """Hold a row for each account that moved not long ago."""

    def __init__(self) -> None:
        super().__init__(len(Move))
        self._by_owner: dict[int, int] = {}
        self._owners: Int64s = np.zeros(0, np.int64)

    def among(self, slots: Int64s) -> Int64s:
        """Return where in `slots` accounts stand that moved; nearly always nowhere."""
        if not self._by_owner:
            return self._owners
        return np.flatnonzero(np.isin(slots, self._owners))

    def spans(
        self, zones: Sequence[str], slots: Int64s, codes: Int64s, minute_ms: int
    ) -> Iterator[tuple[Spans, slice | Int64s]]:
        """Yield windows that hold a minute, and which of the accounts are in them."""
        moved = self.among(slots)
        if not moved.size:
            for code, here in by_zone(codes):
                yield spans_at(zones[code], minute_ms), here
            return
        others = np.setdiff1d(np.arange(len(slots)), moved)
        for code, here in by_zone(codes[others]):
            yield spans_at(zones[code], minute_ms), others[here]
        for at in moved.tolist():
            base = spans_at(zones[int(codes[at])], minute_ms)
            yield self.of(int(slots[at]), base), np.array([at])

    def of(self, slot: int, base: Spans) -> Spans:
        """Return the windows of an account that hold a minute; `base` are those of its zone."""
        row = self._by_owner.get(slot)
        if row is None:
            return base
        values, minute_ms = self._matrix[row].tolist(), base.minute[0]
        month = tuple(values[Move.MONTH_START :])
        return replace(
            base,
            hour=_kept(values[Move.HOUR_START], values[Move.HOUR_END], base.hour, minute_ms),
            day=_kept(values[Move.DAY_START], values[Move.DAY_END], base.day, minute_ms),
            month=month if minute_ms < month[1] else base.month,
        )

    def months(self, slots: Int64s, months_ms: Int64s, occurred_ms: Int64s) -> Int64s:
        """Return the starts of the months in which usage occurred, those that were kept among them."""
        moved = self.among(slots)
        if not moved.size:
            return months_ms
        months_ms = months_ms.copy()
        for at in moved.tolist():
            row = self._by_owner[int(slots[at])]
            start, end = self._matrix[row, Move.MONTH_START :].tolist()
            if start <= occurred_ms[at] < end:
                months_ms[at] = start
        return months_ms

    def keep(self, slot: int, before: Spans, zone: str) -> None:
        """Keep the windows that an account is in when it moves to a zone."""
        now_ms = before.minute[0]
        after = spans_at(zone, now_ms)
        month_end_ms = max(before.month[1], same_in(zone, before.month).month[1])
        kept = [
            *(before.hour[0], max(before.hour[1], after.hour[1])),
            *(before.day[0], max(before.day[1], after.day[1])),
            *(before.month[0], month_end_ms),
        ]
        self._forget_old(now_ms)
        row = self._by_owner.get(slot)
        if row is None:
            row = self.add([slot, *kept])
        else:
            self._matrix[row] = [slot, *kept]
            self.touch(row)
        self._by_owner[slot] = row
        self._owners = np.array(sorted(self._by_owner), np.int64)

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        rows = np.flatnonzero(self.matrix[:, OWNER] != FREE)
        self._by_owner = {int(self._matrix[row, OWNER]): row for row in rows.tolist()}
        self._owners = np.array(sorted(self._by_owner), np.int64)

    def _forget_old(self, now_ms: int) -> None:
        for slot, row in list(self._by_owner.items()):
            ends = self._matrix[row, [Move.HOUR_END, Move.DAY_END, Move.MONTH_END]]
            if int(ends.max()) + REMEMBERED_MS < now_ms:
                del self._by_owner[slot]
                self.free(row)


def same_in(zone: str, window: tuple[int, int]) -> Spans:
    """Return the windows of a zone around the middle of a window of another."""
    middle_ms = (window[0] + window[1]) // 2
    return spans_at(zone, middle_ms // MINUTE_MS * MINUTE_MS)


def by_zone(codes: Int64s) -> Iterator[tuple[int, slice | Int64s]]:
    """Yield each zone code and where it stands; one zone is everywhere, as a slice."""
    if not codes.size:
        return
    first = int(codes[0])
    if (codes == first).all():
        yield first, slice(None)
        return
    for code in np.unique(codes).tolist():
        yield code, np.flatnonzero(codes == code)


def _kept(start_ms: int, end_ms: int, base: tuple[int, int], minute_ms: int) -> tuple[int, int]:
    if minute_ms < end_ms:
        return start_ms, end_ms
    return (end_ms, base[1]) if base[0] < end_ms < base[1] else base
