"""Charges that no call can have are refused, and nothing is ever charged to nobody (C12)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import BOUNDS
from tests.told_line import MILLION, ToldLine
from tests.unit.test_charging_limits import recovered
from tokenline.event import TOKEN_KINDS
from tokenline.quota.balance import ALARM_UTOK
from tokenline.quota.books import MOST_UTOK

DEAR = {"model": "dear"}
# Of model `dear` so many tokens cost a tenth of all that may be unpaid.
TENTH = 10**9
WIDE = replace(BOUNDS, max_charge_utok=MOST_UTOK)


def line_of(**plan):
    return ToldLine(bounds=WIDE, tokens=0, **plan)


def refused(step):
    return [(one.reason, one.offset) for one in step.refused]


def test_an_event_of_legal_size_that_no_call_can_cost_is_a_dead_letter():
    line = ToldLine()
    step = line.use(1, **dict.fromkeys(TOKEN_KINDS, 10**9), **DEAR)
    assert refused(step) == [("absurd_charge", line.offset)]
    assert (line.burns, line.shown()["written_off_utok"]) == ({}, 0)
    assert "max_charge_utok_per_event" in step.refused[0].detail
    assert line.use(7).counted == 1
    assert line.burns == {1: 7 * MILLION}


def test_what_an_event_may_cost_is_a_setting():
    line = ToldLine(bounds=replace(BOUNDS, max_charge_utok=7 * MILLION))
    step = line.use(7, 8)
    assert refused(step) == [("absurd_charge", line.offset)]
    assert line.burns == {1: 7 * MILLION}


@pytest.mark.parametrize("plan", [{}, {"used_up": "overage", "overage_price": "1"}])
def test_an_account_that_used_absurdly_much_unpaid_is_charged_nothing_more(plan):
    line = line_of(**plan)
    for _ in range(12):
        line.use(TENTH, **DEAR)
    assert sum(line.burns.values()) == MOST_UTOK + ALARM_UTOK
    assert refused(line.use(0)) == [("absurd_charge", line.offset)]


@pytest.mark.parametrize("chunks", [[25], [5] * 5, [1] * 25])
def test_however_usage_is_cut_no_counter_wraps_and_what_is_counted_is_charged(chunks):
    line, counted = line_of(), 0
    for count in chunks:
        counted += line.use(*[TENTH] * count, **DEAR).counted
    assert counted == 11
    assert line.burns == {-1: 11 * ALARM_UTOK}


def test_what_buckets_pay_is_not_refused():
    line = line_of()
    line.order(kind="grant", amount_utok=MOST_UTOK)
    assert line.use(*[TENTH] * 15, **DEAR).refused == []
    assert line.burns == {1: MOST_UTOK, -1: 5 * ALARM_UTOK}


def test_others_are_charged_as_ever():
    line = line_of()
    line.order(kind="open", plan="plan", account_id="b")
    line.use(*[TENTH] * 15, **DEAR)
    line.burns.clear()
    line.use(5, account_id="b")
    assert line.burns == {-1: 5 * MILLION}


def test_an_alarm_is_told_once_from_a_tenth_of_that_on_and_again_by_a_new_owner():
    line = line_of()
    assert line.use(TENTH - 1, **DEAR).alarms == []
    slot = line.state.cells.slot("t/a")
    assert line.use(1, **DEAR).alarms == [slot]
    assert line.use(TENTH, **DEAR).alarms == []
    assert recovered(line.state).take_alarms() == [slot]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, TENTH // 2, TENTH]), min_size=1, max_size=9), max_size=6
    ),
    st.sampled_from([0, 10**6, MOST_UTOK // 2]),
)
def test_all_that_is_counted_is_charged_and_stays_far_from_an_int64s_end(chunks, granted):
    line, counted = line_of(), 0
    if granted:
        line.order(kind="grant", amount_utok=granted)
    for chunk in chunks:
        gone = {one.offset for one in line.use(*chunk, **DEAR).refused}
        first = line.offset - len(chunk) + 1
        counted += sum(one for at, one in enumerate(chunk) if first + at not in gone)
    assert sum(line.burns.values()) == counted * 100 * MILLION
    unpaid = sum(amount for bucket, amount in line.burns.items() if bucket < 1)
    assert unpaid <= MOST_UTOK + 2 * ALARM_UTOK
