"""Charge a chunk of rated usage: most accounts in a few array operations, the others event by event.

Most usage asks for less than the bucket in front has left, of a time in which that bucket pays for
everything, with nothing due. Such accounts are charged together. An event that names a session, and
every event of an account that is near an edge, is charged by itself, with all rules. Both ways charge
an event at its own append time, so it does not matter where a fetch was cut, and leave the same
balances as `orders.charge`, the plain rule (`tests/laws/test_balance_laws.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
from tokenline.quota.late import burn_late, charge_adjustments, parted
from tokenline.quota.limits import SLICES
from tokenline.quota.paying import burn_now
from tokenline.quota.pseudo import Pseudo, pseudo_columns, pseudo_numbers
from tokenline.quota.table import NONE
from tokenline.quota.terms import Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenline.quota.hold_rows import Session

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# No window of a limit ends or begins within it.
SLICE_MS = MINUTE_MS // SLICES
# In the place of a bucket's number: several buckets paid, or there was nothing to pay.
SEVERAL_PAID, NOTHING_PAID = -9, -10
Parts = list[tuple[int, int]]  # bucket number and µtok of each
NO_SPLITS: Int64s = np.zeros((0, 3), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Hold rated events of one append minute as columns of equal length, in offset order.

    What is `late` counts in no limit, and pays as `quota.late` says.

    `appended_ms` never goes back. `named` says which name a session; `session` is asked only for those
    that are looked at one by one, `uses` for them and for those that limits count.
    """

    slots: Int64s
    charges_utok: Int64s
    occurred_ms: Int64s
    appended_ms: Int64s
    named: Bools
    late: Bools
    tokens: Int64s
    uses: Callable[[Int64s], list[Use]]
    session: Callable[[int], Session]


@dataclass(frozen=True, slots=True)
class Paid:
    """Say of each event which bucket paid its charge: by number, or SEVERAL_PAID, or NOTHING_PAID.

    `splits` has the parts of those that several paid, a row each of event, bucket number and µtok.
    """

    buckets: Int64s
    splits: Int64s = field(default_factory=lambda: NO_SPLITS)

    @classmethod
    def nothing(cls, count: int) -> Paid:
        """Return that there was nothing to pay."""
        return cls(np.full(count, NOTHING_PAID, np.int64))

    def with_those(self, at: Int64s | slice, some: Paid) -> Paid:
        """Return this with what is known of the events at these places."""
        self.buckets[at] = some.buckets
        splits = some.splits if isinstance(at, slice) else some.splits.copy()
        if not isinstance(at, slice):
            splits[:, 0] = at[splits[:, 0]]
        return Paid(self.buckets, splits)


def charge_chunk(books: Books, rated: Rated) -> Paid:
    """Charge the events of accounts that have a balance; return who paid each."""
    rows = books.rows_of(rated.slots)
    paid = Paid.nothing(len(rows))
    mine = np.flatnonzero(rows >= 0)
    if not mine.size:
        return paid
    order = mine[np.argsort(rows[mine], kind="stable")]
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(order))
    accounts, last_ms = ordered[starts], rated.appended_ms[order[ends - 1]]
    aged = _aged(books, rated, order, ordered) if rated.late.any() else None
    quick = _quick(books, rated if aged is None else aged.plain, order, starts, accounts, last_ms)
    quick &= aged is None or _summable(aged.adjustments_utok[order], starts)
    heads = np.where(quick, _heads(books, accounts), NOTHING_PAID)
    paid.buckets[order] = np.repeat(heads, ends - starts)
    if aged is None:
        sums = np.add.reduceat(rated.charges_utok[order], starts)
        _charge_heads(books, accounts[quick], sums[quick], last_ms[quick])
        books.note_burns(rated.slots[order[starts[quick]]], heads[quick], sums[quick])
    else:
        _charge_aged(books, aged, order, starts, quick, last_ms)
        paid.buckets[aged.closed & (paid.buckets != NOTHING_PAID)] = Pseudo.LATE_ADJUSTMENT
    paid.buckets[rated.charges_utok == 0] = NOTHING_PAID
    each = order[np.repeat(~quick, ends - starts)]
    uses = dict(zip(each.tolist(), rated.uses(each), strict=True)) if each.size else {}
    counts = ~rated.late[order]
    parts: dict[int, Parts] = {}
    for at in np.flatnonzero(~quick).tolist():
        here, row = slice(starts[at], ends[at]), int(accounts[at])
        # What becomes due within the chunk counts between two events.
        alone = books.dues.at(row) <= last_ms[at]
        counts[here] &= not alone
        parts |= _charge_each(books, row, rated, order[here].tolist(), uses, counts=alone)
    counts &= books.balances.matrix[ordered, Balance.LIMITED] != 0
    _count(books, rated, np.sort(order[counts]))
    return _with_parts(paid, parts)


@dataclass(frozen=True, slots=True)
class _Aged:
    """Part late usage from other: which events belong to a closed cycle, and what all others are.

    In `plain` those are worth nothing, and what only a closer look can tell names a session.
    """

    closed: Bools
    plain: Rated
    adjustments_utok: Int64s


