"""Keep holds as rows of int64, find them by session and know which is due next.

A hold has a row of its own; what it holds of more than PARTS_MAX buckets, or against more than
LIMITS_MAX limits, goes on in rows behind it:

    owner, row of the hold, which of its rows (0, 1, ...), how many in it, of what, MORE, the parts or limits
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tokenline.quota.buckets import Part
from tokenline.quota.table import FREE, NONE, OWNER, Table
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PARTS_MAX = 8
LIMITS_MAX = 8
SCALARS = 14
ANSWERS = 15
MORE = 9  # in the place of a status: not a hold, but what goes on of one
MORE_AT = 6
MORE_PARTS, MORE_LIMITS = 0, 1  # of what there is more
PART_COLUMNS = len(Part._fields)
SPLIT_AT = SCALARS + ANSWERS + LIMITS_MAX + 3 * PARTS_MAX
# Behind the split: what of the limit that an answer names was held, and the top-up that would help.
MORE_OF_ANSWER_AT = SPLIT_AT + 2 * PARTS_MAX
WIDTH = MORE_OF_ANSWER_AT + 2

Session = tuple[int, int]
# When it is due, when it was opened, its session, its row.
_Due = tuple[int, int, Session, int]


class HoldStatus(IntEnum):
    """Say where a hold is in its life; the order is part of the journal's format."""

    OPEN = 0
    SETTLED = 1
    EXPIRED = 2
    CLOSED = 3


class Outcome(IntEnum):
    """Say what became of a command; the order is part of the journal's format."""

    DONE = 0
    REFUSED = 1


class Reason(IntEnum):
    """Say why a command was refused; the order is part of the journal's format."""

    NONE = 0
    UNKNOWN_ACCOUNT = 1
    ALREADY_OPEN = 2
    SUSPENDED = 3
    CLOSED = 4
    UNKNOWN_PLAN = 5
    UNKNOWN_MODEL = 6
    UNKNOWN_BUCKET = 7
    BALANCE_USED_UP = 8
    BALANCE_HELD = 9
    LIMIT_REACHED = 10
    STALE_SEQ = 11
    UNKNOWN_HOLD = 12
    BAD_AMOUNT = 13
    NOT_SUSPENDED = 14
    UNKNOWN_PACK = 15
    BAD_CATALOG = 16
    BAD_RECEIVER = 17
    EXPIRED = 18
    LIMIT_HELD = 19
    TOO_MANY_SCOPES = 20
    COMMAND_ID_REUSED = 21
    UNKNOWN_CAP = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAnswer:
    """Hold what a gateway is told; kept whole, so that a repeated question gets the same bytes.

    `granted_utok` is all that the session may still spend, `split` how much of it came from which
    bucket (by number) in this answer, of PARTS_MAX buckets at most. `at_ms` is the broker's time of
    the question. Where a limit is reached, `limit` is its number (a rule of the cells below zero),
    `limit_name` what it is called, `limit_unit` what it counts; neither is kept, the number says it.
    `limit_used` is without `limit_held`, which others hold of it. `top_up_utok` is the smallest top-up
    after which the same question is granted, 0 where none helps.
    """

    outcome: Outcome = Outcome.DONE
    reason: Reason = Reason.NONE
    granted_utok: int = 0
    max_tokens: int = 0
    threshold_utok: int = 0
    validity_ms: int = 0
    final: bool = False
    late: bool = False
    catalog_version: int = 0
    rest_utok: int = 0
    at_ms: int = 0
    limit: int = 0
    limit_name: str = ""
    limit_unit: str = ""
    limit_used: int = 0
    limit_held: int = 0
    limit_value: int = 0
    resets_at_ms: int = 0
    top_up_utok: int = 0
    split: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True, kw_only=True)
