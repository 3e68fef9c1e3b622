"""Charge usage that is told late: to what was valid then, or, of a bill cycle that is closed, to nobody's cycle.

A cycle is closed when the buckets of its time are: `linger_ms` after its end. What is told of it later is
an adjustment for the next statement, and touches no bucket, limit or threshold of the present one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS, cycle_at
from tokenline.quota.books import Balance
from tokenline.quota.buckets import Part
from tokenline.quota.paying import burn_now
from tokenline.quota.pseudo import Pseudo, charge_pseudo
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from tokenline.quota.books import Books
    from tokenline.quota.terms import Use

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def cycle_is_closed(books: Books, row: int, occurred_ms: int, now_ms: int) -> bool:
    """Say whether a moment lies in a bill cycle that takes no usage any more."""
    start_ms = books.get(row, Balance.CYCLE_START)
    if occurred_ms >= start_ms:
        return False
    if now_ms >= start_ms + books.linger_ms:
        return True
    day, last_ms = books.get(row, Balance.CYCLE_DAY), (start_ms - 1) // MINUTE_MS * MINUTE_MS
    return occurred_ms < cycle_at(books.zone(row), day, last_ms)[0]


def burn_late(
    books: Books, row: int, use: Use, amount_utok: int, occurred_ms: int, now_ms: int
) -> list[Part]:
    """Charge late usage, or what is left of it: of a closed cycle all of it is an adjustment."""
    if not cycle_is_closed(books, row, occurred_ms, now_ms):
        return burn_now(books, row, use, amount_utok, occurred_ms, now_ms)
    charge_pseudo(books, row, Pseudo.LATE_ADJUSTMENT, amount_utok)
    return [Part(NONE, Pseudo.LATE_ADJUSTMENT, amount_utok)]


def parted(
    books: Books, rows: Int64s, late: Bools, occurred_ms: Int64s, appended_ms: Int64s
) -> tuple[Bools, Bools]:
    """Say of which late events the cycle is closed, and of which only a closer look can tell.

    `rows` are the events' balances, with nothing due.
    """
    start_ms = books.balances.matrix[rows, Balance.CYCLE_START]
    before = late & (occurred_ms < start_ms)
    unsure = before & (appended_ms < start_ms + books.linger_ms)
    return before & ~unsure, unsure


def charge_adjustments(books: Books, accounts: Int64s, sums: Int64s) -> None:
    """Charge accounts for usage of closed cycles, by their balance rows."""
    there = sums > 0
    accounts, sums = accounts[there], sums[there]
    if accounts.size:
        balances = books.balances.matrix
        balances[accounts, Balance.LATE_ADJUSTMENT] += sums
        books.balances.touch_all(accounts)
        books.note_alarms(accounts)
        numbers = np.full(len(accounts), Pseudo.LATE_ADJUSTMENT, np.int64)
        books.late.note(balances[accounts, Balance.OWNER], numbers, sums)
