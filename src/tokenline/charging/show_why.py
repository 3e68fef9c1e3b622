"""Say why an account is open, warned or cut: what decides, its figure, and when that starts anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.quota.balance import Balance
from tokenline.quota.cell_limits import cell_limits
from tokenline.quota.cells import Cell
from tokenline.quota.decided import Rule, State
from tokenline.quota.limit_windows import rolled
from tokenline.quota.limits import Limit
from tokenline.quota.standing import figures_of
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from tokenline.charging.partition import PartitionState

OF_THE_BALANCE = (Rule.NONE, Rule.BALANCE, Rule.SUSPENDED, Rule.CLOSED)


def why_of(state: PartitionState, slot: int) -> dict[str, Any]:
    """Return `why`, empty while an account is open, and the `figure` behind it, None without any.

    A figure is used, limit, their unit (utok, tokens or requests) and `resets_at_ms`, 0 for never; of the
    balance also the overage. While nothing cuts it is that of the balance, or of the month's tokens
    where there is no balance.
    """
    cells = state.cells.matrix[slot]
    rule, cut = Rule(int(cells[Cell.RULE])), int(cells[Cell.STATE]) == State.CUT
    if rule is Rule.LIMIT:
        why, figure = _limit(state, slot)
    elif rule in OF_THE_BALANCE and state.books.row(slot) != NONE:
        why, figure = (rule or Rule.BALANCE).name.lower(), _balance(state, slot)
    else:
        rule = rule or Rule.MONTH_TOKENS
        why, figure = rule.name.lower(), _cell(state, slot, rule)
    if figure is not None and cut:
        figure["resets_at_ms"] = int(cells[Cell.RESETS_AT])
    return {"why": why if cells[Cell.STATE] != State.OPEN else "", "figure": figure}


def _limit(state: PartitionState, slot: int) -> tuple[str, dict[str, Any] | None]:
    books = state.books
    row = books.get(books.row(slot), Balance.LIMIT_ROW)
    if row == NONE:
        # A plan that was changed since may have no limit there; then the next decision says so.
        return "limit", None
    spec, values = books.limits.spec(row), rolled(books, row, state.clock_ms)
    unit = spec.unit.name.lower()
    return f"limit: {spec.name}", _figure(values[Limit.USED], values[Limit.CEILING], unit)


def _balance(state: PartitionState, slot: int) -> dict[str, Any]:
    row = state.books.row(slot)
    found = figures_of(state.books, row)
    figure = _figure(found.used_utok, found.allowance_utok, "utok")
    ends_ms = state.books.get(row, Balance.CYCLE_END)
    return figure | {"overage": found.overage_utok, "resets_at_ms": ends_ms}


def _cell(state: PartitionState, slot: int, rule: Rule) -> dict[str, Any] | None:
    for one in cell_limits(state.cells, slot, state.clock_ms):
        if one.rule is rule:
            figure = _figure(one.used, one.ceiling, one.unit.name.lower())
            return figure | {"resets_at_ms": one.resets_at_ms}
    return None


def _figure(used: int, limit: int, unit: str) -> dict[str, Any]:
    return {"used": used, "limit": limit, "unit": unit, "resets_at_ms": 0}
