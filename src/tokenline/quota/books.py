"""Keep the balances of one partition's accounts: a row an account, its buckets, its holds.

Everything that changes a balance goes through here or through the modules beside it (`cycle`,
`orders`, `holds`), one account at a time, at a moment the caller names. Nothing looks at a clock:
what is due by then is done first (`cycle.advance`), and the same calls at the same moments give the
same rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS, cycle_after
from tokenline.quota.answers import Answers
from tokenline.quota.buckets import Bucket, Buckets, Scopes, bucket_values
from tokenline.quota.burns import Burns
from tokenline.quota.cells import AccountCells, Cell
from tokenline.quota.entries import NO_CAUSE, Cause, Change, ChangeKind
from tokenline.quota.hold_rows import Holds
from tokenline.quota.limits import Limits
from tokenline.quota.settled import Settled
from tokenline.quota.subscribers import Subscribers, Told
from tokenline.quota.table import FREE, NONE, Table
from tokenline.quota.terms import GONE_STRICT, THRESHOLDS_PERCENT, Grant, Mode, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Int64s = npt.NDArray[np.int64]

BOUNDLESS = 1 << 62
# No account's buckets hold more together, and no session holds more beyond them: sums stay far from an int64's end.
MOST_UTOK = 10**18


class Balance(IntEnum):
    """Name the columns; the order is part of the journal's format.

    HEAD is the bucket that pays for anything that occurs in [HEAD_FROM, HEAD_UNTIL), up to HEAD_LEFT,
    while the clock is before DUE_AT: most usage asks for no more than these. It is NONE where no
    bucket pays and no claim helps. LEFT and HELD are sums over the buckets valid when they were last
    looked at, TOTAL is what these had for the present cycle. STOPS is 1 where the plan lets nothing
    be used beyond them. THRESHOLDS is the number of the plan's list of them. OPENS_AT is when more
    may begin to be valid, as far as is known by then, and LOOKED_AT the moment of the last such look.
    LIMITED is 1 where `limits` counts something of the account; LIMIT_RESETS is when the limit that
    cuts it has room again, 0 while none cuts, and LIMIT_ROW which that is. LEAST_CALL is how much is
    too little for any call: 0 is what is usual, and below that nothing is.

    What no bucket paid, see `pseudo`: OVERAGE, WRITTEN_OFF, LATE_ADJUSTMENT since the account was opened
    and, as _BASE, when the cycle began; OVERAGE_HELD is what sessions hold beyond all buckets. CLAIMED
    is the sum over the buckets' own.
    """

    OWNER = 0
    PLAN = 1
    MODE = 2
    STATUS = 3
    FIRST = 4
    NUMBERS = 5
    OVERAGE = 6
    CYCLE_DAY = 7
    CYCLE_START = 8
    CYCLE_END = 9
    DUE_AT = 10
    HEAD = 11
    HEAD_LEFT = 12
    HEAD_FROM = 13
    HEAD_UNTIL = 14
    LEFT = 15
    TOTAL = 16
    HELD = 17
    CHANGES = 18
    STOPS = 19
    THRESHOLDS = 20
    OVERAGE_BASE = 21
    OPENS_AT = 22
    LIMITED = 23
    LIMIT_ROW = 24
    LIMIT_RESETS = 25
    LOOKED_AT = 26
    LEAST_CALL = 27
    OVERAGE_HELD = 28
    WRITTEN_OFF = 29
    WRITTEN_OFF_BASE = 30
    LATE_ADJUSTMENT = 31
    LATE_BASE = 32
    CLAIMED = 33


# What no bucket paid, all told.
UNPAID = [
    +column
    for column in (
        *(Balance.OVERAGE, Balance.WRITTEN_OFF),
        *(Balance.LATE_ADJUSTMENT, Balance.CLAIMED),
    )
]
# From here on somebody has to look at an account: no customer means to use so much unpaid.
ALARM_UTOK = 10**17


class Status(IntEnum):
    """Say whether an account may use anything; the order is part of the journal's format."""

    ACTIVE = 0
    SUSPENDED = 1
    CLOSED = 2


