"""Keep each distinct set of terms that accounts go by, so that no catalog of the moment changes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenline.quota.cells import Cell
from tokenline.quota.terms import (
    NEVER_MS,
    GatewayTerms,
    HoldExpiry,
    Mode,
    Scope,
    Terms,
    limit_spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    # Says of a plan when a version of the catalog behind one brings its terms to accounts that run.
    Begins = Callable[[str, int], int]

Int64s = npt.NDArray[np.int64]

# How many are kept before those are looked for that no account goes by any more.
MOST_KEPT = 256


class KeptTerms:
    """Hold terms under numbers from 1, none of them ever given to others.

    All of them are in one record of the journal; `changes` counts what was added or forgotten, so that
    it knows when to write them again. `dues` says by number when a catalog brings new terms to who goes
    by these, and `first_due_ms` when the first of them does: catalogs say so, no journal.
    """

    def __init__(self, begins: Begins = lambda _plan, _version: NEVER_MS) -> None:
        self.changes = 0
        self.dues: Int64s = np.full(1, NEVER_MS, np.int64)
        self.first_due_ms = NEVER_MS
        self._begins = begins
        self._terms: dict[int, Terms] = {}
        self._codes: dict[Terms, int] = {}
        self._newest = 0
        self._most = MOST_KEPT

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._terms)

    def __getitem__(self, code: int) -> Terms:
        return self._terms[code]

    def code(self, terms: Terms, codes_used: Callable[[], Collection[int]]) -> int:
        """Return the number of terms, remembering new ones; `codes_used` tells which numbers accounts have."""
        if terms not in self._codes:
            if len(self._terms) >= self._most:
                self._forget_all_but(codes_used())
            self._newest += 1
            self._put(self._newest, terms)
        return self._codes[terms]

    def look_again(self) -> None:
        """Ask again when catalogs bring new terms: there are others now."""
        self.dues[:] = NEVER_MS
        for code, terms in self._terms.items():
            self.dues[code] = self._begins(terms.plan, terms.version)
        self.first_due_ms = int(self.dues.min())

    def to_json(self) -> str:
        """Return all of them as text, for the journal."""
        kept = [[code, asdict(terms)] for code, terms in self._terms.items()]
        return json.dumps({"newest": self._newest, "kept": kept})

    def load(self, text: str) -> None:
        """Take in what `to_json` wrote."""
        said = json.loads(text)
        for code, one in said["kept"]:
            self._put(code, _terms_of(one))
        self._newest = said["newest"]

    def _put(self, code: int, terms: Terms) -> None:
        self._terms[code], self._codes[terms] = terms, code
        self.changes += 1
        if code >= len(self.dues):
            more = np.full(max(code + 1 - len(self.dues), len(self.dues)), NEVER_MS, np.int64)
            self.dues = np.concatenate((self.dues, more))
        self.dues[code] = self._begins(terms.plan, terms.version)
        self.first_due_ms = min(self.first_due_ms, self.dues.item(code))

    def _forget_all_but(self, used: Collection[int]) -> None:
        for code in self._terms.keys() - used:
            del self._codes[self._terms.pop(code)]
            self.dues[code] = NEVER_MS
            self.changes += 1
        self._most = max(MOST_KEPT, 2 * len(self._terms))


def _terms_of(said: dict[str, Any]) -> Terms:
    kinds = {
        "mode": Mode(said["mode"]),
        "hold_expiry": HoldExpiry(said["hold_expiry"]),
        "scope": Scope(**{name: tuple(names) for name, names in said["scope"].items()}),
        "gateway": GatewayTerms(**said["gateway"]),
        "ceilings": tuple((Cell(cell), ceiling) for cell, ceiling in said["ceilings"]),
        "thresholds": tuple(said["thresholds"]),
        "limits": tuple((limit_spec(spec), ceiling) for spec, ceiling in said["limits"]),
    }
    return Terms(**said | kinds)
