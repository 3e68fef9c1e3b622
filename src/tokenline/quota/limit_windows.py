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
from tokenline.quota.balance import Balance
from tokenline.quota.cells import Cell
from tokenline.quota.limits import SLICES, Limit
from tokenline.quota.terms import NEVER_MS, Per

if TYPE_CHECKING:
    from tokenline.quota.books import Books, Int64s

MINUTE_MS = 60_000
RING = slice(Limit.RING, Limit.RING + SLICES + 1)
# Fewer rows are rolled one by one.
TOGETHER = 8
LENGTHS_MS = {
    Per.MINUTE: MINUTE_MS,
    Per.HOUR: 60 * MINUTE_MS,
    Per.DAY: 1440 * MINUTE_MS,
    Per.WEEK: 7 * 1440 * MINUTE_MS,
}


def rolled(books: Books, row: int, now_ms: int) -> list[int]:
    """Return the columns of a limit as they are once its window is that of `now_ms`."""
    values: list[int] = books.limits.matrix[row].tolist()
    (_roll_slices if values[Limit.ROLLING] else _roll_window)(books, values, now_ms)
    return values


def roll(books: Books, row: int, now_ms: int) -> None:
    """Begin the window of one limit anew if another is in hand at `now_ms`."""
    values = rolled(books, row, now_ms)
    if values != books.limits.matrix[row].tolist():
        books.limits.matrix[row] = values
        books.limits.touch(row)


def roll_all(books: Books, rows: Int64s, now_ms: int) -> None:
    """Do as `roll` for many rows, most of which have nothing to begin."""
    found = books.limits.matrix[rows]
    due = found[:, Limit.END] <= now_ms
    cycles = np.flatnonzero(found[:, Limit.PER] == Per.CYCLE)
    if cycles.size:
        balances = books.balances.matrix[books.rows_of(found[cycles, Limit.OWNER])]
        due[cycles] |= found[cycles, Limit.END] != balances[:, Balance.CYCLE_END]
    rows = rows[due]
    alone = rows if len(rows) < TOGETHER else _roll_together(books, rows, found[due], now_ms)
    for row in alone.tolist():
        roll(books, row, now_ms)


def move_cycle_end(books: Books, owner: int, old_end_ms: int, end_ms: int) -> None:
    """Let the limits of the cycle in hand end when it does now: a row that seems over is let go."""
    limits = books.limits
    for row in limits.of_owner(owner):
        if limits.get(row, Limit.PER) == Per.CYCLE and limits.get(row, Limit.END) == old_end_ms:
            limits.set(row, Limit.END, end_ms)


def keep_windows(books: Books, owner: int, zone: str, now_ms: int) -> None:
    """Let windows that are counted go on when their account moves to a zone: see `moves`."""
    for row in books.limits.of_owner(owner):
        roll(books, row, now_ms)
        values, per = books.limits.matrix[row].tolist(), Per(books.limits.get(row, Limit.PER))
        if not values[Limit.ROLLING] and per not in (Per.MINUTE, Per.CYCLE):
            start, end = values[Limit.START], values[Limit.END]
            # A week or a month is over when it is so in both zones.
            at_ms = (start + end) // 2 if per in (Per.WEEK, Per.MONTH) else now_ms
            books.limits.set(row, Limit.END, max(end, _calendar(zone, per, at_ms)[1]))


