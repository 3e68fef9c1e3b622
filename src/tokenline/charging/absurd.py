"""Refuse charges that no call can have: one event's, and all of an account that used absurdly much unpaid.

What is charged is charged to somebody, so counters must stay far from an int64's end: an account whose
unpaid usage stands above 10^18 µtok is charged nothing more until a person has looked at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.judge import Judgement
from tokenline.quota.balance import ALARM_UTOK, Balance
from tokenline.quota.books import MOST_UTOK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.charging.partition import PartitionState

Int64s = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]

# An account that nobody was alarmed of may use so much more; charges are summed in parts of 2^20.
RISK_UTOK = MOST_UTOK - ALARM_UTOK
PART_BITS = 20


def refuse_absurd(
    state: PartitionState, slots: Int64s, charges_utok: Int64s, verdict: Int8s
) -> None:
    """Judge so the events, fit as far as is known, whose charge is absurd or whose account's usage is."""
    highest, alarmed = int(charges_utok.max(initial=0)), state.books.alarmed
    most = state.bounds.max_charge_utok
    if highest > most:
        verdict[(charges_utok > most) & (verdict <= Judgement.LATE)] = Judgement.ABSURD_CHARGE
    if alarmed or highest * len(charges_utok) > RISK_UTOK:
        for events in _at_risk(state, slots, charges_utok, verdict):
            _refuse_beyond(state, slots, charges_utok, verdict, events)


def _at_risk(
    state: PartitionState, slots: Int64s, charges_utok: Int64s, verdict: Int8s
) -> Iterator[list[int]]:
    """Yield the events of each account that may come to stand above the most, in offset order."""
    rows = state.books.rows_of(slots)
    events = np.flatnonzero((verdict <= Judgement.LATE) & (rows >= 0))
    owners, which = np.unique(rows[events], return_inverse=True)
    sums = np.zeros(len(owners), np.int64)
    # Each part rounds down by less than one.
    np.add.at(sums, which, (charges_utok[events] >> PART_BITS) + 1)
    risky = sums > RISK_UTOK >> PART_BITS
    risky |= np.isin(owners, np.fromiter(state.books.alarmed, np.int64))
    for number in np.flatnonzero(risky).tolist():
        yield events[which == number].tolist()


def _refuse_beyond(
    state: PartitionState,
    slots: Int64s,
    charges_utok: Int64s,
    verdict: Int8s,
    events: list[int],
) -> None:
    """Refuse the events before which an account's unpaid usage would stand above the most.

    What its buckets have left pays first, as far as anybody can say before it is charged.
    """
    books = state.books
    row = books.row(int(slots[events[0]]))
    unpaid_utok = int(books.unpaid(np.array([row], np.int64))[0])
    left_utok, charged_utok = books.get(row, Balance.LEFT), 0
    for event in events:
        if unpaid_utok + max(0, charged_utok - left_utok) > MOST_UTOK:
            verdict[event] = Judgement.ABSURD_CHARGE
        else:
            charged_utok += int(charges_utok[event])
