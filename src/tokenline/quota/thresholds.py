"""Say how much of an allowance is used, in the steps that a plan wants to hear of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.cells import NO_LIMIT

if TYPE_CHECKING:
    from tokenline.quota.standing import BalanceStanding

Int64s = npt.NDArray[np.int64]
INT64_MAX = 2**63 - 1


def percent_by_list(
    balances: BalanceStanding, limit: Int64s, thresholds: list[tuple[int, ...]]
) -> Int64s:
    """Return the highest threshold each use has reached of its own plan's list; lists are few."""
    if not balances.thresholds.any():
        return percent_reached(balances.reached_utok, limit, thresholds[0])
    percent = np.zeros(len(limit), np.int64)
    for code in np.unique(balances.thresholds).tolist():
        here = balances.thresholds == code
        percent[here] = percent_reached(balances.reached_utok[here], limit[here], thresholds[code])
    return percent


def percent_reached(used: Int64s, limit: Int64s, steps: tuple[int, ...]) -> Int64s:
    """Return the highest of `steps` that each use has reached, or 0."""
    percent = np.zeros(len(used), np.int64)
    if limit.max(initial=NO_LIMIT) < 0:
        return percent
    hundredth, rest = np.divmod(limit, 100)
    for step in steps:
        # `limit * step / 100`, rounded up, in parts that cannot overflow.
        reached = (limit >= 0) & (used >= hundredth * step + (rest * step + 99) // 100)
        if step > 100:
            # What lies beyond an int64 cannot be reached.
            reached &= hundredth <= (INT64_MAX - 1000) // step
        if not reached.any():
            break
        percent[reached] = step
    return percent