def resets_at(values: list[int]) -> int:
    """Return when a limit that is reached has room again if nothing more is used; NEVER_MS: never."""
    ceiling, end, left = values[Limit.CEILING], values[Limit.END], values[Limit.USED]
    if ceiling == 0:
        return NEVER_MS
    if not values[Limit.ROLLING]:
        return end
    step = end - values[Limit.START]
    # The slice in hand is let go of last, twelve slices after it is over.
    for back in range(SLICES, -1, -1):
        if left < ceiling:
            return end + (SLICES - back - 1) * step
        left -= values[slice_column(end // step - 1 - back)]
    return end + SLICES * step


def start_of(values: list[int]) -> int:
    """Return the first moment of which a limit counts what was used."""
    start, end = values[Limit.START], values[Limit.END]
    return start - SLICES * (end - start) if values[Limit.ROLLING] else start


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
    limits, values = books.limits, books.limits.matrix[row].tolist()
    if counted_ms < start_of(values):
        return
    limits.set(row, Limit.USED, values[Limit.USED] - amount)
    if values[Limit.ROLLING]:
        column = slice_column(counted_ms // (values[Limit.END] - values[Limit.START]))
        limits.set(row, column, values[column] - amount)


def _roll_together(books: Books, rows: Int64s, found: Int64s, now_ms: int) -> Int64s:
    """Roll rows that are due, a window of a zone at a time; return those that must be rolled alone.

    Alone are slices of which some still count, and cycles that nobody has entered yet.
    """
    balances = books.balances.matrix[books.rows_of(found[:, Limit.OWNER])]
    zones = books.cells.matrix[found[:, Limit.OWNER], Cell.ZONE]
    rolling, cycle = found[:, Limit.ROLLING] != 0, found[:, Limit.PER] == Per.CYCLE
    starts, ends = balances[:, Balance.CYCLE_START], balances[:, Balance.CYCLE_END]
    plain = ~rolling & ~cycle
    for per, zone in {*zip(found[plain, Limit.PER].tolist(), zones[plain].tolist(), strict=True)}:
        here = plain & (found[:, Limit.PER] == per) & (zones == zone)
        starts[here], ends[here] = _calendar(books.cells.zones[zone], Per(per), now_ms)
    # As alone, see `_window`.
    starts[plain] = np.maximum(starts[plain], found[plain, Limit.END])
    for per in set(found[rolling, Limit.PER].tolist()):
        step = LENGTHS_MS[Per(per)] // SLICES
        here = rolling & (found[:, Limit.PER] == per)
        starts[here], ends[here] = now_ms // step * step, (now_ms // step + 1) * step
    over = starts - found[:, Limit.START] > SLICES * (ends - starts)
    together = np.where(rolling, over, ends > now_ms)
    fresh = starts != found[:, Limit.START]
    found[fresh, Limit.USED] = 0
    found[:, Limit.START], found[:, Limit.END] = starts, ends
    found[rolling, RING] = 0
    books.limits.matrix[rows[together]] = found[together]
    books.limits.touch_all(rows[together])
    return rows[~together]


def _calendar(zone: str, per: Per, now_ms: int) -> tuple[int, int]:
    minute_ms = now_ms // MINUTE_MS * MINUTE_MS
    if per is Per.WEEK:
        return week_at(zone, minute_ms)
    found: tuple[int, int] = getattr(spans_at(zone, minute_ms), per.name.lower())
    return found


def _roll_window(books: Books, values: list[int], now_ms: int) -> None:
    start, end = _window(books, values, now_ms)
    # An account that moves to another zone ends the window it has begun. A cycle that is over is
    # over, wherever its end stood before it was moved.
    over = values[Limit.END] <= now_ms or values[Limit.PER] == Per.CYCLE
    if start != values[Limit.START] and over:
        values[Limit.START], values[Limit.END], values[Limit.USED] = start, end, 0
    elif start == values[Limit.START]:
        # One that was kept by a move may end later than the calendar's.
        values[Limit.END] = end if values[Limit.PER] == Per.CYCLE else max(end, values[Limit.END])


def _window(books: Books, values: list[int], now_ms: int) -> tuple[int, int]:
    per, balance = Per(values[Limit.PER]), books.row(values[Limit.OWNER])
    if per is not Per.CYCLE:
        start, end = _calendar(books.zone(balance), per, now_ms)
        # What was counted before a move to another zone is in the window that ended.
        return max(start, values[Limit.END]) if values[Limit.END] <= now_ms else start, end
    end = books.get(balance, Balance.CYCLE_END)
    if end > now_ms:
        return books.get(balance, Balance.CYCLE_START), end
    # A hold that expires is charged just before the next cycle is entered.
    return books.next_cycle(balance, now_ms)


def _roll_slices(_: Books, values: list[int], now_ms: int) -> None:
    step = LENGTHS_MS[Per(values[Limit.PER])] // SLICES
    number, old = now_ms // step, values[Limit.START] // step
    if number <= old:
        return
    for gone in range(max(old + 1, number - SLICES), number + 1):
        column = slice_column(gone)
        values[Limit.USED] -= values[column]
        values[column] = 0
    values[Limit.START], values[Limit.END] = number * step, (number + 1) * step
