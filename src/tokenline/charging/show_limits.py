"""Show the limits of an account to people, one row each: those of all models, of groups, of subscribers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.quota.cell_limits import cell_limits
from tokenline.quota.limit_windows import resets_at, rolled
from tokenline.quota.limits import EACH, Limit
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from tokenline.charging.partition import PartitionState


def limits_of(state: PartitionState, slot: int) -> list[dict[str, Any]]:
    """Return the limits with what is used and held of each; `subscriber` is empty for the account.

    `unit` is what it counts: tokens, utok or requests. `*` is every subscriber that has used nothing
    yet; `own` is a cap that the account set itself.
    """
    limits = state.books.limits
    rows = [row for row in limits.of_owner(slot) if limits.in_force(row)]
    return [
        *(
            _row(one.rule.name.lower(), one.used, one.ceiling, one.ends_ms)
            | {"unit": one.unit.name.lower()}
            for one in cell_limits(state.cells, slot, state.clock_ms)
        ),
        *(_shown(state, row) | {"unit": limits.spec(row).unit.name.lower()} for row in rows),
    ]


def _shown(state: PartitionState, row: int) -> dict[str, Any]:
    limits = state.books.limits
    subscriber, ceiling = (limits.get(row, column) for column in (Limit.SUBSCRIBER, Limit.CEILING))
    name = limits.subscribers.name(subscriber) if subscriber >= 0 else ""
    if subscriber == EACH:
        name = limits.spec(row).subscriber or "*"
        return _row(limits.spec(row).name, 0, ceiling, 0) | {"subscriber": name}
    values = rolled(state.books, row, state.clock_ms)
    # A rolling window that is not full never resets: it lets go of a slice at a time.
    full = not values[Limit.ROLLING] or values[Limit.USED] >= ceiling
    ends_ms = resets_at(values) if full else 0
    found = _row(limits.spec(row).name, values[Limit.USED], ceiling, ends_ms)
    own = {"own": True} if values[Limit.OWN] else {}
    return found | {"subscriber": name, "held": values[Limit.HELD]} | own


def _row(name: str, used: int, ceiling: int, ends_ms: int) -> dict[str, Any]:
    """Return a limit nothing is held against; one of 0 never resets."""
    return {
        "limit": name,
        "subscriber": "",
        "used": used,
        "held": 0,
        "ceiling": ceiling,
        "resets_at_ms": 0 if ends_ms == NEVER_MS or not ceiling else ends_ms,
    }
