"""Bring the counters of limits to a moment, and say when they will have room again.

A calendar window begins at local midnight, Monday, the first, or the day of the bill cycle, in the
account's zone. What is charged while it lasts counts into it: "now" is the clock of the balances.

A rolling window is counted in slices of a twelfth: the slice in hand and the twelve before it. They
cover the window, whenever it is looked at, and up to a slice more: so a limit is never exceeded in
any window, and what was used comes back up to a twelfth of the window late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenline.metering.calendar import spans_at, week_at
from tokenline.quota.books import Balance
from tokenline.quota.limits import SLICES, Limit
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS, Per

if TYPE_CHECKING:
    from tokenline.quota.books import Books, Int64s

MINUTE_MS = 60_000
LENGTHS_MS = {
    Per.MINUTE: MINUTE_MS,
    Per.HOUR: 60 * MINUTE_MS,
    Per.DAY: 1440 * MINUTE_MS,
    Per.WEEK: 7 * 1440 * MINUTE_MS,
}


def roll(books: Books, row: int, now_ms: int) -> None:
    """Begin the window of one limit anew if another is in hand at `now_ms`."""
    if books.limits.get(row, Limit.ROLLING):
        _roll_slices(books, row, now_ms)
    else:
        _roll_window(books, row, now_ms)


def roll_all(books: Books, rows: Int64s, now_ms: int) -> None:
    """Do as `roll` for many rows, most of which have nothing to begin."""
    found = books.limits.matrix[rows]
    due = (found[:, Limit.END] <= now_ms) | (found[:, Limit.PER] == Per.CYCLE)
    for row in rows[due].tolist():
        roll(books, row, now_ms)


def resets_at(books: Books, row: int) -> int:
    """Return when a limit that is reached has room again if nothing more is used; NEVER_MS: never."""
    ceiling = books.limits.get(row, Limit.CEILING)
    if ceiling == 0:
        return NEVER_MS
    end = books.limits.get(row, Limit.END)
    if not books.limits.get(row, Limit.ROLLING):
        return end
    step = end - books.limits.get(row, Limit.START)
    left = books.limits.get(row, Limit.USED)
    # The slice in hand is let go of last, twelve slices after it is over.
    newest = end // step - 1
    for back in range(SLICES, -1, -1):
        if left < ceiling:
            return end + (SLICES - back - 1) * step
        left -= books.limits.get(row, slice_column(newest - back))
    return end + SLICES * step


def start_of(books: Books, row: int) -> int:
    """Return the first moment of which a limit counts what was used."""
    start, end = books.limits.get(row, Limit.START), books.limits.get(row, Limit.END)
    return start - SLICES * (end - start) if books.limits.get(row, Limit.ROLLING) else start


def slice_column(number: int) -> int:
    """Return where the slice of this number, counted from the epoch on, is kept."""
    return Limit.RING + number % (SLICES + 1)


def note_use(books: Books, rows: Int64s, amounts: Int64s) -> None:
    """Add to what limits have used, each of them rolled before; a row may stand here many times."""
    matrix = books.limits.matrix
    np.add.at(matrix[:, Limit.USED], rows, amounts)
    at = np.flatnonzero(matrix[rows, Limit.ROLLING])
    if at.size:
        found = matrix[rows[at]]
        numbers = found[:, Limit.START] // (found[:, Limit.END] - found[:, Limit.START])
        np.add.at(matrix, (rows[at], Limit.RING + numbers % (SLICES + 1)), amounts[at])


def take_back(books: Books, row: int, amount: int, counted_ms: int) -> None:
    """Take off what was counted at a moment, if the limit still counts that moment."""
    limits = books.limits
    if counted_ms < start_of(books, row):
        return
    limits.set(row, Limit.USED, limits.get(row, Limit.USED) - amount)
    if limits.get(row, Limit.ROLLING):
        step = limits.get(row, Limit.END) - limits.get(row, Limit.START)
        column = slice_column(counted_ms // step)
        limits.set(row, column, limits.get(row, column) - amount)


def _roll_window(books: Books, row: int, now_ms: int) -> None:
    limits = books.limits
    start, end = _window(books, row, now_ms)
    # An account that moves to another zone ends the window it has begun. A cycle that is over is
    # over, wherever its end stood before it was moved.
    over = limits.get(row, Limit.END) <= now_ms or limits.get(row, Limit.PER) == Per.CYCLE
    if start != limits.get(row, Limit.START) and over:
        limits.set(row, Limit.START, start)
        limits.set(row, Limit.END, end)
        limits.set(row, Limit.USED, 0)
    elif start == limits.get(row, Limit.START) and end != limits.get(row, Limit.END):
        limits.set(row, Limit.END, end)


def _window(books: Books, row: int, now_ms: int) -> tuple[int, int]:
    owner, per = books.limits.get(row, Limit.OWNER), Per(books.limits.get(row, Limit.PER))
    balance = books.row(owner)
    if per is Per.CYCLE and balance != NONE:
        return books.get(balance, Balance.CYCLE_START), books.get(balance, Balance.CYCLE_END)
    zone, minute_ms = books.zone(balance), now_ms // MINUTE_MS * MINUTE_MS
    if per is Per.WEEK:
        return week_at(zone, minute_ms)
    found: tuple[int, int] = getattr(spans_at(zone, minute_ms), per.name.lower())
    return found


def _roll_slices(books: Books, row: int, now_ms: int) -> None:
    limits = books.limits
    step = LENGTHS_MS[Per(limits.get(row, Limit.PER))] // SLICES
    number, old = now_ms // step, limits.get(row, Limit.START) // step
    if number <= old and limits.get(row, Limit.END):
        return
    for gone in range(max(old + 1, number - SLICES), number + 1):
        column = slice_column(gone)
        limits.set(row, Limit.USED, limits.get(row, Limit.USED) - limits.get(row, column))
        limits.set(row, column, 0)
    limits.set(row, Limit.START, number * step)
    limits.set(row, Limit.END, (number + 1) * step)
