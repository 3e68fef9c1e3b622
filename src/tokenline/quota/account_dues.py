"""Know when accounts are due: what they know themselves, and new terms that a catalog brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.balance import Balance, Status
from tokenline.quota.dues import UrgentDues
from tokenline.quota.table import FREE, NONE, OWNER
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from tokenline.quota.kept_terms import KeptTerms
    from tokenline.quota.table import Table

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class AccountDues(UrgentDues):
    """Find accounts that are due; those that have nothing left to use, or are cut by a limit, first."""

    def __init__(self, balances: Table, kept_terms: KeptTerms) -> None:
        super().__init__(self._due_in, self._is_waiting)
        self._balances = balances
        self._kept_terms = kept_terms

    def new_terms_at(self, row: int) -> int:
        """Return when a catalog brings new terms to an account within its cycle, NEVER_MS as far as is known."""
        closed = self._balances.get(row, Balance.STATUS) == Status.CLOSED
        code = self._balances.get(row, Balance.TERMS)
        return NEVER_MS if closed else int(self._kept_terms.dues[code])

    def at(self, row: int) -> int:
        """Return when an account is due."""
        due_ms = self._balances.get(row, Balance.DUE_AT)
        if self._kept_terms.first_due_ms == NEVER_MS:
            return due_ms
        return min(due_ms, self.new_terms_at(row))

    def of(self, rows: Int64s | slice) -> Int64s:
        """Return when each of these accounts is due."""
        found = self._balances.matrix
        dues: Int64s = found[rows, Balance.DUE_AT]
        if self._kept_terms.first_due_ms < NEVER_MS:
            theirs = self._kept_terms.dues[found[rows, Balance.TERMS]]
            closed = found[rows, Balance.STATUS] == Status.CLOSED
            dues = np.minimum(dues, np.where(closed, NEVER_MS, theirs))
        return dues

    def note_row(self, row: int) -> None:
        """Note when an account is due next."""
        self.note(row, self.at(row))

    def note_new_terms(self) -> None:
        """Note that there are other catalogs now, which may bring new terms to accounts that run."""
        self._kept_terms.look_again()
        self.note_everywhere(self._kept_terms.first_due_ms)

    def earliest_ms(self) -> int:
        """Return when the first account is due; it looks at all of them."""
        return int(self._due_in(0, len(self._balances)).min(initial=NEVER_MS))

    def _due_in(self, first: int, end: int) -> Int64s:
        rows = slice(first, end)
        nobodys = self._balances.matrix[rows, OWNER] == FREE
        dues: Int64s = np.where(nobodys, NEVER_MS, self.of(rows))
        return dues

    def _is_waiting(self, first: int, end: int) -> Bools:
        found = self._balances.matrix[first:end]
        waits: Bools = (found[:, Balance.HEAD] == NONE) & (found[:, Balance.STOPS] != 0)
        waits |= found[:, Balance.LIMIT_RESETS] != 0
        return waits
