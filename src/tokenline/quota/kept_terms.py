"""Keep each distinct set of terms that accounts go by, so that no catalog of the moment changes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenline.quota.cells import Cell
from tokenline.quota.terms import GatewayTerms, HoldExpiry, Mode, Scope, Terms, limit_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# How many are kept before those are looked for that no account goes by any more.
MOST_KEPT = 256


class KeptTerms:
    """Hold terms under numbers from 1, none of them ever given to others.

    All of them are in one record of the journal; `changes` counts what was added or forgotten, so that
    it knows when to write them again.
    """

    def __init__(self) -> None:
        self.changes = 0
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

    def older_than(self, version: int) -> list[int]:
        """Return the numbers of terms from earlier versions of the catalog."""
        return [code for code, terms in self._terms.items() if terms.version < version]

    def to_json(self) -> str:
        """Return all of them as text, for the journal."""
        kept = [[code, asdict(terms)] for code, terms in self._terms.items()]
        return json.dumps({"newest": self._newest, "kept": kept})

    @classmethod
    def from_json(cls, text: str) -> KeptTerms:
        """Return what `to_json` wrote."""
        found, said = cls(), json.loads(text)
        for code, one in said["kept"]:
            found._put(code, _terms_of(one))
        found._newest = said["newest"]
        return found

    def _put(self, code: int, terms: Terms) -> None:
        self._terms[code], self._codes[terms] = terms, code
        self.changes += 1

    def _forget_all_but(self, used: Collection[int]) -> None:
        for code in self._terms.keys() - used:
            del self._codes[self._terms.pop(code)]
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
