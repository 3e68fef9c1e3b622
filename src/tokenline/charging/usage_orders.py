"""Carry out what landing found out about usage: a late copy, a correction.

    void      take back what a copy was charged
    correct   take back the original, charge what replaces it, put it into windows and month

Landing orders it when the rows are in the warehouse, and again when it died before it could seal them.
Of one usage partition orders come in the order of (cause_offset, part), also from a landing that lost
its partition and goes on: it says what its successor says. So how far they were carried out is one
number, kept in the journal, and what comes again is known for ever.

Windows are absolute and closed: a correction is a row of its own beside them, what it changed by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenline.charging.carry import account_key_of
from tokenline.errors import BadData
from tokenline.event import TOKEN_KINDS
from tokenline.metering.calendar import MINUTE_MS, spans_at
from tokenline.quota.books import Balance
from tokenline.quota.cells import MONTHS, Cell, same_month
from tokenline.quota.entries import ChangeKind
from tokenline.quota.settled import Charged
from tokenline.quota.table import NONE
from tokenline.quota.taking_back import charge_instead, give_back, ordered
from tokenline.quota.terms import Use
from tokenline.rating.tariff import charged_by

if TYPE_CHECKING:
    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Commanded, Step

UNKNOWN = -1  # charge of a correction, where landing does not know it yet
PARTS_MAX = 1024  # orders that one record of usage may cause
# Which of original and replacement an order names.
_SIDES = {"void": ((True, False),), "correct": ((True, True), (False, True))}


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowChange:
    """Say what an order changed a window of an account by: out is below zero.

    `grain` is minute, month, or late where the event is in no window: then it only says what was charged.
    """

    slot: int
    cause: str
    grain: str
    window_start_ms: int
    total_tokens: int
    events: int
    subscriber: str = ""
    provider: str = ""
    model: str = ""
    counts: tuple[int, ...] = (0,) * len(TOKEN_KINDS)
    charge_utok: int = 0
    catalog_version: int = 0


@dataclass(frozen=True, slots=True)
class _Side:
    """Read one side of an order."""

    fields: Mapping[str, Any]
    prefix: str

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  what the schema says
        return self.fields[f"{self.prefix}_{name}"]

    @property
    def use(self) -> Use:
        return Use(*(str(self[name]) for name in ("provider", "model", "subscriber_id")))

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(int(self[kind]) for kind in TOKEN_KINDS)

    @property
    def parts(self) -> list[tuple[int, int]]:
        return list(zip(map(int, self["paid_buckets"]), map(int, self["paid_utok"]), strict=True))


def carry_out_usage_order(state: PartitionState, step: Step, command: Commanded) -> int:
    """Return the slot of the account; NONE where the order was carried out before.

    Raises:
        BadData: it is no order that landing gives; the text says what is wrong.
    """
    fields = command.fields
    key, kind, place = account_key_of(fields), str(fields["kind"]), _place_of(fields)
    original, replacement = _Side(fields, "original"), _Side(fields, "replacement")
    slot = _check(state, key, kind, original, replacement, int(fields["cause_offset"]))
    if place < state.orders_next:
        return NONE
    taken = _charged(state, slot, original)
    state.orders_next = place + 1
    now_ms = state.move_clock(command.appended_ms)
    charge_utok, version = _price(state, slot, replacement) if kind == "correct" else (0, 0)
    row = state.books.row(slot)
    parts: list[tuple[int, int]] = []
    if row != NONE:
        now_ms = max(command.appended_ms, state.books.get(row, Balance.LOOKED_AT))
        with ordered(state.books, row, str(fields["command_id"]), now_ms):
            # Like usage of the moment that it replaces.
            moment = original if original["present"] else replacement
            back = ChangeKind.VOID if kind == "void" else ChangeKind.CORRECTION_OUT
            give_back(state.books, row, back, taken.parts, taken.at_ms, now_ms)
            if charge_utok:
                since_ms = int(moment["occurred_at"])
                parts = charge_instead(
                    state.books, row, replacement.use, charge_utok, since_ms, now_ms
                )
    order = _Order(state, step, slot, str(fields["command_id"]), command.offset)
    # Of a late copy that is taken back the entries say enough: it is in no window.
    if original["present"] and not (kind == "void" and original["late"]):
        order.change_windows(original, -1, taken.charge_utok, taken.catalog_version)
    if kind == "correct":
        order.change_windows(replacement, 1, charge_utok, version)
        state.books.settled.remember(slot, place, Charged(charge_utok, version, now_ms, parts))
    return slot


def _place_of(fields: Mapping[str, Any]) -> int:
    """Return where an order stands among those of its partition.

    Raises:
        BadData: one record does not cause so many.
    """
    cause, part = int(fields["cause_offset"]), int(fields["part"])
    if cause < 0 or not 0 <= part < PARTS_MAX:
        raise BadData(f"a usage order of offset {cause}, part {part}, is none that landing gives")
    return cause * PARTS_MAX + part


def _check(
    state: PartitionState, key: str, kind: str, original: _Side, replacement: _Side, cause: int
) -> int:
    """Return the slot of the account.

    Raises:
        BadData: the order is none that landing gives.
    """
    slot = state.cells.slot(key)
    sides = bool(original["present"]), bool(replacement["present"])
    if sides not in _SIDES.get(kind, ()):
        raise BadData(f"{key}: there is no usage order {kind!r} of these events")
    if slot is None:
        raise BadData(f"{key}: no account of this name has used anything")
    if cause >= state.next_offsets["usage"]:
        raise BadData(f"{key}: usage {cause} was not charged yet, so nothing of it can be ordered")
    paid = list(map(int, original["paid_utok"]))
    if original["charge_utok"] == UNKNOWN and not paid:
        return slot
    if len(paid) != len(original["paid_buckets"]) or sum(paid) != original["charge_utok"]:
        raise BadData(f"{key}: what buckets paid of an event is not what it was charged")
    if min(paid, default=1) <= 0:
        raise BadData(f"{key}: a bucket cannot have paid nothing or less")
    return slot


def _price(state: PartitionState, slot: int, side: _Side) -> tuple[int, int]:
    """Return charge and catalog version of a correction; without a balance it costs nothing."""
    use = side.use
    occurred_ms = int(side["occurred_at"])
    units = {str(name): int(count) for name, count in side["other_units"].items()}
    found = charged_by(
        state.catalogs, use.provider, use.model, side.counts, occurred_ms, units
    ) or (0, 0)
    return (0, found[1]) if state.books.row(slot) == NONE else found


def _charged(state: PartitionState, slot: int, original: _Side) -> Charged:
    """Return what an original was charged; what a correction was only charging knows for a while.

    Raises:
        BadData: it does not know it any more.
    """
    if original["charge_utok"] != UNKNOWN:
        return Charged(
            int(original["charge_utok"]),
            int(original["catalog_version"]),
            int(original["charged_at"]),
            original.parts,
        )
    found = state.books.settled.find(slot, int(original["offset"]) * PARTS_MAX)
    if found is None:
        raise BadData(
            f"what the correction at offset {original['offset']} was charged is not known any more: "
            "look into the ledger of the balance, and adjust it by hand"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Order:
    """Change the windows of one account, in the name of one order."""

    state: PartitionState
    step: Step
    slot: int
    command_id: str
    offset: int

    def change_windows(self, side: _Side, sign: int, charge_utok: int, version: int) -> None:
        """Put an event into its minute and month, or with -1 take it out; late usage is in neither."""
        occurred_ms, use = int(side["occurred_at"]), side.use
        late, counts = bool(side["late"]), side.counts
        self._note(
            "late" if late else "minute",
            sign,
            occurred_ms // MINUTE_MS * MINUTE_MS,
            total_tokens=sign * sum(counts),
            subscriber=use.subscriber,
            provider=use.provider,
            model=use.model,
            counts=tuple(sign * count for count in counts),
            charge_utok=sign * charge_utok,
            catalog_version=version,
        )
        if not late:
            self._change_month(sign, occurred_ms, sum(counts))

    def _change_month(self, sign: int, occurred_ms: int, tokens: int) -> None:
        """Change the counter of a month; of one that is not counted any more say what it changes by."""
        cells = self.state.cells
        row = cells.matrix[self.slot]
        zone = cells.zones[int(row[Cell.ZONE])]
        start_ms = spans_at(zone, occurred_ms // MINUTE_MS * MINUTE_MS).month[0]
        for start, tokens_cell, events_cell, version_cell in MONTHS:
            if row[start] and same_month(row[start], start_ms):
                row[tokens_cell] += sign * tokens
                row[events_cell] += sign
                row[version_cell] = self.state.next_offsets["usage"] + self.offset
                self.state.mark_months(np.array([self.slot], np.int64))
                return
        self._note("month", sign, start_ms, total_tokens=sign * tokens)

    def _note(self, grain: str, sign: int, start_ms: int, **said: Any) -> None:  # noqa: ANN401
        change = WindowChange(
            slot=self.slot,
            cause=f"{self.command_id} {'in' if sign > 0 else 'out'}",
            grain=grain,
            window_start_ms=start_ms,
            events=sign,
            **said,
        )
        self.step.window_changes.append(change)
