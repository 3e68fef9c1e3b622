"""Charge a chunk of rated usage: most accounts in a few array operations, the others event by event.

Most usage asks for less than the bucket in front has left, of a time in which that bucket pays for
everything, with nothing due. Such accounts are charged together. An event that names a session, and
every event of an account that is near an edge, is charged by itself, with all rules. Both ways charge
an event at its own append time, so it does not matter where a fetch was cut, and leave the same
balances as `orders.charge`, the plain rule (`tests/laws/test_balance_laws.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS
from tokenline.quota.balance import Balance
from tokenline.quota.books import MOST_UTOK, Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.counting import count_events, count_one
from tokenline.quota.cycle import advance, refresh
from tokenline.quota.holds import draw
from tokenline.quota.limits import SLICES
from tokenline.quota.paying import burn
from tokenline.quota.pseudo import Pseudo, pseudo_columns
from tokenline.quota.table import NONE
from tokenline.quota.terms import Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenline.quota.hold_rows import Session

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# No window of a limit ends or begins within it.
SLICE_MS = MINUTE_MS // SLICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Hold rated events of one append minute as columns of equal length, in offset order.

    `appended_ms` never goes back. `named` says which name a session; `session` is asked only for those
    that are looked at one by one, `uses` for them and for those that limits count.
    """

    slots: Int64s
    charges_utok: Int64s
    occurred_ms: Int64s
    appended_ms: Int64s
    named: Bools
    tokens: Int64s
    uses: Callable[[Int64s], list[Use]]
    session: Callable[[int], Session]


def charge_chunk(books: Books, rated: Rated) -> int:
    """Charge the events of accounts that have a balance; return how many named an ended session."""
    rows = books.rows_of(rated.slots)
    mine = np.flatnonzero(rows >= 0)
    if not mine.size:
        return 0
    order = mine[np.argsort(rows[mine], kind="stable")]
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(order))
    accounts, last_ms = ordered[starts], rated.appended_ms[order[ends - 1]]
    quick = _quick(books, rated, order, starts, accounts, last_ms)
    sums = np.add.reduceat(rated.charges_utok[order], starts)
    _charge_heads(books, accounts[quick], sums[quick], last_ms[quick])
    each = order[np.repeat(~quick, ends - starts)]
    uses = dict(zip(each.tolist(), rated.uses(each), strict=True)) if each.size else {}
    late, counts = 0, np.ones(len(order), np.bool_)
    for at in np.flatnonzero(~quick).tolist():
        here, row = slice(starts[at], ends[at]), int(accounts[at])
        # What becomes due within the chunk counts between two events.
        alone = books.dues.at(row) <= last_ms[at]
        counts[here] = not alone
        late += _charge_each(books, row, rated, order[here].tolist(), uses, counts=alone)
    counts &= books.balances.matrix[ordered, Balance.LIMITED] != 0
    _count(books, rated, np.sort(order[counts]))
    return late


def begin_minute(books: Books, slots: Int64s, minute_ms: int) -> None:
    """Do what was due for these accounts by the minute in which their events came.

    What changes limits by time does so when a minute begins: then events count into the new ones.
    """
    rows = books.rows_of(slots)
    rows = rows[rows >= 0]
    due = rows[books.dues.of(rows) <= minute_ms]
    for row in np.unique(due).tolist():
        advance(books, row, minute_ms)


def _count(books: Books, rated: Rated, events: Int64s) -> None:
    """Count the events of accounts that have limits beside their balance, those of a slice at once."""
    slices = rated.appended_ms[events] // SLICE_MS
    for number in np.unique(slices).tolist():
        some = events[slices == number]
        whose = list(zip(rated.slots[some].tolist(), rated.uses(some), strict=True))
        now_ms = int(rated.appended_ms[some[-1]])
        count_events(books, whose, rated.tokens[some], rated.charges_utok[some], now_ms)


