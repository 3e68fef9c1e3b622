"""Grant what a plan gives for its days, and share it out anew when plan or cycle change."""

from __future__ import annotations

from tokenline.metering.calendar import MINUTE_MS, cycle_at, days_of
from tokenline.quota.books import Balance, Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import LIMITS, NO_LIMIT
from tokenline.quota.entries import ChangeKind
from tokenline.quota.limit_holds import put_in_force
from tokenline.quota.standing import NOTHING_TOO_LITTLE
from tokenline.quota.terms import Grant, Source, Terms

# Of 28 to 31 days; moves to other zones make no more of it.
MONTHS_DIFFER_DAYS = 3


def put_terms_in_force(books: Books, row: int, plan: str, terms: Terms, now_ms: int) -> None:
    """Let other terms be in force at once, each paying for its days of the cycle.

    Prorated: the old allowance keeps the share of the days before today, the new one grants the share
    of the others, less what was used beyond the old share. Not prorated: the old one ends, the new
    one is granted whole; what was used beyond is remembered for the next prorated one of the cycle.
    Where they say what is in force already, nothing changes.
    """
    if plan == books.plan(row) and not terms.differs(books.terms(row)):
        books.take_terms(row, terms)
        return
    over = sum(
        _cut_share(books, row, bucket, now_ms, whole=not terms.prorated)
        for bucket in plan_buckets(books, row, now_ms)
        if books.buckets.get(bucket, Bucket.COVERS_TO) > now_ms
    )
    books.set(row, Balance.PLAN, books.plan_code(plan))
    take_terms(books, row, terms, now_ms)
    share = share_of(books, row, terms, now_ms)
    if terms.prorated:
        grant_allowance(books, row, terms, share, now_ms, now_ms, over)
    else:
        grant_allowance(books, row, terms, share, now_ms, now_ms)
        grant_allowance(books, row, terms, 0, now_ms, now_ms, over)


def move_allowances(books: Books, row: int, end_ms: int, now_ms: int) -> None:
    """Let the allowances of the present cycle end with it at another moment.

    A prorated allowance grows or shrinks with it, by days, never below what is used or held; one that
    is not only shrinks. What an earlier plan left is for days that are over, and keeps its size.
    """
    prorated = books.terms(row).prorated
    for bucket in plan_buckets(books, row, now_ms):
        if books.buckets.get(bucket, Bucket.COVERS_TO) > now_ms:
            _scale(books, row, bucket, end_ms, now_ms, grows=prorated)
            books.buckets.set(bucket, Bucket.COVERS_TO, end_ms)
        _move_end(books, row, bucket, end_ms)


def take_terms(books: Books, row: int, terms: Terms, now_ms: int) -> None:
    """Put a plan's mode, overage and limits into force: when it is chosen, and with each cycle.

    Limits that were set by hand meanwhile (`accounts apply`) last until then.
    """
    books.take_terms(row, terms)
    books.set(row, Balance.MODE, terms.mode)
    books.set(row, Balance.THRESHOLDS, books.thresholds_code(terms.thresholds))
    books.set(row, Balance.STOPS, not terms.overage)
    least_utok = terms.least_call_utok
    books.set(
        row, Balance.LEAST_CALL, 0 if least_utok is None else least_utok or NOTHING_TOO_LITTLE
    )
    limits = books.cells.matrix[books.get(row, Balance.OWNER)]
    limits[LIMITS] = NO_LIMIT
    for cell, ceiling in terms.ceilings:
        limits[cell] = ceiling
    put_in_force(books, row, terms, now_ms)


def grant_allowance(
    books: Books,
    row: int,
    terms: Terms,
    amount_utok: int,
    now_ms: int,
    since_ms: int = 0,
    debt_utok: int = 0,
) -> None:
    """Grant the plan's bucket of the present cycle, for its days from `since_ms` on; 0: all of them.

    What earlier plans used beyond their days is taken off; a bucket of nothing remembers it, also where
    the plan gives nothing: else a plan without an allowance would wipe it out.
    """
    amount_utok = max(0, min(amount_utok, books.room(row)))
    if not (amount_utok or debt_utok):
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
        debt_utok=debt_utok,
    )
    books.add_bucket(row, grant, ChangeKind.GRANT, now_ms)


