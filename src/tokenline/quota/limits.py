"""Keep the counters of limits: a row an account and limit, and one a subscriber where it is theirs.

What a plan says of each subscriber is a row of its own, the pattern (`EACH`): it counts nothing, and
a subscriber's row is made from it when the subscriber is first seen. What the account itself allows a
subscriber (`caps`) is that row with a ceiling of its OWN: no plan changes it, and it is never let go.
Minute, hour and day limits of a whole account in tokens and requests, and its tokens a month, are not
here but in `cells`, which count them for everybody.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenline.quota.limit_specs import Specs
from tokenline.quota.subscribers import Subscribers, Whom
from tokenline.quota.table import FREE, NONE, OWNER, Table
from tokenline.quota.terms import SUBSCRIBER_CAP, LimitSpec, Use

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EACH = -2  # as a subscriber: the pattern of every subscriber's row
RETIRED = -1  # as a ceiling: in no plan any more, still held against
SLICES = 12  # of a rolling window, and one more that is not over yet


class Limit(IntEnum):
    """Name the columns; the order is part of the journal's format.

    SUBSCRIBER is a row of `Subscribers`, NONE of a whole account. The window in hand is [START, END);
    of a rolling one it is the slice in hand, and USED the sum of the slices from RING on. OWN is 1
    where the ceiling is the account's own. RANK is where the plan names it.
    """

    OWNER = 0
    SPEC = 1
    SUBSCRIBER = 2
    CEILING = 3
    UNIT = 4
    PER = 5
    ROLLING = 6
    START = 7
    END = 8
    USED = 9
    HELD = 10
    RING = 11
    OWN = RING + SLICES + 1
    RANK = OWN + 1


WIDTH = Limit.RANK + 1
# Which rows a use counts into is remembered of so many uses of an account.
MATCHES_MAX = 100_000
NOTHING_COUNTED = (0,) * (WIDTH - Limit.START)


class _InForce(NamedTuple):
    """Hold what of a row says which uses count into it; of a pattern, into a row made of it."""

    row: int
    code: int
    subscriber: int
    ceiling: int
    spec: LimitSpec


@dataclass(slots=True)
class _Matching:
    """Remember which rows an account's uses count into, told apart only by what its limits look at."""

    limits: tuple[_InForce, ...]
    by_model: bool
    by_subscriber: bool
    rows: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict)

    def key(self, use: Use) -> tuple[str, ...]:
        if self.by_subscriber:
            return use if self.by_model else (use.subscriber,)
        return (use.provider, use.model) if self.by_model else ()

    def remember(self, key: tuple[str, ...], rows: tuple[int, ...]) -> None:
        # Subscribers that are counted as others are without number.
        if len(self.rows) >= MATCHES_MAX:
            self.rows.clear()
        self.rows[key] = rows


