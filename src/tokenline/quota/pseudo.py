"""Keep what no bucket pays: four counters of an account, which entries name by numbers below 1.

They are the last resort, have no total and are never granted anything: each only says how much of an
account's usage went to it. Together with the buckets they are all that the account was ever charged.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from tokenline.quota.balance import ALARM_UTOK, Balance
from tokenline.quota.books import MOST_UTOK
from tokenline.quota.buckets import Bucket
from tokenline.quota.terms import Source

if TYPE_CHECKING:
    from tokenline.quota.books import Books, Int64s
    from tokenline.quota.entries import ChangeKind


class Pseudo(IntEnum):
    """Say where usage goes that no bucket pays; the numbers stand for ever in entries and burns.

    OVERAGE the customer owes, WRITTEN_OFF the house bears, LATE_ADJUSTMENT is of a cycle that is
    closed, and CLAIM waits for what sessions hold and may give back.
    """

    OVERAGE = 0
    WRITTEN_OFF = -1
    LATE_ADJUSTMENT = -2
    CLAIM = -3


COUNTERS = {
    Pseudo.OVERAGE: Balance.OVERAGE,
    Pseudo.WRITTEN_OFF: Balance.WRITTEN_OFF,
    Pseudo.LATE_ADJUSTMENT: Balance.LATE_ADJUSTMENT,
    Pseudo.CLAIM: Balance.CLAIMED,
}
# What each had when the bill cycle began; of claims it does not matter when they were made.
BASES = {
    Balance.OVERAGE: Balance.OVERAGE_BASE,
    Balance.WRITTEN_OFF: Balance.WRITTEN_OFF_BASE,
    Balance.LATE_ADJUSTMENT: Balance.LATE_BASE,
}
SOURCES = {
    Pseudo.OVERAGE: Source.OVERAGE,
    Pseudo.WRITTEN_OFF: Source.WRITTEN_OFF,
    Pseudo.LATE_ADJUSTMENT: Source.LATE_ADJUSTMENT,
    Pseudo.CLAIM: Source.CLAIM,
}


def charge_pseudo(books: Books, row: int, pseudo: Pseudo, amount_utok: int) -> None:
    """Charge usage that no bucket pays."""
    change_pseudo(books, row, pseudo, amount_utok)
    books.note_burn(row, pseudo, amount_utok)


def note_pseudo(
    books: Books, row: int, pseudo: Pseudo, kind: ChangeKind, amount_utok: int, now_ms: int
) -> None:
    """Enter what was just done to a counter: below zero where it grew."""
    rest_utok = -books.get(row, COUNTERS[pseudo])
    books.note_entry(row, (pseudo, SOURCES[pseudo]), kind, (amount_utok, rest_utok), now_ms)


def change_pseudo(books: Books, row: int, pseudo: Pseudo, amount_utok: int) -> None:
    """Add to a counter, and note an account of which somebody must know."""
    column = COUNTERS[pseudo]
    unpaid_utok = books.get(row, column) + amount_utok
    books.set(row, column, unpaid_utok)
    if unpaid_utok >= ALARM_UTOK // len(COUNTERS):
        books.note_alarms(np.array([row], np.int64))


def begin_bases(books: Books, row: int) -> None:
    """Begin a bill cycle: figures of it count from here on, also of buckets that outlive one."""
    for column, base in BASES.items():
        books.set(row, base, books.get(row, column))
    for bucket in books.chain(row):
        books.buckets.set(bucket, Bucket.BEFORE, books.buckets.get(bucket, Bucket.USED))


def overage_room(books: Books, row: int) -> int:
    """Return how much sessions may still hold beyond all buckets, in µtok."""
    taken = books.get(row, Balance.OVERAGE) + books.get(row, Balance.OVERAGE_HELD)
    return max(0, MOST_UTOK - taken)


def pseudo_columns(stops: Int64s) -> Int64s:
    """Return which counter each account's unpaid usage goes to where no claim helps."""
    return np.where(stops != 0, +Balance.WRITTEN_OFF, +Balance.OVERAGE)
