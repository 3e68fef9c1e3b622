"""Grant what a plan gives for its days, and share it out anew when plan or cycle change.

An allowance GIVES so much for its days [COVERS_FROM, COVERS_TO). What orders added to it or took from it
(ADJUSTED) is no matter of days. What was used of it beyond the days it was for is a debt of the account,
which allowances pay (PAID) as far as they are free, the one in force and those to come; no other bucket
does. So plans and cycles may be changed to and fro: no more is had than the days are worth.
"""

from __future__ import annotations

from tokenline.metering.calendar import MINUTE_MS, cycle_at, days_of
from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import COUNTS, LIMITS, NO_LIMIT, Cell, Int64s
from tokenline.quota.entries import ChangeKind
from tokenline.quota.limit_holds import put_in_force
from tokenline.quota.standing import NOTHING_TOO_LITTLE
from tokenline.quota.terms import Grant, Source, Terms

# Of 28 to 31 days; moves to other zones make no more of it.
MONTHS_DIFFER_DAYS = 3


def put_terms_in_force(books: Books, row: int, plan: str, terms: Terms, now_ms: int) -> None:
    """Let other terms be in force at once.

    The old allowance keeps the share of the days before today, or what is used and held of it if that
    is more; what is more is a debt, unless it was granted whole. Prorated terms grant the share of the days
    left, today among them. Others grant all at once, less what all allowances of the cycle have used or
    hold, and these keep no more than that. Where they say what is in force already, nothing changes.
    """
    if plan == books.plan(row) and not terms.differs(books.terms(row)):
        books.take_terms(row, terms)
        return
    for bucket in _in_force(books, row, now_ms):
        _end_days(books, row, bucket, now_ms)
    books.set(row, Balance.PLAN, books.plan_code(plan))
    take_terms(books, row, terms, now_ms)
    share = share_of(books, row, terms, now_ms)
    if not terms.prorated:
        share = _less_what_was_had(books, row, share, now_ms)
    grant_allowance(books, row, terms, share, now_ms, now_ms)


def move_allowances(books: Books, row: int, end_ms: int, now_ms: int) -> None:
    """Let the allowances of the present cycle end with it at another moment.

    One that is in force shrinks with it by days, or grows, if it is prorated; what is used or held beyond
    is a debt. What an earlier plan left is for days that are over, and keeps its size.
    """
    in_force = _in_force(books, row, now_ms)
    for bucket in in_force:
        _scale(books, row, bucket, end_ms, now_ms)
    for bucket in plan_buckets(books, row, now_ms):
        _move_end(books, row, bucket, end_ms)
    for bucket in in_force:
        pay_debt(books, row, bucket, now_ms)


def take_terms(books: Books, row: int, terms: Terms, now_ms: int) -> None:
    """Put a plan's mode, overage and limits into force: when it is chosen, and with each cycle.

    Limits that were set by hand meanwhile (`accounts apply`) last until then.
    """
    books.take_terms(row, terms)
    books.set(row, Balance.MODE, terms.mode)
    books.set(row, Balance.THRESHOLDS, books.thresholds_code(terms.thresholds))
    books.set(row, Balance.STOPS, not terms.overage)
    books.set(row, Balance.FREE_NEEDS, terms.zero_rated_needs_balance)
    least_utok = terms.least_call_utok
    books.set(
        row, Balance.LEAST_CALL, 0 if least_utok is None else least_utok or NOTHING_TOO_LITTLE
    )
    _take_ceilings(books.cells.matrix[books.get(row, Balance.OWNER)], dict(terms.ceilings))
    put_in_force(books, row, terms, now_ms)


def _take_ceilings(cells: Int64s, ceilings: dict[Cell, int]) -> None:
    """Put ceilings into an account's cells; one that was not there before counts from now on, as all others do."""
    before = cells[LIMITS].tolist()
    cells[LIMITS] = NO_LIMIT
    for cell, ceiling in ceilings.items():
        cells[cell] = ceiling
        if before[cell - LIMITS.start] == NO_LIMIT:
            cells[COUNTS[cell]] = 0


