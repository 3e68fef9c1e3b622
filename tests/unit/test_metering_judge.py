"""Each fault is found, named once, and only where it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, batch_of, event, key_of
from tokenline.event import TOKEN_KINDS
from tokenline.metering.judge import DETAILS, Judgement, judge, token_matrix
from tokenline.names import EVENT_NAMES


def judged(batch, keys, moments):
    return judge(batch, token_matrix(batch), keys, moments, BOUNDS)


def verdicts(events, keys=None, appended_ms=NOON):
    keys = [key_of(one) for one in events] if keys is None else keys
    moments = np.full(len(events), appended_ms, np.int64)
    return [Judgement(v) for v in judged(batch_of(events), keys, moments)]


def verdict(key="t/a", **fields):
    """Judge one event among good ones; the others must stay good."""
    others = verdicts([event(), event(**fields), event()], ["t/a", key, "t/a"])
    assert others[0] is others[2] is Judgement.COUNTED
    return others[1]


@pytest.mark.parametrize("column", [name for name in EVENT_NAMES if name[:2] not in {"te", "ac"}])
def test_an_empty_name_is_refused(column):
    assert verdict(**{column: ""}) is Judgement.BAD_NAME


@pytest.mark.parametrize(("column", "key"), [("tenant_id", "/a"), ("account_id", "t/")])
def test_an_empty_tenant_or_account_is_refused_though_the_key_agrees(column, key):
    assert verdict(key, **{column: ""}) is Judgement.BAD_NAME


def test_an_empty_subscriber_is_fine():
    assert verdict(subscriber_id="") is Judgement.COUNTED


@pytest.mark.parametrize("kind", TOKEN_KINDS)
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (-1, Judgement.NEGATIVE_COUNT),
        (-(2**63), Judgement.NEGATIVE_COUNT),
        (0, Judgement.COUNTED),
        (10**9, Judgement.COUNTED),
        (10**9 + 1, Judgement.ABSURD_COUNT),
        (2**63 - 1, Judgement.ABSURD_COUNT),
    ],
)
def test_a_count_has_bounds(kind, count, expected):
    assert verdict(**{kind: count}) is expected


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"search_count": -1}, Judgement.NEGATIVE_COUNT),
        ({"a": 1, "audio_ms": 10**9 + 1}, Judgement.ABSURD_COUNT),
        ({"a": 10**9 + 1, "b": -1}, Judgement.NEGATIVE_COUNT),
        ({"a": 0, "b": 10**9}, Judgement.COUNTED),
    ],
)
def test_other_units_have_bounds(units, expected):
    assert verdict(other_units=units) is expected


@pytest.mark.parametrize(
    ("age_ms", "expected"),
    [
        (0, Judgement.COUNTED),
        (HOUR, Judgement.COUNTED),
        (HOUR + 1, Judgement.LATE),
        (90 * DAY, Judgement.LATE),
        (90 * DAY + 1, Judgement.TOO_OLD),
        (-5 * MINUTE, Judgement.COUNTED),
        (-5 * MINUTE - 1, Judgement.FUTURE_TIME),
    ],
)
def test_time_is_measured_by_the_broker_and_each_bound_is_within(age_ms, expected):
    assert verdict(occurred_at=NOON - age_ms) is expected


@pytest.mark.parametrize("moment", [2**63 - 1, -(2**63), 0])
def test_absurd_times_are_never_counted(moment):
    assert verdict(occurred_at=moment) > Judgement.DUPLICATE


@pytest.mark.parametrize("key", [None, "", "t", "t/b", "a/t", "t/a "])
def test_a_key_that_is_not_the_accounts_is_refused(key):
    assert verdict(key) is Judgement.KEY_MISMATCH


def test_of_several_faults_the_worst_is_named():
    """The order of the table in `judge`: names, key, negative, absurd, time."""
    faults = {
        Judgement.BAD_NAME: {"model": ""},
        Judgement.NEGATIVE_COUNT: {"output_tokens": -1},
        Judgement.ABSURD_COUNT: {"input_tokens": 10**9 + 1},
        Judgement.FUTURE_TIME: {"occurred_at": NOON + DAY},
    }
    for skip in range(len(faults)):
        left = dict(list(faults.items())[skip:])
        fields = {name: value for fault in left.values() for name, value in fault.items()}
        assert verdict(**fields) is next(iter(left))


def test_units_of_a_slice_are_its_own_and_not_its_neighbours():
    """Arrow keeps a slice's map entries in its parent's arrays."""
    good, bad = event(other_units={"a": 1}), event(other_units={"a": -1, "b": 2})
    whole = batch_of([bad, good, event(), bad, good, bad])
    for start in range(6):
        for length in range(7 - start):
            part = whole.slice(start, length)
            keys, moments = ["t/a"] * len(part), np.full(len(part), NOON, np.int64)
            expected = [[4, 0, 0, 4, 0, 4][i] for i in range(start, start + len(part))]
            assert judged(part, keys, moments).tolist() == expected


def test_a_batch_that_was_filtered_is_judged_like_any_other():
    whole = batch_of([event(other_units={"a": -1}), event(), event(other_units={"b": -1})])
    part = whole.filter(pa.array([False, True, True]))
    found = judged(part, ["t/a"] * 2, np.full(2, NOON, np.int64))
    assert found.tolist() == [0, Judgement.NEGATIVE_COUNT]


def test_no_events_have_no_judgements():
    assert verdicts([]) == []


def test_the_columns_of_a_token_matrix_are_the_kinds_in_order():
    counts = dict(zip(TOKEN_KINDS, range(1, 11), strict=True))
    assert token_matrix(batch_of([event(**counts)])).tolist() == [list(range(1, 11))]


def test_every_refusal_has_words_for_its_dead_letter():
    assert set(DETAILS) == {kind for kind in Judgement if kind > Judgement.DUPLICATE}


def test_a_tenant_with_a_slash_is_refused_though_the_key_agrees():
    """t/x + y and t + x/y have the same key: one would be charged for the other."""
    assert verdict("t/x/y", tenant_id="t/x", account_id="y") is Judgement.BAD_NAME
    assert verdict("t/x/y", tenant_id="t", account_id="x/y") is Judgement.COUNTED
