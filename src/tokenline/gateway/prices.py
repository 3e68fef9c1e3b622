"""Say by which rules a call goes and what it cost, by the versions of the catalog known here."""

from __future__ import annotations

from typing import NamedTuple

from tokenline.rating.book import CatalogBook
from tokenline.rating.offers import Mode, Plan
from tokenline.rating.tariff import charge_of, dearest

CACHED_MS = 10_000
NO_PLAN_AHEAD_MS = 120_000


class Price(NamedTuple):
    """Hold µtok a token of prompt and of answer, the dearest there can be for a while."""

    prompt_utok: int
    answer_utok: int


FREE = Price(0, 0)


class Rules(NamedTuple):
    """Hold what a call goes by; `plan` is None where none is known: then it is charged afterwards."""

    plan: Plan | None
    mode: Mode
    abort: str
    price: Price


class Prices:
    """Look rules and prices up; they are worked out once in a while, not with each call."""

    def __init__(self, book: CatalogBook) -> None:
        self._book = book
        # Until when they are good, by names of plan, provider and model.
        self._cached: dict[tuple[str, str, str], tuple[int, Rules | None]] = {}

    def changed(self) -> None:
        """Forget what was worked out: the catalog has a new version."""
        self._cached.clear()

    def rules(self, plan: str, provider: str, model: str, now_ms: int) -> Rules | None:
        """Return the rules of a plan for a model, as of now; None where the model has no price.

        The price is the dearest there can be as far ahead as the plan looks. Before the first catalog
        everything is free, as charging has it.
        """
        found = self._cached.get((plan, provider, model))
        if found is None or found[0] <= now_ms:
            until_ms = self._unchanged_until_ms(now_ms)
            found = until_ms, self._rules(plan, provider, model, now_ms, until_ms)
            self._cached[plan, provider, model] = found
        return found[1]

    def charge_utok(
        self, provider: str, model: str, counts: tuple[int, ...], occurred_ms: int
    ) -> int:
        """Return what a call costs, as charging will rate it; 0 where it has no price."""
        return charge_of(self._book, provider, model, counts, occurred_ms) or 0

    def _unchanged_until_ms(self, now_ms: int) -> int:
        """Return until when what is worked out now is good: a version that begins ends it."""
        end_ms = now_ms + CACHED_MS
        starts_ms = [version.effective_ms for version in self._book.during(now_ms, end_ms)]
        return min((start_ms for start_ms in starts_ms if start_ms > now_ms), default=end_ms)

    def _rules(
        self, name: str, provider: str, model: str, now_ms: int, until_ms: int
    ) -> Rules | None:
        catalog = self._book.at(now_ms) if name else None
        plan = None if catalog is None else catalog.plans.get(name)
        ahead_ms = NO_PLAN_AHEAD_MS if plan is None else plan.priced_ahead_s * 1000
        price = self._dearest(provider, model, now_ms, until_ms + ahead_ms)
        if price is None:
            return None
        if plan is None:
            return Rules(None, "postpaid", "charge_reported", price)
        return Rules(plan, plan.mode, plan.abort, price)

    def _dearest(self, provider: str, model: str, now_ms: int, until_ms: int) -> Price | None:
        if not self._book.during(now_ms, until_ms):
            return FREE
        found = dearest(self._book, provider, model, now_ms, until_ms - now_ms)
        return None if found is None else Price(*found)
