"""Keep the buckets of all accounts, and burn them in one total order.

    priority (lower first) -> earliest expiry -> oldest grant -> lowest number

The buckets of an account are a chain in that order, from `first` along `NEXT`. Of each, always:
0 <= held, 0 <= used, used + held <= total, 0 <= claimed <= held. What no bucket pays is counted beside
them, under numbers below 1: see `pseudo`.
"""

from __future__ import annotations

import json
from enum import IntEnum
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from tokenline.quota.table import NONE, Table
from tokenline.quota.terms import Grant, Scope, Source, Use

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class Bucket(IntEnum):
    """Name the columns; the order is part of the journal's format.

    A plan's allowance GIVES so much for the days from COVERS_FROM to COVERS_TO, which a change of plan
    moves to that day, and at most ROLLS of it roll over. PAID was taken off it for what was used before
    beyond its days, ADJUSTED is what orders added. GRANTED_AT is for what rolled over when its allowance
    was granted. CLAIMED is what uses wait for of HELD, BEFORE what was used of the bucket when the present
    bill cycle began.
    """

    OWNER = 0
    NEXT = 1
    NUMBER = 2
    SOURCE = 3
    PRIORITY = 4
    VALID_FROM = 5
    VALID_TO = 6
    TOTAL = 7
    USED = 8
    HELD = 9
    SCOPE = 10
    TRANSFERABLE = 11
    GRANTED_AT = 12
    COVERS_FROM = 13
    COVERS_TO = 14
    ROLLS = 15
    GIVES = 16
    PAID = 17
    CLAIMED = 18
    BEFORE = 19
    ADJUSTED = 20


class Part(NamedTuple):
    """Say how much of which bucket; `row` is where it lies now, `number` its name for ever.

    A number below 1 is no bucket's, see `pseudo`, and its row is NONE.
    """

    row: int
    number: int
    amount_utok: int


# Half of what one batch of the journal holds.
SCOPES_MAX_BYTES = 8 << 20


class Scopes:
    """Keep each distinct scope once, under a small number; 0 covers everything.

    All of them are in one record of the journal. When there is no room for another, those that no
    bucket has any more are forgotten, and their numbers are given anew, the lowest first. `changes`
    counts both, so that the journal knows when to write them again.
    """

    def __init__(self) -> None:
        self.scopes: list[Scope] = [Scope()]
        self.changes = 1
        self._codes: dict[Scope, int] = {Scope(): 0}
        # As the journal has them: written once, however often another is made.
        self._texts: list[str] = [_text_of(Scope())]
        self._digests: list[int] = [0]
        self._free: list[int] = []
        self._bytes = 0

    def code(self, scope: Scope) -> int:
        """Return the number of a scope, remembering a new one."""
        if scope not in self._codes:
            code = heappop(self._free) if self._free else self._append()
            self._put(code, scope)
        return self._codes[scope]

    def has_room(self, scope: Scope, buckets: Buckets) -> bool:
        """Say whether a scope is known, or may become so; `buckets` are all that have one."""
        if not self._fits(scope):
            self._forget_unused(buckets)
        return self._fits(scope)

    def covers(self, code: int, use: Use) -> bool:
        """Say whether a bucket of this scope may pay for `use`."""
        return not code or _covers(self.scopes[code], use)

    def digest(self, code: int) -> int:
        """Return a number for what a scope says: another scope may have its code one day."""
        return self._digests[code]

    def bytes_of(self, code: int) -> int:
        """Return how long a scope is as text."""
        return len(self._texts[code]) if code else 0

    def bytes_more(self, scope: Scope, codes: Collection[int]) -> int:
        """Return how much longer the scopes of `codes` become by another one."""
        known = self._codes.get(scope)
        return 0 if known == 0 or known in codes else len(_text_of(scope))

    def to_json(self) -> str:
        """Return all scopes as text, for the journal; a number that is free says what 0 says."""
        return f"[{', '.join(self._texts)}]"

    @classmethod
    def from_json(cls, text: str) -> Scopes:
        """Return what `to_json` wrote."""
        found = cls()
        for models, subscribers in json.loads(text)[1:]:
            code = found._append()
            scope = Scope(models=tuple(models), subscribers=tuple(subscribers))
            if scope == Scope():
                found._free.append(code)
            else:
                found._put(code, scope)
        return found

    def _append(self) -> int:
        self.scopes.append(Scope())
        self._texts.append(self._texts[0])
        self._digests.append(0)
        return len(self.scopes) - 1

    def _put(self, code: int, scope: Scope) -> None:
        self.scopes[code], self._texts[code] = scope, _text_of(scope)
        self._digests[code] = text_digest(self._texts[code])
        self._codes[scope] = code
        self._bytes += len(self._texts[code])
        self.changes += 1

    def _fits(self, scope: Scope) -> bool:
        return scope in self._codes or self._bytes + len(_text_of(scope)) <= SCOPES_MAX_BYTES

    def _forget_unused(self, buckets: Buckets) -> None:
        used = set(np.unique(buckets.matrix[:, Bucket.SCOPE]).tolist())
        for code, scope in enumerate(self.scopes):
            if scope != Scope() and code not in used:
                del self._codes[scope]
                self._bytes -= len(self._texts[code])
                self.scopes[code], self._texts[code] = Scope(), self._texts[0]
                heappush(self._free, code)
                self.changes += 1


