"""Bring an account up to a moment: what is due by then happens, whoever asks first.

Each balance knows when it must be looked at again (`DUE_AT`). What is due is done one moment after the
other, each at its own: holds expire or are forgotten, buckets close, the bill cycle begins, in this
order. Every cycle in between is gone through, however long nobody asked. So the books, and the moments
of their entries, are the same whoever looks, and when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.metering.calendar import cycle_after
from tokenline.quota.allowances import grant_allowance, put_terms_in_force, take_terms
from tokenline.quota.balance import Balance, Status
from tokenline.quota.books import BOUNDLESS, Books
from tokenline.quota.buckets import Bucket, rest_of
from tokenline.quota.counting import stand
from tokenline.quota.covers import digest_of
from tokenline.quota.entries import ChangeKind
from tokenline.quota.hold_rows import HoldStatus
from tokenline.quota.holds import expire
from tokenline.quota.paying import claimable_utok
from tokenline.quota.pseudo import begin_bases
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS, Grant, Scope, Source, Terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Two of them may be added.
SUM_MAX = BOUNDLESS - 1


def advance(books: Books, row: int, now_ms: int) -> None:
    """Do all that is due by `now_ms`, each at its own moment; without anything due it does nothing."""
    while (due_ms := books.dues.at(row)) <= now_ms:
        # What waited for a hold is due when that let go. An account's time never goes back.
        at_ms = max(due_ms, books.get(row, Balance.LOOKED_AT))
        _close_holds(books, row, at_ms)
        _close_buckets(books, row, at_ms)
        if books.get(row, Balance.CYCLE_END) <= at_ms:
            _drop_used_up(books, row)
            begin_cycle(books, row, at_ms)
        if books.dues.new_terms_at(row) <= at_ms:
            _take_new_terms(books, row, at_ms)
        refresh(books, row, at_ms)


def begin_cycle(books: Books, row: int, now_ms: int) -> None:
    """Enter the bill cycle behind the one in hand and grant what the plan gives for it.

    It begins where the one before ended, also when the account has moved to another zone meanwhile.
    A change of plan that was pending takes effect. The account takes the terms of the catalog then in
    force; of a plan that is gone from it the terms stay as they were, allowance included.
    """
    start_ms, end_ms = books.next_cycle(row, books.get(row, Balance.CYCLE_END))
    books.set(row, Balance.CYCLE_START, start_ms)
    books.set(row, Balance.CYCLE_END, end_ms)
    begin_bases(books, row)
    books.set(row, Balance.OVERUSED, 0)
    if books.get(row, Balance.STATUS) != Status.CLOSED:
        terms = _terms_of_cycle(books, row, start_ms)
        take_terms(books, row, terms, now_ms)
        grant_allowance(books, row, terms, terms.allowance_utok, now_ms)


def _terms_of_cycle(books: Books, row: int, start_ms: int) -> Terms:
    """Return the terms with which a cycle begins, and enter the plan they are of."""
    pending = books.pending_plan(row)
    books.set(row, Balance.PENDING, 0)
    if pending and (terms := books.terms_of(pending, start_ms)) is not None:
        books.set(row, Balance.PLAN, books.plan_code(pending))
        return terms
    return books.terms_of(books.plan(row), start_ms) or books.terms(row)


def _take_new_terms(books: Books, row: int, now_ms: int) -> None:
    """Take the terms that the catalog in force brings to accounts that run, as by a change of plan."""
    plan = books.plan(row)
    terms = books.terms_of(plan, books.dues.new_terms_at(row))
    if terms is not None:
        put_terms_in_force(books, row, plan, terms, now_ms)


def refresh(books: Books, row: int, now_ms: int) -> None:
    """Sum the buckets anew and find the one that pays for most of what is to come.

    Between two moments that are due it finds the same: nothing of it changes by time alone.
    """
    left = total = held = 0
    live: set[int] = set()
    opens = [_cycle_opens(books, row)]
    due = min(books.get(row, Balance.CYCLE_END), _holds_due(books, row))
    chain = [(bucket, books.buckets.matrix[bucket].tolist()) for bucket in books.chain(row)]
    closed_ms = now_ms - books.linger_ms
    over = [bucket for bucket, values in chain if values[Bucket.VALID_TO] <= closed_ms]
    # One that is over and still held is closed when its hold lets go: that is looked at then.
    due = min([due, *(_closes_at(books, bucket) for bucket in _unclaimed(books, over))])
    for bucket, values in chain:
        if values[Bucket.VALID_FROM] <= now_ms < values[Bucket.VALID_TO]:
            left += rest_of(values)
            total += values[Bucket.TOTAL] - values[Bucket.BEFORE]
            held += values[Bucket.HELD]
            due = min(due, values[Bucket.VALID_TO])
            if values[Bucket.TOTAL] > values[Bucket.USED]:
                live.add(values[Bucket.SCOPE])
        else:
            due = min(due, *_turns(books, bucket, now_ms), NEVER_MS)
            opens.append((_opens_at(books, row, bucket, now_ms), values[Bucket.SCOPE] == 0))
    for column, value in (
        (Balance.DUE_AT, due),
        # Returned transfers are taken however much there is: a sum may be more than a cell holds.
        (Balance.LEFT, min(left, SUM_MAX)),
        (Balance.TOTAL, min(total, SUM_MAX)),
        (Balance.HELD, min(held, SUM_MAX)),
        (Balance.OPENS_AT, min(opens)[0]),
        (Balance.LOOKED_AT, now_ms),
    ):
        books.set(row, column, value)
    _find_head(books, row, chain, now_ms)
    _find_covers(books, row, live, [moment for moment, everything in opens if everything])
    stand(books, row, now_ms)
    books.dues.note_row(row)


def _find_covers(books: Books, row: int, live: set[int], opens: Iterable[int]) -> None:
    """Note what can be paid where the plan stops, and until when that is not everything."""
    covers = digest_of(books.scopes, live) if books.get(row, Balance.STOPS) else 0
    until_ms = min(opens, default=NEVER_MS) if covers else NEVER_MS
    books.set(row, Balance.COVERS, covers)
    books.set(row, Balance.COVERS_UNTIL, 0 if until_ms == NEVER_MS else until_ms)


def _find_head(books: Books, row: int, chain: Iterable[tuple[int, list[int]]], now_ms: int) -> None:
    """Note the bucket that pays for anything that occurs from now on, and for how long and how much.

    Buckets before it in the order that are over, or begin later, bound when that is so.
    """
    head, left, since, until = NONE, BOUNDLESS, 0, NEVER_MS
    claims = books.get(row, Balance.STOPS) != 0
    for bucket, values in chain:
        start, end = values[Bucket.VALID_FROM], values[Bucket.VALID_TO]
        if end <= now_ms:
            since = max(since, end)
        elif start > now_ms:
            until = min(until, start)
        elif rest := rest_of(values):
            # What only pays for some is looked at call by call.
            head, left = bucket, 0 if values[Bucket.SCOPE] else rest
            since, until = max(since, start), min(until, end)
            break
        elif claims and claimable_utok(values):
            # What is held of it may be claimed, call by call. Empty, it pays for nothing now: but
            # something may be given back to it, at a refresh.
            left = 0
    for column, value in (
        (Balance.HEAD, head),
        (Balance.HEAD_LEFT, left),
        (Balance.HEAD_FROM, since),
        (Balance.HEAD_UNTIL, until),
    ):
        books.set(row, column, value)


def _cycle_opens(books: Books, row: int) -> tuple[int, bool]:
    """Return when the next cycle brings an allowance, or NEVER_MS, and whether it is for everything."""
    terms, pending = books.terms(row), books.get(row, Balance.PENDING)
    gives = terms.allowance_utok or pending
    # What a plan that is to come pays for is known when it comes.
    everything = terms.scope == Scope() and not pending
    return books.get(row, Balance.CYCLE_END) if gives else NEVER_MS, everything


def _opens_at(books: Books, row: int, bucket: int, now_ms: int) -> int:
    """Return when a bucket begins, or what it leaves begins to be valid; NEVER_MS when neither does."""
    start_ms, closes_ms = books.buckets.get(bucket, Bucket.VALID_FROM), _closes_at(books, bucket)
    rest = books.buckets.rest(bucket)
    if rest and start_ms > now_ms:
        return start_ms
    over = books.buckets.get(bucket, Bucket.VALID_TO) <= now_ms < closes_ms
    return closes_ms if over and _rolled_over(books, row, bucket, rest, closes_ms) else NEVER_MS


def _turns(books: Books, bucket: int, now_ms: int) -> Iterator[int]:
    """Yield the moments to come at which a bucket begins, ends and is to be closed."""
    start = books.buckets.get(bucket, Bucket.VALID_FROM)
    end = books.buckets.get(bucket, Bucket.VALID_TO)
    return (moment for moment in (start, end, _closes_at(books, bucket)) if moment > now_ms)


def _closes_at(books: Books, bucket: int) -> int:
    end = books.buckets.get(bucket, Bucket.VALID_TO)
    return end + books.linger_ms if end < NEVER_MS - books.linger_ms else NEVER_MS


def _holds_due(books: Books, row: int) -> int:
    return books.holds.next_due_ms(books.get(row, Balance.OWNER))


def _close_holds(books: Books, row: int, now_ms: int) -> None:
    for hold in books.holds.due(books.get(row, Balance.OWNER), now_ms):
        if hold.status in (HoldStatus.OPEN, HoldStatus.SETTLED):
            expire(books, row, hold, now_ms)
        else:
            books.holds.forget(hold)


def _close_buckets(books: Books, row: int, now_ms: int) -> None:
    over = [bucket for bucket in books.chain(row) if _closes_at(books, bucket) <= now_ms]
    for bucket in _unclaimed(books, over):
        _close_bucket(books, row, bucket, now_ms)


def _drop_used_up(books: Books, row: int) -> None:
    """Forget what never ends and is used up: each pack bought would make every order slower for ever.

    Once a cycle, so that it can be seen and adjusted until then.
    """
    used_up = [
        bucket
        for bucket in books.chain(row)
        if books.buckets.get(bucket, Bucket.VALID_TO) == NEVER_MS and not books.buckets.rest(bucket)
    ]
    for bucket in _unclaimed(books, used_up):
        books.drop_bucket(row, bucket)


def _unclaimed(books: Books, buckets: Iterable[int]) -> list[int]:
    """Return those on which no hold has a claim: none holds of them or may still be corrected."""
    held, claimed = books.buckets.get, books.holds.is_claimed
    return [one for one in buckets if not held(one, Bucket.HELD) and not claimed(one)]


def _close_bucket(books: Books, row: int, bucket: int, now_ms: int) -> None:
    buckets = books.buckets
    rest, end_ms = buckets.rest(bucket), buckets.get(bucket, Bucket.VALID_TO)
    kept = _rolled_over(books, row, bucket, rest, now_ms)
    # What rolls over is what it was: no matter which plan is in force by now, or who asks when.
    priority, scope, granted_ms = (
        buckets.get(bucket, column) for column in (Bucket.PRIORITY, Bucket.SCOPE, Bucket.GRANTED_AT)
    )
    books.reduce(row, bucket, ChangeKind.ROLLOVER_OUT, kept, now_ms)
    books.reduce(row, bucket, ChangeKind.EXPIRY, rest - kept, now_ms)
    books.drop_bucket(row, bucket)
    if kept:
        grant = Grant(
            amount_utok=kept,
            source=Source.ROLLOVER,
            priority=priority,
            valid_from_ms=end_ms,
            valid_to_ms=_cycle_after(books, row, end_ms),
            scope=books.scopes.scopes[scope],
            ranks_at_ms=granted_ms,
        )
        books.add_bucket(row, grant, ChangeKind.ROLLOVER_IN, now_ms)


def _rolled_over(books: Books, row: int, bucket: int, rest: int, now_ms: int) -> int:
    """Return how much of an allowance goes on into the cycle after its own, if that is not over too."""
    if books.buckets.get(bucket, Bucket.SOURCE) != Source.PLAN:
        return 0
    if books.get(row, Balance.STATUS) == Status.CLOSED:
        return 0
    end_ms = books.buckets.get(bucket, Bucket.VALID_TO)
    if _cycle_after(books, row, end_ms) <= now_ms:
        return 0
    # After a change of plan there are several allowances, and one cap.
    rolled = sum(
        books.buckets.get(other, Bucket.TOTAL)
        for other in books.chain(row)
        if books.buckets.get(other, Bucket.SOURCE) == Source.ROLLOVER
        and books.buckets.get(other, Bucket.VALID_FROM) == end_ms
    )
    return max(0, min(rest, books.buckets.get(bucket, Bucket.ROLLS) - rolled))


def _cycle_after(books: Books, row: int, end_ms: int) -> int:
    """Return the end of the cycle that follows one that ends at `end_ms`."""
    if books.get(row, Balance.CYCLE_START) == end_ms:
        return books.get(row, Balance.CYCLE_END)
    return cycle_after(books.zone(row), books.get(row, Balance.CYCLE_DAY), end_ms, end_ms)[1]
