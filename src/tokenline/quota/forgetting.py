"""Forget subscribers of whom nothing is left that counts, so that a million invented ids are no burden.

A subscriber is kept while an account caps it, a hold stands against a limit of it, a window of it
is not over for `IDLE_MS`, or it is told that it is cut. When it comes again, it is a new one: its windows
were over, so it counts what it would have counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenline.quota.limit_holds import changed
from tokenline.quota.limits import SLICES, Limit
from tokenline.quota.subscribers import Telling
from tokenline.quota.table import NONE, OWNER

if TYPE_CHECKING:
    from tokenline.quota.books import Books, Int64s

HOUR_MS = 3_600_000
# Long enough that the end of every cut was told.
IDLE_MS = 24 * HOUR_MS


def forget_idle(books: Books, now_ms: int) -> int:
    """Give back the rows of idle subscribers, and return how many there were.

    It is called between two steps, at moments of the records: a replay forgets the same ones.
    """
    idle = _idle(books, now_ms)
    if not idle.size:
        return 0
    limits = books.limits.matrix
    rows = np.flatnonzero((limits[:, OWNER] >= 0) & np.isin(limits[:, Limit.SUBSCRIBER], idle))
    owners = np.unique(limits[rows, OWNER]).tolist()
    gone = frozenset(rows.tolist())
    books.limits.forget(rows.tolist())
    books.told.forget(idle)
    for subscriber in idle.tolist():
        books.subscribers.forget(subscriber)
    for owner in owners:
        if (row := books.row(owner)) != NONE:
            changed(books, row, gone)
    return int(idle.size)


def _idle(books: Books, now_ms: int) -> Int64s:
    """Return the rows of idle subscribers, ascending."""
    limits, told = books.limits.matrix, books.told.matrix
    idle = books.subscribers.matrix[:, OWNER] >= 0
    starts, ends = limits[:, Limit.START], limits[:, Limit.END]
    over_ms = np.where(limits[:, Limit.ROLLING] != 0, ends + (ends - starts) * SLICES, ends)
    busy = (over_ms > now_ms - IDLE_MS) | (limits[:, Limit.HELD] != 0) | (limits[:, Limit.OWN] != 0)
    named = (limits[:, OWNER] >= 0) & (limits[:, Limit.SUBSCRIBER] >= 0)
    idle[limits[busy & named, Limit.SUBSCRIBER]] = False
    cut = (told[:, OWNER] >= 0) & (told[:, Telling.SUBSCRIBER] >= 0) & (told[:, Telling.STATE] != 0)
    idle[told[cut, Telling.SUBSCRIBER]] = False
    idle[list(books.limits.looked)] = False
    idle[[one.subscriber for one in books.limits.looked_groups if one.subscriber >= 0]] = False
    return np.flatnonzero(idle)
