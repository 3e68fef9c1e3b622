"""Keep the balances of one partition's accounts: a row an account, its buckets, its holds.

Everything that changes a balance goes through here or through the modules beside it (`cycle`,
`orders`, `holds`), one account at a time, at a moment the caller names. Nothing looks at a clock:
what is due by then is done first (`cycle.advance`), and the same calls at the same moments give the
same rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.calendar import MINUTE_MS, cycle_after
from tokenline.quota.account_dues import AccountDues
from tokenline.quota.answers import Answers
from tokenline.quota.balance import ALARM_UTOK, UNPAID, Balance, Status
from tokenline.quota.buckets import Bucket, Buckets, Scopes, bucket_values
from tokenline.quota.cells import AccountCells, Cell
from tokenline.quota.entries import NO_CAUSE, Burns, Cause, Change, ChangeKind
from tokenline.quota.hold_rows import Holds
from tokenline.quota.kept_terms import KeptTerms
from tokenline.quota.limits import Limits
from tokenline.quota.subscribers import Subscribers, Told
from tokenline.quota.table import FREE, NONE, Table
from tokenline.quota.terms import (
    NEVER_MS,
    NO_FREE_MODELS,
    THRESHOLDS_PERCENT,
    FreeModels,
    Grant,
    Terms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenline.quota.kept_terms import Begins

__all__ = ["ALARM_UTOK", "BOUNDLESS", "MOST_UTOK", "Balance", "Books", "Status"]

Int64s = npt.NDArray[np.int64]

BOUNDLESS = 1 << 62
# No account's buckets hold more together, and no session holds more beyond them: sums stay far from an int64's end.
MOST_UTOK = 10**18


class Books:
    """Hold the tables, and what was entered since the last `take`."""

    def __init__(
        self,
        cells: AccountCells,
        terms_of: Callable[[str, int], Terms | None],
        linger_ms: int,
        begins: Begins = lambda _plan, _version: NEVER_MS,
        *,
        free_models: Callable[[int], FreeModels] = lambda _: NO_FREE_MODELS,
    ) -> None:
        self.cells = cells
        # A bucket outlives its validity by this: usage of its time may still be reported.
        self.linger_ms = linger_ms
        self._terms_of = terms_of
        # What costs nothing at a moment.
        self.free_models = free_models
        self.balances = Table(len(Balance))
        self.buckets = Buckets()
        self.holds = Holds()
        self.answers = Answers()
        self.subscribers = Subscribers()
        self.limits = Limits(self.subscribers)
        self.told = Told()
        self.scopes = Scopes()
        self.plans: list[str] = []
        self.kept_terms = KeptTerms(begins)
        self.dues = AccountDues(self.balances, self.kept_terms)
        # Whose terms are others than what was told.
        self.retermed = set[int]()
        self.thresholds: list[tuple[int, ...]] = [THRESHOLDS_PERCENT]
        self.changes: list[Change] = []
        self.burns = Burns()
        # Rows of accounts that used so much unpaid that somebody must know.
        self.alarmed: set[int] = set()
        self._new_alarms: list[int] = []
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
            "moves": self.cells.moves,
        }

    @property
    def tables(self) -> tuple[Table, ...]:
        """The rows, in the order of their numbers in the journal."""
        return tuple(self.named_tables.values())

    @property
    def names(self) -> tuple[int, ...]:
        """How many plans, thresholds, scopes, limits and terms had a number: the journal has their names."""
        kept = len(self.plans), len(self.thresholds), self.scopes.changes
        return *kept, len(self.limits.specs.specs), self.kept_terms.changes

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

    def pending_plan(self, row: int) -> str:
        """Return the plan that comes with the next cycle, empty when the account stays on its own."""
        pending = self.get(row, Balance.PENDING)
        return self.plans[pending - 1] if pending else ""

    def plan_of(self, slot: int) -> str:
        """Return the name of an account's plan, empty when it has no balance."""
        row = self.row(slot)
        return "" if row == NONE else self.plan(row)

    def terms(self, row: int) -> Terms:
        """Return the terms that an account goes by."""
        return self.kept_terms[self.get(row, Balance.TERMS)]

    def terms_of(self, plan: str, at_ms: int) -> Terms | None:
        """Return the terms of a plan as the catalog in force at a moment has them; None where it has none."""
        return self._terms_of(plan, at_ms)

    def take_terms(self, row: int, terms: Terms) -> None:
        """Let an account go by these terms; where they differ, whoever admits its calls has to hear of it."""
        before = self.get(row, Balance.TERMS)
        code = self.kept_terms.code(terms, self._codes_used)
        self.set(row, Balance.TERMS, code)
        if before not in (0, code) and terms.differs(self.kept_terms[before]):
            self.retermed.add(self.get(row, Balance.OWNER))

    def take_retermed(self) -> frozenset[int]:
        """Return the slots whose terms are others than what was told, and forget them."""
        found = frozenset(self.retermed)
        self.retermed.clear()
        return found

    def _codes_used(self) -> list[int]:
        found: list[int] = np.unique(self.balances.matrix[:, Balance.TERMS]).tolist()
        return found

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
        found = set(rows[self.unpaid(rows) >= ALARM_UTOK].tolist()) - self.alarmed
        self.alarmed |= found
        self._new_alarms += [self.get(row, Balance.OWNER) for row in sorted(found)]

    def take_alarms(self) -> list[int]:
        """Return the slots of accounts noted since the last call, each once for as long as we live."""
        found, self._new_alarms = self._new_alarms, []
        return found

    def note_burn(self, row: int, number: int, amount_utok: int) -> None:
        """Note what usage took from a bucket."""
        self.burns.singles.append((self.get(row, Balance.OWNER), number, amount_utok))

    def note_burns(self, slots: Int64s, numbers: Int64s, amounts_utok: Int64s) -> None:
        """Note what usage took from many buckets."""
        self.burns.arrays.append(np.stack((slots, numbers, amounts_utok), axis=1))

    def take(self) -> tuple[list[Change], Int64s]:
        """Return what was entered and, as rows of `Burns`, what was burnt since the last call."""
        taken = self.changes, self.burns.rows()
        self.changes, self.burns = [], Burns()
        return taken

    def adopt(self) -> None:
        """Find the accounts again when the tables were filled from a journal."""
        owners = self.balances.matrix[:, Balance.OWNER]
        used = np.flatnonzero(owners != FREE)
        self._reach(int(owners.max(initial=-1)) + 1)
        self._rows[owners[used]] = used
        self.note_alarms(used)
        indexed = self.holds, self.answers, self.limits, self.subscribers, self.told
        for table in (*indexed, self.cells.moves):
            table.index()
        self.dues.note_everything(len(self.balances))

    def _reach(self, count: int) -> None:
        if count > len(self._rows):
            grown = np.full(max(count, len(self._rows) * 3 // 2), NONE, np.int64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
