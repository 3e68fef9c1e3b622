"""A call costs what the catalog said when it occurred: one at a time, and a chunk at once."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from tests.strategies import DAY, HOUR, MINUTE, NOON, batch_of, event
from tokenline.event import TOKEN_KINDS
from tokenline.metering.judge import int64_column, token_matrix
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import END_OF_TIME_MS, Catalog
from tokenline.rating.rate import GRID_MAX, UNITS_MOST_UTOK, rate
from tokenline.rating.rates import minute_of_day
from tokenline.rating.tariff import charge_of, multipliers_at, worst_multipliers

START = NOON // HOUR * HOUR
NIGHT = [{"from": "22:00", "to": "06:00", "multiply": "0.5"}]


def one_rate(provider="p", model="m", input_tokens=1, output_tokens=3, **more):
    names = {"provider": provider, "model": model}
    return {**names, "input_tokens": input_tokens, "output_tokens": output_tokens, **more}


def catalog(*rates, version=1, effective_ms=START, time_zone="Asia/Shanghai", **more):
    return Catalog.model_validate(
        {
            "version": version,
            "effective_ms": effective_ms,
            "time_zone": time_zone,
            "currency": "CNY",
            "unknown_model": "default" if "default_rate" in more else "reject",
            "rates": list(rates or [one_rate()]),
            **more,
        }
    )


def book_of(*catalogs):
    book = CatalogBook()
    for one in catalogs:
        book.add(one)
    return book


def rated(book, events):
    batch = batch_of(events)
    return rate(book, batch, token_matrix(batch), int64_column(batch, "occurred_at"))


def told(found):
    return list(
        zip(found.charge_utok.tolist(), found.version.tolist(), found.known.tolist(), strict=True)
    )


def ms(text):
    return int(datetime.fromisoformat(text).timestamp()) * 1000


def test_each_kind_is_charged_at_its_own_multiplier():
    kinds = {kind: at for at, kind in enumerate(TOKEN_KINDS, start=1)}
    book = book_of(catalog(one_rate(**kinds)))
    for at, kind in enumerate(TOKEN_KINDS, start=1):
        said = event(input_tokens=0) | {kind: 1000}
        assert told(rated(book, [said])) == [(at * 10**9, 1, True)]
        counts = tuple(said[name] for name in TOKEN_KINDS)
        assert charge_of(book, "p", "m", counts, NOON) == at * 10**9


def test_units_that_are_no_tokens_cost_what_the_rate_says_and_nothing_else():
    book = book_of(catalog(one_rate(other_units={"searches": "500", "free": 0}, hours=NIGHT)))
    day, night = ms("2026-11-02T12:00:00+08:00"), ms("2026-11-02T23:00:00+08:00")
    told_by_day = {"searches": 2, "free": 9, "unheard_of": 10**9}
    events = [
        event(input_tokens=1, occurred_at=day, other_units=told_by_day),
        event(input_tokens=1, occurred_at=night, other_units={"searches": 2}),
        event(input_tokens=1, occurred_at=day),
    ]
    assert [charge for charge, _, _ in told(rated(book, events))] == [
        1_001_000_000,
        500_500_000,
        1_000_000,
    ]
    counts = tuple(events[0][kind] for kind in TOKEN_KINDS)
    assert charge_of(book, "p", "m", counts, day, told_by_day) == 1_001_000_000


def test_units_of_a_slice_are_rated_by_themselves():
    book = book_of(catalog(one_rate(other_units={"searches": 1})))
    batch = batch_of([event(input_tokens=0, other_units={"searches": n}) for n in range(6)])
    part = batch.slice(2, 3)
    found = rate(book, part, token_matrix(part), int64_column(part, "occurred_at"))
    assert (found.charge_utok // 10**6).tolist() == [2, 3, 4]


def test_a_charge_of_units_beyond_belief_is_bounded_and_never_wraps():
    book = book_of(catalog(one_rate(other_units={"a": 1_000_000, "b": 1_000_000})))
    units = {"a": 10**9, "b": 10**9}
    (found,) = rated(book, [event(input_tokens=10**9, other_units=units)]).charge_utok.tolist()
    assert found == UNITS_MOST_UTOK + 10**15


def test_a_chunk_tells_known_models_from_unknown_ones():
    book = book_of(catalog(one_rate(), one_rate(model="*", input_tokens=2)))
    names = [("p", "m"), ("p", "other"), ("q", "m"), ("p", "*"), ("p", "")]
    found = rated(book, [event(provider=provider, model=model) for provider, model in names])
    assert told(found) == [
        (10_000_000, 1, True),
        (20_000_000, 1, True),
        (0, 1, False),
        (20_000_000, 1, True),
        (20_000_000, 1, True),
    ]
    assert charge_of(book, "q", "m", (10,) * 10, NOON) is None


def test_an_unknown_model_has_the_default_rate_where_there_is_one():
    default = {"input_tokens": 7, "output_tokens": 7}
    book = book_of(catalog(default_rate=default))
    assert told(rated(book, [event(provider="x")])) == [(70_000_000, 1, True)]


def test_without_a_version_in_force_nothing_is_known():
    moments = [START - 1, -(2**63), END_OF_TIME_MS, 2**63 - 1]
    for book in (book_of(), book_of(catalog())):
        found = rated(book, [event(occurred_at=at) for at in moments])
        assert told(found) == [(0, 0, False)] * 4
        assert told(rated(book, [event(occurred_at=moments[0])])) == [(0, 0, False)]
        assert multipliers_at(book, "p", "m", moments[0]) is None
    mixed = rated(book_of(catalog()), [event(occurred_at=at) for at in (*moments, START)])
    assert mixed.known.tolist() == [False] * 4 + [True]


def test_an_empty_chunk_costs_nothing():
    found = rated(book_of(catalog()), [])
    assert told(found) == []
    assert found.charge_utok.dtype == found.version.dtype == np.int64
    assert found.known.dtype == np.bool_


def test_each_event_is_rated_by_the_version_in_force_when_it_occurred():
    book = book_of(
        catalog(),
        catalog(one_rate(input_tokens=2), version=2, effective_ms=START + MINUTE),
        catalog(one_rate(model="new"), version=3, effective_ms=START + DAY),
    )
    ago = [START + DAY, START + MINUTE, START + MINUTE - 1, START, START + DAY - 1]
    assert told(rated(book, [event(occurred_at=at) for at in ago])) == [
        (0, 3, False),
        (20_000_000, 2, True),
        (10_000_000, 1, True),
        (10_000_000, 1, True),
        (20_000_000, 2, True),
    ]


def test_hours_hold_by_the_catalogs_own_clock():
    book = book_of(catalog(one_rate(hours=NIGHT), effective_ms=0))
    moments = {
        "2026-11-03T21:59:59+08:00": 10,
        "2026-11-03T22:00:00+08:00": 5,
        "2026-11-04T05:59:59+08:00": 5,
        "2026-11-04T06:00:00+08:00": 10,
    }
    found = rated(book, [event(occurred_at=ms(text)) for text in moments])
    assert found.charge_utok.tolist() == [n * 10**6 for n in moments.values()]


@pytest.mark.parametrize(
    ("moment", "halved"),
    [
        # Forward: 01:59 is followed by 03:00, so what begins at 02:30 begins then.
        ("2026-03-29T00:59:00+00:00", False),
        ("2026-03-29T01:00:00+00:00", True),
        ("2026-03-29T01:29:00+00:00", True),
        ("2026-03-29T01:30:00+00:00", False),
        # Back: 02:30 to 03:30 comes, goes at 03:00 for half an hour, and comes again.
        ("2026-10-25T00:29:00+00:00", False),
        ("2026-10-25T00:30:00+00:00", True),
        ("2026-10-25T00:59:00+00:00", True),
        ("2026-10-25T01:00:00+00:00", False),
        ("2026-10-25T01:30:00+00:00", True),
        ("2026-10-25T02:29:00+00:00", True),
        ("2026-10-25T02:30:00+00:00", False),
    ],
)
def test_hours_follow_the_clock_on_the_wall_when_it_jumps(moment, halved):
    hours = [{"from": "02:30", "to": "03:30", "multiply": "0.5"}]
    book = book_of(catalog(one_rate(hours=hours), time_zone="Europe/Berlin", effective_ms=0))
    cost = 5_000_000 if halved else 10_000_000
    said = event(occurred_at=ms(moment))
    assert told(rated(book, [said])) == [(cost, 1, True)]
    assert charge_of(book, "p", "m", tuple(said[kind] for kind in TOKEN_KINDS), ms(moment)) == cost


def test_a_minute_of_the_day_is_whole_in_zones_off_the_hour():
    at = ms("2026-05-01T00:10:00+00:00") // MINUTE
    assert [minute_of_day(zone, at) for zone in ("UTC", "Asia/Kathmandu")] == [10, 5 * 60 + 55]


@pytest.mark.parametrize("count", [1, 127, 128, 3000])
@pytest.mark.parametrize("models", [1, 20, GRID_MAX + 5])
def test_a_chunk_of_any_size_and_any_number_of_models_is_rated_alike(count, models):
    rates = [
        one_rate(provider=f"p{i % 3}", model=f"m{i}", input_tokens=i % 90, hours=NIGHT)
        for i in range(models)
    ]
    book = book_of(catalog(*rates, effective_ms=0))
    events = [
        event(
            provider=f"p{i * 7 % 4}",
            model=f"m{i * 7 % (models + 1)}",
            occurred_at=NOON + i * 13 * MINUTE,
            output_tokens=i,
        )
        for i in range(count)
    ]
    expected = [
        charge_of(
            book,
            said["provider"],
            said["model"],
            tuple(said[kind] for kind in TOKEN_KINDS),
            said["occurred_at"],
        )
        for said in events
    ]
    found = rated(book, events)
    assert found.charge_utok.tolist() == [charge or 0 for charge in expected]
    assert found.known.tolist() == [charge is not None for charge in expected]


def test_a_slice_of_a_batch_is_rated_by_its_own_rows():
    book = book_of(catalog(one_rate(), one_rate(model="n", input_tokens=5)))
    batch = batch_of([event(model=name) for name in "mn" * 300]).slice(101, 400)
    found = rate(book, batch, token_matrix(batch), int64_column(batch, "occurred_at"))
    assert found.charge_utok.tolist() == [50_000_000, 10_000_000] * 200


def test_the_largest_event_there_may_be_does_not_overflow():
    hundred = dict.fromkeys(TOKEN_KINDS, 100)
    book = book_of(catalog(one_rate(**hundred)))
    said = event(**dict.fromkeys(TOKEN_KINDS, 10**9))
    assert rated(book, [said]).charge_utok.tolist() == [10**18]


def test_the_dearest_kinds_size_a_grant_sound_and_images_too():
    rates = [one_rate(cache_write_1h_tokens=2, reasoning_tokens=5)]
    assert worst_multipliers(catalog(*rates), "p", "m", START, 0) == (2_000_000, 5_000_000)
    rates = [one_rate(audio_input_tokens=50, image_output_tokens=70)]
    assert worst_multipliers(catalog(*rates), "p", "m", START, 0) == (50_000_000, 70_000_000)
    assert worst_multipliers(catalog(*rates), "q", "m", START, MINUTE) is None


@pytest.mark.parametrize(
    ("at", "validity_ms", "dear"),
    [
        ("05:58:00", 0, False),
        ("05:58:30", 60_000, False),
        ("05:59:30", 30_000, False),
        ("05:59:30", 30_001, True),
        ("05:59:59", 60_000, True),
        ("06:00:00", 60_000, True),
        ("21:59:59", 60_000, True),
        ("22:00:00", 60_000, False),
        ("22:00:00", 8 * HOUR, False),
        ("22:00:00", 8 * HOUR + 1, True),
    ],
)
def test_a_grant_over_a_change_of_tariff_is_sized_at_the_dearer_rate(at, validity_ms, dear):
    found = worst_multipliers(
        catalog(one_rate(hours=NIGHT)), "p", "m", ms(f"2026-11-03T{at}+08:00"), validity_ms
    )
    assert found == ((1_000_000, 3_000_000) if dear else (500_000, 1_500_000))
