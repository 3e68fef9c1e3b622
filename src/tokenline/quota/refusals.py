"""Refuse what the rules of balances do not allow, and tell people which rule and with which figures.

A check raises `Declined` or changes nothing. Programs go by the reason; the detail is for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tokenline.errors import Declined
from tokenline.metering.calendar import moment_text
from tokenline.quota.books import MOST_UTOK, Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.hold_rows import Reason
from tokenline.quota.terms import LAST_DATE_MS, NEVER_MS, Grant, tokens_text

if TYPE_CHECKING:
    from collections.abc import Iterable

CYCLE_DAY_MAX = 31
# Of all distinct scopes of an account's buckets together, as text.
MOST_SCOPE_BYTES = 64 << 10


def check_grant(books: Books, row: int, granted: Grant, now_ms: int) -> None:
    """Check that an account may be granted a bucket."""
    if granted.amount_utok <= 0:
        _bad(f"what is granted must be above zero, and is {tokens_text(granted.amount_utok)}")
    check_room(books, row, granted.amount_utok)
    _check_dates(granted, books.zone(row), now_ms)
    check_scope(books, row, granted, now_ms)


def check_room(books: Books, row: int, amount_utok: int) -> None:
    """Check that an account may hold that much more."""
    if amount_utok > (room := books.room(row)):
        _bad(
            f"{tokens_text(amount_utok)} are more than it may hold: there is room for "
            f"{tokens_text(room)} of {tokens_text(MOST_UTOK)}"
        )


def check_scope(books: Books, row: int, granted: Grant, now_ms: int) -> None:
    """Check that there is room to remember what a bucket pays for, and to say it in each decision."""
    codes = {
        books.buckets.get(bucket, Bucket.SCOPE)
        for bucket in books.chain(row)
        if books.buckets.get(bucket, Bucket.VALID_TO) > now_ms
    }
    known = sum(map(books.scopes.bytes_of, codes))
    more = books.scopes.bytes_more(granted.scope, codes)
    if more and known + more > MOST_SCOPE_BYTES:
        detail = (
            "its buckets name too many models and subscribers: each of its decisions names all of them, "
            f"and has {MOST_SCOPE_BYTES:,} bytes for that; with this one they need {known + more:,}"
        )
        raise Declined(Reason.TOO_MANY_SCOPES, detail)
    if not books.scopes.has_room(granted.scope, books.buckets):
        detail = "this partition remembers no more combinations of models and subscribers"
        raise Declined(Reason.TOO_MANY_SCOPES, detail)


def check_adjustment(books: Books, row: int, bucket: int, amount_utok: int, now_ms: int) -> None:
    """Check that a bucket may be given an amount, or has it left to be taken."""
    number, ends_ms = (books.buckets.get(bucket, one) for one in (Bucket.NUMBER, Bucket.VALID_TO))
    if ends_ms <= now_ms:
        detail = (
            f"bucket {number} ended {moment_text(books.zone(row), ends_ms)}: it pays for no more"
        )
        raise Declined(Reason.EXPIRED, detail)
    if not amount_utok:
        _bad("an adjustment of nothing: name an amount above zero to add, or below zero to take")
    if -amount_utok > (rest := books.buckets.rest(bucket)):
        _bad(
            f"bucket {number} has only {tokens_text(rest)} left "
            f"that are neither used nor held, which is less than {tokens_text(-amount_utok)}"
        )
    check_room(books, row, amount_utok)


def check_transfer(books: Books, givers: Iterable[int], amount_utok: int) -> None:
    """Check that the buckets that may give have an amount."""
    if amount_utok <= 0:
        _bad(f"what is moved must be above zero, and is {tokens_text(amount_utok)}")
    if (rest := sum(map(books.buckets.rest, givers))) < amount_utok:
        _bad(
            f"not transferable enough: {tokens_text(rest)} are transferable and neither used nor "
            f"held, which is less than {tokens_text(amount_utok)}"
        )


def check_cap(books: Books, slot: int, names: Iterable[str], amount_utok: int | None) -> None:
    """Check that subscribers may be capped at an amount; with None, that each has a cap to take off."""
    if amount_utok is not None and not 0 <= amount_utok <= MOST_UTOK:
        _bad(f"a cap is 0 or more, and at most {tokens_text(MOST_UTOK)}")
    missing = [name for name in names if not books.limits.has_cap(slot, name)]
    if amount_utok is None and missing:
        raise Declined(Reason.UNKNOWN_CAP, f"the account has set no cap for {missing[0]}")


def check_cycle_day(day: int, first: int) -> None:
    """Check a day of the month; `first` is 0 where that means today."""
    if not first <= day <= CYCLE_DAY_MAX:
        today = "" if first else ", or 0 for today"
        _bad(f"a cycle begins on a day from 1 to {CYCLE_DAY_MAX}{today}, not on day {day}")


def _check_dates(granted: Grant, zone: str, now_ms: int) -> None:
    starts_ms, ends_ms = granted.valid_from_ms, granted.valid_to_ms
    last_ms = max(starts_ms, 0 if ends_ms == NEVER_MS else ends_ms)
    # A time in microseconds, say.
    if last_ms > LAST_DATE_MS:
        _bad(f"{last_ms} is a moment after the year 9999; moments are ms since the epoch")
    if ends_ms <= starts_ms:
        ends, starts = moment_text(zone, ends_ms), moment_text(zone, starts_ms)
        _bad(f"it would end before it begins: valid to {ends}, from {starts}")
    if ends_ms <= now_ms:
        _bad(f"it would end in the past: valid to {moment_text(zone, ends_ms)}")


def _bad(detail: str) -> NoReturn:
    raise Declined(Reason.BAD_AMOUNT, detail)
