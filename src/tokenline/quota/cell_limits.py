"""Say how an account stands with the limits that its cells count, whoever asks between two events."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tokenline.metering.calendar import Spans
from tokenline.quota.cells import LIMITS, NO_LIMIT, AccountCells, Cell, same_month
from tokenline.quota.decided import RATE_RULES, Rule, unit_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.quota.terms import Unit

MINUTE_MS = 60_000
_STARTS = {"minute": Cell.MINUTE_START, "hour": Cell.HOUR_START, "day": Cell.DAY_START}


class CellLimit(NamedTuple):
    """Hold one limit and what is used of it; `ends_ms` is when its window ends."""

    rule: Rule
    used: int
    ceiling: int
    ends_ms: int

    @property
    def resets_at_ms(self) -> int:
        """When it has room again once it is reached; 0 is never."""
        return self.ends_ms if self.ceiling else 0

    @property
    def unit(self) -> Unit:
        """What it counts."""
        return unit_of(self.rule)


def cell_limits(cells: AccountCells, slot: int, now_ms: int) -> Iterator[CellLimit]:
    """Yield the limits of an account's tokens and requests a minute, hour, day and month."""
    values: list[int] = cells.matrix[slot].tolist()
    if max(values[LIMITS]) <= NO_LIMIT:
        return
    spans = cells.spans_of(slot, now_ms // MINUTE_MS * MINUTE_MS)
    if values[Cell.MONTH_TOKENS_LIMIT] >= 0:
        used, ceiling = _month_tokens(values, spans), values[Cell.MONTH_TOKENS_LIMIT]
        yield CellLimit(Rule.MONTH_TOKENS, used, ceiling, spans.month[1])
    for rule, limit, used_cell, window in RATE_RULES:
        if values[limit] >= 0:
            start, end = getattr(spans, window)
            used = values[used_cell] if values[_STARTS[window]] == start else 0
            yield CellLimit(rule, used, values[limit], end)


def _month_tokens(values: list[int], spans: Spans) -> int:
    months = (
        (Cell.MONTH_START, Cell.MONTH_TOKENS),
        (Cell.LAST_MONTH_START, Cell.LAST_MONTH_TOKENS),
    )
    return sum(values[used] for start, used in months if same_month(values[start], spans.month[0]))