def grant_allowance(
    books: Books, row: int, terms: Terms, amount_utok: int, now_ms: int, since_ms: int = 0
) -> None:
    """Grant the plan's bucket of the present cycle, for its days from `since_ms` on; 0: all of them.

    What the account owes is taken off it at once.
    """
    amount_utok = max(0, min(amount_utok, books.room(row)))
    if not amount_utok:
        return
    since_ms = since_ms or books.get(row, Balance.CYCLE_START)
    grant = Grant(
        amount_utok=amount_utok,
        source=Source.PLAN,
        priority=terms.priority,
        valid_from_ms=books.get(row, Balance.CYCLE_START),
        valid_to_ms=books.get(row, Balance.CYCLE_END),
        scope=terms.scope,
        covers_from_ms=since_ms,
        rolls_utok=terms.rollover_utok,
        ranks_at_ms=since_ms,
    )
    pay_debt(books, row, books.add_bucket(row, grant, ChangeKind.GRANT, now_ms), now_ms)


def pay_debt(books: Books, row: int, bucket: int, now_ms: int) -> None:
    """Take what the account owes off an allowance, as far as it is free."""
    owed = books.get(row, Balance.DEBT)
    if paid := min(owed, books.buckets.rest(bucket)):
        books.buckets.change(bucket, Bucket.PAID, paid)
        books.reduce(row, bucket, ChangeKind.DEBT, paid, now_ms)
        books.set(row, Balance.DEBT, owed - paid)


def share_of(books: Books, row: int, terms: Terms, now_ms: int) -> int:
    """Return what a plan grants for the rest of the cycle, rounded down.

    One that is not prorated grants all of it, of a cycle that was cut short what its days are worth.
    """
    days, usual = _days(books, row)
    left = days if not terms.prorated else max(1, _days_left(books, row, now_ms))
    return terms.allowance_utok * (left if terms.prorated else min(left, usual)) // usual


def plan_buckets(books: Books, row: int, now_ms: int) -> list[int]:
    """Return the plan's buckets of the present cycle."""
    return [
        bucket
        for bucket in books.chain(row)
        if books.buckets.get(bucket, Bucket.SOURCE) == Source.PLAN
        and books.buckets.get(bucket, Bucket.VALID_TO) > now_ms
    ]


def _in_force(books: Books, row: int, now_ms: int) -> list[int]:
    """Return the plan's buckets that are for today."""
    found, until = plan_buckets(books, row, now_ms), books.buckets.get
    return [bucket for bucket in found if until(bucket, Bucket.COVERS_TO) > now_ms]


