"""Name what can be decided of an account, a subscriber or a group of models, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from tokenline.quota.cells import Cell
from tokenline.quota.terms import Scope, Unit


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
_REQUESTS = (Rule.MINUTE_REQUESTS, Rule.HOUR_REQUESTS, Rule.DAY_REQUESTS)


def unit_of(rule: Rule) -> Unit:
    """Return what a limit of the cells counts."""
    return Unit.REQUESTS if rule in _REQUESTS else Unit.TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Record one decision; `slot` names the account, `old_epoch` who decided before (0: nobody).

    `subscriber` is empty for the whole account; `limit_name` says which limit Rule.LIMIT is. What is
    decided of a group of `models` alone names it in `group`. `unit` is of `used` and `limit`, empty
    where these say nothing. `covers` is what can be paid where not everything can.
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
    unit: str = ""
    overage_utok: int = 0
    written_off_utok: int = 0
    covers: tuple[Scope, ...] = ()
