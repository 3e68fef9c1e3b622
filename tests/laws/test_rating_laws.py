"""Rating is exact: as a slow model in fractions has it, however a chunk is cut."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import MINUTE, batch_of, cuts, event
from tokenline.event import TOKEN_KINDS
from tokenline.metering.judge import int64_column, token_matrix
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog
from tokenline.rating.diff import diff
from tokenline.rating.rate import UNITS_MOST_UTOK, rate
from tokenline.rating.rates import PLAIN_KIND
from tokenline.rating.tariff import charge_of, multipliers_at, worst_multipliers

law = settings(max_examples=150, deadline=None, derandomize=True)
# Berlin's clock goes back at 01:00 UTC, Kathmandu's is off the hour, Shanghai's never jumps.
JUMP = int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()) * 1000
ZONES = ("Europe/Berlin", "Asia/Kathmandu", "Asia/Shanghai", "America/Havana")
# Even millionths below 40, so that all of TIMES give a whole number of at most 100.
MULTIPLIERS = st.integers(0, 40 * 10**6 // 8).map(lambda n: Fraction(8 * n, 10**6))
TIMES = st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(3, 8), Fraction(5, 4), Fraction(2)])
NAMES = st.sampled_from(["a", "b"])
UNITS = ("web_search_count", "audio_ms")
UNIT_PRICES = st.integers(0, 10**9).map(lambda n: Fraction(8 * n, 10**6))


def decimal(value):
    micro = int(value * 10**6)
    return f"{micro // 10**6}.{micro % 10**6:06d}"


@st.composite
def rates(draw, **names):
    """Draw one rate as a file has it."""
    kinds = draw(st.dictionaries(st.sampled_from(TOKEN_KINDS), MULTIPLIERS.map(decimal)))
    for kind in ("input_tokens", "output_tokens"):
        kinds.setdefault(kind, draw(MULTIPLIERS.map(decimal)))
    edges = sorted(draw(st.sets(st.integers(0, 1439), max_size=6)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    if len(edges) > 1 and draw(st.booleans()):
        # The gaps in place of the spans: the last of them goes through midnight.
        spans = list(zip(edges[1::2], [*edges[2::2], edges[0]], strict=False))
    hours = [
        {"from": clock(start), "to": clock(end), "multiply": str(draw(TIMES))}
        for start, end in spans
        if start != end
    ]
    units = draw(st.dictionaries(st.sampled_from(UNITS), UNIT_PRICES.map(decimal)))
    return {**names, **kinds, "hours": hours, "other_units": units}


def clock(minute):
    return f"{minute // 60:02d}:{minute % 60:02d}"


@st.composite
def catalogs(draw, version=1, effective_ms=0):
    """Draw one catalog as a file has it, but for the time, which is in ms."""
    pairs = draw(st.sets(st.tuples(NAMES, st.sampled_from(["a", "b", "*"])), max_size=5))
    default = draw(rates()) if not pairs or draw(st.integers(0, 3)) == 3 else None

    def since():
        back = draw(st.one_of(st.none(), st.integers(1, 500)))
        return (
            {} if back is None or not effective_ms else {"applies_ms": effective_ms - back * MINUTE}
        )

    said = {
        "version": version,
        "effective_ms": effective_ms,
        "time_zone": draw(st.sampled_from(ZONES)),
        "currency": "CNY",
        "unknown_model": "default" if default else "reject",
        "rates": [
            draw(rates(provider=provider, model=model, **since())) for provider, model in pairs
        ],
    }
    return said | ({"default_rate": default} if default else {})


# Where versions begin, in minutes around the jump of the clocks; some begin together.
STARTS = st.lists(st.integers(-300, 300), min_size=1, max_size=4).map(sorted)
PLAIN = {
    "time_zone": "UTC",
    "currency": "CNY",
    "unknown_model": "default",
    "default_rate": {"input_tokens": 1, "output_tokens": 1},
}


@st.composite
def books(draw):
    """Draw some versions as files have them."""
    return [
        draw(catalogs(version=version, effective_ms=JUMP + start * MINUTE))
        for version, start in enumerate(draw(STARTS), start=1)
    ]


def plain_books(starts):
    """Return versions of which only the beginning matters."""
    return [
        {**PLAIN, "version": version, "effective_ms": JUMP + start * MINUTE}
        for version, start in enumerate(starts, start=1)
    ]


EVENTS = st.lists(
    st.tuples(
        NAMES,
        NAMES,
        st.one_of(
            st.integers(-400 * MINUTE, 400 * MINUTE),
            st.integers(-400, 400).map(lambda n: n * MINUTE),
            st.integers(-(10**10), 10**10),
        ),
        st.lists(st.sampled_from([0, 1, 7, 10**9]), min_size=10, max_size=10),
        st.dictionaries(st.sampled_from([*UNITS, "never_priced"]), st.sampled_from([0, 1, 10**9])),
    ),
    max_size=30,
)


def book_of(said):
    book = CatalogBook()
    for one in said:
        assert book.add(Catalog.model_validate(one))
    return book


def slow_charge(said, provider, model, counts, units, at_ms):
    """Return (charge, version) the obvious way, from what the files say."""
    begun = [one for one in said if one["effective_ms"] <= at_ms]
    if not begun:
        return None, 0
    in_force, later = begun[-1], said[len(begun) :]
    found = [(in_force, slow_rate(in_force, provider, model, lambda _: True))]
    found += [
        (one, slow_rate(one | {"default_rate": None}, provider, model, lambda rate: rate <= at_ms))
        for one in later
    ]
    found = [(catalog, one) for catalog, one in found if one is not None]
    if not found:
        return None, in_force["version"]
    catalog, first = found[0]
    charge = sum(
        count * slow_multiplier(first, kind) * slow_times(catalog, first, at_ms) * 10**6
        for kind, count in zip(TOKEN_KINDS, counts, strict=True)
    )
    versions = [catalog["version"]]
    for unit, count in units.items():
        pricing = [(catalog, one) for catalog, one in found if unit in one["other_units"]]
        if pricing:
            catalog, one = pricing[0]
            price = Fraction(one["other_units"][unit]) * slow_times(catalog, one, at_ms) * 10**6
            charge += count * price
            versions.append(catalog["version"])
    return charge, max(versions)


def slow_rate(catalog, provider, model, applies):
    """Return the rate of a model that applies by its `applies_ms`; in its own time every rate does."""
    named = {(one["provider"], one["model"]): one for one in catalog["rates"]}
    never = 10**15
    for name in ((provider, model), (provider, "*")):
        if name in named and applies(named[name].get("applies_ms", never)):
            return named[name]
    return catalog.get("default_rate")


def slow_times(catalog, rate, at_ms):
    local = datetime.fromtimestamp(at_ms // 1000, ZoneInfo(catalog["time_zone"])).strftime("%H:%M")
    for one in rate["hours"]:
        start, end = one["from"], one["to"]
        if start <= local < end or (start > end and (local >= start or local < end)):
            return Fraction(one["multiply"])
    return Fraction(1)


def slow_multiplier(found, kind):
    while kind not in found:
        kind = PLAIN_KIND[kind]
    return Fraction(found[kind])


def batch_and_numbers(events):
    batch = batch_of(
        [
            event(provider=provider, model=model, occurred_at=JUMP + ago, other_units=units)
            | dict(zip(TOKEN_KINDS, counts, strict=True))
            for provider, model, ago, counts, units in events
        ]
    )
    return batch, token_matrix(batch), int64_column(batch, "occurred_at")


@law
@given(books(), EVENTS)
def test_a_chunk_and_a_call_cost_what_the_slow_model_says(said, events):
    book = book_of(said)
    found = rate(book, *batch_and_numbers(events))
    for at, (provider, model, ago, counts, units) in enumerate(events):
        expected, version = slow_charge(said, provider, model, counts, units, JUMP + ago)
        assert charge_of(book, provider, model, tuple(counts), JUMP + ago, units) == expected
        tokens = slow_charge(said, provider, model, counts, {}, JUMP + ago)[0] or 0
        # Two units at the dearest are more than any charge that is believed.
        beside = min((expected or 0) - tokens, UNITS_MOST_UTOK)
        assert found.charge_utok[at] == tokens + beside
        assert found.version[at] == version
        assert found.known[at] == (expected is not None)


@law
@given(st.data(), books(), EVENTS.filter(bool), st.sampled_from([1, 9]))
def test_it_does_not_matter_how_a_chunk_is_cut(data, said, events, times):
    events *= times  # both below and above the size from which Arrow does the work
    book = book_of(said)
    batch, tokens, occurred_ms = batch_and_numbers(events)
    whole = rate(book, batch, tokens, occurred_ms)
    edges = data.draw(cuts(length=len(events)))
    parts = [
        rate(book, batch.slice(lo, hi - lo), tokens[lo:hi], occurred_ms[lo:hi])
        for lo, hi in pairwise(edges)
    ]
    for name in ("charge_utok", "version", "known"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(whole, name).tolist()


@law
@given(books(), EVENTS)
def test_a_book_costs_the_same_when_it_comes_back_from_json(said, events):
    book = book_of(said)
    again = CatalogBook.from_json(book.to_json())
    assert again.to_json() == book.to_json()
    assert again.versions == book.versions
    one, other = (rate(which, *batch_and_numbers(events)) for which in (book, again))
    assert one.charge_utok.tolist() == other.charge_utok.tolist()


@law
@given(STARTS.map(plain_books), st.integers(-400, 400))
def test_forgetting_changes_nothing_from_then_on(said, minute):
    book, pruned = book_of(said), book_of(said)
    pruned.prune(JUMP + minute * MINUTE)
    for ahead in range(0, 700, 7):
        at_ms = JUMP + (minute + ahead) * MINUTE
        assert pruned.at(at_ms) == book.at(at_ms)


@law
@given(STARTS.map(plain_books), st.integers(-400, 400), st.integers(1, 200))
def test_the_versions_of_a_span_are_those_of_its_minutes(said, start, minutes):
    book = book_of(said)
    met = [book.at(JUMP + (start + at) * MINUTE) for at in range(minutes)]
    during = book.during(JUMP + start * MINUTE, JUMP + (start + minutes) * MINUTE)
    assert [one.version for one in during] == sorted({one.version for one in met if one})


@law
@given(catalogs(), NAMES, NAMES, st.integers(-100 * MINUTE, 100 * MINUTE), st.integers(1, 60))
def test_no_call_within_a_grant_costs_more_than_it_was_sized_for(
    said, provider, model, ago, minutes
):
    book = book_of([said])
    start_ms, end_ms = JUMP + ago, JUMP + ago + minutes * MINUTE
    worst = worst_multipliers(
        Catalog.model_validate(said), provider, model, start_ms, end_ms - start_ms
    )
    moments = [start_ms, *range(start_ms, end_ms, MINUTE), end_ms - 1]
    rows = [multipliers_at(book, provider, model, at) for at in moments]
    if worst is None:
        assert set(rows) == {None}
        return
    met = [row for row in rows if row is not None]
    prompt = max(max(*row[:4], row[6], row[8]) for row in met)
    answer = max(max(*row[4:6], row[7], row[9]) for row in met)
    assert worst == (prompt, answer)


@law
@given(catalogs(), catalogs(version=2))
def test_two_catalogs_differ_exactly_when_something_is_said_to(old, new):
    one, other = Catalog.model_validate(old), Catalog.model_validate(new)
    assert diff(one, other)
    assert diff(one, Catalog.from_json(one.to_json())) == []
    same = Catalog.model_validate(new | {"version": 1})
    assert (diff(one, same) == []) == (one == same)