def _aged(books: Books, rated: Rated, order: Int64s, ordered: Int64s) -> _Aged:
    closed, alone = np.zeros_like(rated.late), rated.named.copy()
    moments = rated.occurred_ms[order], rated.appended_ms[order]
    closed[order], unsure = parted(books, ordered, rated.late[order], *moments)
    # A gateway that was away for a day names sessions that are long forgotten.
    for event in np.flatnonzero(rated.late & rated.named).tolist():
        hold = books.holds.find(int(rated.slots[event]), rated.session(event))
        alone[event] = hold is not None
    alone[order] |= unsure
    plain = replace(
        rated,
        charges_utok=np.where(closed, 0, rated.charges_utok),
        occurred_ms=np.where(closed, rated.appended_ms, rated.occurred_ms),
        named=alone,
    )
    return _Aged(closed, plain, np.where(closed, rated.charges_utok, 0))


def _charge_aged(
    books: Books, aged: _Aged, order: Int64s, starts: Int64s, quick: Bools, last_ms: Int64s
) -> None:
    """Charge the quick accounts of a chunk with late usage: entries tell it from other usage."""
    plain = aged.plain
    owners = plain.slots[order[starts[quick]]]
    accounts = books.rows_of(owners)
    heads = _heads(books, accounts)
    charges = plain.charges_utok[order]
    sums, late, adjustments = (
        np.add.reduceat(amounts, starts)[quick]
        for amounts in (charges, charges * plain.late[order], aged.adjustments_utok[order])
    )
    _charge_heads(books, accounts, sums, last_ms[quick])
    books.note_burns(owners, heads, sums - late)
    books.late.note(owners, heads, late)
    charge_adjustments(books, accounts, adjustments)


def _with_parts(paid: Paid, parts: dict[int, Parts]) -> Paid:
    """Enter what was paid event by event: buckets and amounts."""
    for event, found in parts.items():
        paid.buckets[event] = found[0][0] if len(found) == 1 else SEVERAL_PAID
    splits = [(event, *part) for event, found in parts.items() if len(found) > 1 for part in found]
    return Paid(paid.buckets, np.array(sorted(splits), np.int64)) if splits else paid


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
    quick &= _summable(rated.charges_utok[order], starts)
    quick &= ~np.logical_or.reduceat(rated.named[order], starts)
    return quick


def _summable(amounts_utok: Int64s, starts: Int64s) -> Bools:
    """Say which sums cannot have wrapped: one that may have is worth nothing."""
    counts = np.diff(starts, append=len(amounts_utok))
    found: Bools = np.maximum.reduceat(amounts_utok, starts) < MOST_UTOK // counts
    return found


def _heads(books: Books, accounts: Int64s) -> Int64s:
    """Return the number of what is in front of each account: a bucket's, or that of a counter."""
    balances, buckets = books.balances.matrix, books.buckets.matrix
    heads = balances[accounts, Balance.HEAD]
    unpaid = heads == NONE
    if not unpaid.any():
        covered: Int64s = buckets[heads, Bucket.NUMBER]
        return covered
    numbers = pseudo_numbers(balances[accounts, Balance.STOPS])
    numbers[~unpaid] = buckets[heads[~unpaid], Bucket.NUMBER]
    return numbers


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


def _charge_unpaid(books: Books, accounts: Int64s, sums: Int64s) -> None:
    """Charge accounts for which no bucket pays and nobody holds what could be claimed."""
    balances = books.balances.matrix
    balances[accounts, pseudo_columns(balances[accounts, Balance.STOPS])] += sums
    books.note_alarms(accounts)


def _charge_each(
    books: Books,
    row: int,
    rated: Rated,
    events: list[int],
    uses: dict[int, Use],
    *,
    counts: bool,
) -> dict[int, Parts]:
    """Charge one account's events in their order; return for those that paid which buckets, and how much.

    With `counts` each is counted into limits as well, before what becomes due behind it.
    """
    parts, now_ms = {}, 0
    for event in events:
        now_ms = max(int(rated.appended_ms[event]), books.get(row, Balance.LOOKED_AT))
        advance(books, row, now_ms)
        late = bool(rated.late[event])
        if counts and not late:
            tokens, amount = int(rated.tokens[event]), int(rated.charges_utok[event])
            count_one(books, row, uses[event], tokens, amount, now_ms)
        before = len(books.burns.singles)
        _charge_one(books, row, rated, event, uses[event], now_ms)
        if found := books.burns.since(before):
            parts[event] = found
        if late:
            books.burns.move(before, books.late)
    refresh(books, row, now_ms)
    return parts


def _charge_one(books: Books, row: int, rated: Rated, event: int, use: Use, now_ms: int) -> None:
    """Charge one event, to what its session holds first, if it names one."""
    amount, occurred_ms = int(rated.charges_utok[event]), int(rated.occurred_ms[event])
    hold, pay = None, burn_late if rated.late[event] else burn_now
    if rated.named[event]:
        hold = books.holds.find(books.get(row, Balance.OWNER), rated.session(event))
    if hold is None:
        pay(books, row, use, amount, occurred_ms, now_ms)
        return
    named = len(hold.parts)
    draw(books, row, hold, use, amount, occurred_ms, now_ms, pay)
    if len(hold.parts) < named:
        # A bucket that is over and waited for this hold closes now.
        refresh(books, row, now_ms)