class Limits(Table):
    """Hold the rows; the indexes are made again from them after a recovery.

    `looked` are subscribers, and `looked_groups` those whom a limit of a group may cut, of whom
    something may have to be told. `grouped` says of rows of such limits whom they cut.
    """

    def __init__(self, subscribers: Subscribers) -> None:
        super().__init__(WIDTH)
        self.specs = Specs()
        self.subscribers = subscribers
        self.looked: set[int] = set()
        self.looked_groups: set[Whom] = set()
        self.grouped: dict[int, Whom] = {}
        self._group_rows: dict[Whom, int] = {}
        self._by_owner: dict[int, set[int]] = defaultdict(set)
        # Without subscribers' own rows: few, however many subscribers there are.
        self._of_account: dict[int, set[int]] = defaultdict(set)
        self._by_subscriber: dict[int, set[int]] = defaultdict(set)
        self._own: dict[tuple[int, int], int] = {}
        self._capped: dict[int, set[int]] = defaultdict(set)
        self._matching: dict[int, _Matching] = {}

    def spec(self, row: int) -> LimitSpec:
        """Return what a row counts."""
        return self.specs[self.get(row, Limit.SPEC)]

    def of_owner(self, owner: int) -> list[int]:
        """Return all rows of an account, ascending."""
        return sorted(self._by_owner.get(owner, ()))

    def of_subscriber(self, subscriber: int) -> list[int]:
        """Return all rows of a subscriber, ascending."""
        return sorted(self._by_subscriber.get(subscriber, ()))

    def of_account(self, owner: int) -> list[int]:
        """Return the rows that limit a whole account, in whatever models."""
        return [
            row
            for row in self._in_order(owner)
            if self.get(row, Limit.SUBSCRIBER) == NONE
            and self.in_force(row)
            and not self.spec(row).models
        ]

    def in_force(self, row: int) -> bool:
        """Say whether the account's plan still has the limit."""
        return self.get(row, Limit.CEILING) != RETIRED

    def matching(self, owner: int, use: Use) -> tuple[int, ...]:
        """Return the rows that `use` of an account counts into."""
        known = self._matching.get(owner)
        if known is None:
            known = self._matching[owner] = self._matching_of(owner)
        key = known.key(use)
        found = known.rows.get(key)
        if found is None:
            # A cap of the account's own may be of a limit that its plan has as well.
            rows = (*self._find(known.limits, owner, use), self._cap_row(owner, use.subscriber))
            found = tuple(row for row in dict.fromkeys(rows) if row != NONE)
            known.remember(key, found)
        return found

    def _matching_of(self, owner: int) -> _Matching:
        limits = tuple(
            _InForce(
                row,
                self.get(row, Limit.SPEC),
                self.get(row, Limit.SUBSCRIBER),
                self.get(row, Limit.CEILING),
                self.spec(row),
            )
            for row in self._in_order(owner)
            if self.in_force(row)
        )
        by_model = any(limit.spec.models for limit in limits)
        by_subscriber = owner in self._capped or any(limit.spec.each for limit in limits)
        return _Matching(limits, by_model, by_subscriber)

    def put_in_force(
        self, owner: int, wanted: Iterable[tuple[LimitSpec, int]], now_ms: int
    ) -> frozenset[int]:
        """Give an account these limits with their ceilings; return the rows that are gone.

        A limit that was there goes on counting. A new one begins with nothing. One that is gone stays
        as long as something is held against it.
        """
        named = {spec.identity: (self.specs.code(spec), ceiling) for spec, ceiling in wanted}
        rows = self.of_owner(owner)
        gone = frozenset(row for row in rows if self._is_gone(row, named, now_ms))
        self.look_at(owner)
        for row in rows:
            self._unindex(row)
            if row in gone:
                self.free(row)
                continue
            there = named.get(self.spec(row).identity)
            if there is not None:
                self.set(row, Limit.SPEC, there[0])
            if not self.get(row, Limit.OWN):
                self.set(row, Limit.CEILING, RETIRED if there is None else there[1])
            self._note(row)
        there_now = {self.spec(row).identity for row in self.of_owner(owner) if self._is_first(row)}
        for identity, (code, ceiling) in named.items():
            if identity not in there_now:
                each = self.specs[code].each
                self._add_row(owner, code, EACH if each else NONE, ceiling)
        self._rank(owner, {identity: rank for rank, identity in enumerate(named)})
        self._matching.pop(owner, None)
        self._look_at_groups(owner)
        return gone

    def cap(self, owner: int, name: str, ceiling: int) -> None:
        """Give a subscriber a cap of the account's own; what it used of the plan's counts on."""
        subscriber, code = self.subscribers.row(owner, name), self.specs.code(SUBSCRIBER_CAP)
        row = self._own.get((code, subscriber))
        if row is None:
            row = self._add_row(owner, code, subscriber, ceiling)
        self.set(row, Limit.CEILING, ceiling)
        self.set(row, Limit.OWN, 1)
        self._note(row)
        self._look_again(owner, subscriber)

    def has_cap(self, owner: int, name: str) -> bool:
        """Say whether a subscriber has a cap of the account's own."""
        return self._cap_row(owner, name) != NONE

    def uncap(self, owner: int, name: str) -> frozenset[int]:
        """Let the plan's cap be that of a subscriber who had one of its own; return the rows gone.

        Where the plan has none, its row stays as long as something is held against it.
        """
        row = self._cap_row(owner, name)
        self._unindex(row)
        self.set(row, Limit.OWN, 0)
        self.set(row, Limit.CEILING, self._ceiling_of_each(owner, self.get(row, Limit.SPEC)))
        gone = not self.in_force(row) and not self.get(row, Limit.HELD)
        if gone:
            self.free(row)
        else:
            self._note(row)
        self._look_again(owner, self.subscribers.find(owner, name))
        return frozenset([row] if gone else [])

    def forget(self, rows: Iterable[int]) -> None:
        """Give back rows of subscribers that count nothing any more."""
        for row in rows:
            owner, subscriber = self.get(row, Limit.OWNER), self.get(row, Limit.SUBSCRIBER)
            self._unindex(row)
            self.free(row)
            self._matching.pop(owner, None)
            if not self._by_subscriber[subscriber]:
                del self._by_subscriber[subscriber]

    def any_in_force(self, owner: int) -> bool:
        """Say whether anything limits an account or a subscriber of it."""
        return any(map(self.in_force, self.of_owner(owner)))

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        for row in np.flatnonzero(self.matrix[:, OWNER] != FREE).tolist():
            self._note(row)

    def look_at(self, owner: int) -> None:
        """Note that something may have to be told of any subscriber of an account."""
        whose = {self.get(row, Limit.SUBSCRIBER) for row in self.of_owner(owner)}
        self.looked |= whose - {NONE, EACH}
        self._look_at_groups(owner)

    def look_at_one(self, whom: Whom) -> None:
        """Note that something may have to be told of one subscriber, or of a group of models."""
        if whom.group:
            self.looked_groups.add(whom)
        else:
            self.looked.add(whom.subscriber)

    def take_looked(self) -> list[Whom]:
        """Return of whom something may have to be told, and forget them: subscribers, then groups."""
        found = [Whom(self.subscribers.owner(one), one) for one in sorted(self.looked)]
        found += sorted(self.looked_groups)
        self.looked, self.looked_groups = set(), set()
        return found

    def that_cut(self, whom: Whom) -> list[int]:
        """Return the rows in force that may cut a subscriber, or somebody for a group of models."""
        if whom.group:
            row = self._group_rows.get(whom, NONE)
            return [row] if row != NONE and self.in_force(row) else []
        rows = self.of_subscriber(whom.subscriber)
        return [row for row in rows if self.in_force(row) and row not in self.grouped]

    def _rank(self, owner: int, ranks: dict[tuple[str, str], int]) -> None:
        """Note in which order the plan names its limits: a row's number depends on other accounts."""
        for row in self._of_account.get(owner, ()):
            if (rank := ranks.get(self.spec(row).identity)) is not None:
                self.set(row, Limit.RANK, rank)

    def _in_order(self, owner: int) -> list[int]:
        """Return the rows of an account and its patterns as its plan names them."""
        rows = self._of_account.get(owner, ())
        return sorted(rows, key=lambda row: (self.get(row, Limit.RANK), self.spec(row).identity))

    def _look_at_groups(self, owner: int) -> None:
        rows = self._by_owner.get(owner, ())
        self.looked_groups |= {self.grouped[row] for row in self.grouped.keys() & rows}

    def _look_again(self, owner: int, subscriber: int) -> None:
        self._matching.pop(owner, None)
        self.looked.add(subscriber)

    def _ceiling_of_each(self, owner: int, code: int) -> int:
        """Return what the plan allows every subscriber, RETIRED when it caps nobody."""
        for row in self._of_account.get(owner, ()):
            if (self.get(row, Limit.SPEC), self.get(row, Limit.SUBSCRIBER)) == (code, EACH):
                return self.get(row, Limit.CEILING)
        return RETIRED

    def _is_first(self, row: int) -> bool:
        return self.get(row, Limit.SUBSCRIBER) in (NONE, EACH)

    def _is_gone(
        self, row: int, named: dict[tuple[str, str], tuple[int, int]], now_ms: int
    ) -> bool:
        if self.get(row, Limit.HELD) or self.get(row, Limit.OWN):
            return False
        if self.spec(row).identity not in named:
            return True
        # It is made again when it is needed; until then it would only be in the way.
        return not self._is_first(row) and self._ends_ms(row) <= now_ms

    def _ends_ms(self, row: int) -> int:
        start, end = self.get(row, Limit.START), self.get(row, Limit.END)
        return end + (end - start) * SLICES if self.get(row, Limit.ROLLING) else end

    def _find(self, limits: Iterable[_InForce], owner: int, use: Use) -> Iterator[int]:
        for limit in limits:
            if limit.spec.covers(use):
                each = limit.subscriber == EACH
                yield self._own_row(limit, owner, use.subscriber) if each else limit.row

    def _cap_row(self, owner: int, name: str) -> int:
        """Return the row of a subscriber's cap of the account's own, NONE where it has none."""
        if owner not in self._capped:
            return NONE
        code = self.specs.code(SUBSCRIBER_CAP)
        row = self._own.get((code, self.subscribers.find(owner, name)), NONE)
        return row if row in self._capped[owner] else NONE

    def _own_row(self, pattern: _InForce, owner: int, name: str) -> int:
        subscriber = self.subscribers.row_within(owner, name)
        found = self._own.get((pattern.code, subscriber))
        if found is None:
            found = self._add_row(owner, pattern.code, subscriber, pattern.ceiling)
        return found

    def _add_row(self, owner: int, code: int, subscriber: int, ceiling: int) -> int:
        spec = self.specs[code]
        head = (owner, code, subscriber, ceiling, spec.unit, spec.per, spec.rolling)
        row = self.add(head + NOTHING_COUNTED)
        self._index(row, owner, code, subscriber)
        return row

    def _note(self, row: int) -> None:
        self._index(row, *self._matrix[row, : Limit.CEILING].tolist())

    def _index(self, row: int, owner: int, code: int, subscriber: int) -> None:
        self._by_owner[owner].add(row)
        if subscriber < 0:
            self._of_account[owner].add(row)
        else:
            self._by_subscriber[subscriber].add(row)
            self._own[code, subscriber] = row
            if self.get(row, Limit.OWN):
                self._capped[owner].add(row)
        if subscriber != EACH and self.specs[code].models:
            whom = Whom(owner, subscriber, self.specs.first(code))
            self.grouped[row], self._group_rows[whom] = whom, row

    def _unindex(self, row: int) -> None:
        owner, code, subscriber = self._matrix[row, : Limit.CEILING].tolist()
        if row in self.grouped:
            self._group_rows.pop(self.grouped.pop(row), None)
        self._by_owner[owner].discard(row)
        self._of_account[owner].discard(row)
        self._capped[owner].discard(row)
        if not self._capped[owner]:
            del self._capped[owner]
        if subscriber >= 0:
            self._by_subscriber[subscriber].discard(row)
            self._own.pop((code, subscriber), None)
