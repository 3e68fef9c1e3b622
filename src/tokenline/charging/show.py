"""Show an account to people: its plan, buckets, limits and holds, and how it stands."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenline.charging.show_limits import limits_of
from tokenline.charging.show_why import why_of
from tokenline.quota.balance import Balance, Status
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import Cell
from tokenline.quota.covers import covers_of
from tokenline.quota.decided import State
from tokenline.quota.hold_rows import Hold
from tokenline.quota.pseudo import COUNTERS, SOURCES, Pseudo
from tokenline.quota.standing import figures_of
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS, Mode, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.charging.partition import PartitionState

# A reply goes through a broker that takes a mebibyte; JSON as we write it is ASCII.
TEXT_MAX_CHARS = 600_000
ROWS_MAX = (2000, 200, 20, 0)


def shown_text(state: PartitionState, slot: int) -> str:
    """Return what is shown of an account as JSON, with as many rows of each list as a reply can carry.

    `not_shown` counts what was left out: tens of thousands of members are more than a broker takes.
    """
    whole = shown(state, slot)
    for most in ROWS_MAX:
        text = json.dumps(_shortened(whole, most))
        if len(text) <= TEXT_MAX_CHARS:
            break
    return text


def _shortened(whole: dict[str, Any], most: int) -> dict[str, Any]:
    lists = {name: said for name, said in whole.items() if isinstance(said, list)}
    left_out = {name: len(said) - most for name, said in lists.items() if len(said) > most}
    if not left_out:
        return whole
    return whole | {name: lists[name][:most] for name in left_out} | {"not_shown": left_out}


def shown(state: PartitionState, slot: int) -> dict[str, Any]:
    """Return what is known of an account, for JSON; times are ms since the epoch, 0 for never."""
    row = state.cells.matrix[slot]
    found: dict[str, Any] = {
        "account": state.cells.keys[slot],
        "time_zone": state.cells.zones[int(row[Cell.ZONE])],
        "state": State(int(row[Cell.STATE])).name.lower(),
        **why_of(state, slot),
        "resets_at_ms": int(row[Cell.RESETS_AT]),
        "limits": limits_of(state, slot),
    }
    balance = state.books.row(slot)
    return found if balance == NONE else found | _balance(state, balance)


def _balance(state: PartitionState, row: int) -> dict[str, Any]:
    books = state.books
    holds = books.holds.of_owner(books.get(row, Balance.OWNER))
    return {
        "plan": books.plan(row),
        "pending_plan": books.pending_plan(row),
        "debt_utok": books.get(row, Balance.DEBT),
        "terms_version": books.terms(row).version,
        "mode": Mode(books.get(row, Balance.MODE)).name.lower(),
        "status": Status(books.get(row, Balance.STATUS)).name.lower(),
        "cycle_day": books.get(row, Balance.CYCLE_DAY),
        "cycle_start_ms": books.get(row, Balance.CYCLE_START),
        "cycle_end_ms": books.get(row, Balance.CYCLE_END),
        **asdict(figures_of(books, row)),
        "covers": _covers(state, row),
        "buckets": [
            *_pseudo(state, row),
            *(_bucket(state, bucket) for bucket in books.chain(row)),
        ],
        "holds": [_hold(hold) for hold in holds if hold.parts],
    }


def _covers(state: PartitionState, row: int) -> list[dict[str, Any]]:
    """Return what can be paid where not everything can, as the last decision says it."""
    cells = state.cells.matrix[state.books.get(row, Balance.OWNER)]
    if not cells[Cell.COVERS]:
        return []
    free, cut = state.free_models(state.clock_ms), bool(cells[Cell.STATE] == State.CUT)
    found = covers_of(state.books, row, free, cut=cut)
    return [{"models": list(one.models), "subscribers": list(one.subscribers)} for one in found]


def _pseudo(state: PartitionState, row: int) -> Iterator[dict[str, Any]]:
    """Yield what no bucket paid since the account was opened, a row each under its number; 0 are left out."""
    for pseudo in Pseudo:
        used_utok = state.books.get(row, COUNTERS[pseudo])
        over_held = state.books.get(row, Balance.OVERAGE_HELD)
        held_utok = over_held if pseudo is Pseudo.OVERAGE else 0
        if used_utok or held_utok:
            yield {
                "bucket": +pseudo,
                "source": SOURCES[pseudo].name.lower(),
                "priority": 0,
                "total_utok": 0,
                "used_utok": used_utok,
                "held_utok": held_utok,
                "claimed_utok": 0,
                "valid_to_ms": 0,
                "models": [],
                "subscribers": [],
                "transferable": 0,
            }


def _bucket(state: PartitionState, bucket: int) -> dict[str, Any]:
    values = state.books.buckets.matrix[bucket].tolist()
    scope = state.books.scopes.scopes[values[Bucket.SCOPE]]
    ends_ms = values[Bucket.VALID_TO]
    return {
        "bucket": values[Bucket.NUMBER],
        "source": Source(values[Bucket.SOURCE]).name.lower(),
        "priority": values[Bucket.PRIORITY],
        "total_utok": values[Bucket.TOTAL],
        "used_utok": values[Bucket.USED],
        "held_utok": values[Bucket.HELD],
        "claimed_utok": values[Bucket.CLAIMED],
        "valid_to_ms": 0 if ends_ms == NEVER_MS else ends_ms,
        "models": list(scope.models),
        "subscribers": list(scope.subscribers),
        "transferable": values[Bucket.TRANSFERABLE],
    }


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "status": hold.status.name.lower(),
        "lease": hold.lease,
        "held_utok": hold.held_utok,
        "used_utok": hold.used_utok,
        "expires_at_ms": hold.expires_at_ms,
    }
