"""Rate one call exactly, with nothing but Python: for gateways, statements and tests.

`rate` does the same for a chunk at once; a law holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tokenline.event import TOKEN_KINDS
from tokenline.rating.book import CatalogBook, Priced
from tokenline.rating.catalog import Catalog
from tokenline.rating.rates import MINUTE_MS, Rate

PROMPT_KINDS = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("audio_input_tokens", "image_input_tokens"),
)
ANSWER_KINDS = (
    *("output_tokens", "reasoning_tokens"),
    *("audio_output_tokens", "image_output_tokens"),
)
NO_UNITS: Mapping[str, int] = MappingProxyType({})
_PROMPT = tuple(TOKEN_KINDS.index(kind) for kind in PROMPT_KINDS)
_ANSWER = tuple(TOKEN_KINDS.index(kind) for kind in ANSWER_KINDS)


def multipliers_at(
    book: CatalogBook, provider: str, model: str, occurred_ms: int
) -> tuple[int, ...] | None:
    """Return µtok a token of each kind, in the order of TOKEN_KINDS; None where there is no rate."""
    found = book.rate_at(provider, model, occurred_ms)
    return None if found is None else found.rate.row_at(found.catalog.minute_at(occurred_ms))


def charge_of(
    book: CatalogBook,
    provider: str,
    model: str,
    counts: tuple[int, ...],
    occurred_ms: int,
    units: Mapping[str, int] = NO_UNITS,
) -> int | None:
    """Return what a call costs in µtok; None where no version is in force or the model has no rate.

    `counts` are in the order of TOKEN_KINDS; `units` are those that are no tokens, by name. A unit
    without a price costs nothing.
    """
    found = charged_by(book, provider, model, counts, occurred_ms, units)
    return None if found is None else found[0]


def charged_by(
    book: CatalogBook,
    provider: str,
    model: str,
    counts: tuple[int, ...],
    occurred_ms: int,
    units: Mapping[str, int] = NO_UNITS,
) -> tuple[int, int] | None:
    """Return the same and the newest version that priced any of it."""
    found = book.rate_at(provider, model, occurred_ms)
    if found is None:
        return None
    row, version = found.rate.row_at(found.catalog.minute_at(occurred_ms)), found.catalog.version
    charge = sum(count * utok for count, utok in zip(counts, row, strict=True))
    for unit, count in units.items():
        price = book.unit_at(provider, model, unit, occurred_ms)
        if price is not None:
            charge, version = charge + count * price[0], max(version, price[1])
    return charge, version


def worst_multipliers(
    catalog: Catalog, provider: str, model: str, at_ms: int, validity_ms: int
) -> tuple[int, int] | None:
    """Return the most that a prompt token and an answer token can cost, in µtok; None without a rate.

    It is the dearest kind at any moment of `[at_ms, at_ms + validity_ms)`, sound and images too: nobody
    knows before the call what it will answer with. A grant over a change of tariff is sized at the
    dearer rate (RFC 8506, 5.1.1). Time goes by minutes, so the validity should be at most some hours.
    For a change of version see `dearest`.
    """
    found = catalog.rate_of(provider, model)
    return None if found is None else _worst(Priced(catalog, found), at_ms, validity_ms)


def _worst(priced: Priced, at_ms: int, validity_ms: int) -> tuple[int, int]:
    rows = _rows_during(priced.catalog, priced.rate, at_ms, at_ms + max(validity_ms, 1))
    return (
        max(row[kind] for row in rows for kind in _PROMPT),
        max(row[kind] for row in rows for kind in _ANSWER),
    )


def dearest(
    book: CatalogBook, provider: str, model: str, at_ms: int, ahead_ms: int
) -> tuple[int, int] | None:
    """Return the same over all versions in force in `[at_ms, at_ms + ahead_ms)`.

    None where there is no version, or the model has no rate while one of them is in force.
    """
    versions = book.during(at_ms, at_ms + ahead_ms)
    starts_ms = [max(one.effective_ms, at_ms) for one in versions]
    found = [book.rate_at(provider, model, start_ms) for start_ms in starts_ms]
    prices = [_worst(one, at_ms, ahead_ms) for one in found if one is not None]
    if not prices or len(prices) < len(found):
        return None
    return max(price[0] for price in prices), max(price[1] for price in prices)


def _rows_during(
    catalog: Catalog, found: Rate, start_ms: int, end_ms: int
) -> list[tuple[int, ...]]:
    if not found.hours:
        return [found.utok]
    minutes = range(start_ms // MINUTE_MS, -(-end_ms // MINUTE_MS))
    times = {catalog.minute_at(minute * MINUTE_MS) for minute in minutes}
    return [found.row_at(time) for time in times]
