"""Add counted usage to the cells: one pass over the accounts a chunk touched.

Every sum is of int64 over whole arrays. A window that began since the account's last event starts
from zero; usage of the month before still reaches that month's cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenline.quota.cells import MONTHS, AccountCells, Cell, same_month

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Start, tokens and requests of the minute, the hour and the day.
RATES = slice(Cell.MINUTE_START, Cell.DAY_REQUESTS + 1)
RATES_SHAPE = (3, 3)
THIS_MONTH = slice(Cell.MONTH_START, Cell.MONTH_VERSION + 1)
LAST_MONTH = slice(Cell.LAST_MONTH_START, Cell.LAST_MONTH_VERSION + 1)
FIRST: Int64s = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Hold counted events of one append minute as columns of equal length."""

    slots: Int64s
    tokens: Int64s
    months_ms: Int64s
    offsets: Int64s


def add_usage(cells: AccountCells, counted: Counted, minute_ms: int) -> Int64s:
    """Add the events to their accounts' cells and return the slots touched, ascending."""
    order = np.argsort(counted.slots, kind="stable")
    ordered = counted.slots[order]
    starts, events = _runs(ordered[1:] != ordered[:-1])
    slots = ordered[starts]
    tokens = np.add.reduceat(counted.tokens[order], starts)
    rows = cells.take(slots)
    roll(cells, slots, rows, minute_ms)
    rates = rows[RATES].reshape(*RATES_SHAPE, -1)
    rates[:, 1] += tokens
    rates[:, 2] += events
    month_ms = counted.months_ms[0]
    if (counted.months_ms == month_ms).all():
        versions = np.maximum.reduceat(counted.offsets[order], starts)
        _add_month(rows, np.full(len(slots), month_ms), (tokens, events, versions))
    else:
        _add_months(rows, slots, counted)
    cells.put(slots, rows)
    return slots


def roll_rates(cells: AccountCells, slots: Int64s, minute_ms: int) -> None:
    """Begin the minute, hour and day windows of `slots` anew where the broker's clock left them."""
    rows = cells.take(slots)
    roll(cells, slots, rows, minute_ms)
    cells.put(slots, rows)


def _runs(fresh: Bools) -> tuple[Int64s, Int64s]:
    """Return where runs begin and how long they are; `fresh` says which but the first begin one."""
    bounds = np.concatenate((FIRST, np.flatnonzero(fresh) + 1, [len(fresh) + 1]))
    return bounds[:-1], bounds[1:] - bounds[:-1]


def roll(cells: AccountCells, slots: Int64s, rows: Int64s, minute_ms: int) -> None:
    """Begin the windows anew, in copies of rows, that are over in a minute."""
    for spans, here in cells.spans(slots, rows[Cell.ZONE], minute_ms):
        starts = np.array([[spans.minute[0]], [spans.hour[0]], [spans.day[0]]])
        rates = rows[RATES, here].reshape(*RATES_SHAPE, -1)
        gone = rates[:, 0] != starts
        if gone.any():
            rates[:, 1:] *= ~gone[:, None]
            rates[:, 0] = starts
            rows[RATES, here] = rates.reshape(rows[RATES, here].shape)


def _add_months(rows: Int64s, slots: Int64s, counted: Counted) -> None:
    """Add events of several months: a group an account and month, the n-th month of each in round n."""
    order = np.lexsort((counted.months_ms, counted.slots))
    owners, months = counted.slots[order], counted.months_ms[order]
    starts, events = _runs((owners[1:] != owners[:-1]) | (months[1:] != months[:-1]))
    sums = (
        np.add.reduceat(counted.tokens[order], starts),
        events,
        np.maximum.reduceat(counted.offsets[order], starts),
    )
    owners, months = owners[starts], months[starts]
    rounds = np.arange(len(owners)) - np.repeat(*_runs(owners[1:] != owners[:-1]))
    for turn in range(int(rounds.max()) + 1):
        at = np.flatnonzero(rounds == turn)
        columns = np.searchsorted(slots, owners[at])
        block = np.ascontiguousarray(rows[:, columns])
        tokens, events, versions = (each[at] for each in sums)
        _add_month(block, months[at], (tokens, events, versions))
        rows[:, columns] = block


def _add_month(rows: Int64s, months: Int64s, sums: tuple[Int64s, Int64s, Int64s]) -> None:
    """Add a sum to each column of `rows`, in the month that begins at its `months`."""
    tokens, events, versions = sums
    if (rows[Cell.MONTH_START] != months).any():
        for start in (Cell.MONTH_START, Cell.LAST_MONTH_START):
            months = np.where(same_month(rows[start], months), rows[start], months)
        _begin_months(rows, months)
    for start, tokens_cell, events_cell, version_cell in MONTHS:
        here = rows[start] == months
        if here.any():
            rows[tokens_cell] += tokens * here
            rows[events_cell] += events * here
            np.maximum(rows[version_cell], versions * here, out=rows[version_cell])


def _begin_months(rows: Int64s, months: Int64s) -> None:
    newer = months > rows[Cell.MONTH_START]
    if newer.any():
        rows[LAST_MONTH, newer] = rows[THIS_MONTH, newer]
        rows[THIS_MONTH, newer] = 0
        rows[Cell.MONTH_START, newer] = months[newer]
    between = (months < rows[Cell.MONTH_START]) & (months > rows[Cell.LAST_MONTH_START])
    if between.any():
        rows[LAST_MONTH, between] = 0
        rows[Cell.LAST_MONTH_START, between] = months[between]
