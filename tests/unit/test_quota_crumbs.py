"""What is too little for any call is as good as nothing: its account is cut, told so, and resumed by more."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.limits import LIMITS_CATALOG
from tests.strategies import MINUTE
from tests.unit.test_charging_limits import MILLION, Line
from tokenline.quota.balance import Balance
from tokenline.quota.standing import crumbs_of, is_crumb
from tokenline.quota.terms import Mode
from tokenline.rating.catalog import Catalog
from tokenline.rating.offers import Plan
from tokenline.wire.plan_terms import LONGEST_CALL_MS


def line_of(tokens=100_000, **plan):
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["loose"] |= {"tokens": tokens} | plan
    return Line("loose", Catalog.from_json(json.dumps(said)))


def told(step):
    return [
        (one.state.name, one.threshold_percent, one.used // MILLION, one.reason)
        for one in step.decisions
    ]


def test_with_a_crumb_left_an_account_is_cut_and_its_last_threshold_told():
    line = line_of()
    line.hold(session="1", prompt_tokens=99_900, max_tokens=0)
    assert [one[:2] for one in told(line.use(tokens=99_899, hold_id="1"))] == [
        ("WARNED", 50),
        ("WARNED", 80),
    ]
    # One token is held still, and 100 are free: a call may go on.
    assert told(line.use(tokens=1, hold_id="1")) == [("CUT", 100, 99_900, "limit_reached")]
    shown = line.shown()
    assert (shown["state"], shown["why"], shown["rest_utok"]) == ("cut", "balance", 100 * MILLION)


def test_a_call_that_runs_on_the_last_of_it_is_not_stopped_by_that():
    line = line_of(least_call_tokens=50)
    line.use(tokens=99_900)
    assert line.hold(session="1", max_tokens=50).granted_utok == 100 * MILLION
    assert line.shown()["state"] == "warned"
    assert told(line.use(tokens=60, hold_id="1")) == []
    settled = line.ask(session="1", seq=1, action="settle")
    assert told(settled) == [("CUT", 100, 99_960, "limit_reached")]


def test_a_question_that_finds_the_last_hold_expired_cuts():
    line = line_of(hold_expiry="release", least_call_tokens=50)
    line.use(tokens=99_960)
    assert line.shown()["state"] == "cut"
    line.order(kind="grant", amount_utok=30 * MILLION)
    assert line.hold(session="1", max_tokens=30).granted_utok == 60 * MILLION
    line.use(tokens=25, hold_id="1")
    line.now += 2 * MINUTE
    step = line.ask(session="2", prompt_tokens=90_000, max_tokens=1)
    assert [one[:2] for one in told(step)] == [("CUT", 0)]
    assert step.replies[0].answer.reason.name == "BALANCE_USED_UP"


def test_more_resumes_it_and_what_was_left_is_not_lost():
    line = line_of(least_call_tokens=50)
    line.use(tokens=99_960)
    step = line.order(kind="grant", amount_utok=11 * MILLION)
    assert [one[0] for one in told(step)] == ["WARNED"]
    assert step.decisions[-1].reason == "resumed"
    assert line.hold(session="1", max_tokens=30).granted_utok == 51 * MILLION


@pytest.mark.parametrize(
    ("tokens", "said", "least"),
    [(1000, {}, 1), (10**7, {}, 100), (1000, {"least_call_tokens": 300}, 300)],
)
def test_a_plan_says_what_is_too_little_else_it_is_a_thousandth_and_a_hundred_at_most(
    tokens, said, least
):
    line = line_of(tokens, **said)
    assert {one[0] for one in told(line.use(tokens=tokens - least - 1))} == {"WARNED"}
    assert told(line.use(tokens=1))[-1] == ("CUT", 100, tokens - least, "limit_reached")


@pytest.mark.parametrize(
    "plan",
    [
        {"mode": "postpaid"},
        {"mode": "prepaid", "used_up": "overage", "overage_nano": 1},
        {"least_call_tokens": 0},
    ],
)
def test_where_usage_goes_on_to_the_last_token_no_crumb_cuts(plan):
    line = line_of(**plan)
    assert [one[0] for one in told(line.use(tokens=99_999))] == ["WARNED", "WARNED"]
    assert line.shown()["state"] == "warned"
    last = told(line.use(tokens=1))[-1]
    assert last[0] == ("WARNED" if plan.get("used_up") else "CUT")


def test_gateways_and_catalogs_count_by_what_charging_goes_by():
    """The engine's modules bring numpy, which a gateway has not: so this stands in several places."""
    (most,) = (one.le for one in Plan.model_fields["longest_call_s"].metadata if hasattr(one, "le"))
    assert most * 1000 == LONGEST_CALL_MS


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 10**6, 10**8, 10**11, 10**18]),
            st.sampled_from([0, 1, 10**3, 10**8, 10**8 + 1, 10**9]),
            st.sampled_from([0, 0, 5]),
            st.sampled_from([0, 0, -1, 1, 10**9]),
            st.sampled_from(Mode),
            st.booleans(),
        ),
        min_size=1,
    )
)
def test_one_balance_and_many_are_looked_at_alike(balances):
    rows = np.zeros((len(balances), len(Balance)), np.int64)
    for row, (total, left, held, least, mode, stops) in zip(rows, balances, strict=True):
        row[Balance.TOTAL], row[Balance.LEFT], row[Balance.HELD] = total, left, held
        row[Balance.LEAST_CALL], row[Balance.MODE], row[Balance.STOPS] = least, mode, stops
    crumbs = (rows[:, Balance.LEFT] <= crumbs_of(rows)) & (rows[:, Balance.STOPS] != 0)
    crumbs &= rows[:, Balance.HELD] <= 0
    assert crumbs.tolist() == [is_crumb(row.tolist()) for row in rows]


def test_who_asks_for_a_call_on_a_crumb_is_refused_and_nothing_is_told_again():
    line = line_of(least_call_tokens=50)
    line.use(tokens=99_960)
    for session in "ab":
        step = line.ask(session=session, max_tokens=10)
        assert step.replies[0].answer.reason.name == "BALANCE_USED_UP"
        assert told(step) == []
