"""Number the limits there are, so that a row can name one."""

from __future__ import annotations

import json
from dataclasses import asdict

from tokenline.quota.terms import LimitSpec, limit_spec


class Specs:
    """Keep each distinct limit once, under a small number from 1."""

    def __init__(self) -> None:
        self.specs: list[LimitSpec] = []
        self._codes: dict[LimitSpec, int] = {}
        self._firsts: dict[tuple[str, str], int] = {}

    def __getitem__(self, code: int) -> LimitSpec:
        return self.specs[code - 1]

    def code(self, spec: LimitSpec) -> int:
        """Return the number of a limit, remembering a new one."""
        if spec not in self._codes:
            self.specs.append(spec)
            self._codes[spec] = len(self.specs)
            self._firsts.setdefault(spec.identity, len(self.specs))
        return self._codes[spec]

    def first(self, code: int) -> int:
        """Return the number under which a limit was known first, whatever models were in its group then."""
        return self._firsts[self[code].identity]

    def to_json(self) -> str:
        """Return all of them as text, for the journal."""
        return json.dumps([asdict(spec) for spec in self.specs])

    @classmethod
    def from_json(cls, text: str) -> Specs:
        """Return what `to_json` wrote."""
        found = cls()
        for one in json.loads(text):
            found.code(limit_spec(one))
        return found
