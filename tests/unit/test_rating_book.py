"""Each moment has one version of the catalog, and what it was never changes."""

from __future__ import annotations

import pytest

from tests.strategies import DAY, MINUTE, NOON
from tokenline.errors import BadData
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import END_OF_TIME_MS, Catalog

START = NOON // MINUTE * MINUTE


def catalog(version, effective_ms=START, utok=1, plans=()):
    return Catalog.model_validate(
        {
            "version": version,
            "effective_ms": effective_ms,
            "time_zone": "UTC",
            "currency": "CNY",
            "unknown_model": "reject",
            "rates": [{"provider": "p", "model": "m", "utok": [utok] * 10}],
            "plans": {
                name: {"title": f"{name} {version}", "fee": "1", "tokens": 5, "mode": "strict"}
                for name in plans
            },
        }
    )


def book_of(*catalogs):
    book = CatalogBook()
    for one in catalogs:
        assert book.add(one)
    return book


def version_at(book, moment_ms):
    found = book.at(moment_ms)
    return found.version if found else 0


def test_a_version_is_in_force_until_the_next_begins():
    book = book_of(catalog(1), catalog(3, START + DAY))
    moments = (START - 1, START, START + DAY - 1, START + DAY, END_OF_TIME_MS - 1)
    assert [version_at(book, ms) for ms in moments] == [0, 1, 1, 3, 3]


@pytest.mark.parametrize("moment_ms", [0, -1, -(2**63), END_OF_TIME_MS, 2**63 - 1])
def test_moments_no_catalog_can_cover_have_none(moment_ms):
    assert book_of(catalog(1)).at(moment_ms) is None
    assert CatalogBook().at(moment_ms) is None


def priced(book, moment_ms, model="m"):
    found = book.rate_at("p", model, moment_ms)
    return (found.catalog.version, found.rate.utok[0]) if found else None


def backdated(version, effective_ms, since_ms, utok=7, model="late", **more):
    rate = {"provider": "p", "model": model, "utok": [utok] * 10, "applies_ms": since_ms} | more
    plain = catalog(version, effective_ms).model_dump()
    others = [one for one in plain["rates"] if one["model"] != model]
    return Catalog.model_validate(plain | {"rates": [*others, rate]})


def test_a_rate_that_was_missing_prices_the_past_from_the_moment_it_says():
    book = book_of(catalog(1), backdated(2, START + DAY, START + 5 * MINUTE))
    moments = (START - 1, START, START + 5 * MINUTE - 1, START + 5 * MINUTE, START + DAY)

    assert [priced(book, ms, "late") for ms in moments] == [None, None, None, (2, 7), (2, 7)]


def test_a_rate_that_was_in_force_is_never_changed_from_behind():
    book = book_of(catalog(1, utok=3), backdated(2, START + DAY, START, utok=9, model="*"))
    assert priced(book, START + MINUTE) == (1, 3)
    assert priced(book, START + MINUTE, "other") == (2, 9)
    # The first that priced the past decides; one that says so later changes nothing.
    assert book.add(backdated(3, START + 2 * DAY, START, utok=1, model="other"))
    assert priced(book, START + MINUTE, "other") == (2, 9)


def test_before_the_oldest_version_nothing_is_sold_and_nothing_has_a_price():
    assert priced(book_of(backdated(1, START, START - DAY)), START - MINUTE, "late") is None


def test_a_unit_that_had_no_price_may_get_one_for_the_past():
    units = {"units_utok": {"searches": 5}}
    second = backdated(2, START + DAY, START, model="m", **units)
    book = book_of(catalog(1, utok=3), second)
    assert book.unit_at("p", "m", "searches", START) == (5, 2)
    assert book.unit_at("p", "m", "sounds", START) is None
    assert priced(book, START) == (1, 3)


def test_of_versions_that_begin_together_the_newest_is_in_force():
    book = book_of(catalog(1), catalog(2, utok=5))
    assert version_at(book, START) == 2


def test_the_same_again_is_no_news():
    book = book_of(catalog(1), catalog(2))
    assert not book.add(catalog(2))
    assert not book.add(catalog(1))
    assert [one.version for one in book.versions] == [1, 2]


@pytest.mark.parametrize(
    ("late", "line"),
    [
        (catalog(4), "catalog version 4 is not greater than 5, the newest known"),
        (catalog(5, utok=9), "what is changed needs a new version"),
        (catalog(5, START + MINUTE), "catalog version 5 is not greater than 5"),
    ],
)
def test_a_version_that_does_not_follow_is_refused(late, line):
    book = book_of(catalog(5))
    with pytest.raises(BadData, match=line):
        book.add(late)
    assert book.versions == (catalog(5),)


def test_a_version_that_begins_before_others_withdraws_them():
    """One that begins in 2926 was the last one there could be."""
    book = book_of(catalog(1), catalog(2, START + DAY), catalog(3, START + 900 * DAY))
    assert book.add(catalog(4, START + 2 * DAY))
    assert [one.version for one in book.versions] == [1, 2, 4]
    assert version_at(book, START + 999 * DAY) == 4
    again = CatalogBook.from_json(book.to_json())
    assert again.versions == book.versions
    with pytest.raises(BadData, match="version 3 is not greater than 4"):
        book.add(catalog(3, START + 900 * DAY))


def test_what_prices_the_past_cannot_be_withdrawn():
    book = book_of(catalog(1), backdated(2, START + 2 * DAY, START, utok=1, model="other"))
    with pytest.raises(BadData, match="begins before version 2, which prices what came before it"):
        book.add(catalog(3, START + DAY))
    assert [one.version for one in book.versions] == [1, 2]


def test_what_is_no_longer_in_force_is_forgotten():
    book = book_of(catalog(1), catalog(2, START + DAY), catalog(3, START + 2 * DAY))
    for before_ms, left in (
        (START - 1, [1, 2, 3]),
        (START + DAY - 1, [1, 2, 3]),
        (START + DAY, [2, 3]),
        (START + 9 * DAY, [3]),
    ):
        book.prune(before_ms)
        assert [one.version for one in book.versions] == left
    assert book.at(START) is None
    assert version_at(book, START + 2 * DAY) == 3
    CatalogBook().prune(START)


def test_a_span_of_time_has_all_versions_that_hold_in_it():
    same = START + 2 * DAY
    book = book_of(catalog(1), catalog(2, START + DAY), catalog(3, same), catalog(4, same, utok=2))

    def versions(start_ms, end_ms):
        return [one.version for one in book.during(start_ms, end_ms)]

    assert versions(START, START + 1) == [1]
    assert versions(START - 1, START) == []
    assert versions(START - 1, START + 1) == [1]
    assert versions(START + DAY - 1, START + DAY) == [1]
    assert versions(START + DAY - 1, START + DAY + 1) == [1, 2]
    assert versions(START, same + 1) == [1, 2, 4]
    assert versions(same, same + 1) == [4]
    assert CatalogBook().during(START, same) == ()


def test_a_book_comes_back_from_json():
    book = book_of(catalog(1), catalog(2, START + DAY))
    again = CatalogBook.from_json(book.to_json())
    assert again.versions == book.versions
    assert again.to_json() == book.to_json()
    assert CatalogBook.from_json("[]").versions == ()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", "catalogs: not JSON"),
        ("{}", "catalogs: not a list"),
        ("[1]", "catalog: Input should be a valid dictionary"),
        (f"[{catalog(2).to_json()},{catalog(1).to_json()}]", "is not greater than 2"),
    ],
)
def test_what_is_no_book_is_bad_data(said, line):
    with pytest.raises(BadData, match=line):
        CatalogBook.from_json(said)
