"""Gather the rows of a journal, which come in any order and many times; the last of each stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from tokenline.charging.packs import unpack_rows
from tokenline.errors import BrokenLog
from tokenline.quota.cells import WIDTH
from tokenline.quota.table import FREE, OWNER

Int64s = npt.NDArray[np.int64]

NEWER = (
    "the journal holds {} of a newer worker; this one does not read them: start the newer version"
)


@dataclass(slots=True)
class AccountRows:
    """Gather account rows that arrive in any order of slots."""

    matrix: Int64s = field(default_factory=lambda: np.zeros((1024, WIDTH), np.int64))
    keys: list[str | None] = field(default_factory=list)
    end: int = 0

    def take(self, value: bytes) -> int:
        """Take in one record and return how many rows it had.

        Raises:
            BrokenLog: they are wider than an account is here.
        """
        first_new, names, slots, rows = unpack_rows(value)
        if names:
            self._name(first_new, names)
        self.end = max(self.end, int(slots.max(initial=-1)) + 1)
        if self.end > len(self.matrix):
            grown = np.zeros((max(self.end, 2 * len(self.matrix)), WIDTH), np.int64)
            grown[: len(self.matrix)] = self.matrix
            self.matrix = grown
        there = rows.shape[1]
        if there > WIDTH:
            raise BrokenLog(NEWER.format("rows of accounts"))
        self.matrix[slots, :there] = rows
        self.matrix[slots, there:] = 0
        return len(slots)

    def _name(self, first: int, names: list[str]) -> None:
        end = first + len(names)
        self.keys.extend(repeat(None, end - len(self.keys)))
        # A slot keeps its name for ever, but for one a fenced owner gave too late. Keeping the first
        # text where both are the same, and not the newest, frees this one whole.
        if self.keys[first:end] != names:
            self.keys[first:end] = names

    def cut(self, count: int) -> None:
        """Forget all slots from `count` on: a fenced owner opened them too late.

        Compaction may have taken the opening that would have told (see `live_records`) and not yet
        the rows themselves.
        """
        del self.keys[count:]
        # No further than rows were put: what lies behind is memory that nobody touched yet.
        self.matrix[count : self.end] = 0
        self.end = min(self.end, count)


@dataclass(slots=True)
class TableRows:
    """Gather rows of one table of the books; rows that were never written are nobody's.

    Columns are only ever added at the end, and 0 means what was so before: rows of an older worker
    are as wide as its table was.
    """

    width: int
    matrix: Int64s = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((0, self.width), np.int64)

    def take(self, rows: Int64s, values: Int64s) -> None:
        """Take in rows by their numbers.

        Raises:
            BrokenLog: they are wider than the table is here.
        """
        there = values.shape[1]
        if there > self.width:
            raise BrokenLog(NEWER.format("rows"))
        end = int(rows.max()) + 1
        if end > len(self.matrix):
            grown = np.zeros((max(end, 2 * len(self.matrix)), self.width), np.int64)
            grown[:, OWNER] = FREE
            grown[: len(self.matrix)] = self.matrix
            self.matrix = grown
        self.matrix[rows, :there] = values
        self.matrix[rows, there:] = 0

    def cut(self, count: int) -> Int64s:
        """Return the rows the newest head knows of; what lies behind was written too late.

        Raises:
            BrokenLog: the head knows of more.
        """
        if count > len(self.matrix):
            raise BrokenLog(
                "the journal's head names rows that are not there; it was cut or edited"
            )
        return np.ascontiguousarray(self.matrix[:count])
