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
    place = events.topic, events.partition
    asked = np.flatnonzero((events.late | events.corrections) & ~events.repeats)
    if not asked.size:
        return Found(events=events)
    named = identities_at(events, asked)
    copies = set(repeats_within(events, named)) | store.earlier_copies(*place, named)
    events = events.without_repeats_at(dict.fromkeys(sorted(copies), COPY))
    left = asked[~np.isin(asked, sorted(copies))]
    held = left[events.corrections[left]]
    late = left[~events.corrections[left]]
    corrected = store.earlier_corrections(*place, identities_at(events, late))
    events = events.without_repeats_at(dict.fromkeys(sorted(corrected), CORRECTED))
    found: list[Correction] = []
    more: dict[int, str] = {}
    if held.size:
        run = _Run(store, events, held, landed)
        found, reasons, refused = run.judged()
        more = run.corrected(late)
        events = replace(events.without_repeats_at(reasons | more), refused=refused, late=run.late)
    charged = [at for at in (*copies, *corrected, *more) if not events.corrections[at]]
    return Found(events=events, corrections=found, copies=_charged(events, charged))


def _charged(events: Events, positions: Iterable[int]) -> list[int]:
    """Return those of these that were charged something."""
    return sorted(at for at in positions if events.charged.utok[at])


class _Run:
    """Judge the corrections of one run in their order: each may replace an event of the run, or the last one."""

    def __init__(self, store: Store, events: Events, held: Int64s, landed: Int64s) -> None:
        self._store, self._events, self._held = store, events, held
        self._landed = set(landed.tolist())
        self.late = events.late.copy()
        wanted = identities_at(events, held, REPLACED)
        place = events.topic, events.partition
        self._names = dict(zip(held.tolist(), _names(wanted), strict=True))
        self._before = store.earlier_corrections(*place, wanted)
        self._rows = store.earlier_rows(*place, wanted)
        self._here = self._positions(wanted)
        # By what was replaced: the offset of the correction that did.
        self._replaced: dict[Name, int] = {}

    def judged(self) -> tuple[list[Correction], dict[int, str], frozenset[int]]:
        """Return the corrections that stand, those that came too late with the reason, and those refused."""
        reasons: dict[int, str] = {}
        found: list[Correction] = []
        unknown = self._elsewhere()
        for position in self._held.tolist():
            name = self._names[position]
            if position in self._before or name in self._replaced:
                reasons[position] = ALREADY_CORRECTED
            elif position not in unknown:
                one = self._correction(position, unknown.union(reasons))
                found.append(one)
                self._replaced[name] = int(self._events.offsets[position])
                self.late[position] = self._is_late(one)
        return found, reasons, frozenset(unknown - set(reasons))

    def corrected(self, late: Int64s) -> dict[int, str]:
        """Return those of these late events that a correction of the run before them replaces."""
        if not self._replaced or not late.size:
            return {}
        named = identities_at(self._events, late)
        offsets = self._events.offsets[late].tolist()
        return {
            position: CORRECTED
            for position, name, offset in zip(late.tolist(), _names(named), offsets, strict=True)
            if self._replaced.get(name, offset) < offset
        }

    def _positions(self, wanted: pa.Table) -> dict[Name, list[int]]:
        """Return where the run itself has the events that are corrected, copies aside."""
        events = self._events
        ids = wanted.column("event_id").combine_chunks()
        same = pc.is_in(events.batch.column("event_id"), ids).to_numpy(zero_copy_only=False)
        maybe = np.flatnonzero(same & ~events.repeats)
        found: dict[Name, list[int]] = {}
        for position, name in zip(
            maybe.tolist(), _names(identities_at(events, maybe)), strict=True
        ):
            found.setdefault(name, []).append(position)
        return found

    def _elsewhere(self) -> set[int]:
        """Return the corrections of an event that only another account has.

        One whose row has landed was taken before: it stays so, whatever came to other accounts meanwhile.
        """
        alone = [
            position
            for position in self._held.tolist()
            if position not in self._rows
            and not any(at < position for at in self._here.get(self._names[position], ()))
            and int(self._events.offsets[position]) not in self._landed
        ]
        if not alone:
            return set()
        wanted = identities_at(self._events, np.array(alone, np.int64), REPLACED)
        return self._store.elsewhere(wanted)

    def _correction(self, position: int, gone: set[int]) -> Correction:
        here = self._here.get(self._names[position], ())
        here = [at for at in here if at < position and at not in gone]
        return Correction(position=position, rows=self._rows.get(position, []), positions=here)

    def _is_late(self, one: Correction) -> bool:
        """Say whether a correction is in no window: as what it replaces, else by its own time."""
        if one.rows:
            return bool(one.rows[0]["late"])
        return bool(self.late[one.positions[0] if one.positions else one.position])


def _names(named: pa.Table) -> list[Name]:
    return list(zip(*(named.column(name).to_pylist() for name in IDENTITY), strict=True))
