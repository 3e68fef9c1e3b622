"""Charge a chunk of rated usage: most accounts in a few array operations, the others event by event.

Most usage asks for less than the bucket in front has left, of a time in which that bucket pays for
everything, with nothing due. Such accounts are charged together. An event that names a session, and
every event of an account that is near an edge, is charged by itself, with all rules. Both ways leave
the same balances as `orders.charge`, the plain rule (`tests/laws/test_balance_laws.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.books import MOST_UTOK, Balance, Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.counting import count_events
from tokenline.quota.cycle import advance, closes_late, refresh
from tokenline.quota.holds import draw
from tokenline.quota.terms import Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenline.quota.hold_rows import Session

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Hold rated events as columns of equal length, in offset order.

    `named` says which name a session; `session` is asked only for those that are looked at one by one,
    `uses` for them and for those that limits count.
    """

    slots: Int64s
    charges_utok: Int64s
    occurred_ms: Int64s
    named: Bools
    tokens: Int64s
    uses: Callable[[Int64s], list[Use]]
    session: Callable[[int], Session]


def charge_chunk(books: Books, rated: Rated, now_ms: int) -> int:
    """Charge the events of accounts that have a balance; return how many named an ended session."""
    rows = books.rows_of(rated.slots)
    mine = np.flatnonzero(rows >= 0)
    if not mine.size:
        return 0
    order = mine[np.argsort(rows[mine], kind="stable")]
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    accounts = ordered[starts]
    quick = _quick(books, rated, order, starts, accounts, now_ms)
    sums = np.add.reduceat(rated.charges_utok[order], starts)
    _charge_heads(books, accounts[quick], sums[quick])
    late, ends = 0, np.append(starts[1:], len(order))
    each = order[np.repeat(~quick, ends - starts)]
    uses = dict(zip(each.tolist(), rated.uses(each), strict=True)) if each.size else {}
    for at in np.flatnonzero(~quick).tolist():
        events = order[starts[at] : ends[at]].tolist()
        late += _charge_each(books, int(accounts[at]), rated, events, uses, now_ms)
    _count(books, rated, order[books.balances.matrix[ordered, Balance.LIMITED] != 0], now_ms)
    return late


def _count(books: Books, rated: Rated, events: Int64s, now_ms: int) -> None:
    """Count the events of accounts that have limits beside their balance."""
    if events.size:
        whose = list(zip(rated.slots[events].tolist(), rated.uses(events), strict=True))
        count_events(books, whose, rated.tokens[events], rated.charges_utok[events], now_ms)


def _quick(
    books: Books, rated: Rated, order: Int64s, starts: Int64s, accounts: Int64s, now_ms: int
) -> Bools:
    """Say which accounts' events the bucket in front pays for, all of them."""
    balances = books.balances.matrix[accounts]
    # As `orders.charge` has it: what says it occurred later than now occurs now.
    occurred = np.minimum(rated.occurred_ms[order], now_ms)
    quick: Bools = balances[:, Balance.DUE_AT] > now_ms
    quick &= np.minimum.reduceat(occurred, starts) >= balances[:, Balance.HEAD_FROM]
    quick &= np.maximum.reduceat(occurred, starts) < balances[:, Balance.HEAD_UNTIL]
    sums = np.add.reduceat(rated.charges_utok[order], starts)
    # Less, not equal: a bucket that is empty is no longer in front, and that is for `refresh` to find.
    quick &= sums < balances[:, Balance.HEAD_LEFT]
    # A sum that may have wrapped is worth nothing, nor is what bucket number 0 would wrap at.
    used = books.buckets.matrix[balances[:, Balance.HEAD], Bucket.USED]
    counts = np.diff(np.append(starts, len(order)))
    highest = np.maximum.reduceat(rated.charges_utok[order], starts)
    quick &= (highest < MOST_UTOK // counts) & (used + np.maximum(sums, 0) < MOST_UTOK)
    quick &= ~np.logical_or.reduceat(rated.named[order], starts)
    return quick


def _charge_heads(books: Books, accounts: Int64s, sums: Int64s) -> None:
    balances, buckets = books.balances.matrix, books.buckets.matrix
    heads = balances[accounts, Balance.HEAD]
    numbers = buckets[heads, Bucket.NUMBER]
    buckets[heads, Bucket.USED] += sums
    covered = sums * (numbers != 0)
    balances[accounts, Balance.HEAD_LEFT] -= covered
    balances[accounts, Balance.LEFT] -= covered
    books.balances.touch_all(accounts)
    books.buckets.touch_all(heads)
    books.note_burns(balances[accounts, Balance.OWNER], numbers, sums)


def _charge_each(
    books: Books,
    row: int,
    rated: Rated,
    events: list[int],
    uses: dict[int, Use],
    now_ms: int,
) -> int:
    """Charge one account's events in their order; return how many named a session that had ended."""
    advance(books, row, now_ms)
    owner, late = books.get(row, Balance.OWNER), 0
    waits = closes_late(books, row, now_ms)
    for event in events:
        if waits:
            # An event may take the last that is held of a bucket that is over: it closes, as if alone.
            refresh(books, row, now_ms)
            advance(books, row, now_ms)
        amount, use = int(rated.charges_utok[event]), uses[event]
        hold = books.holds.find(owner, rated.session(event)) if rated.named[event] else None
        if hold is not None:
            late += draw(books, row, hold, use, amount, int(rated.occurred_ms[event]), now_ms)
        else:
            books.burn(row, use, amount, min(int(rated.occurred_ms[event]), now_ms))
    refresh(books, row, now_ms)
    return late
