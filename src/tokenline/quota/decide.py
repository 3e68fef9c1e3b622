"""Decide open, warned or cut for the accounts a chunk touched.

An account is cut while any rule's use has reached its limit; of several the one that resets last
decides. A limit of 0 never resets (`resets_at_ms` 0). Crossing a threshold of the allowance (50 and
80 percent, or what the plan lists) warns, once each in its window; at 100 it is cut, where the plan
stops. The allowance of an account with a balance is its buckets, and its window the bill cycle; that
of any other its tokens a month. Deciding again on the same cells gives no new decision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import Spans, spans_at
from tokenline.quota.cells import NO_LIMIT, AccountCells, Cell, by_zone, same_month
from tokenline.quota.standing import BalanceStanding, standing_of
from tokenline.quota.terms import THRESHOLDS_PERCENT
from tokenline.quota.thresholds import percent_by_list, percent_reached

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.quota.books import Books

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class State(IntEnum):
    """Say whether an account may go on."""

    OPEN = 0
    WARNED = 1
    CUT = 2


class Rule(IntEnum):
    """Name what decided; 0 is nothing."""

    NONE = 0
    MONTH_TOKENS = 1
    MINUTE_TOKENS = 2
    HOUR_TOKENS = 3
    DAY_TOKENS = 4
    MINUTE_REQUESTS = 5
    HOUR_REQUESTS = 6
    DAY_REQUESTS = 7
    BALANCE = 8
    SUSPENDED = 9
    CLOSED = 10
    LIMIT = 11


# Rule, its limit, its use, the window it runs in.
RATE_RULES = (
    (Rule.MINUTE_TOKENS, Cell.MINUTE_TOKENS_LIMIT, Cell.MINUTE_TOKENS, "minute"),
    (Rule.HOUR_TOKENS, Cell.HOUR_TOKENS_LIMIT, Cell.HOUR_TOKENS, "hour"),
    (Rule.DAY_TOKENS, Cell.DAY_TOKENS_LIMIT, Cell.DAY_TOKENS, "day"),
    (Rule.MINUTE_REQUESTS, Cell.MINUTE_REQUESTS_LIMIT, Cell.MINUTE_REQUESTS, "minute"),
    (Rule.HOUR_REQUESTS, Cell.HOUR_REQUESTS_LIMIT, Cell.HOUR_REQUESTS, "hour"),
    (Rule.DAY_REQUESTS, Cell.DAY_REQUESTS_LIMIT, Cell.DAY_REQUESTS, "day"),
)
NEVER_MS = np.iinfo(np.int64).max
RATE_LIMITS = slice(Cell.MINUTE_TOKENS_LIMIT, Cell.DAY_REQUESTS_LIMIT + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Record one decision; `slot` names the account, `old_epoch` who decided before (0: nobody).

    `subscriber` is empty for the whole account; `limit_name` says which limit Rule.LIMIT is. What is
    decided of a group of `models` alone names it in `group`.
    """

    slot: int
    state: State
    rule: Rule
    reason: str
    threshold_percent: int
    used: int
    limit: int
    window_start_ms: int
    resets_at_ms: int
    version: int
    old_epoch: int
    subscriber: str = ""
    limit_name: str = ""
    group: str = ""
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Standing:
    """Hold, for each account looked at, what the rules say now; `allowance_rule` is whose it is."""

    state: Int64s
    rule: Int64s
    resets_at_ms: Int64s
    used: Int64s
    percent: Int64s
    allowance: Int64s
    allowance_rule: Int64s
    start_ms: Int64s
    thresholds: list[tuple[int, ...]]
    thresholds_code: Int64s

    def steps(self, i: int) -> tuple[int, ...]:
        """Return the thresholds of one account; of an allowance of nothing no part is reached."""
        return self.thresholds[int(self.thresholds_code[i])] if self.allowance[i] else ()


