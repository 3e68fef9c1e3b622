"""Say what a token costs at most and what a call did cost, by the versions of the catalog known here."""

from __future__ import annotations

from typing import NamedTuple

from tokenline.rating.book import CatalogBook
from tokenline.rating.offers import Plan
from tokenline.rating.tariff import charge_of, dearest

CACHED_MS = 10_000


class Price(NamedTuple):
    """Hold µtok a token of prompt and of answer, the dearest there can be for a while."""

    prompt_utok: int
    answer_utok: int


FREE = Price(0, 0)


class Prices:
    """Look prices up; a price is worked out once in a while, not with each call."""

    def __init__(self, book: CatalogBook) -> None:
        self._book = book
        self._cached: dict[tuple[str, str, int], tuple[int, Price | None]] = {}

    def changed(self) -> None:
        """Forget what was worked out: the catalog has a new version."""
        self._cached.clear()

    def plan(self, name: str, now_ms: int) -> Plan | None:
        """Return a plan by the version in force; None where there is none of that name."""
        catalog = self._book.at(now_ms) if name else None
        return None if catalog is None else catalog.plans.get(name)

    def dearest(self, provider: str, model: str, ahead_ms: int, now_ms: int) -> Price | None:
        """Return the dearest price from now until `ahead_ms` later; None where the model has none.

        Before the first catalog everything is free, as charging has it.
        """
        key = (provider, model, ahead_ms)
        found = self._cached.get(key)
        if found is None or found[0] <= now_ms:
            until_ms = now_ms + ahead_ms + CACHED_MS
            found = now_ms + CACHED_MS, self._dearest(provider, model, now_ms, until_ms)
            self._cached[key] = found
        return found[1]

    def charge_utok(
        self, provider: str, model: str, counts: tuple[int, ...], occurred_ms: int
    ) -> int:
        """Return what a call costs, as charging will rate it; 0 where it has no price."""
        return charge_of(self._book, provider, model, counts, occurred_ms) or 0

    def _dearest(self, provider: str, model: str, now_ms: int, until_ms: int) -> Price | None:
        if not self._book.during(now_ms, until_ms):
            return FREE
        found = dearest(self._book, provider, model, now_ms, until_ms - now_ms)
        return None if found is None else Price(*found)
