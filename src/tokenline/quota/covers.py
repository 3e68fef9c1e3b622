"""Say what can still be paid where not everything can.

Of an account whose plan stops, and of which no bucket for everything has anything left or held, only
the scopes of those that have can be paid, and what costs nothing. Whether that has changed is seen by a digest:
`Balance.COVERS` is that of the scopes, 0 where everything can be paid, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket
from tokenline.quota.terms import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.quota.books import Books
    from tokenline.quota.buckets import Scopes
    from tokenline.quota.terms import FreeModels


def may_pay(values: list[int], now_ms: int) -> bool:
    """Say whether a bucket is valid and has anything left or held, of a row's columns."""
    valid = values[Bucket.VALID_FROM] <= now_ms < values[Bucket.VALID_TO]
    return valid and values[Bucket.TOTAL] > values[Bucket.USED]


def digest_of(scopes: Scopes, codes: set[int]) -> int:
    """Return a number for these scopes; 0 where there is none, or one of them is everything."""
    if not codes or 0 in codes:
        return 0
    digest = 0
    for code in codes:
        digest ^= scopes.digest(code)
    return digest or 1


def covers_of(books: Books, row: int, free: FreeModels, *, cut: bool) -> tuple[Scope, ...]:
    """Return what can be paid of an account of which not everything can, in burn order."""
    found = [] if cut else list(dict.fromkeys(_scopes(books, row)))
    if free.models and not books.get(row, Balance.FREE_NEEDS):
        found.append(Scope(models=free.models))
    return tuple(found)


def _scopes(books: Books, row: int) -> Iterator[Scope]:
    now_ms = books.get(row, Balance.LOOKED_AT)
    for bucket in books.chain(row):
        values = books.buckets.matrix[bucket].tolist()
        if may_pay(values, now_ms):
            yield books.scopes.scopes[values[Bucket.SCOPE]]
