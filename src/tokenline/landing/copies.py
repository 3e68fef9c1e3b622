"""Find what charging could not know: late copies, and what corrections correct.

Charging remembers names for the horizon; the ledger has all of them. What is asked here depends on
rows at lower offsets alone, which landed before. So whoever lands a batch, and however often, finds the
same.

    a late event or a correction that came before                   -> duplicate, copy
    a late event that a correction before it replaces               -> duplicate, corrected
    a correction of what another correction before it replaced      -> duplicate, already_corrected
    a correction of an event of another account, and of none here   -> dead letter
    a correction of an event that is here, or nowhere               -> ledger, and an order to charging
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.landing.row import (
    COPY,
    IDENTITY,
    REPLACED,
    Events,
    identities_at,
    repeats_within,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenline.landing.row import Int64s
    from tokenline.landing.store import Store

CORRECTED = "corrected"
ALREADY_CORRECTED = "already_corrected"
Name = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Hold a correction that stands, by its position, and what it replaces.

    `rows` are rows of the ledger from before this run, `positions` events of this run; all in the order of
    their offsets. There are several where charging counted an event twice, and none where it never came.
    """

    position: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold a run with all that was found out about it.

    `copies` are the positions of late events that are no ledger rows though they were charged.
    """

    events: Events
    corrections: list[Correction] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)


def look_back(store: Store, events: Events, landed: Int64s) -> Found:
    """Find copies and what is corrected; `landed` are offsets of this run that are in the ledger already.

    Raises:
        WarehouseUnavailable: try again.
    """
    asked = np.flatnonzero((events.late | events.corrections) & ~events.repeats)
    if not asked.size:
        return Found(events=events)
    if events.corrections[asked].any():
        return _Run(store, events, asked, landed).found()
    place, named = (events.topic, events.partition), identities_at(events, asked)
    copies = set(repeats_within(events, named)) | store.earlier_copies(*place, named)
    left = asked[~np.isin(asked, sorted(copies))]
    corrected = store.earlier_corrections(*place, identities_at(events, left))
    reasons = dict.fromkeys(copies, COPY) | dict.fromkeys(corrected, CORRECTED)
    return _with_copies(events.without_repeats_at(reasons), reasons, [])


def _with_copies(events: Events, reasons: Iterable[int], corrections: list[Correction]) -> Found:
    """Return what was found; of the copies those that were charged something have to be told."""
    charged = [at for at in reasons if events.charged.utok[at] and not events.corrections[at]]
    return Found(events=events, corrections=corrections, copies=sorted(charged))


class _Run:
    """Judge a run in which there are corrections, event by event: each depends on those before it."""

    def __init__(self, store: Store, events: Events, asked: Int64s, landed: Int64s) -> None:
        self._events = events
        self._landed = set(landed.tolist())
        self._held = set(asked[events.corrections[asked]].tolist())
        self._asked = set(asked.tolist())
        place, held = (events.topic, events.partition), np.array(sorted(self._held), np.int64)
        named, wanted = identities_at(events, asked), identities_at(events, held, REPLACED)
        self._replaces = dict(zip(held.tolist(), _names(wanted), strict=True))
        late = identities_at(events, asked[~events.corrections[asked]])
        self._copies = store.earlier_copies(*place, named)
        self._corrected = store.earlier_corrections(*place, pa.concat_tables([late, wanted]))
        self._rows = store.earlier_rows(*place, wanted)
        self._others = store.elsewhere(self._alone(wanted))
        self._order = self._relevant(named, wanted)
        # What stands in the run so far, and which events of it a correction of the run replaced.
        self._here: dict[Name, list[int]] = defaultdict(list)
        self._events_here: set[Name] = set()
        self._replaced: set[Name] = set()
        self._late = events.late.copy()
        self._reasons: dict[int, str] = {}
        self._refused: set[int] = set()
        self._corrections: list[Correction] = []

    def found(self) -> Found:
        """Go through the run once."""
        for at, name in self._order:
            if at not in self._asked or self._stands(at, name):
                self._here[name].append(at)
                self._events_here.add(_without_account(name))
        events = self._events.without_repeats_at(self._reasons)
        events = replace(events, refused=frozenset(self._refused), late=self._late)
        return _with_copies(events, self._reasons, self._corrections)

    def _relevant(self, named: pa.Table, wanted: pa.Table) -> list[tuple[int, Name]]:
        """Return positions and names of all events of the run that those asked for may depend on."""
        events = self._events
        ids = pa.concat_tables([named, wanted]).column("event_id").combine_chunks()
        same = pc.is_in(events.batch.column("event_id"), ids).to_numpy(zero_copy_only=False)
        maybe = np.flatnonzero(same & ~events.repeats)
        return list(zip(maybe.tolist(), _names(identities_at(events, maybe)), strict=True))

    def _alone(self, wanted: pa.Table) -> pa.Table:
        """Return those corrections of which the ledger has no original, and that have not landed."""
        alone = [
            position not in self._rows and offset not in self._landed
            for position, offset in zip(
                *(wanted.column(name).to_pylist() for name in ("position", "offset")), strict=True
            )
        ]
        return wanted.filter(pa.array(alone, pa.bool_()))

    def _stands(self, at: int, name: Name) -> bool:
        """Judge a late event or a correction; say whether it is a row of the ledger."""
        if at in self._copies or self._here[name]:
            self._reasons[at] = COPY
        elif at in self._held:
            return self._corrects(at)
        elif at in self._corrected or name in self._replaced:
            self._reasons[at] = CORRECTED
        else:
            return True
        return False

    def _corrects(self, at: int) -> bool:
        name = self._replaces[at]
        # Rows of this very run may have landed in an earlier try.
        before = [row for row in self._rows.get(at, ()) if row["offset"] < self._events.offsets[0]]
        one = Correction(position=at, rows=before, positions=list(self._here.get(name, ())))
        if at in self._corrected or name in self._replaced:
            self._reasons[at] = ALREADY_CORRECTED
        elif self._is_elsewhere(one, name):
            self._refused.add(at)
        else:
            self._corrections.append(one)
            self._replaced.add(name)
            self._late[at] = self._is_late(one)
            return True
        return False

    def _is_elsewhere(self, one: Correction, name: Name) -> bool:
        """Say whether only another account has the event that is corrected.

        A correction whose row has landed was taken before: it stays so, whatever came to other accounts
        meanwhile.
        """
        at = one.position
        if one.rows or one.positions or int(self._events.offsets[at]) in self._landed:
            return False
        return at in self._others or _without_account(name) in self._events_here

    def _is_late(self, one: Correction) -> bool:
        """Say whether a correction is in no window: as what it replaces, else by its own time."""
        if one.rows:
            return bool(one.rows[0]["late"])
        return bool(self._late[one.positions[0] if one.positions else one.position])


def _without_account(name: Name) -> Name:
    tenant, _, source, event_id = name
    return tenant, source, event_id


def _names(named: pa.Table) -> list[Name]:
    return list(zip(*(named.column(name).to_pylist() for name in IDENTITY), strict=True))