def decide(
    cells: AccountCells,
    slots: Int64s,
    minute_ms: int,
    epoch: int,
    *,
    books: Books | None = None,
    announce: bool = False,
) -> list[Decided]:
    """Bring the decisions of `slots` up to date and return those that changed, in order.

    `announce` returns one decision for every slot, changed or not: an account was just set.
    """
    decided: list[Decided] = []
    rows = cells.take(slots)
    for code, here in by_zone(rows[Cell.ZONE]):
        spans = spans_at(cells.zones[code], minute_ms)
        block, owners = rows[:, here], slots[here]
        standing = _stand(block, spans)
        balances = None if books is None else standing_of(books, owners)
        if books is not None and balances is not None:
            standing = _with_balances(standing, balances, books.thresholds)
        changed = _changed(block, standing) | announce
        for i in np.flatnonzero(changed).tolist():
            decided.extend(
                _record(
                    cells,
                    int(owners[i]),
                    standing,
                    i,
                    spans=spans,
                    epoch=epoch,
                    announce=announce,
                )
            )
    return decided


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


def _stand(rows: Int64s, spans: Spans) -> _Standing:
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
    return _Standing(
        state=np.where(rule > 0, int(State.CUT), warned),
        rule=rule,
        resets_at_ms=resets,
        used=used,
        percent=percent,
        allowance=limit,
        allowance_rule=everywhere * int(Rule.MONTH_TOKENS),
        start_ms=everywhere * spans.month[0],
        thresholds=[THRESHOLDS_PERCENT],
        thresholds_code=everywhere * 0,
    )


