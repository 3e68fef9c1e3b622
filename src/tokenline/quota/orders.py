"""Carry out what is asked of an account: open it, grant, take, move, change its plan, close it.

Each order is checked before anything changes; one that the rules do not allow is `Declined` with a
reason and leaves no trace. Who asks twice with the same command id is answered from memory, which is
not here (`charging`). All entry points bring the account up to the moment first.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenline.errors import Declined
from tokenline.metering.calendar import MINUTE_MS, cycle_at, day_of_month
from tokenline.quota import limit_holds
from tokenline.quota.allowances import (
    grant_allowance,
    move_allowances,
    put_terms_in_force,
    share_of,
    take_terms,
)
from tokenline.quota.balance import Balance, Status
from tokenline.quota.books import Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.counting import count_one
from tokenline.quota.cycle import advance, refresh
from tokenline.quota.entries import NO_CAUSE, ChangeKind
from tokenline.quota.hold_rows import HoldAnswer, Reason, Session
from tokenline.quota.holds import HoldOrder, answer_hold, draw
from tokenline.quota.limit_windows import move_cycle_end
from tokenline.quota.paying import burn
from tokenline.quota.refusals import (
    check_adjustment,
    check_cap,
    check_cycle_day,
    check_grant,
    check_room,
    check_scope,
    check_transfer,
)
from tokenline.quota.table import NONE
from tokenline.quota.terms import Grant, Source, Terms, Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Moved:
    """Hold what one bucket gave to a transfer, as the bucket it is to become.

    `entry` is the number of the giver's entry that took it out: with the account it names this part
    for ever, in whatever order and however often it is told.
    """

    entry: int
    granted: Grant


def open_account(books: Books, slot: int, plan: str, cycle_day: int, now_ms: int) -> int:
    """Give an account a plan and its first allowance; return its balance row.

    A `cycle_day` of 0 means the day of opening.

    Raises:
        Declined: it is open already, or there is no such plan.
    """
    if books.row(slot) != NONE:
        raise Declined(Reason.ALREADY_OPEN)
    terms = _terms(books, plan, now_ms)
    row = books.add_account(slot, {Balance.PLAN: books.plan_code(plan)})
    zone, minute_ms = books.zone(row), now_ms // MINUTE_MS * MINUTE_MS
    day = cycle_day or day_of_month(zone, minute_ms)
    start_ms, end_ms = cycle_at(zone, day, minute_ms)
    books.set(row, Balance.CYCLE_DAY, day)
    books.set(row, Balance.CYCLE_START, start_ms)
    books.set(row, Balance.CYCLE_END, end_ms)
    take_terms(books, row, terms, now_ms)
    grant_allowance(books, row, terms, share_of(books, row, terms, now_ms), now_ms, now_ms)
    refresh(books, row, now_ms)
    return row


def suspend(books: Books, slot: int, now_ms: int) -> None:
    """Let nothing more be granted until it is resumed; what is held stays held."""
    with _working(books, slot, now_ms) as row:
        _require(books, row, Status.ACTIVE, Reason.SUSPENDED)
        books.set(row, Balance.STATUS, Status.SUSPENDED)


def resume(books: Books, slot: int, now_ms: int) -> None:
    """End a suspension."""
    with _working(books, slot, now_ms) as row:
        _require(books, row, Status.SUSPENDED, Reason.NOT_SUSPENDED)
        books.set(row, Balance.STATUS, Status.ACTIVE)


def close_account(books: Books, slot: int, now_ms: int) -> None:
    """End an account for good; usage that is still reported is charged to what it had."""
    with _working(books, slot, now_ms) as row:
        books.set(row, Balance.STATUS, Status.CLOSED)


def grant(books: Books, slot: int, granted: Grant, now_ms: int) -> int:
    """Add a bucket (top-up, pack, gift, refund) and return its number."""
    with _working(books, slot, now_ms) as row:
        check_grant(books, row, granted, now_ms)
        bucket = books.add_bucket(row, granted, ChangeKind.GRANT, now_ms)
        return books.buckets.get(bucket, Bucket.NUMBER)


def adjust(books: Books, slot: int, number: int, amount_utok: int, now_ms: int) -> None:
    """Add to a bucket, or take from what is neither used nor held of it."""
    with _working(books, slot, now_ms) as row:
        bucket = _bucket(books, row, number)
        check_adjustment(books, row, bucket, amount_utok, now_ms)
        books.buckets.change(bucket, Bucket.ADJUSTED, amount_utok)
        books.reduce(row, bucket, ChangeKind.ADJUSTMENT, -amount_utok, now_ms)


def transfer_out(books: Books, slot: int, amount_utok: int, now_ms: int) -> list[Moved]:
    """Take an amount out of the transferable buckets, in burn order; all of it or nothing.

    Each bucket that gives is a part of its own, which keeps validity, scope and priority. It cannot be
    moved on: a gift that goes round would outlive every rule about who may give.
    """
    with _working(books, slot, now_ms) as row:
        _require(books, row, Status.ACTIVE, Reason.SUSPENDED)
        found = _givers(books, row, now_ms)
        check_transfer(books, found, amount_utok)
        moved: list[Moved] = []
        for bucket in found:
            if taken := min(books.buckets.rest(bucket), amount_utok):
                books.reduce(row, bucket, ChangeKind.TRANSFER_OUT, taken, now_ms)
                moved.append(_moved(books, row, bucket, taken))
                amount_utok -= taken
        return moved


def transfer_in(books: Books, slot: int, granted: Grant, now_ms: int) -> int:
    """Take in a part of another account's transfer and return its bucket's number.

    A suspended account receives as it may be topped up.

    Raises:
        Declined: there is no such balance, it is closed or full, or the part is over; it must be returned.
    """
    with _working(books, slot, now_ms) as row:
        if granted.valid_to_ms <= now_ms:
            raise Declined(Reason.EXPIRED)
        check_room(books, row, granted.amount_utok)
        check_scope(books, row, granted, now_ms)
        bucket = books.add_bucket(row, granted, ChangeKind.TRANSFER_IN, now_ms)
        return books.buckets.get(bucket, Bucket.NUMBER)


def transfer_return(books: Books, slot: int, granted: Grant, now_ms: int) -> int:
    """Give back to the giver what the receiver could not take, and return its bucket's number.

    Always: a closed account may not spend it, and a part that is over expires at once, but both say
    so in the ledger of who gave.

    Raises:
        Declined: there is no such balance.
    """
    with _working(books, slot, now_ms, closed=True) as row:
        bucket = books.add_bucket(row, granted, ChangeKind.TRANSFER_RETURN, now_ms)
        return books.buckets.get(bucket, Bucket.NUMBER)


def cap_subscribers(
    books: Books, slot: int, names: Sequence[str], amount_utok: int | None, now_ms: int
) -> None:
    """Cap what each of these subscribers may use of a bill cycle, or with None let the plan say it again.

    The cap replaces the plan's, and outlives cycles and plans. Where the plan has none, it counts from
    now on.

    Raises:
        Declined: an amount is no ceiling, or one of them has no cap of its own to take off; none is changed.
    """
    with _working(books, slot, now_ms) as row:
        check_cap(books, slot, names, amount_utok)
        gone: set[int] = set()
        for name in dict.fromkeys(names):
            if amount_utok is None:
                gone |= books.limits.uncap(slot, name)
            else:
                books.limits.cap(slot, name, amount_utok)
        # Once for all of them: an account may have ten thousand holds.
        limit_holds.changed(books, row, gone)


def change_plan(books: Books, slot: int, plan: str, now_ms: int, when: str = "") -> None:
    """Put another plan into force: now, with the next cycle, or, where `when` is empty, as the plan says.

    A change that waits for the next cycle is replaced by a newer one, and cancelled by choosing the plan
    that is in force.

    Raises:
        Declined: there is no such plan.
    """
    with _working(books, slot, now_ms) as row:
        chosen = plan == books.plan(row)
        # One that is sold no more may be kept.
        terms = books.terms(row) if chosen else _terms(books, plan, now_ms)
        terms = books.terms_of(plan, now_ms) or terms
        at_once = when == "now" or (not when and terms.is_due_at_once(books.terms(row)))
        books.set(row, Balance.PENDING, 0 if chosen or at_once else books.plan_code(plan) + 1)
        if at_once:
            put_terms_in_force(books, row, plan, terms, now_ms)


def change_cycle(books: Books, slot: int, day: int, now_ms: int) -> None:
    """Begin cycles on another day of the month; the present one ends when that day comes next."""
    with _working(books, slot, now_ms) as row:
        check_cycle_day(day, 1)
        old_end_ms = books.get(row, Balance.CYCLE_END)
        end_ms = cycle_at(books.zone(row), day, now_ms // MINUTE_MS * MINUTE_MS)[1]
        move_allowances(books, row, end_ms, now_ms)
        books.set(row, Balance.CYCLE_DAY, day)
        books.set(row, Balance.CYCLE_END, end_ms)
        move_cycle_end(books, slot, old_end_ms, end_ms)
        books.limits.look_at(slot)


def hold(books: Books, slot: int, order: HoldOrder, now_ms: int) -> HoldAnswer:
    """Answer a session: see `holds.answer_hold`."""
    with _working(books, slot, now_ms, closed=True) as row:
        return answer_hold(books, row, order, now_ms)


def charge(
    books: Books,
    slot: int,
    use: Use,
    amount_utok: int,
    *,
    occurred_ms: int,
    now_ms: int,
    session: Session | None = None,
    tokens: int = 0,
) -> bool:
    """Charge usage that was rated; say whether the session it names had ended before.

    Without a session, or with one nobody knows, the buckets pay that were valid when it occurred; a
    clock that is ahead of ours says nothing of buckets that begin later.
    """
    with _working(books, slot, now_ms, closed=True) as row:
        known = books.holds.find(slot, session) if session is not None else None
        count_one(books, row, use, tokens, amount_utok, now_ms)
        if known is not None:
            return draw(books, row, known, use, amount_utok, occurred_ms, now_ms)
        burn(books, row, use, amount_utok, min(occurred_ms, now_ms))
        return False


def bring_up_to(books: Books, slot: int, now_ms: int) -> None:
    """Do what is due; an account that has no balance has nothing due."""
    if (row := books.row(slot)) != NONE:
        advance(books, row, now_ms)


@contextmanager
def _working(books: Books, slot: int, now_ms: int, *, closed: bool = False) -> Iterator[int]:
    """Bring an account up to the moment, and sum its buckets anew behind the work."""
    row = books.row(slot)
    if row == NONE:
        raise Declined(Reason.UNKNOWN_ACCOUNT)
    # What is due by now was caused by time, whoever asks first.
    with books.caused(NO_CAUSE):
        advance(books, row, now_ms)
    if not closed and books.get(row, Balance.STATUS) == Status.CLOSED:
        raise Declined(Reason.CLOSED)
    yield row
    refresh(books, row, now_ms)


def _require(books: Books, row: int, status: Status, reason: Reason) -> None:
    if books.get(row, Balance.STATUS) != status:
        raise Declined(reason)


def _terms(books: Books, plan: str, now_ms: int) -> Terms:
    terms = books.terms_of(plan, now_ms)
    if terms is None:
        raise Declined(Reason.UNKNOWN_PLAN, f"no catalog in force has a plan {plan!r}")
    return terms


def _givers(books: Books, row: int, now_ms: int) -> list[int]:
    """Return the buckets a transfer may take from, whatever they pay for, in burn order."""
    return [
        bucket
        for bucket in books.chain(row)
        if books.buckets.valid(bucket, now_ms)
        and books.buckets.get(bucket, Bucket.TRANSFERABLE)
        and books.buckets.rest(bucket)
    ]


def _moved(books: Books, row: int, bucket: int, amount_utok: int) -> Moved:
    get = books.buckets.get
    granted = Grant(
        amount_utok=amount_utok,
        source=Source.TRANSFER,
        priority=get(bucket, Bucket.PRIORITY),
        valid_from_ms=get(bucket, Bucket.VALID_FROM),
        valid_to_ms=get(bucket, Bucket.VALID_TO),
        scope=books.scopes.scopes[get(bucket, Bucket.SCOPE)],
    )
    return Moved(books.get(row, Balance.CHANGES), granted)


def _bucket(books: Books, row: int, number: int) -> int:
    for bucket in books.chain(row):
        if books.buckets.get(bucket, Bucket.NUMBER) == number:
            return bucket
    numbers = sorted(books.buckets.get(bucket, Bucket.NUMBER) for bucket in books.chain(row))
    known = ", ".join(map(str, numbers)) or "none"
    raise Declined(Reason.UNKNOWN_BUCKET, f"it has no bucket {number} to adjust; it has {known}")