class Hold:
    """Be one hold in hand; `parts` are what is held of which bucket, or was charged at its expiry.

    `reported_utok` is what the gateway said its calls used so far, `used_utok` the usage that has
    arrived. `limits` are rows of the limits it is held against, with `reserved_utok` each.
    `expires_at_ms` is when the policy closes it; `kept_until_ms` when its row is forgotten.
    """

    owner: int
    session: Session
    lease: bool
    seq: int = NONE
    status: HoldStatus = HoldStatus.OPEN
    expiry: int = 0
    reported_utok: int = 0
    used_utok: int = 0
    reserved_utok: int = 0
    opened_at_ms: int = 0
    expires_at_ms: int = 0
    kept_until_ms: int = 0
    parts: list[Part] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    answer: HoldAnswer = HoldAnswer()
    row: int = NONE

    @property
    def held_utok(self) -> int:
        """The sum of its parts."""
        return sum(part.amount_utok for part in self.parts)

    @property
    def owed_utok(self) -> int:
        """What calls have used and no usage event has told yet."""
        return max(0, self.reported_utok - self.used_utok)

    @property
    def due_at_ms(self) -> int:
        """When it must be looked at again: to be closed by its policy, or to be forgotten."""
        ends = self.status in (HoldStatus.OPEN, HoldStatus.SETTLED)
        return self.expires_at_ms if ends else self.kept_until_ms

    def values(self) -> list[int]:
        """Return the columns."""
        answer = self.answer
        scalars = [
            *(self.owner, *self.session, self.seq, self.lease, self.status, self.expiry),
            *(self.reported_utok, self.used_utok, self.reserved_utok),
            *(self.opened_at_ms, self.expires_at_ms, self.kept_until_ms),
            len(self.parts),
        ]
        answers = [
            *(answer.outcome, answer.reason, answer.granted_utok, answer.max_tokens),
            *(answer.threshold_utok, answer.validity_ms, answer.final, answer.late),
            *(answer.catalog_version, answer.rest_utok, answer.at_ms),
            *(answer.limit, answer.limit_used, answer.limit_value, answer.resets_at_ms),
        ]
        limits = [*self.limits[:LIMITS_MAX], *[NONE] * (LIMITS_MAX - len(self.limits))]
        parts = _padded(self.parts[:PARTS_MAX], 3)
        split = _padded(answer.split, 2)
        more = (answer.limit_held, answer.top_up_utok)
        return [*scalars, *answers, *limits, *parts, *split, *more]

    @classmethod
    def of(cls, row: int, values: list[int]) -> Hold:
        """Return what `values` gave."""
        owner, hi, lo, seq, lease, status, expiry, *amounts = values[: SCALARS - 4]
        *times, count = values[SCALARS - 4 : SCALARS]
        limits_at = SCALARS + ANSWERS
        parts_at = limits_at + LIMITS_MAX
        parts_end = parts_at + 3 * min(count, PARTS_MAX)
        return cls(
            row=row,
            owner=owner,
            session=(hi, lo),
            seq=seq,
            lease=bool(lease),
            status=HoldStatus(status),
            expiry=expiry,
            reported_utok=amounts[0],
            used_utok=amounts[1],
            reserved_utok=amounts[2],
            opened_at_ms=times[0],
            expires_at_ms=times[1],
            kept_until_ms=times[2],
            parts=_parts(values[parts_at:parts_end]),
            limits=[limit for limit in values[limits_at:parts_at] if limit != NONE],
            answer=_answer(values[SCALARS:limits_at], values[SPLIT_AT:]),
        )


