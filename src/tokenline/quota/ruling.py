"""Say what the rules make of the accounts a chunk touched, as columns: whether they stand as they stood is `decide`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.cells import NO_LIMIT, AccountCells, Cell, same_month
from tokenline.quota.decided import RATE_RULES, Rule, State
from tokenline.quota.terms import NEVER_MS, THRESHOLDS_PERCENT, Unit
from tokenline.quota.thresholds import percent_by_list, percent_reached

if TYPE_CHECKING:
    from tokenline.metering.calendar import Spans
    from tokenline.quota.standing import BalanceStanding

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RATE_LIMITS = slice(Cell.MINUTE_TOKENS_LIMIT, Cell.DAY_REQUESTS_LIMIT + 1)


@dataclass(frozen=True, slots=True)
class Ruling:
    """Hold, for each account looked at, what the rules say now; `allowance_rule` is whose it is.

    `covers` is a digest of what can be paid, 0 where that is everything or nothing.
    """

    state: Int64s
    rule: Int64s
    resets_at_ms: Int64s
    used: Int64s
    percent: Int64s
    allowance: Int64s
    allowance_rule: Int64s
    overage: Int64s
    written_off: Int64s
    covers: Int64s
    start_ms: Int64s
    thresholds: list[tuple[int, ...]]
    thresholds_code: Int64s

    def steps(self, i: int) -> tuple[int, ...]:
        """Return the thresholds of one account; of an allowance of nothing no part is reached."""
        return self.thresholds[int(self.thresholds_code[i])] if self.allowance[i] else ()

    def unit(self, i: int) -> str:
        """Return what the allowance of one account counts."""
        unit = Unit.UTOK if self.allowance_rule[i] == Rule.BALANCE else Unit.TOKENS
        return unit.name.lower()


def month_used(cells: AccountCells, slots: Int64s, month_start_ms: int) -> Int64s:
    """Return the tokens of `slots` in the month that begins at `month_start_ms`."""
    return _month_used(cells.take(slots), month_start_ms)


def _month_used(rows: Int64s, month_start_ms: int) -> Int64s:
    this: Int64s = rows[Cell.MONTH_TOKENS]
    if (rows[Cell.MONTH_START] == month_start_ms).all():
        return this
    used = this * same_month(rows[Cell.MONTH_START], month_start_ms)
    last = rows[Cell.LAST_MONTH_TOKENS] * same_month(rows[Cell.LAST_MONTH_START], month_start_ms)
    both: Int64s = used + last
    return both


def by_cells(rows: Int64s, spans: Spans) -> Ruling:
    """Return what the limits say that the cells count."""
    used = _month_used(rows, spans.month[0])
    limit = rows[Cell.MONTH_TOKENS_LIMIT]
    cut = (limit >= 0) & (used >= limit)
    rule = cut * int(Rule.MONTH_TOKENS)
    resets = cut * np.where(limit > 0, spans.month[1], NEVER_MS)
    # Nearly all of these limits are set for nobody.
    highest = rows[RATE_LIMITS].max(axis=1, initial=NO_LIMIT)
    for number, limit_cell, used_cell, window in RATE_RULES:
        if highest[limit_cell - RATE_LIMITS.start] < 0:
            continue
        ceiling, end_ms = rows[limit_cell], getattr(spans, window)[1]
        ends_ms = np.where(ceiling > 0, end_ms, NEVER_MS)
        later = (ceiling >= 0) & (rows[used_cell] >= ceiling) & (ends_ms > resets)
        if later.any():
            rule[later], resets[later] = int(number), ends_ms[later]
    # A limit of 0 is over in every window: what it cuts stays cut until the limit is changed.
    resets[resets == NEVER_MS] = 0
    percent = percent_reached(used, limit, THRESHOLDS_PERCENT)
    warned = np.where(percent > 0, int(State.WARNED), int(State.OPEN))
    everywhere = np.ones(len(used), np.int64)
    return Ruling(
        state=np.where(rule > 0, int(State.CUT), warned),
        rule=rule,
        resets_at_ms=resets,
        used=used,
        percent=percent,
        allowance=limit,
        allowance_rule=everywhere * int(Rule.MONTH_TOKENS),
        overage=everywhere * 0,
        written_off=everywhere * 0,
        covers=everywhere * 0,
        start_ms=everywhere * spans.month[0],
        thresholds=[THRESHOLDS_PERCENT],
        thresholds_code=everywhere * 0,
    )


def with_balances(
    rates: Ruling, balances: BalanceStanding, thresholds: list[tuple[int, ...]], free: int
) -> Ruling:
    """Put the balance in the place of the month's tokens where there is one.

    `free` is a digest of the models that cost nothing. Limits that are not in the cells cut like those that
    are. A status ends a cut-off by no clock, so it decides before any limit; a balance that is used up
    resets when units begin to be valid, if that is later than what else cuts, and never if none will.
    """
    known, barred = balances.known, balances.known & (balances.status > 0)
    statuses = np.array([Rule.NONE, Rule.SUSPENDED, Rule.CLOSED], np.int64)
    rates = _with_limits(rates, balances) if balances.limit_resets_ms.any() else rates
    used_up = known & balances.used_up & ((rates.rule == 0) | (rates.resets_at_ms > 0))
    opens = balances.opens_at_ms
    used_up &= opens > rates.resets_at_ms
    rule = np.where(used_up, int(Rule.BALANCE), rates.rule)
    rule = np.where(barred, statuses[balances.status * barred], rule)
    resets = np.where(used_up, np.where(opens == NEVER_MS, 0, opens), rates.resets_at_ms)
    # What costs nothing is barred by what else cuts.
    cut = used_up & (rates.rule == 0)
    covers = _covers(balances, cut, known & ~barred & (rule == 0), free)
    resets = np.where((rule == 0) & (covers != 0), balances.covers_until_ms, resets)
    limit = np.where(known, balances.allowance_utok, NO_LIMIT)
    percent = percent_by_list(balances, limit, thresholds)
    # Of an allowance of nothing no part is reached.
    percent = np.where(known, percent * (balances.allowance_utok > 0), rates.percent)
    warned = np.where(percent > 0, int(State.WARNED), int(State.OPEN))
    return Ruling(
        state=np.where(rule > 0, int(State.CUT), warned),
        rule=rule,
        resets_at_ms=np.where(barred, 0, resets),
        used=np.where(known, balances.used_utok, rates.used),
        percent=percent,
        allowance=np.where(known, balances.allowance_utok, rates.allowance),
        allowance_rule=np.where(known, int(Rule.BALANCE), rates.allowance_rule),
        overage=balances.overage_utok * known,
        written_off=balances.written_off_utok * known,
        covers=covers,
        start_ms=np.where(known, balances.cycle_start_ms, rates.start_ms),
        thresholds=thresholds,
        thresholds_code=balances.thresholds,
    )


def _covers(balances: BalanceStanding, cut: Bools, goes_on: Bools, free: int) -> Int64s:
    """Return a digest of what can be paid: of a cut account what costs nothing, else the scopes too."""
    scopes = balances.covers * goes_on
    limited = scopes != 0
    if not free or not (cut | limited).any():
        return scopes
    covers = scopes ^ (free * ((cut | limited) & (balances.free_needs == 0)))
    return np.where(limited & (covers == 0), 1, covers)


def _with_limits(rates: Ruling, balances: BalanceStanding) -> Ruling:
    """Let a limit cut that resets later than what else does; 0 is never, and later than all."""
    over = balances.known & (balances.limit_resets_ms > 0)
    over &= (rates.rule == 0) | (rates.resets_at_ms > 0)
    over &= balances.limit_resets_ms > rates.resets_at_ms
    ends = np.where(balances.limit_resets_ms == NEVER_MS, 0, balances.limit_resets_ms)
    rule = np.where(over, int(Rule.LIMIT), rates.rule)
    return replace(rates, rule=rule, resets_at_ms=np.where(over, ends, rates.resets_at_ms))
