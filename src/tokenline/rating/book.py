"""Keep the versions of the catalog and say which one is in force at a moment.

A version is in force from its `effective_ms` until that of the next. A newer version that begins before
others that are known withdraws them. What a moment costs must not change once it was charged: that a
version is published before it begins is judged in `succession`; here is no clock.

What the version in force does not price at all, a later one may: a rate with `applies_from` prices
from then on what had no price, a model or a unit that is no token. The first such version decides, so
what was priced once never changes. Before the oldest version nothing is sold, and nothing has a price.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenline.errors import BadData
from tokenline.rating.catalog import END_OF_TIME_MS, Catalog
from tokenline.rating.rates import Rate


class Priced(NamedTuple):
    """Hold the rate of a model at a moment, and the version that gives it."""

    catalog: Catalog
    rate: Rate


class CatalogBook:
    """Hold versions in their order."""

    def __init__(self) -> None:
        self._versions: list[Catalog] = []
        self._starts_ms: list[int] = []

    @property
    def versions(self) -> tuple[Catalog, ...]:
        """Return the versions known, oldest first."""
        return tuple(self._versions)

    def add(self, catalog: Catalog) -> bool:
        """Take a version in; False when this very one is known already.

        Raises:
            BadData: it is not newer than the newest, or withdraws one that prices what came before it.
        """
        if catalog in self._versions:
            return False
        if self._versions:
            _check_follows(self._versions[-1], catalog)
        kept = bisect_right(self._starts_ms, catalog.effective_ms)
        _check_withdrawn(self._versions[kept:], catalog)
        del self._versions[kept:], self._starts_ms[kept:]
        self._versions.append(catalog)
        self._starts_ms.append(catalog.effective_ms)
        return True

    def at(self, moment_ms: int) -> Catalog | None:
        """Return the version in force; None before the oldest one and at the end of all calendars."""
        after = bisect_right(self._starts_ms, moment_ms)
        return self._versions[after - 1] if after and moment_ms < END_OF_TIME_MS else None

    def rate_at(self, provider: str, model: str, moment_ms: int) -> Priced | None:
        """Return what prices a model at a moment; None where no version does."""
        return next(self._rates_at(provider, model, moment_ms), None)

    def unit_at(
        self, provider: str, model: str, unit: str, moment_ms: int
    ) -> tuple[int, int] | None:
        """Return µtok a unit that is no token, and the version that says so; None where none does."""
        for catalog, rate in self._rates_at(provider, model, moment_ms):
            utok = rate.unit_at(unit, catalog.minute_at(moment_ms))
            if utok is not None:
                return utok, catalog.version
        return None

    @property
    def backdates(self) -> bool:
        """Say whether any version prices what came before it."""
        return any(version.backdated for version in self._versions)

    @property
    def prices_units(self) -> bool:
        """Say whether any version prices units that are no tokens."""
        return any(version.prices_units for version in self._versions)

    def _rates_at(self, provider: str, model: str, moment_ms: int) -> Iterator[Priced]:
        """Yield the rates that may price a model at a moment, the one that decides first."""
        catalog = self.at(moment_ms)
        if catalog is None:
            return
        rate = catalog.rate_of(provider, model)
        if rate is not None:
            yield Priced(catalog, rate)
        for later in self._versions[bisect_right(self._starts_ms, moment_ms) :]:
            rate = later.backdated_rate(provider, model, moment_ms)
            if rate is not None:
                yield Priced(later, rate)

    def during(self, start_ms: int, end_ms: int) -> tuple[Catalog, ...]:
        """Return the versions in force somewhere in `[start_ms, end_ms)`, oldest first."""
        first = max(bisect_right(self._starts_ms, start_ms) - 1, 0)
        later = [one for one in self._versions[first:] if one.effective_ms < end_ms]
        # Of versions that begin at one moment only the newest is ever in force.
        return tuple(one for one in later if self.at(max(one.effective_ms, start_ms)) is one)

    def prune(self, before_ms: int) -> None:
        """Forget the versions that are no longer in force at `before_ms`."""
        first = max(bisect_right(self._starts_ms, before_ms) - 1, 0)
        del self._versions[:first], self._starts_ms[:first]

    def to_json(self) -> str:
        """Return all versions, oldest first; every number is an integer."""
        return f"[{','.join(one.to_json() for one in self._versions)}]"

    @classmethod
    def from_json(cls, text: str) -> CatalogBook:
        """Return what `to_json` gave.

        Raises:
            BadData: it is no list of catalogs, or they are not in order.
        """
        book = cls()
        for said in _list_of(text):
            book.add(Catalog.from_json(json.dumps(said)))
        return book


def _check_follows(newest: Catalog, catalog: Catalog) -> None:
    if catalog.version <= newest.version:
        raise BadData(
            f"catalog version {catalog.version} is not greater than {newest.version}, the newest "
            "known: what is changed needs a new version"
        )


def _check_withdrawn(withdrawn: Sequence[Catalog], catalog: Catalog) -> None:
    """Refuse to withdraw what has priced something already, though it is not in force yet."""
    priced = next((one.version for one in withdrawn if one.backdated), None)
    if priced is not None:
        raise BadData(
            f"catalog version {catalog.version} begins before version {priced}, which prices what came "
            "before it (applies_from) and so cannot be withdrawn"
        )


def _list_of(text: str) -> list[object]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"catalogs: not JSON: {error}") from error
    if not isinstance(said, list):
        raise BadData("catalogs: not a list")
    return said
