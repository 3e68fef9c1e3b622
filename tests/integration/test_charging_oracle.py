"""The oracle of the charging tests: what may still come is waited for, what is wrong is not."""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest
from charging_helpers import usage
from charging_oracle import Books, Unflushed, check, key_of


@pytest.fixture
def books():
    """What a follower sees of three records of partition 0, all of them unreadable."""
    books = Books()
    for offset in range(3):
        record = SimpleNamespace(key=key_of(usage("a")), value=b"junk", timestamp=0)
        books.usage[0, offset], books.decoded[0, offset] = record, None
        books.dead.append(letter_of(offset, record))
    judged = {"late_offsets": [], "duplicate_offsets": [], "rejected_offsets": [0, 1, 2]}
    books.charged.append({"partition": 0, "lo_offset": 0, "hi_offset": 2, **judged})
    return books


def letter_of(offset, record):
    sides = {"key_base64": record.key, "value_base64": record.value}
    place = {"topic": "t.usage", "partition": 0, "offset": offset, "records": 1, "offsets": []}
    return place | {name: base64.b64encode(side).decode() for name, side in sides.items()}


def decision(version, percent=0):
    account = {"tenant_id": "t", "account_id": "a", "epoch": 1}
    return account | {"version": version, "threshold_percent": percent}


def test_books_that_agree_pass(books):
    check(books)


def test_a_missing_letter_may_still_come_and_is_named(books):
    del books.dead[1]
    with pytest.raises(Unflushed, match=r"rejected without a letter: 1, as \[\(0, 1\)\]"):
        check(books)


def test_a_range_that_is_not_there_may_still_come_and_is_named(books):
    books.usage[0, 3], books.decoded[0, 3] = books.usage[0, 2], None
    with pytest.raises(Unflushed, match=r"usage and charged differ in 1, as \[\(0, 3\)\]"):
        check(books)


def test_a_letter_too_many_is_wrong_at_once(books):
    books.charged[0]["rejected_offsets"].remove(2)
    books.decoded[0, 2] = usage("a", occurred_at=0)
    books.usage[0, 2].timestamp = 7_200_000
    books.charged[0]["late_offsets"].append(2)
    with pytest.raises(AssertionError, match=r"not rejected: 1, as \[\(0, 2\)\]") as raised:
        check(books)
    assert raised.type is AssertionError


def test_a_letter_with_other_bytes_is_wrong_at_once(books):
    books.dead[0]["value_base64"] = ""
    with pytest.raises(AssertionError, match="letter's value is not the record's") as raised:
        check(books)
    assert raised.type is AssertionError


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([decision(1), decision(3)], r"\[1, 3\]"),
        ([decision(1), decision(1, 50)], "version 1 was"),
        ([decision(1, 50), decision(2, 50)], "told thresholds again"),
    ],
)
def test_decisions_that_contradict_each_other_are_wrong_at_once(books, rows, text):
    books.decisions += rows
    with pytest.raises(AssertionError, match=text) as raised:
        check(books)
    assert raised.type is AssertionError
