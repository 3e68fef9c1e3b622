"""Add counted usage to the cells: one pass over the accounts a chunk touched.

Every sum is of int64 over whole arrays. A window that began since the account's last event starts
from zero; usage of the month before still reaches that month's cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import spans_at
from tokenline.quota.cells import AccountCells, Cell, same_month

Int64s = npt.NDArray[np.int64]

RATES = (
    ("minute", Cell.MINUTE_START, Cell.MINUTE_TOKENS, Cell.MINUTE_REQUESTS),
    ("hour", Cell.HOUR_START, Cell.HOUR_TOKENS, Cell.HOUR_REQUESTS),
    ("day", Cell.DAY_START, Cell.DAY_TOKENS, Cell.DAY_REQUESTS),
)


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
    slots, starts = np.unique(counted.slots[order], return_index=True)
    tokens = np.add.reduceat(counted.tokens[order], starts)
    events = np.diff(np.append(starts, len(order)))
    roll_rates(cells, slots, minute_ms)
    for _, _, tokens_cell, requests_cell in RATES:
        cells.matrix[slots, tokens_cell] += tokens
        cells.matrix[slots, requests_cell] += events
    if (counted.months_ms == counted.months_ms[0]).all():
        versions = np.maximum.reduceat(counted.offsets[order], starts)
        months_ms = np.full(len(slots), counted.months_ms[0], np.int64)
        _add_month(cells.matrix, slots, months_ms, (tokens, events, versions))
    else:
        _add_months(cells, counted)
    return slots


def roll_rates(cells: AccountCells, slots: Int64s, minute_ms: int) -> None:
    """Begin the minute, hour and day windows of `slots` anew where the broker's clock left them."""
    rows = cells.matrix[slots]
    for code in np.unique(rows[:, Cell.ZONE]):
        spans = spans_at(cells.zones[int(code)], minute_ms)
        for name, start_cell, tokens_cell, requests_cell in RATES:
            start = getattr(spans, name)[0]
            gone = slots[(rows[:, Cell.ZONE] == code) & (rows[:, start_cell] != start)]
            if not gone.size:
                continue
            cells.matrix[gone, start_cell] = start
            cells.matrix[gone, tokens_cell] = 0
            cells.matrix[gone, requests_cell] = 0


def _add_months(cells: AccountCells, counted: Counted) -> None:
    order = np.lexsort((counted.months_ms, counted.slots))
    slots, months = counted.slots[order], counted.months_ms[order]
    fresh = np.append(True, (slots[1:] != slots[:-1]) | (months[1:] != months[:-1]))
    starts = np.flatnonzero(fresh)
    tokens = np.add.reduceat(counted.tokens[order], starts)
    events = np.diff(np.append(starts, len(order)))
    versions = np.maximum.reduceat(counted.offsets[order], starts)
    slots, months = slots[starts], months[starts]
    # Months of one account ascend, and a slot stands once in each round: first months, then second.
    rank = np.arange(len(slots)) - np.maximum.accumulate(
        np.where(np.append(True, slots[1:] != slots[:-1]), np.arange(len(slots)), 0)
    )
    for turn in range(int(rank.max(initial=-1)) + 1):
        at = rank == turn
        sums = (tokens[at], events[at], versions[at])
        _add_month(cells.matrix, slots[at], months[at], sums)


def _add_month(
    matrix: Int64s, slots: Int64s, months: Int64s, sums: tuple[Int64s, Int64s, Int64s]
) -> None:
    tokens, events, versions = sums
    for held in (matrix[slots, Cell.MONTH_START], matrix[slots, Cell.LAST_MONTH_START]):
        months = np.where(same_month(held, months), held, months)
    _begin_months(matrix, slots, months)
    for start, tokens_cell, events_cell, version_cell in (
        (Cell.MONTH_START, Cell.MONTH_TOKENS, Cell.MONTH_EVENTS, Cell.MONTH_VERSION),
        (
            Cell.LAST_MONTH_START,
            Cell.LAST_MONTH_TOKENS,
            Cell.LAST_MONTH_EVENTS,
            Cell.LAST_MONTH_VERSION,
        ),
    ):
        at = matrix[slots, start] == months
        if not at.any():
            continue
        matrix[slots[at], tokens_cell] += tokens[at]
        matrix[slots[at], events_cell] += events[at]
        matrix[slots[at], version_cell] = np.maximum(matrix[slots[at], version_cell], versions[at])


def _begin_months(matrix: Int64s, slots: Int64s, months: Int64s) -> None:
    this, last = (
        slice(Cell.MONTH_START, Cell.MONTH_VERSION + 1),
        slice(Cell.LAST_MONTH_START, Cell.LAST_MONTH_VERSION + 1),
    )
    newer = months > matrix[slots, Cell.MONTH_START]
    if newer.any():
        matrix[slots[newer], last] = matrix[slots[newer], this]
        matrix[slots[newer], this] = 0
        matrix[slots[newer], Cell.MONTH_START] = months[newer]
    between = (months < matrix[slots, Cell.MONTH_START]) & (
        months > matrix[slots, Cell.LAST_MONTH_START]
    )
    if between.any():
        matrix[slots[between], last] = 0
        matrix[slots[between], Cell.LAST_MONTH_START] = months[between]
