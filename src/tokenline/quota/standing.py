"""Say how accounts stand with their balances: what a decision needs of them, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenline.quota.books import Balance, Books

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BalanceStanding:
    """Hold a column an account; `known` says which have a balance, the others' numbers mean nothing.

    `used_up` is that nothing is left to grant nor held by a call, and the plan stops there.
    `limit_resets_ms` is 0 where no limit of `Limits` cuts.
    """

    known: Bools
    status: Int64s
    used_up: Bools
    used_utok: Int64s
    total_utok: Int64s
    cycle_start_ms: Int64s
    cycle_end_ms: Int64s
    limit_resets_ms: Int64s


def standing_of(books: Books, slots: Int64s) -> BalanceStanding | None:
    """Return how `slots` stand, each brought up to the moment before; None when none has a balance."""
    rows = books.rows_of(slots)
    known = rows >= 0
    if not known.any():
        return None
    found = books.balances.matrix[np.where(known, rows, 0)]
    left, held = found[:, Balance.LEFT], found[:, Balance.HELD]
    return BalanceStanding(
        known=known,
        status=found[:, Balance.STATUS],
        used_up=(left + held <= 0) & (found[:, Balance.STOPS] != 0),
        used_utok=found[:, Balance.TOTAL] - left - held,
        total_utok=found[:, Balance.TOTAL],
        cycle_start_ms=found[:, Balance.CYCLE_START],
        cycle_end_ms=found[:, Balance.CYCLE_END],
        limit_resets_ms=found[:, Balance.LIMIT_RESETS],
    )
