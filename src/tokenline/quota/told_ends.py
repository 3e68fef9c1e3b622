"""Say when what was told of accounts ends by the clock alone: their cut, or the month they are warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS
from tokenline.quota.cells import MONTHS_APART_MS, AccountCells, Cell
from tokenline.quota.decided import State
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from tokenline.quota.books import Books

Int64s = npt.NDArray[np.int64]


def told_ends(cells: AccountCells, books: Books, slots: Int64s) -> Int64s:
    """Return for each account the moment at which it has to be decided anew though nothing happens.

    The warning of an account with a balance ends with its bill cycle, which is due by itself.
    """
    rows = cells.matrix[slots]
    cut = (rows[:, Cell.STATE] == State.CUT) & (rows[:, Cell.RESETS_AT] > 0)
    ends: Int64s = np.where(cut, rows[:, Cell.RESETS_AT], NEVER_MS)
    warned = (rows[:, Cell.STATE] == State.WARNED) & (books.rows_of(slots) == NONE)
    at = np.flatnonzero(warned)
    if at.size:
        ends[at] = [
            _month_end(cells, *one) for one in zip(slots[at].tolist(), rows[at], strict=True)
        ]
    return ends


def _month_end(cells: AccountCells, slot: int, row: Int64s) -> int:
    """Return when the month ends of which an account was warned."""
    # Within the month, wherever the account was when it began.
    moment_ms = int(row[Cell.THRESHOLD_MONTH]) + MONTHS_APART_MS
    return cells.spans_of(slot, moment_ms // MINUTE_MS * MINUTE_MS).month[1]
