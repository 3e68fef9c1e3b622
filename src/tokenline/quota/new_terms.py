"""Bring the terms of a new version of the catalog to accounts that run, when it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenline.quota.books import Balance, Status
from tokenline.quota.table import FREE, OWNER
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from tokenline.quota.books import Books


def bring_due(books: Books, plan: str, version: int, at_ms: int) -> None:
    """Note that a version of the catalog brings its terms of a plan to accounts that run.

    The journal has the catalog: rows are not written for this, a recovery notes it again.
    """
    if plan not in books.plans:
        return
    found = books.balances.matrix
    theirs = (found[:, Balance.PLAN] == books.plans.index(plan)) & (found[:, OWNER] != FREE)
    theirs &= found[:, Balance.STATUS] != Status.CLOSED
    theirs &= np.isin(found[:, Balance.TERMS], books.kept_terms.older_than(version))
    rows = np.flatnonzero(theirs)
    found[rows, Balance.DUE_AT] = np.minimum(found[rows, Balance.DUE_AT], at_ms)
    books.dues.note_all(rows, at_ms)


def first_due_ms(books: Books) -> int:
    """Return the first moment at which an account is due; it looks at all of them."""
    found = books.balances.matrix
    return int(found[found[:, OWNER] != FREE, Balance.DUE_AT].min(initial=NEVER_MS))
