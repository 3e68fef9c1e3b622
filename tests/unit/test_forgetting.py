"""Subscribers of whom nothing is left that counts are forgotten, and nothing else is."""

from __future__ import annotations

import pytest

from tests.strategies import DAY
from tests.unit.test_limit_holds import CAP, MILLION, asked, line_of
from tokenline.quota import limits as limits_of_accounts
from tokenline.quota.subscribers import OTHERS, Subscribers, Told
from tokenline.quota.table import NONE

LONG = "a subscriber with a name that is so long that it needs more than one row"


def a_day_line():
    """Return an account of which each subscriber may use 60 tokens of anything a day."""
    return line_of({"tokens": 60, "per": "day", "of": "subscriber"}, cap=None)


def days_later(line, days=3):
    line.now += days * DAY
    line.use(subscriber="")


def test_the_rows_of_new_subscribers_do_not_grow_with_the_days():
    """Forty thousand new ids took 171 MB, and were journaled for ever."""
    line = a_day_line()
    sizes = []
    for day in range(12):
        for number in range(20):
            line.use(subscriber=f"{LONG} {day}/{number}", tokens=5)
        line.now += DAY
        sizes.append([len(table) for table in line.state.books.tables])
    assert sizes[3] == sizes[-1]
    assert len(line.state.books.subscribers._by_name) <= 60


def test_a_subscriber_that_comes_again_counts_as_a_new_one():
    line = a_day_line()
    line.use(subscriber=LONG, tokens=50)
    days_later(line)
    assert line.state.books.subscribers.find(0, LONG) == NONE
    line.use(subscriber=LONG, tokens=20)
    assert line.limit("subscriber_day_tokens", LONG)[0] == 20


def test_a_window_that_lasts_a_cap_of_its_own_and_a_hold_keep_a_subscriber():
    line = line_of({"tokens": 60, "per": "day", "of": "subscriber"})
    line.now += 3 * DAY  # into the next month
    line.use(subscriber="in its month", tokens=5)
    days_later(line)
    assert line.limit(CAP, "in its month")[0] == 5 * MILLION

    line = a_day_line()
    line.order(kind="cap", subscribers=["capped"], amount_utok=7 * MILLION)
    line.use(subscriber="gone", tokens=5)
    days_later(line, 70)
    assert line.limit(CAP, "capped") == (0, 0, 7 * MILLION)
    assert line.state.books.subscribers.find(0, "gone") == NONE


def test_a_hold_forgets_the_rows_that_are_given_back_and_others_get():
    line = a_day_line()
    line.hold(**asked("1", 5))
    days_later(line)
    rows = [row for hold in line.state.books.holds.of_owner(0) for row in hold.limits]
    assert [row for row in rows if line.state.books.limits.get(row, 0) < 0] == []


@pytest.mark.parametrize("named", ["kid", LONG])
def test_what_was_given_back_is_found_by_nobody_after_a_recovery(named):
    subscribers, told = Subscribers(), Told()
    row = subscribers.row(0, named)
    told.tell([0, row, 0, 0, 0, 1, 0])
    told.forget(subscribers.matrix[:1, 0] * 0 + row)
    subscribers.forget(row)
    again, told_again = Subscribers(), Told()
    again.adopt(subscribers.matrix.copy())
    told_again.adopt(told.matrix.copy())
    again.index()
    told_again.index()
    assert again.find(0, named) == NONE
    assert told_again._by_subscriber == {}
    assert again.row(0, "mum") == 0


def test_an_account_has_so_many_subscribers_and_the_further_ones_count_together():
    line = a_day_line()
    line.state.books.subscribers.most = 3
    for number in range(40):
        line.use(subscriber=f"kid {number}", tokens=5)
    assert len(line.state.books.subscribers._by_name) == 4
    assert line.limit("subscriber_day_tokens", "kid 2")[0] == 5
    assert line.limit("subscriber_day_tokens", OTHERS)[0] == 37 * 5
    assert line.hold(subscriber="kid 99", **asked("1", 5)).limit_name == "subscriber_day_tokens"


def test_room_that_idle_subscribers_leave_is_given_to_new_ones():
    line = a_day_line()
    line.state.books.subscribers.most = 3
    for number in range(5):
        line.use(subscriber=f"kid {number}", tokens=5)
    days_later(line)
    line.use(subscriber="kid 4", tokens=5)
    assert line.limit("subscriber_day_tokens", "kid 4")[0] == 5


def test_what_is_remembered_of_uses_is_bounded_and_does_not_tell_models_limits_by_subscriber(
    monkeypatch,
):
    monkeypatch.setattr(limits_of_accounts, "MATCHES_MAX", 10)
    line = a_day_line()
    for number in range(40):
        line.use(subscriber=f"kid {number}", tokens=1)
    assert len(line.state.books.limits._matching[0].rows) <= 10

    line = line_of({"tokens": 60, "per": "day", "group": "minis"}, cap=None)
    for number in range(40):
        line.use(subscriber=f"kid {number}", tokens=1)
    assert len(line.state.books.limits._matching[0].rows) == 1
