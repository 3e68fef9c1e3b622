"""Know which rows are due at a moment without looking at all of them.

Rows lie in blocks, and of each block the earliest moment is kept that anything in it may be due: so
finding what is due of a million rows is a look at a thousand numbers and at the blocks that are due.
Such a number may be too early, when its row is due later by now, and never too late: the next look at
its block sets it right. What is found is the rows themselves, so the same rows give the same answer,
whatever was noted on the way to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BLOCK_BITS = 10
BLOCK_ROWS = 1 << BLOCK_BITS


class Dues:
    """Find due rows; `due_of` tells when the rows from one number to another are due, NEVER_MS for never."""

    def __init__(self, due_of: Callable[[int, int], Int64s]) -> None:
        self._due_of = due_of
        self._firsts: Int64s = np.zeros(0, np.int64)

    @property
    def first_ms(self) -> int:
        """The moment before which nothing is due."""
        return int(self._firsts.min(initial=NEVER_MS))

    def note(self, row: int, due_ms: int) -> None:
        """Note when a row is due; that it is due later than was noted needs no telling."""
        block = row >> BLOCK_BITS
        if block >= len(self._firsts):
            self._reach(block + 1)
        if due_ms < self._firsts.item(block):
            self._firsts[block] = due_ms

    def note_everywhere(self, due_ms: int) -> None:
        """Note that any row may be due at a moment."""
        np.minimum(self._firsts, due_ms, out=self._firsts)

    def due(self, now_ms: int, most: int) -> list[int]:
        """Return the rows that are due by now, those of the lowest numbers, and no more than `most`."""
        found: list[int] = []
        for block in np.flatnonzero(self._firsts <= now_ms).tolist():
            start = block << BLOCK_BITS
            dues = self._due_of(start, start + BLOCK_ROWS)
            self._firsts[block] = dues.min(initial=NEVER_MS)
            here = np.flatnonzero(dues <= now_ms)[: most - len(found)] + start
            found += here.tolist()
            if len(found) == most:
                break
        return found

    def note_everything(self, count: int) -> None:
        """Look at all rows once, when they were read back from a journal."""
        self._reach(-(-count >> BLOCK_BITS))
        for block in range(len(self._firsts)):
            start = block << BLOCK_BITS
            dues = self._due_of(start, start + BLOCK_ROWS)
            self._firsts[block] = dues.min(initial=NEVER_MS)

    def _reach(self, blocks: int) -> None:
        if blocks > len(self._firsts):
            grown = np.full(max(blocks, len(self._firsts) * 3 // 2), NEVER_MS, np.int64)
            grown[: len(self._firsts)] = self._firsts
            self._firsts = grown


class UrgentDues(Dues):
    """Find due rows, and first among them those that `is_urgent` tells of, from one number to another."""

    def __init__(
        self, due_of: Callable[[int, int], Int64s], is_urgent: Callable[[int, int], Bools]
    ) -> None:
        super().__init__(due_of)
        self._urgent = Dues(
            lambda first, end: np.where(is_urgent(first, end), due_of(first, end), NEVER_MS)
        )

    def note(self, row: int, due_ms: int) -> None:
        """Note when a row is due."""
        super().note(row, due_ms)
        self._urgent.note(row, due_ms)

    def note_everywhere(self, due_ms: int) -> None:
        """Note that any row may be due at a moment."""
        super().note_everywhere(due_ms)
        self._urgent.note_everywhere(due_ms)

    def due(self, now_ms: int, most: int) -> list[int]:
        """Return the rows that are due by now, those that are urgent first, and no more than `most`."""
        urgent = self._urgent.due(now_ms, most)
        if len(urgent) == most:
            return urgent
        known, others = set(urgent), super().due(now_ms, most)
        return [*urgent, *(row for row in others if row not in known)][:most]

    def note_everything(self, count: int) -> None:
        """Look at all rows once."""
        super().note_everything(count)
        self._urgent.note_everything(count)
