"""Say who pays a use, and let it be paid.

    buckets in burn order, each that is valid then and covers the use
      └─ the rest: the plan goes on  -> OVERAGE, the customer owes it
                   the plan stops    -> CLAIM, as much as sessions hold of buckets that cover it
                                          └─ the rest -> WRITTEN_OFF, the house bears it

A claim waits for units that are held. What a session gives back of them pays the bucket's claims before
it is there for anybody (`come_back`); what its calls use is lost to them (`lose`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket, Part
from tokenline.quota.entries import ChangeKind
from tokenline.quota.pseudo import Pseudo, change_pseudo, charge_pseudo, note_pseudo
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenline.quota.books import Books
    from tokenline.quota.terms import Use


def payers(books: Books, row: int, use: Use, at_ms: int) -> list[int]:
    """Return the buckets that pay for `use` at `at_ms`, in burn order."""
    buckets, covers = books.buckets, books.scopes.covers
    return [
        bucket
        for bucket in books.chain(row)
        if buckets.valid(bucket, at_ms) and covers(buckets.get(bucket, Bucket.SCOPE), use)
    ]


def split(books: Books, row: int, use: Use, amount_utok: int, at_ms: int) -> list[Part]:
    """Return which buckets would pay, in burn order, without the part that none does."""
    rests = ((bucket, books.buckets.rest(bucket)) for bucket in payers(books, row, use, at_ms))
    return list(_parts(books, rests, amount_utok))


def burn(books: Books, row: int, use: Use, amount_utok: int, at_ms: int) -> list[Part]:
    """Charge usage to the buckets that pay, and the rest to what the account's terms say."""
    parts = split(books, row, use, amount_utok, at_ms)
    for part in parts:
        books.buckets.change(part.row, Bucket.USED, part.amount_utok)
        books.note_burn(row, part.number, part.amount_utok)
    left = amount_utok - sum(part.amount_utok for part in parts)
    return parts + leave_unpaid(books, row, use, left, at_ms) if left else parts


def leave_unpaid(books: Books, row: int, use: Use, amount_utok: int, at_ms: int) -> list[Part]:
    """Charge what no bucket pays to the counters of the account, and return to which how much."""
    if not books.get(row, Balance.STOPS):
        found = [Part(NONE, Pseudo.OVERAGE, amount_utok)]
    else:
        claimed = _claim(books, row, use, amount_utok, at_ms)
        shares = ((Pseudo.CLAIM, claimed), (Pseudo.WRITTEN_OFF, amount_utok - claimed))
        found = [Part(NONE, pseudo, amount) for pseudo, amount in shares if amount]
    for part in found:
        charge_pseudo(books, row, Pseudo(part.number), part.amount_utok)
    return found


def claimable_utok(values: list[int]) -> int:
    """Return how much of a bucket is held and waited for by nobody, of a row's columns."""
    return values[Bucket.HELD] - values[Bucket.CLAIMED]


def come_back(books: Books, row: int, bucket: int, amount_utok: int, now_ms: int) -> None:
    """Let units that a session held of a bucket and gave back unused pay what is claimed of it."""
    if paid := min(amount_utok, books.buckets.get(bucket, Bucket.CLAIMED)):
        books.buckets.change(bucket, Bucket.CLAIMED, -paid)
        books.buckets.change(bucket, Bucket.USED, paid)
        books.enter(row, bucket, ChangeKind.CLAIM_PAID, -paid, now_ms)
        change_pseudo(books, row, Pseudo.CLAIM, -paid)
        note_pseudo(books, row, Pseudo.CLAIM, ChangeKind.CLAIM_PAID, paid, now_ms)


def lose(books: Books, row: int, bucket: int, now_ms: int) -> None:
    """Write off what is claimed of units that sessions have used meanwhile."""
    lost = -claimable_utok(books.buckets.matrix[bucket].tolist())
    if lost > 0:
        books.buckets.change(bucket, Bucket.CLAIMED, -lost)
        for pseudo, amount in ((Pseudo.CLAIM, lost), (Pseudo.WRITTEN_OFF, -lost)):
            change_pseudo(books, row, pseudo, -amount)
            note_pseudo(books, row, pseudo, ChangeKind.CLAIM_LOST, amount, now_ms)


def _claim(books: Books, row: int, use: Use, amount_utok: int, at_ms: int) -> int:
    """Claim what others hold of the buckets that cover a use, and return how much that was."""
    held = (
        (bucket, claimable_utok(books.buckets.matrix[bucket].tolist()))
        for bucket in payers(books, row, use, at_ms)
    )
    parts = list(_parts(books, held, amount_utok))
    for part in parts:
        books.buckets.change(part.row, Bucket.CLAIMED, part.amount_utok)
    return sum(part.amount_utok for part in parts)


def _parts(books: Books, rests: Iterable[tuple[int, int]], amount_utok: int) -> Iterator[Part]:
    """Yield how much of each bucket is taken until an amount is met."""
    for bucket, rest in rests:
        if amount_utok <= 0:
            return
        if taken := min(rest, amount_utok):
            yield Part(bucket, books.buckets.get(bucket, Bucket.NUMBER), taken)
            amount_utok -= taken
