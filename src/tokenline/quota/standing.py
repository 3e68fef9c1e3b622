"""Say how accounts stand with their balances: what a decision needs of them, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.crumbs import CRUMB_SHARE, USUAL_CALL_UTOK, crumb_utok, least_top_up
from tokenline.quota.terms import Mode

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


NOTHING_TOO_LITTLE = -1
_RESTS_ON = (
    *(Balance.STATUS, Balance.STOPS, Balance.TOTAL, Balance.CYCLE_START),
    *(Balance.OVERAGE, Balance.OVERAGE_BASE, Balance.WRITTEN_OFF, Balance.WRITTEN_OFF_BASE),
    *(Balance.THRESHOLDS, Balance.OPENS_AT, Balance.LIMIT_RESETS),
    *(Balance.COVERS, Balance.COVERS_UNTIL, Balance.FREE_NEEDS),
)


@dataclass(frozen=True, slots=True)
class BalanceStanding:
    """Hold a column an account; `known` says which have a balance, the others' numbers mean nothing.

    All amounts are of the present cycle: what buckets that are valid had for it (`allowance_utok`) and
    paid (`used_utok`), and what none paid. `used_up` is that nothing is left to grant nor held by a call,
    or too little for any call, and the plan stops there. `reached_utok` is what thresholds go by: all of
    the allowance where it is used up. `thresholds` is a number of `Books.thresholds`, 0 for an account
    without a balance. `limit_resets_ms` is 0 where no limit of `Limits` cuts. `covers`, `covers_until_ms`
    and `free_needs` are as `Balance` has them.
    """

    known: Bools
    status: Int64s
    used_up: Bools
    used_utok: Int64s
    reached_utok: Int64s
    allowance_utok: Int64s
    overage_utok: Int64s
    written_off_utok: Int64s
    cycle_start_ms: Int64s
    thresholds: Int64s
    opens_at_ms: Int64s
    limit_resets_ms: Int64s
    covers: Int64s
    covers_until_ms: Int64s
    free_needs: Int64s


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Hold how one balance stands, as `BalanceStanding` has it; claims are those that still wait."""

    allowance_utok: int
    used_utok: int
    held_utok: int
    rest_utok: int
    overage_utok: int
    written_off_utok: int
    claimed_utok: int
    late_adjustment_utok: int


def figures_of(books: Books, row: int) -> Figures:
    """Return how one balance stands, brought up to the moment before."""
    values: list[int] = books.balances.matrix[row].tolist()
    total, left, held = values[Balance.TOTAL], values[Balance.LEFT], values[Balance.HELD]
    return Figures(
        allowance_utok=total,
        used_utok=total - left - held,
        held_utok=held,
        rest_utok=left,
        overage_utok=values[Balance.OVERAGE] - values[Balance.OVERAGE_BASE],
        written_off_utok=values[Balance.WRITTEN_OFF] - values[Balance.WRITTEN_OFF_BASE],
        claimed_utok=values[Balance.CLAIMED],
        late_adjustment_utok=values[Balance.LATE_ADJUSTMENT] - values[Balance.LATE_BASE],
    )


def rests_on(books: Books, row: int) -> tuple[int, ...]:
    """Return what `standing_of` makes of one balance, but for the limit that cuts it.

    Alike before and after an order, an account that nothing cuts stands as it stood, but for what the
    months' tokens say.
    """
    values: list[int] = books.balances.matrix[row].tolist()
    unused = values[Balance.LEFT] + values[Balance.HELD]
    crumb = is_crumb(values)
    return (unused, crumb, *(values[column] for column in _RESTS_ON))


def is_crumb(balance: list[int]) -> bool:
    """Say of one balance's columns whether no more is left than `crumbs_of` says, and nothing held.

    For questions, which come one by one: an array of one costs ten times as much.
    """
    if balance[Balance.HELD] > 0 or not balance[Balance.STOPS]:
        return False
    if balance[Balance.MODE] == Mode.POSTPAID:
        return balance[Balance.LEFT] <= 0
    return balance[Balance.LEFT] <= crumb_utok(_said_utok(balance), balance[Balance.TOTAL])


def top_up_past_crumb(balance: list[int]) -> int:
    """Return the smallest top-up after which one balance's columns are no crumb any more."""
    if not is_crumb(balance):
        return 0
    if balance[Balance.MODE] == Mode.POSTPAID:
        return 1 - balance[Balance.LEFT]
    return least_top_up(_said_utok(balance), balance[Balance.TOTAL], balance[Balance.LEFT])


def _said_utok(balance: list[int]) -> int | None:
    said = balance[Balance.LEAST_CALL]
    return max(said, 0) if said else None


def crumbs_of(balances: Int64s) -> Int64s:
    """Return how much of each balance is as good as nothing: too little for any call.

    What a call holds may be used to the last, and then given back; where calls are not held, or go on
    when all is used, the last token is used as well.
    """
    said = balances[:, Balance.LEAST_CALL]
    usual = np.minimum(USUAL_CALL_UTOK, balances[:, Balance.TOTAL] // CRUMB_SHARE)
    counts = (balances[:, Balance.STOPS] != 0) & (balances[:, Balance.HELD] <= 0)
    counts &= balances[:, Balance.MODE] != Mode.POSTPAID
    crumbs: Int64s = np.where(said, np.maximum(said, 0), usual) * counts
    return crumbs


def standing_of(books: Books, slots: Int64s) -> BalanceStanding | None:
    """Return how `slots` stand, each brought up to the moment before; None when none has a balance."""
    rows = books.rows_of(slots)
    known = rows >= 0
    if not known.any():
        return None
    found = books.balances.matrix[np.where(known, rows, 0)]
    total, held, stops = (
        found[:, Balance.TOTAL],
        found[:, Balance.HELD],
        found[:, Balance.STOPS] != 0,
    )
    unused = found[:, Balance.LEFT] + held
    empty = unused <= crumbs_of(found)
    used = total - unused
    overage = found[:, Balance.OVERAGE] - found[:, Balance.OVERAGE_BASE]
    return BalanceStanding(
        known=known,
        status=found[:, Balance.STATUS],
        used_up=empty & stops,
        used_utok=used,
        reached_utok=np.where(empty & stops, np.maximum(used, total), used) + overage,
        allowance_utok=total,
        overage_utok=overage,
        written_off_utok=found[:, Balance.WRITTEN_OFF] - found[:, Balance.WRITTEN_OFF_BASE],
        cycle_start_ms=found[:, Balance.CYCLE_START],
        thresholds=found[:, Balance.THRESHOLDS] * known,
        opens_at_ms=found[:, Balance.OPENS_AT],
        limit_resets_ms=found[:, Balance.LIMIT_RESETS],
        covers=found[:, Balance.COVERS],
        covers_until_ms=found[:, Balance.COVERS_UNTIL],
        free_needs=found[:, Balance.FREE_NEEDS],
    )