class Books:
    """Hold the tables, and what was entered since the last `take`."""

    def __init__(
        self,
        cells: AccountCells,
        terms_of: Callable[[str, int], Terms | None],
        linger_ms: int,
    ) -> None:
        self.cells = cells
        # A bucket outlives its validity by this: usage of its time may still be reported.
        self.linger_ms = linger_ms
        self._terms_of = terms_of
        self.balances = Table(len(Balance))
        self.buckets = Buckets()
        self.holds = Holds()
        self.answers = Answers()
        self.subscribers = Subscribers()
        self.limits = Limits(self.subscribers)
        self.told = Told()
        self.settled = Settled()
        self.scopes = Scopes()
        self.plans: list[str] = []
        self.thresholds: list[tuple[int, ...]] = [THRESHOLDS_PERCENT]
        self.changes: list[Change] = []
        self.burns = Burns()
        # The same of usage that was told late: it is in no window, and has entries of its own.
        self.late = Burns()
        # Rows of accounts that used so much unpaid that somebody must know.
        self.alarmed: set[int] = set()
        self._cause = NO_CAUSE
        self._rows: Int64s = np.zeros(0, np.int64)

    @property
    def named_tables(self) -> dict[str, Table]:
        """The rows by the name of their table, in the order of their numbers in the journal.

        A new table comes last: the number of a table never changes.
        """
        return {
            "balances": self.balances,
            "buckets": self.buckets,
            "holds": self.holds,
            "answers": self.answers,
            "limits": self.limits,
            "subscribers": self.subscribers,
            "told": self.told,
            "settled": self.settled,
        }

    @property
    def tables(self) -> tuple[Table, ...]:
        """The rows, in the order of their numbers in the journal."""
        return tuple(self.named_tables.values())

    @property
    def names(self) -> tuple[int, ...]:
        """How many plans, thresholds, scopes and limits had a number: the journal has their names."""
        specs = self.limits.specs.specs
        return len(self.plans), len(self.thresholds), self.scopes.changes, len(specs)

    def row(self, slot: int) -> int:
        """Return the balance row of an account, NONE when it was never opened."""
        return int(self._rows[slot]) if 0 <= slot < len(self._rows) else NONE

    def rows_of(self, slots: Int64s) -> Int64s:
        """Return the balance row of each account, NONE where it was never opened, or where a slot is -1."""
        self._reach(len(self.cells) + 1)
        return self._rows[slots]

    def get(self, row: int, column: Balance) -> int:
        """Return one column of a balance."""
        return self.balances.get(row, column)

    def set(self, row: int, column: Balance, value: int) -> None:
        """Change one column of a balance."""
        self.balances.set(row, column, value)

    def zone(self, row: int) -> str:
        """Return the zone in which the account's cycles begin and end."""
        slot = self.get(row, Balance.OWNER)
        return self.cells.zones[int(self.cells.matrix[slot, Cell.ZONE])]

    def next_cycle(self, row: int, at_ms: int) -> tuple[int, int]:
        """Return start and end of the cycle that holds a moment after the end of the one in hand."""
        day, ended_ms = self.get(row, Balance.CYCLE_DAY), self.get(row, Balance.CYCLE_END)
        return cycle_after(self.zone(row), day, ended_ms, at_ms // MINUTE_MS * MINUTE_MS)

    def plan(self, row: int) -> str:
        """Return the name of the account's plan."""
        return self.plans[self.get(row, Balance.PLAN)]

    def plan_of(self, slot: int) -> str:
        """Return the name of an account's plan, empty when it has no balance."""
        row = self.row(slot)
        return "" if row == NONE else self.plan(row)

    def terms(self, row: int, at_ms: int) -> Terms:
        """Return the terms of the account's plan; one that is gone from the catalog grants nothing."""
        strict = self.get(row, Balance.MODE) == Mode.STRICT
        return self._terms_of(self.plan(row), at_ms) or (GONE_STRICT if strict else Terms())

    def terms_of(self, plan: str, at_ms: int) -> Terms | None:
        """Return the terms of a plan by name."""
        return self._terms_of(plan, at_ms)

    def plan_code(self, plan: str) -> int:
        """Return the number of a plan's name, remembering a new one."""
        if plan not in self.plans:
            self.plans.append(plan)
        return self.plans.index(plan)

    def thresholds_code(self, percents: tuple[int, ...]) -> int:
        """Return the number of a list of thresholds, remembering a new one; 0 is the usual one."""
        if percents not in self.thresholds:
            self.thresholds.append(percents)
        return self.thresholds.index(percents)

    def chain(self, row: int) -> list[int]:
        """Return the rows of an account's buckets, in burn order."""
        return list(self.buckets.chain(self.get(row, Balance.FIRST)))

    def add_account(self, slot: int, values: dict[Balance, int]) -> int:
        """Give an account a balance row."""
        values = {Balance.FIRST: NONE, Balance.HEAD: NONE, Balance.OWNER: slot} | values
        row = self.balances.add(values.get(column, 0) for column in Balance)
        self._reach(slot + 1)
        self._rows[slot] = row
        return row

    def add_bucket(self, row: int, grant: Grant, kind: ChangeKind, now_ms: int) -> int:
        """Grant a bucket, enter it, and return its row."""
        number = self.get(row, Balance.NUMBERS) + 1
        self.set(row, Balance.NUMBERS, number)
        slot, scope = self.get(row, Balance.OWNER), self.scopes.code(grant.scope)
        values = bucket_values(slot, number, grant, scope, now_ms)
        bucket = self.buckets.add(values[column] for column in Bucket)
        self.set(row, Balance.FIRST, self.buckets.link(self.get(row, Balance.FIRST), bucket))
        if total := values[Bucket.TOTAL]:
            self.enter(row, bucket, kind, total, now_ms)
        return bucket

    def drop_bucket(self, row: int, bucket: int) -> None:
        """Forget a bucket of which nothing is left to use or to settle."""
        self.set(row, Balance.FIRST, self.buckets.unlink(self.get(row, Balance.FIRST), bucket))
        self.buckets.free(bucket)

    def enter(self, row: int, bucket: int, kind: ChangeKind, amount_utok: int, now_ms: int) -> None:
        """Enter into the ledger what was just done to a bucket."""
        get = self.buckets.get
        rest_utok = get(bucket, Bucket.TOTAL) - get(bucket, Bucket.USED)
        whose = get(bucket, Bucket.NUMBER), get(bucket, Bucket.SOURCE)
        self.note_entry(row, whose, kind, (amount_utok, rest_utok), now_ms)

    def note_entry(
        self,
        row: int,
        whose: tuple[int, int],
        kind: ChangeKind,
        amounts_utok: tuple[int, int],
        now_ms: int,
    ) -> None:
        """Enter an amount and the rest behind it, of a bucket that is named by its number and source."""
        number = self.get(row, Balance.CHANGES) + 1
        self.set(row, Balance.CHANGES, number)
        slot, (name, source) = self.get(row, Balance.OWNER), whose
        self.changes.append(
            Change(slot, number, name, kind, *amounts_utok, now_ms, source, self._cause)
        )

    @contextmanager
    def caused(self, cause: Cause) -> Iterator[None]:
        """Name the cause of what is entered meanwhile."""
        outer, self._cause = self._cause, cause
        try:
            yield
        finally:
            self._cause = outer

    def reduce(
        self, row: int, bucket: int, kind: ChangeKind, amount_utok: int, now_ms: int
    ) -> None:
        """Take an unused amount out of a bucket for good, and enter it."""
        if amount_utok:
            self.buckets.change(bucket, Bucket.TOTAL, -amount_utok)
            self.enter(row, bucket, kind, -amount_utok, now_ms)

    def room(self, row: int) -> int:
        """Return how much may still be granted to an account, in µtok."""
        totals = (self.buckets.get(bucket, Bucket.TOTAL) for bucket in self.chain(row))
        return max(0, MOST_UTOK - sum(totals))

    def unpaid(self, rows: Int64s) -> Int64s:
        """Return how much of each account's usage no bucket paid, in µtok."""
        sums: Int64s = self.balances.matrix[rows][:, UNPAID].sum(axis=1)
        return sums

    def note_alarms(self, rows: Int64s) -> None:
        """Note those of these accounts of which somebody must know."""
        self.alarmed.update(rows[self.unpaid(rows) >= ALARM_UTOK].tolist())

    def note_burn(self, row: int, number: int, amount_utok: int) -> None:
        """Note what usage took from a bucket."""
        self.burns.singles.append((self.get(row, Balance.OWNER), number, amount_utok))

    def note_burns(self, slots: Int64s, numbers: Int64s, amounts_utok: Int64s) -> None:
        """Note what usage took from many buckets."""
        self.burns.note(slots, numbers, amounts_utok)

    def take(self) -> tuple[list[Change], Int64s]:
        """Return what was entered and, as rows of `Burns`, what was burnt since the last call."""
        taken = self.changes, self.burns.rows()
        self.changes, self.burns = [], Burns()
        return taken

    def take_late(self) -> Int64s:
        """Return what late usage burnt since the last call."""
        taken, self.late = self.late.rows(), Burns()
        return taken

    def adopt(self) -> None:
        """Find the accounts again when the tables were filled from a journal."""
        owners = self.balances.matrix[:, Balance.OWNER]
        used = np.flatnonzero(owners != FREE)
        self._reach(int(owners.max(initial=-1)) + 1)
        self._rows[owners[used]] = used
        self.note_alarms(used)
        for table in (
            self.holds,
            self.answers,
            self.limits,
            self.subscribers,
            self.told,
            self.settled,
        ):
            table.index()

    def _reach(self, count: int) -> None:
        if count > len(self._rows):
            grown = np.full(max(count, len(self._rows) * 3 // 2), NONE, np.int64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
