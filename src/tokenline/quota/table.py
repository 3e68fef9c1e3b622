"""Keep rows of int64 by number: what a matrix of accounts is for accounts, for things that come and go.

A row that is freed is used again, the lowest first, so the numbers a replay gives are the same. Every
row changed since the last look is known: the journal writes those and no others.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable

Int64s = npt.NDArray[np.int64]

CAPACITY_MIN = 64
OWNER = 0  # the first column of every table
FREE = -1  # as an owner: nobody's row
NONE = -1  # as the number of a row: no row


class Table:
    """Hold rows of `width` columns; column 0 says whose a row is, FREE when nobody's."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._matrix: Int64s = np.zeros((CAPACITY_MIN, width), np.int64)
        self._count = 0
        self._free: list[int] = []
        self._touched: set[int] = set()

    def __len__(self) -> int:
        """Return how many rows there are, free ones in between included."""
        return self._count

    @property
    def matrix(self) -> Int64s:
        """Return the rows; whoever writes to one says so with `touch`."""
        return self._matrix[: self._count]

    def add(self, values: Iterable[int]) -> int:
        """Put `values` into the lowest free row and return its number."""
        row = heappop(self._free) if self._free else self._append()
        self._matrix[row] = list(values)
        self._touched.add(row)
        return row

    def get(self, row: int, column: int) -> int:
        """Return one column of a row."""
        # numpy finds the place by a plain int five times sooner than by the member of an enum.
        return self._matrix.item(row, +column)

    def set(self, row: int, column: int, value: int) -> None:
        """Change one column of a row."""
        self._matrix[row, +column] = value
        self._touched.add(row)

    def free(self, row: int) -> None:
        """Give a row back; it reads as zeros that nobody owns."""
        self._matrix[row] = 0
        self._matrix[row, OWNER] = FREE
        self._touched.add(row)
        heappush(self._free, row)

    def touch(self, row: int) -> None:
        """Note that a row changed."""
        self._touched.add(row)

    def touch_all(self, rows: Int64s) -> None:
        """Note that these rows changed."""
        self._touched.update(rows.tolist())

    def take_touched(self) -> Int64s:
        """Return the rows changed since the last call, ascending, and forget them."""
        rows = np.fromiter(sorted(self._touched), np.int64, len(self._touched))
        self._touched.clear()
        return rows

    def rows_of(self, owner: int) -> list[int]:
        """Return the rows of one owner, ascending; it looks at all rows."""
        found: list[int] = np.flatnonzero(self.matrix[:, OWNER] == owner).tolist()
        return found

    def adopt(self, matrix: Int64s) -> None:
        """Take over all rows of a journal; there were none before."""
        self._matrix, self._count = matrix, len(matrix)
        self._free = np.flatnonzero(matrix[:, OWNER] == FREE).tolist()
        heapify(self._free)

    def _append(self) -> int:
        if self._count == len(self._matrix):
            grown = np.zeros((max(CAPACITY_MIN, self._count * 3 // 2), self.width), np.int64)
            grown[: self._count] = self.matrix
            self._matrix = grown
        self._count += 1
        return self._count - 1
