"""Say what is entered into an account's ledger: why a bucket changed, by how much, and who ordered it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ChangeKind(IntEnum):
    """Say why a balance changed; the order is part of the journal's format."""

    USAGE = 0
    GRANT = 1
    EXPIRY = 2
    ROLLOVER_OUT = 3
    PLAN_CHANGE = 4
    ADJUSTMENT = 5
    TRANSFER_OUT = 6
    HOLD_CHARGE = 7
    HOLD_REFUND = 8
    CYCLE_CHANGE = 9
    ROLLOVER_IN = 10
    TRANSFER_IN = 11
    TRANSFER_RETURN = 12
    CLAIM_PAID = 13
    CLAIM_LOST = 14
    DEBT = 15
    VOID = 16
    CORRECTION_OUT = 17
    CORRECTION_IN = 18


@dataclass(frozen=True, slots=True)
class Cause:
    """Name the order behind an entry; nothing of it when time or usage caused the entry.

    `counterpart` is the other account of a transfer. What arrives of one names the giver's order and,
    by `giver_entry`, the giver's entry that took it out.
    """

    command_id: str = ""
    counterpart: str = ""
    giver_entry: int = 0


NO_CAUSE = Cause()


@dataclass(frozen=True, slots=True)
class Change:
    """Be one entry of an account's ledger; `rest_utok` is the bucket's total less used behind it.

    `number` counts an account's entries from 1 without gaps. `bucket` is zero or less where no bucket
    is meant: see `pseudo`. Usage is not entered one by one: it is summed by minute, from `Burn`.
    `source` is the bucket's.
    """

    slot: int
    number: int
    bucket: int
    kind: ChangeKind
    amount_utok: int
    rest_utok: int
    at_ms: int
    source: int = 0
    cause: Cause = NO_CAUSE
