"""Beyond a rate bad records share letters; each is in exactly one, and no group takes the room of another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.letters import Letters
from streams.records import Producers
from tests.strategies import MINUTE, NOON
from tokenline.charging.floods import (
    GROUPS_MAX,
    OTHERS,
    RATES_MAX,
    SAMPLES,
    Floods,
    Group,
    runs_of,
)
from tokenline.charging.step import Commanded, Refused
from tokenline.settings import Settings
from tokenline.wire.avro import Codec, header_of
from tokenline.wire.registry import FileRegistry

CODEC = Codec(FileRegistry())


def refused(offset, at=NOON, reason="undecodable", **identity):
    return Refused(offset=offset, appended_ms=at, reason=reason, detail="bad", identity=identity)


def of(name, *offsets, at=NOON):
    return [(Group(name), refused(offset, at)) for offset in offsets]


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 150), st.integers(0, 90_000), st.sampled_from("ab")),
            max_size=40,
        ),
        max_size=8,
    ),
    st.integers(1, 12),
)
def test_each_record_is_in_one_letter_whatever_comes(steps, rate):
    floods, offset = Floods(rate), 0
    for step in steps:
        found = []
        for name, later_ms, reason in step:
            found.append((Group(f"g{name}"), refused(offset, NOON + later_ms, reason)))
            offset += 1
        done = floods.sort(found)
        inside = [one.offset for one in done.alone]
        for lot in done.lots:
            assert {one.reason for one in lot.refused} == {lot.reason}
            inside += [one.offset for one in lot.refused]
        assert sorted(inside) == [one.offset for _, one in found]


def test_beyond_its_rate_a_group_shares_letters_and_another_does_not():
    floods = Floods(10)
    done = floods.sort([*of("loud", *range(25)), *of("quiet", 25)])
    assert [one.offset for one in done.alone] == [*range(10), 25]
    (lot,) = done.lots
    assert (lot.group.name, [one.offset for one in lot.refused]) == ("loud", [*range(10, 25)])
    assert done.begun == ["loud"]
    done = floods.sort([*of("loud", 26), *of("quiet", 27)])
    assert ([one.offset for one in done.alone], done.begun) == ([27], [])
    done = floods.sort(of("loud", 28, at=NOON + MINUTE))
    assert [one.offset for one in done.alone] == [28]


def test_random_names_are_the_others_and_letters_are_bounded():
    floods = Floods(10)
    done = floods.sort([pair for at in range(5000) for pair in of(f"id {at}", at)])
    assert len(done.alone) <= RATES_MAX * 10 + SAMPLES
    assert [lot.group.name for lot in done.lots if lot.group.name == OTHERS] == [OTHERS]
    assert len(done.lots) <= GROUPS_MAX + 1


def test_a_clock_that_steps_back_begins_no_minute():
    floods = Floods(5)
    floods.sort(of("a", *range(5)))
    assert floods.sort(of("a", 5, at=NOON - MINUTE)).alone == []


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [([], []), ([3], [3, 3]), ([3, 4, 5], [3, 5]), ([5, 3, 3, 7], [3, 3, 5, 5, 7, 7])],
)
def test_numbers_as_runs(numbers, runs):
    assert runs_of(numbers) == runs


@dataclass(frozen=True)
class Raw:
    """Be a record as the parser yields it."""

    value: bytes | None
    key: bytes | None = b"k"


def letters_of(stem, found, *, per_minute=6, value=b"junk", grouped=None):
    raw = {one.offset: Raw(value) for one in found}
    settings = Settings(bad_records_per_minute=per_minute)
    note = (grouped if grouped is not None else []).append
    letters = Letters(settings, CODEC, 0, note).of(stem, found, raw)
    return [CODEC.decode_as("dead_letter", letter.value) for letter in letters]


def test_a_letter_of_many_counts_them_and_names_their_offsets():
    grouped = []
    found = letters_of("usage", [refused(at) for at in (*range(8), 10, 11)], grouped=grouped)
    assert [one["records"] for one in found] == [1] * 6 + [4]
    many = found[-1]
    assert (many["offset"], many["offsets"], many["value_base64"]) == (11, [6, 7, 10, 11], "")
    assert many["grouped_by"] == "no schema id"
    assert many["detail"].startswith("4 records of no schema id beyond 6 a minute")
    assert grouped == [4]


def test_unreadable_records_without_a_producer_are_grouped_by_their_schema_id():
    found = letters_of("usage", [refused(at) for at in range(9)], value=header_of(77) + b"x")
    assert found[-1]["grouped_by"] == "schema id 77"


def test_readable_records_keep_the_numbers_of_their_gateway():
    """Without them `reconcile` would miss events that the gateway counted."""
    said = {"tenant_id": "t", "source": "s", "account_id": "a", "gateway_id": "gw"}
    rows = [refused(at, gateway_epoch="e1", gateway_seq=at + 1, **said) for at in range(9)]
    many = letters_of("usage", rows)[-1]
    assert (many["gateway_id"], many["gateway_epoch"]) == ("gw", "e1")
    assert (many["gateway_seqs"], many["grouped_by"]) == ([7, 9], "tenant t, source s")
    assert (many["tenant_id"], many["source"], many["account_id"]) == ("t", "s", "")


def test_numbers_of_two_gateways_are_in_two_letters():
    said = {"tenant_id": "t", "source": "s", "gateway_epoch": "e", "gateway_seq": 1}
    rows = [refused(at, gateway_id=f"gw{at % 2}", **said) for at in range(12)]
    assert sorted(one["gateway_id"] for one in letters_of("usage", rows) if one["records"] > 1) == [
        "gw0",
        "gw1",
    ]


def test_each_refused_command_has_its_letter():
    """Which accounts are set is read from them."""
    fields = {"tenant_id": "t", "account_id": "a"}
    rows = [
        Refused(
            offset=at, appended_ms=NOON, reason="bad_command", detail="no",
            command=Commanded(offset=at, appended_ms=NOON, fields=fields),
        )
        for at in range(20)
    ]  # fmt: skip
    assert [one["records"] for one in letters_of("commands", rows)] == [1] * 20
    assert [one["records"] for one in letters_of("holds", rows)] == [1] * 6 + [14]


def test_who_sent_what_is_known_for_a_while():
    producers = Producers()
    for first, producer_id in ((0, -1), (5, 7), (9, 7), (12, 8), (3, 99)):
        producers.note("usage", 0, first, producer_id)
    known = [producers.of("usage", 0, offset) for offset in (0, 4, 5, 11, 12, 40)]
    assert known == [-1, -1, 7, 7, 8, 8]
    assert producers.of("usage", 1, 5) == -1


def test_what_is_known_of_producers_is_bounded(monkeypatch):
    monkeypatch.setattr(Producers, "CHANGES_MAX", 10)
    producers = Producers()
    for first in range(35):
        producers.note("usage", 0, first, first)
    assert len(producers._changes["usage", 0][0]) <= 10
    assert producers.of("usage", 0, 34) == 34
    assert producers.of("usage", 0, 0) == -1
