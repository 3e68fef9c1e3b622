"""Say how accounts stand with their balances: what a decision needs of them, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenline.quota.books import Balance, Books
from tokenline.quota.buckets import Bucket

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


_RESTS_ON = (
    *(Balance.STATUS, Balance.STOPS, Balance.TOTAL, Balance.UNCOVERED_BASE, Balance.CYCLE_START),
    *(Balance.THRESHOLDS, Balance.OPENS_AT, Balance.LIMIT_RESETS),
)


@dataclass(frozen=True, slots=True)
class BalanceStanding:
    """Hold a column an account; `known` says which have a balance, the others' numbers mean nothing.

    `used_up` is that nothing is left to grant nor held by a call, and the plan stops there. Where it
    does not, `used_utok` goes on with what was used beyond, since the cycle began. `thresholds` is a
    number of `Books.thresholds`, 0 for an account without a balance. `limit_resets_ms` is 0 where no
    limit of `Limits` cuts.
    """

    known: Bools
    status: Int64s
    used_up: Bools
    used_utok: Int64s
    total_utok: Int64s
    cycle_start_ms: Int64s
    thresholds: Int64s
    opens_at_ms: Int64s
    limit_resets_ms: Int64s


def rests_on(books: Books, row: int) -> tuple[int, ...]:
    """Return what `standing_of` makes of one balance, but for the limit that cuts it.

    Alike before and after an order, an account that nothing cuts stands as it stood, but for what the
    months' tokens say.
    """
    values: list[int] = books.balances.matrix[row].tolist()
    beyond = books.buckets.get(values[Balance.UNCOVERED], Bucket.USED)
    unused = values[Balance.LEFT] + values[Balance.HELD]
    return (beyond, unused, *(values[column] for column in _RESTS_ON))


def standing_of(books: Books, slots: Int64s) -> BalanceStanding | None:
    """Return how `slots` stand, each brought up to the moment before; None when none has a balance."""
    rows = books.rows_of(slots)
    known = rows >= 0
    if not known.any():
        return None
    found = books.balances.matrix[np.where(known, rows, 0)]
    left, held = found[:, Balance.LEFT], found[:, Balance.HELD]
    empty, stops = left + held <= 0, found[:, Balance.STOPS] != 0
    return BalanceStanding(
        known=known,
        status=found[:, Balance.STATUS],
        used_up=empty & stops,
        used_utok=found[:, Balance.TOTAL] - left - held + _beyond(books, found, empty & ~stops),
        total_utok=found[:, Balance.TOTAL],
        cycle_start_ms=found[:, Balance.CYCLE_START],
        thresholds=found[:, Balance.THRESHOLDS] * known,
        opens_at_ms=found[:, Balance.OPENS_AT],
        limit_resets_ms=found[:, Balance.LIMIT_RESETS],
    )


def _beyond(books: Books, found: Int64s, goes_on: Bools) -> Int64s:
    """Return what bucket number 0 paid in this cycle, where the plan goes on when all is used."""
    beyond = np.zeros(len(found), np.int64)
    if goes_on.any():
        used = books.buckets.matrix[found[goes_on, Balance.UNCOVERED], Bucket.USED]
        beyond[goes_on] = np.maximum(used - found[goes_on, Balance.UNCOVERED_BASE], 0)
    return beyond
