"""Decide open, warned or cut for the accounts a chunk touched.

An account is cut while any rule's use has reached its limit; of several the one that resets last
decides. A limit of 0 never resets (`resets_at_ms` 0). Crossing a threshold of the allowance (50 and
80 percent, or what the plan lists) warns, once each in its window; at 100 it is cut, where the plan
stops. The allowance of an account with a balance is its buckets, and its window the bill cycle; that
of any other its tokens a month. Deciding again on the same cells gives no new decision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import Spans
from tokenline.quota.cells import AccountCells, Cell, same_month
from tokenline.quota.covers import covers_of
from tokenline.quota.decided import RATE_RULES, Decided, Rule, State, unit_of
from tokenline.quota.ruling import Ruling, by_cells, with_balances
from tokenline.quota.standing import standing_of
from tokenline.quota.terms import NO_FREE_MODELS
from tokenline.quota.usage import roll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.quota.books import Books

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def decide(
    cells: AccountCells,
    slots: Int64s,
    minute_ms: int,
    epoch: int,
    *,
    books: Books | None = None,
    announce: bool = False,
    rolls: bool = False,
) -> list[Decided]:
    """Bring the decisions of `slots` up to date and return those that changed, in order.

    `announce` returns one decision for every slot, changed or not: an account was just set. With `rolls`
    the windows of the cells are taken as they will be once usage comes in that minute; they stay as they
    are, because older usage may come first.
    """
    decided: list[Decided] = []
    free = NO_FREE_MODELS if books is None else books.free_models(minute_ms)
    rows = cells.take(slots)
    if rolls:
        roll(cells, slots, rows, minute_ms)
    for spans, here in cells.spans(slots, rows[Cell.ZONE], minute_ms):
        block, owners = rows[:, here], slots[here]
        standing = by_cells(block, spans)
        balances = None if books is None else standing_of(books, owners)
        if books is not None and balances is not None:
            standing = with_balances(standing, balances, books.thresholds, free.digest)
        changed = _changed(block, standing) | announce
        for i in np.flatnonzero(changed).tolist():
            slot = int(owners[i])
            found = _record(cells, slot, standing, i, spans=spans, epoch=epoch, announce=announce)
            if books is not None and standing.covers[i]:
                cut = standing.state[i] == State.CUT
                covers = covers_of(books, books.row(slot), free, cut=cut)
                found = (replace(one, covers=covers) for one in found)
            decided.extend(found)
    return decided


def _told_here(told_ms: Int64s, start_ms: Int64s, allowance_rule: Int64s) -> Bools:
    """Say whose thresholds were told in the present window; a bill cycle may end days after it began."""
    cycles: Bools = allowance_rule == Rule.BALANCE
    told: Bools = (told_ms == start_ms) | (same_month(told_ms, start_ms) & ~cycles)
    return told


def _changed(rows: Int64s, now: Ruling) -> Bools:
    told_here = _told_here(rows[Cell.THRESHOLD_MONTH], now.start_ms, now.allowance_rule)
    told = rows[Cell.THRESHOLD_PERCENT] * told_here
    changed: Bools = (rows[Cell.STATE] != now.state) | (rows[Cell.RULE] != now.rule)
    changed |= (rows[Cell.RESETS_AT] != now.resets_at_ms) | (told < now.percent)
    changed |= rows[Cell.COVERS] != now.covers
    return changed


def _record(
    cells: AccountCells,
    slot: int,
    now: Ruling,
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
    stays = _only_covers(row, now, i) and percent <= told
    for step in now.steps(i):
        if told < step <= percent and (step < percent or not tells_last):
            yield _warning(cells, slot, step, now, i, epoch=epoch)
    row[Cell.STATE], row[Cell.RULE], row[Cell.RESETS_AT] = state, now.rule[i], now.resets_at_ms[i]
    row[Cell.THRESHOLD_PERCENT], row[Cell.THRESHOLD_MONTH] = max(told, percent), now.start_ms[i]
    row[Cell.COVERS] = now.covers[i]
    reason = "covers_changed" if stays and not announce else _reason(state, was, announce=announce)
    yield _standing_decision(
        cells, slot, now, i, spans=spans, epoch=epoch, reason=reason, told=told
    )


def _only_covers(row: Int64s, now: Ruling, i: int) -> bool:
    """Say whether an account may go on as it could, but for what can be paid."""
    same_state = (row[Cell.STATE], row[Cell.RULE]) == (now.state[i], now.rule[i])
    cut = now.state[i] == State.CUT
    return same_state and not (cut and row[Cell.RESETS_AT] != now.resets_at_ms[i])


def _tells_last(state: State, rule: Rule, now: Ruling, i: int) -> bool:
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
    cells: AccountCells, slot: int, step: int, now: Ruling, i: int, *, epoch: int
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
        unit=now.unit(i),
        overage_utok=int(now.overage[i]),
        written_off_utok=int(now.written_off[i]),
        window_start_ms=int(now.start_ms[i]),
        resets_at_ms=0,
        version=version,
        old_epoch=old_epoch,
    )


def _standing_decision(
    cells: AccountCells,
    slot: int,
    now: Ruling,
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
    unit = now.unit(i)
    for number, limit_cell, used_cell, name in RATE_RULES:
        if number is rule:
            used, limit = int(row[used_cell]), int(row[limit_cell])
            unit, start_ms = unit_of(rule).name.lower(), getattr(spans, name)[0]
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
        unit=unit,
        overage_utok=int(now.overage[i]),
        written_off_utok=int(now.written_off[i]),
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