def share_left(books: Books, row: int, now_ms: int) -> tuple[int, int]:
    """Return how many days of the cycle are left, today included, and how many its allowance is for.

    That is all it has. One that was cut short or drawn out, because cycles begin on another day now, is
    shared by the days of a usual one: a cycle of one day would have a month's allowance, and growing
    again thirty of them.
    """
    zone, day = books.zone(row), books.get(row, Balance.CYCLE_DAY)
    start_ms, end_ms = books.get(row, Balance.CYCLE_START), books.get(row, Balance.CYCLE_END)
    days = days_of(zone, start_ms, end_ms)
    usual = days_of(zone, *cycle_at(zone, day, (end_ms - 1) // MINUTE_MS * MINUTE_MS))
    left = max(1, days_of(zone, now_ms, end_ms))
    return left, usual if abs(days - usual) > MONTHS_DIFFER_DAYS else days


def share_of(books: Books, row: int, terms: Terms, now_ms: int) -> int:
    """Return what a plan grants for the rest of the cycle, rounded down."""
    if not terms.prorated:
        return terms.allowance_utok
    left, days = share_left(books, row, now_ms)
    return terms.allowance_utok * left // days


def plan_buckets(books: Books, row: int, now_ms: int) -> list[int]:
    """Return the plan's buckets of the present cycle."""
    return [
        bucket
        for bucket in books.chain(row)
        if books.buckets.get(bucket, Bucket.SOURCE) == Source.PLAN
        and books.buckets.get(bucket, Bucket.VALID_TO) > now_ms
    ]


def _cut_share(books: Books, row: int, bucket: int, now_ms: int, *, whole: bool) -> int:
    """Leave an allowance its share of the days before today, or end it whole; return what was used beyond."""
    buckets = books.buckets
    total = buckets.get(bucket, Bucket.TOTAL)
    taken = total - buckets.rest(bucket)
    share = _given(books, row, bucket, now_ms) - buckets.get(bucket, Bucket.DEBT)
    kept = taken if whole else max(taken, share)
    buckets.set(bucket, Bucket.COVERS_TO, now_ms)
    books.reduce(row, bucket, ChangeKind.PLAN_CHANGE, total - kept, now_ms)
    return max(0, taken - share)


def _given(books: Books, row: int, bucket: int, until_ms: int) -> int:
    """Return what an allowance gives for its days until a moment, rounded down."""
    zone, get = books.zone(row), books.buckets.get
    since_ms = get(bucket, Bucket.COVERS_FROM)
    granted = days_of(zone, since_ms, get(bucket, Bucket.COVERS_TO))
    given = get(bucket, Bucket.TOTAL) + get(bucket, Bucket.DEDUCTED)
    return given * days_of(zone, since_ms, until_ms) // max(1, granted)


def _scale(books: Books, row: int, bucket: int, end_ms: int, now_ms: int, *, grows: bool) -> None:
    buckets = books.buckets
    total = buckets.get(bucket, Bucket.TOTAL)
    given = _given(books, row, bucket, end_ms)
    if given > total + buckets.get(bucket, Bucket.DEDUCTED) and not grows:
        return
    scaled = max(total - buckets.rest(bucket), given - buckets.get(bucket, Bucket.DEBT))
    buckets.set(bucket, Bucket.DEDUCTED, given - scaled)
    books.reduce(row, bucket, ChangeKind.CYCLE_CHANGE, total - scaled, now_ms)


def _move_end(books: Books, row: int, bucket: int, end_ms: int) -> None:
    first = books.buckets.unlink(books.get(row, Balance.FIRST), bucket)
    books.buckets.set(bucket, Bucket.VALID_TO, end_ms)
    books.set(row, Balance.FIRST, books.buckets.link(first, bucket))