def _quick(
    books: Books, rated: Rated, order: Int64s, starts: Int64s, accounts: Int64s, last_ms: Int64s
) -> Bools:
    """Say which accounts' events the bucket in front pays for, all of them."""
    balances = books.balances.matrix[accounts]
    # As `orders.charge` has it: what says it occurred later than now occurs now.
    occurred = np.minimum(rated.occurred_ms[order], rated.appended_ms[order])
    quick: Bools = books.dues.of(accounts) > last_ms
    quick &= np.minimum.reduceat(occurred, starts) >= balances[:, Balance.HEAD_FROM]
    quick &= np.maximum.reduceat(occurred, starts) < balances[:, Balance.HEAD_UNTIL]
    sums = np.add.reduceat(rated.charges_utok[order], starts)
    # Less, not equal: a bucket that is empty is no longer in front, and that is for `refresh` to find.
    quick &= sums < balances[:, Balance.HEAD_LEFT]
    # A sum that may have wrapped is worth nothing.
    counts = np.diff(np.append(starts, len(order)))
    highest = np.maximum.reduceat(rated.charges_utok[order], starts)
    quick &= highest < MOST_UTOK // counts
    quick &= ~np.logical_or.reduceat(rated.named[order], starts)
    return quick


def _charge_heads(books: Books, accounts: Int64s, sums: Int64s, last_ms: Int64s) -> None:
    """Charge accounts whose head pays for all; of most of them it is a bucket."""
    balances, buckets = books.balances.matrix, books.buckets.matrix
    looked = balances[accounts, Balance.LOOKED_AT]
    balances[accounts, Balance.LOOKED_AT] = np.maximum(looked, last_ms)
    books.balances.touch_all(accounts)
    unpaid = balances[accounts, Balance.HEAD] == NONE
    if unpaid.any():
        _charge_unpaid(books, accounts[unpaid], sums[unpaid])
        accounts, sums = accounts[~unpaid], sums[~unpaid]
    heads = balances[accounts, Balance.HEAD]
    buckets[heads, Bucket.USED] += sums
    balances[accounts, Balance.HEAD_LEFT] -= sums
    balances[accounts, Balance.LEFT] -= sums
    books.buckets.touch_all(heads)
    books.note_burns(balances[accounts, Balance.OWNER], buckets[heads, Bucket.NUMBER], sums)


def _charge_unpaid(books: Books, accounts: Int64s, sums: Int64s) -> None:
    """Charge accounts for which no bucket pays and nobody holds what could be claimed."""
    balances = books.balances.matrix
    columns = pseudo_columns(balances[accounts, Balance.STOPS])
    balances[accounts, columns] += sums
    numbers = np.where(columns == Balance.OVERAGE, +Pseudo.OVERAGE, +Pseudo.WRITTEN_OFF)
    books.note_burns(balances[accounts, Balance.OWNER], numbers, sums)
    books.note_alarms(accounts)


def _charge_each(
    books: Books,
    row: int,
    rated: Rated,
    events: list[int],
    uses: dict[int, Use],
    *,
    counts: bool,
) -> int:
    """Charge one account's events in their order; return how many named a session that had ended.

    With `counts` each is counted into limits as well, before what becomes due behind it.
    """
    late, now_ms = 0, 0
    for event in events:
        now_ms = max(int(rated.appended_ms[event]), books.get(row, Balance.LOOKED_AT))
        advance(books, row, now_ms)
        if counts:
            tokens, amount = int(rated.tokens[event]), int(rated.charges_utok[event])
            count_one(books, row, uses[event], tokens, amount, now_ms)
        late += _charge_one(books, row, rated, event, uses[event], now_ms)
    refresh(books, row, now_ms)
    return late


def _charge_one(books: Books, row: int, rated: Rated, event: int, use: Use, now_ms: int) -> bool:
    """Charge one event; say whether it named a session that had ended."""
    amount, occurred_ms = int(rated.charges_utok[event]), int(rated.occurred_ms[event])
    hold = None
    if rated.named[event]:
        hold = books.holds.find(books.get(row, Balance.OWNER), rated.session(event))
    if hold is None:
        burn(books, row, use, amount, min(occurred_ms, now_ms))
        return False
    named = len(hold.parts)
    late = draw(books, row, hold, use, amount, occurred_ms, now_ms)
    if len(hold.parts) < named:
        # A bucket that is over and waited for this hold closes now.
        refresh(books, row, now_ms)
    return late