class Buckets(Table):
    """Hold the rows and walk the chains."""

    def __init__(self) -> None:
        super().__init__(len(Bucket))

    def chain(self, first: int) -> Iterator[int]:
        """Yield the rows of an account in burn order; the row in hand may be unlinked meanwhile."""
        row = first
        while row != NONE:
            following = self.get(row, Bucket.NEXT)
            yield row
            row = following

    def rest(self, row: int) -> int:
        """Return what is neither used nor held, in µtok."""
        return rest_of(self._matrix[row].tolist())

    def valid(self, row: int, at_ms: int) -> bool:
        """Say whether a bucket pays for what occurred at `at_ms`."""
        start, end = self._matrix[row, Bucket.VALID_FROM : Bucket.TOTAL].tolist()
        return bool(start <= at_ms < end)

    def link(self, first: int, row: int) -> int:
        """Put a row into a chain where it belongs; return the chain's first."""
        wanted, before = self._rank(row), NONE
        for other in self.chain(first):
            if self._rank(other) > wanted:
                break
            before = other
        self.touch(row)
        if before == NONE:
            self._matrix[row, Bucket.NEXT] = first
            return row
        self._matrix[row, Bucket.NEXT] = self._matrix[before, Bucket.NEXT]
        self._matrix[before, Bucket.NEXT] = row
        self.touch(before)
        return first

    def unlink(self, first: int, row: int) -> int:
        """Take a row out of a chain; return the chain's first."""
        following = self.get(row, Bucket.NEXT)
        self._matrix[row, Bucket.NEXT] = NONE
        self.touch(row)
        if row == first:
            return following
        before = next(one for one in self.chain(first) if self._matrix[one, Bucket.NEXT] == row)
        self._matrix[before, Bucket.NEXT] = following
        self.touch(before)
        return first

    def change(self, row: int, column: Bucket, amount: int) -> None:
        """Add `amount` to one column of a bucket."""
        self._matrix[row, +column] += amount
        self.touch(row)

    def _rank(self, row: int) -> tuple[int, int, int, int]:
        values = self._matrix[row].tolist()
        return (
            values[Bucket.PRIORITY],
            values[Bucket.VALID_TO],
            values[Bucket.GRANTED_AT],
            values[Bucket.NUMBER],
        )


def _text_of(scope: Scope) -> str:
    # Escaped, so that a character is a byte.
    return json.dumps([scope.models, scope.subscribers])


def text_digest(text: str) -> int:
    """Return a digest of a text that fits a cell."""
    return xxh3_64_intdigest(text.encode()) >> 1


def rest_of(values: list[int]) -> int:
    """Return what is neither used nor held, in µtok, of a row's columns."""
    return values[Bucket.TOTAL] - values[Bucket.USED] - values[Bucket.HELD]


def bucket_values(
    owner: int, number: int, grant: Grant, scope: int, now_ms: int
) -> dict[Bucket, int]:
    """Return the columns of a new bucket."""
    return {
        Bucket.OWNER: owner,
        Bucket.NEXT: NONE,
        Bucket.NUMBER: number,
        Bucket.SOURCE: grant.source,
        Bucket.PRIORITY: grant.priority,
        Bucket.VALID_FROM: grant.valid_from_ms,
        Bucket.VALID_TO: grant.valid_to_ms,
        Bucket.TOTAL: grant.amount_utok,
        Bucket.USED: 0,
        Bucket.HELD: 0,
        Bucket.SCOPE: scope,
        Bucket.TRANSFERABLE: grant.transferable,
        Bucket.GRANTED_AT: grant.ranks_at_ms or now_ms,
        Bucket.COVERS_FROM: grant.covers_from_ms,
        Bucket.COVERS_TO: grant.valid_to_ms if grant.source is Source.PLAN else 0,
        Bucket.ROLLS: grant.rolls_utok,
        Bucket.GIVES: grant.amount_utok if grant.source is Source.PLAN else 0,
        Bucket.PAID: 0,
        Bucket.CLAIMED: 0,
        Bucket.BEFORE: 0,
        Bucket.ADJUSTED: 0,
    }


def _covers(scope: Scope, use: Use) -> bool:
    named = not scope.subscribers or use.subscriber in scope.subscribers
    return named and use.among(scope.models)