def _days(books: Books, row: int) -> tuple[int, int]:
    """Return how many days the cycle has, and how many its allowance is for.

    That is all it has. One that was cut short or drawn out, because cycles begin on another day now, is
    shared by the days of a usual one: a cycle of one day would have a month's allowance, and growing
    again thirty of them.
    """
    zone, day = books.zone(row), books.get(row, Balance.CYCLE_DAY)
    start_ms, end_ms = books.get(row, Balance.CYCLE_START), books.get(row, Balance.CYCLE_END)
    days = days_of(zone, start_ms, end_ms)
    usual = days_of(zone, *cycle_at(zone, day, (end_ms - 1) // MINUTE_MS * MINUTE_MS))
    return days, usual if abs(days - usual) > MONTHS_DIFFER_DAYS else days


def _days_left(books: Books, row: int, now_ms: int) -> int:
    return days_of(books.zone(row), now_ms, books.get(row, Balance.CYCLE_END))


def _less_what_was_had(books: Books, row: int, whole_utok: int, now_ms: int) -> int:
    """Return what is left of a whole allowance of a cycle in which others were used before; end these.

    What was used beyond its days in this cycle is made up for by that, as far as it goes.
    """
    had = 0
    for bucket in plan_buckets(books, row, now_ms):
        had += (taken := _taken(books, bucket))
        left = books.buckets.get(bucket, Bucket.TOTAL) - taken
        books.reduce(row, bucket, ChangeKind.PLAN_CHANGE, left, now_ms)
    debt, overused = books.get(row, Balance.DEBT), books.get(row, Balance.OVERUSED)
    made_up = min(debt, overused, max(0, whole_utok - (had - overused)))
    books.set(row, Balance.DEBT, debt - made_up)
    books.set(row, Balance.OVERUSED, overused - made_up)
    return max(0, whole_utok - had)


def _taken(books: Books, bucket: int) -> int:
    """Return what is used and held of a bucket."""
    return books.buckets.get(bucket, Bucket.TOTAL) - books.buckets.rest(bucket)


def _end_days(books: Books, row: int, bucket: int, now_ms: int) -> None:
    """End the days of an allowance today: it keeps what it gives for them, or what is used and held of it."""
    buckets = books.buckets
    buckets.set(bucket, Bucket.GIVES, _given(books, row, bucket, now_ms))
    buckets.set(bucket, Bucket.COVERS_TO, now_ms)
    if books.terms(row).prorated:
        _settle_days(books, row, bucket, ChangeKind.PLAN_CHANGE, now_ms)
        return
    # It was granted whole: what was used of it is used. What it paid it paid as a whole.
    _owe(books, row, _take_back(books, bucket, buckets.get(bucket, Bucket.PAID)))
    kept = max(_taken(books, bucket), _days_worth(books, bucket))
    _leave(books, row, bucket, kept, ChangeKind.PLAN_CHANGE, now_ms)


def _scale(books: Books, row: int, bucket: int, end_ms: int, now_ms: int) -> None:
    """Let an allowance be for days until another moment; one that is not prorated only shrinks."""
    buckets, given = books.buckets, _given(books, row, bucket, end_ms)
    if books.terms(row).prorated or given < buckets.get(bucket, Bucket.GIVES):
        buckets.set(bucket, Bucket.GIVES, given)
    buckets.set(bucket, Bucket.COVERS_TO, end_ms)
    _settle_days(books, row, bucket, ChangeKind.CYCLE_CHANGE, now_ms)


def _settle_days(books: Books, row: int, bucket: int, kind: ChangeKind, now_ms: int) -> None:
    """Let an allowance have what its days are worth, less what it paid; what goes beyond is a debt."""
    taken, worth = _taken(books, bucket), _days_worth(books, bucket)
    paid, free = books.buckets.get(bucket, Bucket.PAID), max(0, worth - taken)
    beyond = max(0, taken - worth)
    books.set(row, Balance.OVERUSED, books.get(row, Balance.OVERUSED) + beyond)
    _owe(books, row, beyond + _take_back(books, bucket, max(0, paid - free)))
    _leave(books, row, bucket, taken + max(0, free - paid), kind, now_ms)


def _take_back(books: Books, bucket: int, amount_utok: int) -> int:
    """Note that an allowance could not pay so much of a debt after all; return it."""
    books.buckets.change(bucket, Bucket.PAID, -amount_utok)
    return amount_utok


def _leave(
    books: Books, row: int, bucket: int, kept_utok: int, kind: ChangeKind, now_ms: int
) -> None:
    """Let a bucket have so much in all, and enter the difference."""
    books.reduce(row, bucket, kind, books.buckets.get(bucket, Bucket.TOTAL) - kept_utok, now_ms)


def _owe(books: Books, row: int, amount_utok: int) -> None:
    books.set(row, Balance.DEBT, books.get(row, Balance.DEBT) + amount_utok)


def _days_worth(books: Books, bucket: int) -> int:
    """Return what an allowance gives for its days, and by orders."""
    return books.buckets.get(bucket, Bucket.GIVES) + books.buckets.get(bucket, Bucket.ADJUSTED)


def _given(books: Books, row: int, bucket: int, until_ms: int) -> int:
    """Return what an allowance gives for its days until a moment, rounded down."""
    zone, get = books.zone(row), books.buckets.get
    since_ms = get(bucket, Bucket.COVERS_FROM)
    granted = days_of(zone, since_ms, get(bucket, Bucket.COVERS_TO))
    return get(bucket, Bucket.GIVES) * days_of(zone, since_ms, until_ms) // max(1, granted)


def _move_end(books: Books, row: int, bucket: int, end_ms: int) -> None:
    first = books.buckets.unlink(books.get(row, Balance.FIRST), bucket)
    books.buckets.set(bucket, Bucket.VALID_TO, end_ms)
    books.set(row, Balance.FIRST, books.buckets.link(first, bucket))
