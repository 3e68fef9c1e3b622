"""Keep the accounts of one partition as one matrix of int64, a row an account.

Rows are found by slot; slots are given in order of first appearance and never change, so a run of
slots is a page that can be written as it lies in memory. No row grows with subscribers or windows.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import spans_at
from tokenline.quota.moves import Moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenline.metering.calendar import Spans

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CAPACITY_MIN = 256
NO_LIMIT = -1
MONTHS_APART_MS = 2 * 86_400_000


class Cell(IntEnum):
    """Name the columns; the order is part of the journal's format.

    From STATE on they hold the last decision; COVERS is a digest of what can be paid (`covers`).
    """

    ZONE = 0
    MONTH_TOKENS_LIMIT = 1
    MINUTE_TOKENS_LIMIT = 2
    HOUR_TOKENS_LIMIT = 3
    DAY_TOKENS_LIMIT = 4
    MINUTE_REQUESTS_LIMIT = 5
    HOUR_REQUESTS_LIMIT = 6
    DAY_REQUESTS_LIMIT = 7
    # Two months are held, because usage may be reported up to the horizon after a month ended.
    MONTH_START = 8
    MONTH_TOKENS = 9
    MONTH_EVENTS = 10
    MONTH_VERSION = 11
    LAST_MONTH_START = 12
    LAST_MONTH_TOKENS = 13
    LAST_MONTH_EVENTS = 14
    LAST_MONTH_VERSION = 15
    MINUTE_START = 16
    MINUTE_TOKENS = 17
    MINUTE_REQUESTS = 18
    HOUR_START = 19
    HOUR_TOKENS = 20
    HOUR_REQUESTS = 21
    DAY_START = 22
    DAY_TOKENS = 23
    DAY_REQUESTS = 24
    STATE = 25
    RULE = 26
    THRESHOLD_PERCENT = 27
    THRESHOLD_MONTH = 28
    RESETS_AT = 29
    DECISION_VERSION = 30
    DECISION_EPOCH = 31
    COVERS = 32


WIDTH = len(Cell)
# Start, tokens, events and version of this month and of the last.
MONTHS = (
    (Cell.MONTH_START, Cell.MONTH_TOKENS, Cell.MONTH_EVENTS, Cell.MONTH_VERSION),
    (
        Cell.LAST_MONTH_START,
        Cell.LAST_MONTH_TOKENS,
        Cell.LAST_MONTH_EVENTS,
        Cell.LAST_MONTH_VERSION,
    ),
)


def same_month(starts_ms: Int64s | int, month_start_ms: Int64s | int) -> Bools:
    """Say where two starts are of one calendar month, be it in different zones.

    An account that moves to another zone keeps the month it has begun, and all it used in it.
    """
    same: Bools = np.abs(starts_ms - month_start_ms) < MONTHS_APART_MS
    return same


# What each limit counts; a month is also billed by, and counts on whatever limits there are.
COUNTS = {
    Cell.MINUTE_TOKENS_LIMIT: Cell.MINUTE_TOKENS,
    Cell.HOUR_TOKENS_LIMIT: Cell.HOUR_TOKENS,
    Cell.DAY_TOKENS_LIMIT: Cell.DAY_TOKENS,
    Cell.MINUTE_REQUESTS_LIMIT: Cell.MINUTE_REQUESTS,
    Cell.HOUR_REQUESTS_LIMIT: Cell.HOUR_REQUESTS,
    Cell.DAY_REQUESTS_LIMIT: Cell.DAY_REQUESTS,
}
# Of tokens and requests, whatever the window.
LIMITS = slice(Cell.MONTH_TOKENS_LIMIT, Cell.DAY_REQUESTS_LIMIT + 1)


class AccountCells:
    """Hold the rows, their names and the zones they use."""

    def __init__(self) -> None:
        self._matrix: Int64s = np.zeros((CAPACITY_MIN, WIDTH), np.int64)
        self.keys: list[str] = []
        self._slots: dict[str, int] = {}
        self.zones: list[str] = []
        self.moves = Moves()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def matrix(self) -> Int64s:
        """Return the rows in use; writing to it changes the accounts."""
        return self._matrix[: len(self.keys)]

    def take(self, slots: Int64s) -> Int64s:
        """Return copies of the rows of `slots`, a row a `Cell` and a column a slot: to be worked on.

        A cell of all slots then lies in one piece: a step looks at some forty, and picking each out
        of the matrix anew cost more than the sums.
        """
        return np.ascontiguousarray(self._matrix[slots].T)

    def put(self, slots: Int64s, rows: Int64s) -> None:
        """Write back what `take` gave for the same distinct `slots`."""
        self._matrix[slots] = rows.T

    def slot(self, key: str) -> int | None:
        """Return the slot of `tenant/account`, or None when it was never applied."""
        return self._slots.get(key)

    def slots(self, keys: Sequence[str | None]) -> Int64s:
        """Return the slot of each key, -1 where there is none."""
        find: Callable[[str | None, int], int] = self._slots.get  # type: ignore[assignment]  # None is never a key
        return np.fromiter(map(find, keys, repeat(-1)), np.int64, len(keys))

    def open(self, key: str) -> int:
        """Return the slot of `key`, giving it the next free one when it is new."""
        if (slot := self._slots.get(key)) is not None:
            return slot
        self.extend([key])
        return len(self.keys) - 1

    def extend(self, keys: Sequence[str]) -> None:
        """Give the next slots to `keys`, all of them new."""
        self._reserve(len(self.keys) + len(keys))
        for slot, key in enumerate(keys, start=len(self.keys)):
            self._slots[key] = slot
        self.keys.extend(keys)

    def adopt(self, keys: list[str], matrix: Int64s) -> None:
        """Take over all rows of a journal as they lie, without a copy; there were none before.

        `matrix` has a row for each of `keys`, or more: those are room to grow.
        """
        self._matrix, self.keys = matrix, keys
        self._slots = {key: slot for slot, key in enumerate(keys)}

    def spans(
        self, slots: Int64s, codes: Int64s, minute_ms: int
    ) -> Iterator[tuple[Spans, slice | Int64s]]:
        """Yield windows that hold a minute, and which of `slots`, in zones of these codes, are in them."""
        return self.moves.spans(self.zones, slots, codes, minute_ms)

    def spans_of(self, slot: int, minute_ms: int) -> Spans:
        """Return the windows of one account that hold a minute."""
        zone = self.zones[int(self._matrix[slot, +Cell.ZONE])]
        return self.moves.of(slot, spans_at(zone, minute_ms))

    def hide(self, slots: Sequence[int]) -> None:
        """Let nobody find these accounts any more; their rows stay where they are."""
        for slot in slots:
            del self._slots[self.keys[slot]]

    def zone_code(self, zone: str) -> int:
        """Return the code of a zone, remembering a new one."""
        if zone not in self.zones:
            self.zones.append(zone)
        return self.zones.index(zone)

    def _reserve(self, rows: int) -> None:
        if rows > len(self._matrix):
            grown = np.zeros((max(rows, len(self._matrix) * 3 // 2), WIDTH), np.int64)
            grown[: len(self.keys)] = self.matrix
            self._matrix = grown
