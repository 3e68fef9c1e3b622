"""Take back what an event was charged, from where it was paid, and charge what replaces it.

    paid by                          goes back to
    a bucket that is there           the bucket
    a bucket that is closed          LATE_ADJUSTMENT: a credit for the next statement
    OVERAGE, WRITTEN_OFF             the same, if that was in this bill cycle; else LATE_ADJUSTMENT
    LATE_ADJUSTMENT                  the same
    CLAIM                            claims that still wait; what was paid or lost of them is a credit

No limit and no rate window is touched: they are about now.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenline.quota.books import Balance
from tokenline.quota.buckets import Bucket
from tokenline.quota.cycle import advance, refresh
from tokenline.quota.entries import NO_CAUSE, Cause, ChangeKind
from tokenline.quota.late import burn_late
from tokenline.quota.pseudo import BASES, COUNTERS, Pseudo, change_pseudo, note_pseudo
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.quota.books import Books
    from tokenline.quota.charge import Parts
    from tokenline.quota.terms import Use


@contextmanager
def ordered(books: Books, row: int, command_id: str, now_ms: int) -> Iterator[None]:
    """Bring an account up to the moment, name the order behind the entries, and sum its buckets again."""
    with books.caused(NO_CAUSE):
        advance(books, row, now_ms)
    with books.caused(Cause(command_id)):
        yield
    refresh(books, row, now_ms)


def give_back(
    books: Books, row: int, kind: ChangeKind, parts: Parts, paid_ms: int, now_ms: int
) -> None:
    """Take back a charge that was paid at a moment by these buckets: numbers and µtok."""
    for number, amount_utok in parts:
        for place, amount in _places(books, row, number, amount_utok, paid_ms):
            if place > 0:
                _to_bucket(books, row, place, kind, amount, paid_ms, now_ms)
            else:
                _to_counter(books, row, Pseudo(place), kind, amount, now_ms)


def charge_instead(
    books: Books, row: int, use: Use, amount_utok: int, occurred_ms: int, now_ms: int
) -> Parts:
    """Charge what replaces an event as of a moment, as an entry of its own, and return who paid."""
    before = len(books.burns.singles)
    burn_late(books, row, use, amount_utok, occurred_ms, now_ms)
    parts = books.burns.since(before)
    del books.burns.singles[before:]
    kind = ChangeKind.CORRECTION_IN
    for number, amount in parts:
        if number > 0:
            books.enter(row, _bucket(books, row, number), kind, -amount, now_ms)
        else:
            note_pseudo(books, row, Pseudo(number), kind, -amount, now_ms)
    return parts


def _places(
    books: Books, row: int, number: int, amount_utok: int, paid_ms: int
) -> Iterator[tuple[int, int]]:
    """Yield where an amount goes back to that a bucket or a counter paid."""
    if number > 0:
        there = _bucket(books, row, number) != NONE
        yield (number if there else Pseudo.LATE_ADJUSTMENT), amount_utok
    elif number == Pseudo.CLAIM:
        waiting = _withdraw_claims(books, row, amount_utok)
        shares = ((Pseudo.CLAIM, waiting), (Pseudo.LATE_ADJUSTMENT, amount_utok - waiting))
        yield from ((place, amount) for place, amount in shares if amount)
    else:
        begun = paid_ms >= books.get(row, Balance.CYCLE_START)
        yield (number if begun else Pseudo.LATE_ADJUSTMENT), amount_utok


def _bucket(books: Books, row: int, number: int) -> int:
    """Return the row of a bucket by its number, NONE when it is closed."""
    numbers = ((bucket, books.buckets.get(bucket, Bucket.NUMBER)) for bucket in books.chain(row))
    return next((bucket for bucket, found in numbers if found == number), NONE)


def _to_bucket(
    books: Books,
    row: int,
    number: int,
    kind: ChangeKind,
    amount_utok: int,
    paid_ms: int,
    now_ms: int,
) -> None:
    bucket = _bucket(books, row, number)
    books.buckets.change(bucket, Bucket.USED, -amount_utok)
    before, used = (books.buckets.get(bucket, column) for column in (Bucket.BEFORE, Bucket.USED))
    # What an earlier cycle used is no figure of this one, neither when it comes back.
    if paid_ms < books.get(row, Balance.CYCLE_START):
        before = max(0, before - amount_utok)
    books.buckets.set(bucket, Bucket.BEFORE, min(before, used))
    books.enter(row, bucket, kind, amount_utok, now_ms)


def _to_counter(
    books: Books, row: int, pseudo: Pseudo, kind: ChangeKind, amount_utok: int, now_ms: int
) -> None:
    change_pseudo(books, row, pseudo, -amount_utok)
    base = BASES.get(COUNTERS[pseudo])
    if base is not None and pseudo is not Pseudo.LATE_ADJUSTMENT:
        books.set(row, base, min(books.get(row, base), books.get(row, COUNTERS[pseudo])))
    note_pseudo(books, row, pseudo, kind, amount_utok, now_ms)


def _withdraw_claims(books: Books, row: int, amount_utok: int) -> int:
    """Wait for so much less of what is held, and return how much was waited for."""
    left = amount_utok
    for bucket in reversed(books.chain(row)):
        if taken := min(left, books.buckets.get(bucket, Bucket.CLAIMED)):
            books.buckets.change(bucket, Bucket.CLAIMED, -taken)
            left -= taken
    return amount_utok - left
