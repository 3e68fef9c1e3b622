"""Rate a chunk of events at once; workers only. `tariff.charge_of` says what it comes to.

Within a period of the day no rate of a version changes, so there is a table for each (version,
period), a row a rate. A chunk nearly always lies in one of them; else each part finds its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenline.event import TOKEN_KINDS
from tokenline.metering.identity import FEW_ROWS
from tokenline.metering.judge import int64s
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import NO_RATE, Catalog
from tokenline.rating.exact import UTOK
from tokenline.rating.rates import MINUTE_MS

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Where = slice | Int64s

GRID_MAX = 1024  # combinations of provider and model that are looked up though few may occur
EVERYTHING = slice(None)
# With what tokens cost it is still an int64, and far above what any event may cost.
UNITS_MOST_UTOK = 4 * 10**18


@dataclass(frozen=True, slots=True)
class Rated:
    """Hold for each event its charge in µtok, the version that priced it, and whether it is known.

    An event is not known, and its charge is 0, where no version was in force (then the version is 0) or
    the model has no rate. A later version may have priced it (see `book`).
    """

    charge_utok: Int64s
    version: Int64s
    known: Bools


@dataclass(frozen=True, slots=True)
class _Models:
    """Hold the distinct (provider, model) of a chunk, and for each event which one it is."""

    pairs: list[tuple[str, str]]
    codes: Int64s


def rate(book: CatalogBook, batch: pa.RecordBatch, tokens: Int64s, occurred_ms: Int64s) -> Rated:
    """Return what each event costs by the version and the hour in force when it occurred.

    `tokens` is the `token_matrix` of the batch. An int64 holds every charge of a judged event: ten
    kinds of at most 10^9 tokens (max_tokens_per_event) at 10^8 µtok (MULTIPLIER_MAX) come to
    10^18, a ninth of what it can. What other units cost is added up to UNITS_MOST_UTOK, above which no
    charge is believed. The charge of an event that `judge` refuses may be anything.
    """
    rated = Rated(
        charge_utok=np.zeros(len(batch), np.int64),
        version=np.zeros(len(batch), np.int64),
        known=np.zeros(len(batch), np.bool_),
    )
    if not len(batch):
        return rated
    models = _models_of(batch.column("provider"), batch.column("model"))
    for (catalog, period), where in _parts(book, occurred_ms):
        _fill(rated, where, catalog, period, models, tokens)
    if book.backdates:
        _fill_unknown(rated, book, models, tokens, occurred_ms)
    if book.prices_units:
        _add_units(rated, book, models, batch.column("other_units"), occurred_ms)
    return rated


def _fill(
    rated: Rated,
    where: Where,
    catalog: Catalog,
    period: int,
    models: _Models,
    tokens: Int64s,
) -> None:
    """Rate the events of one part, all by one table."""
    slots = np.array([catalog.slot_of(*pair) for pair in models.pairs], np.int64)
    codes = models.codes[where]
    rows = _table(catalog, period).take(slots, axis=1).take(codes, axis=1)
    # Columns of `tokens` lie in one piece: taken so, this is twice as quick as row by row.
    rated.charge_utok[where] = np.einsum("ke,ke->e", tokens[where].T, rows)
    rated.version[where] = catalog.version
    rated.known[where] = (slots != NO_RATE)[codes]


def _fill_unknown(
    rated: Rated, book: CatalogBook, models: _Models, tokens: Int64s, occurred_ms: Int64s
) -> None:
    """Rate what the version in force does not price by the later one that does, if there is one."""
    at = np.flatnonzero((rated.version > 0) & ~rated.known)
    met, alike = np.unique(
        np.stack((models.codes[at], occurred_ms[at] // MINUTE_MS), 1), axis=0, return_inverse=True
    )
    for number, (code, minute) in enumerate(met.tolist()):
        provider, model = models.pairs[code]
        found = book.rate_at(provider, model, minute * MINUTE_MS)
        if found is not None:
            rows = at[alike.ravel() == number]
            row = found.rate.row_at(found.catalog.minute_at(minute * MINUTE_MS))
            rated.charge_utok[rows] = tokens[rows] @ np.array(row, np.int64)
            rated.version[rows] = found.catalog.version
            rated.known[rows] = True


def _add_units(
    rated: Rated, book: CatalogBook, models: _Models, units: pa.MapArray, occurred_ms: Int64s
) -> None:
    """Add what units cost that are no tokens, where a version prices them."""
    starts = int64s(units.offsets.cast(pa.int64()))
    counts = np.diff(starts)
    if not counts.any():
        return
    first, end = int(starts[0]), int(starts[-1])
    events = np.repeat(np.arange(len(counts)), counts)
    names = units.keys[first:end].dictionary_encode()
    met, alike = np.unique(
        np.stack((models.codes[events], occurred_ms[events] // MINUTE_MS, _indices(names)), 1),
        axis=0,
        return_inverse=True,
    )
    said = names.dictionary.to_pylist()
    found = []
    for code, minute, name in met.tolist():
        provider, model = models.pairs[code]
        found.append(book.unit_at(provider, model, said[name], minute * MINUTE_MS) or (0, 0))
    prices = np.array(found, np.int64)[alike.ravel()]
    cost = _costs(int64s(units.items[first:end]), prices[:, 0], events, len(counts))
    rated.charge_utok[rated.known] += cost[rated.known]
    newest = np.zeros(len(counts), np.int64)
    np.maximum.at(newest, events, prices[:, 1])
    rated.version[rated.known] = np.maximum(rated.version, newest)[rated.known]


def _costs(amounts: Int64s, prices: Int64s, events: Int64s, count: int) -> Int64s:
    """Return the sum of amount times price of each event, at most UNITS_MOST_UTOK."""
    # In standard tokens, rounded up: where that is small, no sum of µtok wraps.
    most = UNITS_MOST_UTOK // UTOK
    roughly, costs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(roughly, events, np.minimum(np.clip(amounts, 0, 2**31) * (prices // UTOK + 1), most))
    plain = (roughly < most)[events]
    np.add.at(costs, events[plain], amounts[plain] * prices[plain])
    for event in np.flatnonzero(roughly >= most).tolist():
        mine = slice(*np.searchsorted(events, (event, event + 1)))
        pairs = zip(amounts[mine].tolist(), prices[mine].tolist(), strict=True)
        cost = sum(amount * price for amount, price in pairs)
        costs[event] = min(max(cost, 0), UNITS_MOST_UTOK)
    return costs


@lru_cache(maxsize=256)
def _table(catalog: Catalog, period: int) -> Int64s:
    """Return a row a kind and a column a slot; the last column, where NO_RATE points, is zero."""
    minute = catalog.period_start(period)
    rows = [one.row_at(minute) for one in catalog.rates_by_slot]
    return np.array([*rows, (0,) * len(TOKEN_KINDS)], np.int64).T.copy()


def _parts(book: CatalogBook, occurred_ms: Int64s) -> Iterator[tuple[tuple[Catalog, int], Where]]:
    """Yield each version and period that is met, and which events lie in it; none lies in two."""
    first_ms, last_ms = int(occurred_ms.min()), int(occurred_ms.max())
    first, last = book.at(first_ms), book.at(last_ms)
    one_minute = first_ms // MINUTE_MS == last_ms // MINUTE_MS
    if first is not None and first is last and (one_minute or not first.cuts):
        yield (first, first.period_at(first_ms)), EVERYTHING
        return
    minutes, codes = np.unique(occurred_ms // MINUTE_MS, return_inverse=True)
    numbers: dict[tuple[Catalog, int] | None, int] = {}
    met = [numbers.setdefault(_in_force(book, at), len(numbers)) for at in minutes.tolist()]
    parts = np.array(met, np.int64)[codes]
    for table, number in numbers.items():
        if table is not None:
            yield table, EVERYTHING if len(numbers) == 1 else np.flatnonzero(parts == number)


def _in_force(book: CatalogBook, minute: int) -> tuple[Catalog, int] | None:
    catalog = book.at(minute * MINUTE_MS)
    return None if catalog is None else (catalog, catalog.period_at(minute * MINUTE_MS))


def _models_of(providers: pa.Array, models: pa.Array) -> _Models:
    if len(models) < FEW_ROWS:
        return _few_models(zip(providers.to_pylist(), models.to_pylist(), strict=True))
    providers, models = providers.dictionary_encode(), models.dictionary_encode()
    width, height = len(models.dictionary), len(providers.dictionary)
    codes = _indices(providers) * width + _indices(models)
    met = range(width * height)
    if len(met) > GRID_MAX:
        distinct, codes = np.unique(codes, return_inverse=True)
        met = distinct.tolist()
    firsts, seconds = providers.dictionary.to_pylist(), models.dictionary.to_pylist()
    return _Models([(firsts[code // width], seconds[code % width]) for code in met], codes)


def _few_models(said: Iterable[tuple[str, str]]) -> _Models:
    numbers: dict[tuple[str, str], int] = {}
    codes = [numbers.setdefault(pair, len(numbers)) for pair in said]
    return _Models(list(numbers), np.array(codes, np.int64))


def _indices(encoded: pa.DictionaryArray) -> Int64s:
    return int64s(encoded.indices.cast(pa.int64()))
