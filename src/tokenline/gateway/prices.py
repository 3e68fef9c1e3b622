"""Say by which rules a call goes: its account's terms as charging told them, prices by the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from tokenline.errors import ChargingUnavailable
from tokenline.rating.book import CatalogBook
from tokenline.rating.offers import Mode
from tokenline.rating.tariff import NO_UNITS, charge_of, dearest
from tokenline.wire.plan_terms import PlanTerms

CACHED_MS = 10_000
# Callers name models as they like, known ones and others.
CACHED_MOST = 10_000


class Price(NamedTuple):
    """Hold µtok a token of prompt and of answer, the dearest there can be for a while."""

    prompt_utok: int
    answer_utok: int


FREE = Price(0, 0)


class Rules(NamedTuple):
    """Hold what a call goes by.

    Without a plan it is charged afterwards. Of a plan that says no mode, as decisions of an older line do
    not, it is held whole: charging knows what its account has, and grants what there is.
    """

    terms: PlanTerms
    mode: Mode
    abort: str
    price: Price


class Prices:
    """Look rules and prices up; they are worked out once in a while, not with each call."""

    def __init__(self, book: CatalogBook) -> None:
        self._book = book
        # Since and until when they are good, by terms and names of provider and model.
        self._cached: dict[tuple[PlanTerms, str, str], tuple[int, int, Rules | None]] = {}

    def changed(self) -> None:
        """Forget what was worked out: the catalog has a new version."""
        self._cached.clear()

    def rules(self, terms: PlanTerms, provider: str, model: str, now_ms: int) -> Rules | None:
        """Return the rules for a model by an account's terms, as of now; None where it has no price.

        The price is the dearest there can be as far ahead as the terms look. Before the first catalog
        everything is free, as charging has it, but for who is on a plan: there is a catalog then.

        Raises:
            ChargingUnavailable: there is a plan, but no catalog has come yet to tell what a call costs.
        """
        found = self._cached.get((terms, provider, model))
        # A clock that was ahead and is set right may not go on with what was good in that future.
        if found is None or not found[0] <= now_ms < found[1]:
            until_ms = self._unchanged_until_ms(now_ms)
            if len(self._cached) >= CACHED_MOST:
                self._cached.clear()
            found = now_ms, until_ms, self._rules(terms, provider, model, now_ms, until_ms)
            self._cached[terms, provider, model] = found
        return found[2]

    def charge_utok(
        self,
        provider: str,
        model: str,
        counts: tuple[int, ...],
        occurred_ms: int,
        units: Mapping[str, int] = NO_UNITS,
    ) -> int:
        """Return what a call costs, as charging will rate it; 0 where it has no price."""
        return charge_of(self._book, provider, model, counts, occurred_ms, units) or 0

    def _unchanged_until_ms(self, now_ms: int) -> int:
        """Return until when what is worked out now is good: a version that begins ends it."""
        end_ms = now_ms + CACHED_MS
        starts_ms = [version.effective_ms for version in self._book.during(now_ms, end_ms)]
        return min((start_ms for start_ms in starts_ms if start_ms > now_ms), default=end_ms)

    def _rules(
        self, terms: PlanTerms, provider: str, model: str, now_ms: int, until_ms: int
    ) -> Rules | None:
        from_ms = self._known_from_ms(terms.plan, now_ms) if terms.plan else now_ms
        end_ms = max(until_ms, from_ms) + terms.priced_ahead_ms
        price = self._dearest(provider, model, from_ms, end_ms)
        mode = terms.mode or ("strict" if terms.plan else "postpaid")
        return None if price is None else Rules(terms, cast("Mode", mode), terms.abort, price)

    def _known_from_ms(self, plan: str, now_ms: int) -> int:
        """Return now, or when the first version begins: before that nobody could be on a plan."""
        if not self._book.versions:
            raise ChargingUnavailable(f"no catalog has come yet to price calls on plan {plan!r} by")
        return max(now_ms, self._book.versions[0].effective_ms)

    def _dearest(self, provider: str, model: str, now_ms: int, until_ms: int) -> Price | None:
        if not self._book.during(now_ms, until_ms):
            return FREE
        found = dearest(self._book, provider, model, now_ms, until_ms - now_ms)
        return None if found is None else Price(*found)