def _with_balances(
    rates: _Standing, balances: BalanceStanding, thresholds: list[tuple[int, ...]]
) -> _Standing:
    """Put the balance in the place of the month's tokens where there is one.

    Limits that are not in the cells cut like those that are. A status ends a cut-off by no clock, so
    it decides before any limit; a balance that is used up resets when units begin to be valid, if that
    is later than what else cuts, and never if none will.
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
    limit = np.where(known, balances.total_utok, NO_LIMIT)
    percent = percent_by_list(balances, limit, thresholds)
    # Of an allowance of nothing no part is reached.
    percent = np.where(known, percent * (balances.total_utok > 0), rates.percent)
    warned = np.where(percent > 0, int(State.WARNED), int(State.OPEN))
    return _Standing(
        state=np.where(rule > 0, int(State.CUT), warned),
        rule=rule,
        resets_at_ms=np.where(barred, 0, resets),
        used=np.where(known, balances.used_utok, rates.used),
        percent=percent,
        allowance=np.where(known, balances.total_utok, rates.allowance),
        allowance_rule=np.where(known, int(Rule.BALANCE), rates.allowance_rule),
        start_ms=np.where(known, balances.cycle_start_ms, rates.start_ms),
        thresholds=thresholds,
        thresholds_code=balances.thresholds,
    )


def _with_limits(rates: _Standing, balances: BalanceStanding) -> _Standing:
    """Let a limit cut that resets later than what else does; 0 is never, and later than all."""
    over = balances.known & (balances.limit_resets_ms > 0)
    over &= (rates.rule == 0) | (rates.resets_at_ms > 0)
    over &= balances.limit_resets_ms > rates.resets_at_ms
    ends = np.where(balances.limit_resets_ms == NEVER_MS, 0, balances.limit_resets_ms)
    rule = np.where(over, int(Rule.LIMIT), rates.rule)
    return replace(rates, rule=rule, resets_at_ms=np.where(over, ends, rates.resets_at_ms))


def _told_here(told_ms: Int64s, start_ms: Int64s, allowance_rule: Int64s) -> Bools:
    """Say whose thresholds were told in the present window; a bill cycle may end days after it began."""
    cycles: Bools = allowance_rule == Rule.BALANCE
    told: Bools = (told_ms == start_ms) | (same_month(told_ms, start_ms) & ~cycles)
    return told


def _changed(rows: Int64s, now: _Standing) -> Bools:
    told_here = _told_here(rows[Cell.THRESHOLD_MONTH], now.start_ms, now.allowance_rule)
    told = rows[Cell.THRESHOLD_PERCENT] * told_here
    changed: Bools = (rows[Cell.STATE] != now.state) | (rows[Cell.RULE] != now.rule)
    changed |= (rows[Cell.RESETS_AT] != now.resets_at_ms) | (told < now.percent)
    return changed


def _record(
    cells: AccountCells,
    slot: int,
    now: _Standing,
    i: int,
    *,
    spans: Spans,
    epoch: int,
    announce: bool,
) -> Iterator[Decided]:
    row = cells.matrix[slot]
    told_here = _told_here(row[Cell.THRESHOLD_MONTH], now.start_ms[i], now.allowance_rule[i])
    told = int(row[Cell.THRESHOLD_PERCENT]) if told_here else 0
    state, percent = State(int(now.state[i])), int(now.percent[i])
    was = State(int(row[Cell.STATE]))
    tells_last = _tells_last(state, Rule(int(now.rule[i])), now, i)
    for step in now.steps(i):
        if told < step <= percent and (step < percent or not tells_last):
            yield _warning(cells, slot, step, now, i, epoch=epoch)
    row[Cell.STATE], row[Cell.RULE], row[Cell.RESETS_AT] = state, now.rule[i], now.resets_at_ms[i]
    row[Cell.THRESHOLD_PERCENT], row[Cell.THRESHOLD_MONTH] = max(told, percent), now.start_ms[i]
    reason = _reason(state, was, announce=announce)
    yield _standing_decision(
        cells, slot, now, i, spans=spans, epoch=epoch, reason=reason, told=told
    )


def _tells_last(state: State, rule: Rule, now: _Standing, i: int) -> bool:
    """Say whether the standing decision tells the highest threshold: a cut only tells those it is made by."""
    return state is not State.CUT or (rule == now.allowance_rule[i] and now.percent[i] >= 100)


def _reason(state: State, was: State, *, announce: bool) -> str:
    """Return why; a cut and its end are told as such whoever caused them."""
    if (state is State.CUT) is not (was is State.CUT):
        return "limit_reached" if state is State.CUT else "resumed"
    if announce:
        return "account_set"
    if state is State.CUT:
        return "limit_reached"
    return "window_reset" if state is State.OPEN else "threshold_reached"


def _warning(
    cells: AccountCells, slot: int, step: int, now: _Standing, i: int, *, epoch: int
) -> Decided:
    version, old_epoch = _next_version(cells, slot, epoch)
    return Decided(
        slot=slot,
        state=State.WARNED,
        rule=Rule(int(now.allowance_rule[i])),
        reason="threshold_reached",
        threshold_percent=step,
        used=int(now.used[i]),
        limit=int(now.allowance[i]),
        window_start_ms=int(now.start_ms[i]),
        resets_at_ms=0,
        version=version,
        old_epoch=old_epoch,
    )


def _standing_decision(
    cells: AccountCells,
    slot: int,
    now: _Standing,
    i: int,
    *,
    spans: Spans,
    epoch: int,
    reason: str,
    told: int,
) -> Decided:
    row = cells.matrix[slot]
    rule, own = Rule(int(now.rule[i])), Rule(int(now.allowance_rule[i]))
    used, limit, start_ms = int(now.used[i]), int(now.allowance[i]), int(now.start_ms[i])
    for number, limit_cell, used_cell, name in RATE_RULES:
        if number is rule:
            used, limit = int(row[used_cell]), int(row[limit_cell])
            start_ms = getattr(spans, name)[0]
    state, percent = State(int(now.state[i])), int(now.percent[i])
    tells = percent > told and _tells_last(state, rule, now, i)
    rule = rule if rule or not percent else own
    version, old_epoch = _next_version(cells, slot, epoch)
    return Decided(
        slot=slot,
        state=state,
        rule=rule,
        reason=reason,
        threshold_percent=percent if tells else 0,
        used=used,
        limit=limit,
        window_start_ms=start_ms,
        resets_at_ms=int(now.resets_at_ms[i]),
        version=version,
        old_epoch=old_epoch,
    )


def _next_version(cells: AccountCells, slot: int, epoch: int) -> tuple[int, int]:
    row = cells.matrix[slot]
    old_epoch = int(row[Cell.DECISION_EPOCH])
    row[Cell.DECISION_VERSION] += 1
    row[Cell.DECISION_EPOCH] = epoch
    return int(row[Cell.DECISION_VERSION]), old_epoch