class Holds(Table):
    """Hold the rows; the indexes are made again from them after a recovery."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self._by_session: dict[tuple[int, Session], int] = {}
        self._rows_by_owner: dict[int, set[int]] = defaultdict(set)
        self._leases: dict[int, set[int]] = defaultdict(set)
        # A heap an owner; of several entries of a row the one `_due_of` has is meant. Of two due at
        # one moment the one opened first comes first: which row it has depends on other accounts.
        self._due: dict[int, list[_Due]] = defaultdict(list)
        self._due_of: dict[int, _Due] = {}
        # The buckets that each hold names, and how many holds name a bucket.
        self._named: dict[int, tuple[int, ...]] = {}
        self._claims: Counter[int] = Counter()
        self._more: dict[int, list[int]] = {}

    def find(self, owner: int, session: Session) -> Hold | None:
        """Return the hold of a session of an account."""
        row = self._by_session.get((owner, session))
        return None if row is None else self.load(row)

    def load(self, row: int) -> Hold:
        """Return one hold, to be changed and saved."""
        hold = Hold.of(row, self._matrix[row].tolist())
        for more in self._more.get(row, ()):
            count, what, _, *values = self._matrix[more, MORE_AT - 3 :].tolist()
            if what == MORE_LIMITS:
                hold.limits += values[:count]
            else:
                hold.parts += _parts(values[: PART_COLUMNS * count])
        return hold

    def save(self, hold: Hold) -> None:
        """Write a hold back, or give it a row when it has none."""
        if hold.row == NONE:
            hold.row = self.add(hold.values())
        else:
            self._matrix[hold.row] = hold.values()
            self.touch(hold.row)
        self._save_more(hold)
        self._note(hold)

    def forget(self, hold: Hold) -> None:
        """Give a hold's row back."""
        for more in self._more.pop(hold.row, ()):
            self.free(more)
        del self._by_session[hold.owner, hold.session]
        self._due_of.pop(hold.row, None)
        self._claim(hold.row, ())
        for rows in (self._leases, self._rows_by_owner):
            rows[hold.owner].discard(hold.row)
            if not rows[hold.owner]:
                del rows[hold.owner]
        self.free(hold.row)

    def due(self, owner: int, now_ms: int) -> Iterator[Hold]:
        """Yield the holds of an account that must be looked at by now, the earliest first."""
        while self.next_due_ms(owner) <= now_ms:
            yield self.load(heappop(self._due[owner])[-1])

    def next_due_ms(self, owner: int) -> int:
        """Return when the first hold of an account must be looked at, NEVER_MS when it has none."""
        heap = self._due.get(owner, [])
        # A row may have been given back and be another account's by now.
        mine = self._rows_by_owner.get(owner, ())
        while heap and (self._due_of.get(heap[0][-1]) != heap[0] or heap[0][-1] not in mine):
            heappop(heap)
        if heap:
            return heap[0][0]
        self._due.pop(owner, None)
        return NEVER_MS

    def leases(self, owner: int) -> int:
        """Return how many leases of an account are open."""
        return len(self._leases.get(owner, ()))

    def is_claimed(self, bucket: int) -> bool:
        """Say whether a hold holds of a bucket, or may still be corrected."""
        return bucket in self._claims

    def of_owner(self, owner: int) -> list[Hold]:
        """Return all holds of an account, by row."""
        return [self.load(row) for row in sorted(self._rows_by_owner.get(owner, ()))]

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        rows = np.flatnonzero(self.matrix[:, OWNER] != FREE)
        is_more = self._matrix[rows, MORE_AT - 1] == MORE
        for row in sorted(rows[is_more].tolist(), key=lambda row: self._matrix[row, 2]):
            self._more.setdefault(int(self._matrix[row, 1]), []).append(row)
        for row in rows[~is_more].tolist():
            self._note(self.load(row))

    def _save_more(self, hold: Hold) -> None:
        """Write the parts and limits that the hold's own row has no room for."""
        rows, found = self._more.pop(hold.row, []), list(self._chunks(hold))
        for row in rows[len(found) :]:
            self.free(row)
        for at, (what, count, chunk) in enumerate(found):
            values = [hold.owner, hold.row, at, count, what, MORE, *chunk]
            values += [0] * (self.width - len(values))
            if at == len(rows):
                rows.append(self.add(values))
            else:
                self._matrix[rows[at]] = values
                self.touch(rows[at])
        if found:
            self._more[hold.row] = rows[: len(found)]

    def _chunks(self, hold: Hold) -> Iterator[tuple[int, int, list[int]]]:
        """Yield, a row each, of what there is more, how many, and the columns."""
        room = self.width - MORE_AT
        each = room // PART_COLUMNS
        for at in range(PARTS_MAX, len(hold.parts), each):
            parts = hold.parts[at : at + each]
            yield MORE_PARTS, len(parts), list(chain.from_iterable(parts))
        for at in range(LIMITS_MAX, len(hold.limits), room):
            limits = hold.limits[at : at + room]
            yield MORE_LIMITS, len(limits), limits

    def _note(self, hold: Hold) -> None:
        self._by_session[hold.owner, hold.session] = hold.row
        self._rows_by_owner[hold.owner].add(hold.row)
        if hold.lease and hold.status is HoldStatus.OPEN:
            self._leases[hold.owner].add(hold.row)
        else:
            self._leases[hold.owner].discard(hold.row)
        due = hold.due_at_ms, hold.opened_at_ms, hold.session, hold.row
        if self._due_of.get(hold.row) != due:
            self._due_of[hold.row] = due
            heappush(self._due[hold.owner], due)
        self._claim(hold.row, tuple(part.row for part in hold.parts))

    def _claim(self, row: int, buckets: tuple[int, ...]) -> None:
        """Note which buckets a hold names now."""
        before = self._named.get(row, ())
        if before == buckets:
            return
        self._claims.update(buckets)
        for bucket in before:
            self._claims[bucket] -= 1
            if not self._claims[bucket]:
                del self._claims[bucket]
        if buckets:
            self._named[row] = buckets
        else:
            del self._named[row]


def _answer(values: list[int], split: list[int]) -> HoldAnswer:
    outcome, reason, granted, max_tokens, threshold, validity, final, late, *others = values
    version, rest, at, limit, limit_used, limit_value, resets_at_ms = others
    split, (limit_held, top_up_utok) = split[: 2 * PARTS_MAX], split[2 * PARTS_MAX :]
    pairs = zip(split[::2], split[1::2], strict=True)
    return HoldAnswer(
        outcome=Outcome(outcome),
        reason=Reason(reason),
        granted_utok=granted,
        max_tokens=max_tokens,
        threshold_utok=threshold,
        validity_ms=validity,
        final=bool(final),
        late=bool(late),
        catalog_version=version,
        rest_utok=rest,
        at_ms=at,
        limit=limit,
        limit_used=limit_used,
        limit_held=limit_held,
        limit_value=limit_value,
        resets_at_ms=resets_at_ms,
        top_up_utok=top_up_utok,
        split=tuple((number, amount) for number, amount in pairs if amount),
    )


def _parts(values: list[int]) -> list[Part]:
    steps = range(0, len(values), PART_COLUMNS)
    return [Part(*values[at : at + PART_COLUMNS]) for at in steps]


def _padded(rows: Iterable[tuple[int, ...]], width: int) -> list[int]:
    flat = [value for row in rows for value in row]
    return flat + [0] * (width * PARTS_MAX - len(flat))
