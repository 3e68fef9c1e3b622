"""Of several limits that a hold falls under, each is kept, and a refusal names the one that matters."""

from __future__ import annotations

import json

import pytest

from tests.limits import LIMITS_CATALOG
from tests.strategies import MINUTE
from tests.unit.test_charging_limits import Line
from tokenline.quota.books import Books
from tokenline.rating.catalog import Catalog

MILLION = 1_000_000
CAP = "subscriber_tokens"


def line_of(*limits, cap=60, then=(), **plan):
    """Return an account on a plan with such limits, `cap` tokens for each subscriber; `then` is plan loose."""
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["limited"] |= {"limits": list(limits), "subscriber_tokens": cap} | plan
    said["plans"]["loose"]["limits"] = list(then)
    said["rates"].append(
        {"provider": "p", "model": "free", "input_tokens": "1", "output_tokens": "0"}
    )
    return Line("limited", Catalog.from_json(json.dumps(said)))


def asked(session, tokens, **fields):
    """Ask for a call whose prompt has so many tokens, and one of an answer."""
    return {
        "session": session,
        "subscriber_id": "kid",
        "prompt_tokens": tokens - 2,
        "max_tokens": 1,
    } | fields


def refusal(answer):
    return answer.reason.name, answer.limit_name


def test_a_call_that_holds_all_of_a_cap_goes_on_holding_it():
    line = line_of(cap=30)
    assert line.hold(**asked("1", 30)).granted_utok == 30 * MILLION
    for seq in (1, 2):
        line.now += MINUTE
        again = line.hold(**asked("1", 30), seq=seq, action="update")
        assert (again.reason.name, again.granted_utok) == ("NONE", 30 * MILLION)
    assert line.limit(CAP, "kid") == (0, 30 * MILLION, 30 * MILLION)


def test_a_limit_that_is_held_is_waited_for_though_others_leave_enough():
    line = line_of({"requests": 100, "per": "week"}, {"tokens": 1000, "per": "week"})
    line.hold(**asked("1", 58))
    assert refusal(line.hold(**asked("2", 5))) == ("LIMIT_HELD", CAP)
    # What is left of it is enough for less.
    assert line.hold(**asked("3", 2)).granted_utok == 2 * MILLION


@pytest.mark.parametrize("unit", ["utok", "tokens", "requests"])
def test_what_is_used_up_is_named_before_what_is_only_held(unit):
    ceiling = {"utok": 10 * MILLION, "tokens": 10, "requests": 1}[unit]
    line = line_of({unit: ceiling, "per": "week"})
    line.hold(**asked("1", 8, subscriber_id="mum"))
    line.use(subscriber="", tokens=2, model="max")
    line.hold(**asked("2", 58))
    line.use(subscriber="", tokens=8, model="max")
    assert refusal(line.hold(**asked("3", 5))) == ("LIMIT_REACHED", f"week_{unit}")


def test_of_two_limits_that_are_used_up_the_first_is_named():
    line = line_of({"utok": 50 * MILLION, "per": "week"}, {"requests": 1, "per": "week"})
    line.use(tokens=60)
    answer = line.hold(**asked("1", 2))
    assert refusal(answer) == ("LIMIT_REACHED", CAP)
    assert (answer.limit_used, answer.limit_value) == (60 * MILLION, 60 * MILLION)
    mum = line.hold(**asked("2", 2, subscriber_id="mum"))
    assert refusal(mum) == ("LIMIT_REACHED", "week_utok")
    assert (mum.limit_used, mum.limit_value) == (60 * MILLION, 50 * MILLION)


@pytest.mark.parametrize("tokens", [(9, 40), (40, 9)])
def test_an_answer_that_costs_nothing_is_no_longer_than_the_least_that_limits_leave(tokens):
    pers = zip(tokens, ("day", "week"), strict=True)
    line = line_of(*({"tokens": count, "per": per} for count, per in pers))
    answer = line.hold(session="1", model="free", prompt_tokens=4, max_tokens=100)
    assert (answer.max_tokens, answer.granted_utok) == (5, 4 * MILLION)


@pytest.mark.parametrize(("prompt", "most"), [(8, 2), (9, 1), (10, 0)])
def test_a_limit_in_tokens_leaves_room_for_a_prompt_and_a_token_of_an_answer(prompt, most):
    line = line_of({"tokens": 10, "per": "week"})
    answer = line.hold(session="1", prompt_tokens=prompt, max_tokens=100)
    assert answer.max_tokens == most
    assert answer.reason.name == ("NONE" if most else "LIMIT_REACHED")


def test_a_prompt_that_needs_no_answer_may_use_a_limit_in_tokens_up():
    line = line_of({"tokens": 10, "per": "week"})
    assert line.hold(session="1", prompt_tokens=10).reason.name == "NONE"
    line.use(subscriber="", tokens=10)
    assert refusal(line.hold(session="2")) == ("LIMIT_REACHED", "week_tokens")


def test_a_lease_is_bound_by_a_limit_in_tokens_only_when_it_is_used_up():
    line = line_of({"tokens": 10, "per": "week"})
    lease = {"lease": True, "prompt_tokens": 50, "max_tokens": 1}
    assert line.hold(session="1", **lease).reason.name == "NONE"
    line.use(subscriber="", tokens=10)
    assert refusal(line.hold(session="2", **lease)) == ("LIMIT_REACHED", "week_tokens")


def test_what_a_call_owes_is_not_granted_again_of_its_limits():
    line = line_of(cap=30)
    line.hold(**asked("1", 20))
    used = {"seq": 1, "action": "update", "reported_utok": 12 * MILLION}
    # Twelve are used and not yet here as usage: eighteen are left.
    assert refusal(line.hold(**asked("1", 19), **used)) == ("LIMIT_REACHED", CAP)
    assert line.hold(**asked("1", 18), **used | {"seq": 2}).granted_utok == 18 * MILLION
    assert line.limit(CAP, "kid") == (0, 30 * MILLION, 30 * MILLION)


def test_a_plan_that_is_changed_lets_go_of_its_limits_and_keeps_those_that_both_have():
    day, week = {"utok": 90 * MILLION, "per": "day"}, {"utok": 90 * MILLION, "per": "week"}
    line = line_of(week, day, then=[day], proration="full")
    line.hold(**asked("1", 20))
    line.order(kind="change_plan", plan="loose", when="now")
    assert [one["limit"] for one in line.shown()["limits"]] == ["day_utok"]
    assert line.limit("day_utok") == (0, 20 * MILLION, 90 * MILLION)
    line.use(tokens=5, hold_id="1")
    assert line.limit("day_utok") == (5 * MILLION, 15 * MILLION, 90 * MILLION)
    line.hold(session="1", seq=1, action="settle", reported_utok=5 * MILLION)
    assert line.limit("day_utok") == (5 * MILLION, 0, 90 * MILLION)


def test_a_hold_forgets_a_limit_that_is_gone_and_the_next_worker_knows():
    """The row may be another account's limit by the time its usage is corrected."""
    day, week = {"utok": 90 * MILLION, "per": "day"}, {"utok": 90 * MILLION, "per": "week"}
    line = line_of(week, day, then=[day], proration="full")
    line.hold(**asked("1", 20))
    line.use(tokens=20, hold_id="1")  # nothing is held any more, but it runs on
    line.order(kind="change_plan", plan="loose", when="now")
    books = line.state.books
    heir = Books(books.cells, books.terms_of, books.linger_ms)
    heir.limits.specs = books.limits.specs
    for mine, theirs in zip(heir.tables, books.tables, strict=True):
        mine.adopt(theirs.matrix.copy())
    heir.adopt()
    (held,), (kept,) = books.holds.of_owner(0), heir.holds.of_owner(0)
    assert kept.limits == held.limits
    assert [books.limits.spec(row).name for row in kept.limits] == ["day_utok"]


def test_a_hold_that_comes_under_other_limits_lets_go_of_those_before():
    line = line_of({"utok": 90 * MILLION, "per": "week", "group": "minis"})
    line.hold(session="1", model="mini", prompt_tokens=100)
    assert line.limit("week_utok:minis")[1] == 10 * MILLION
    line.hold(session="1", model="max", prompt_tokens=10, seq=1, action="update")
    assert line.limit("week_utok:minis")[1] == 0


@pytest.mark.parametrize("status", ["open", "suspended"])
def test_a_hold_that_is_refused_anyhow_makes_no_rows_of_its_subscriber(status):
    """Forty thousand invented subscribers and a model that nobody has made forty thousand rows."""
    line = line_of()
    if status == "suspended":
        line.order(kind="suspend")
    books = line.state.books
    before = len(books.subscribers), len(books.limits)
    for number in range(3):
        model = {"model": "nobody's"} if status == "open" else {}
        answer = line.hold(**asked(str(number), 5, subscriber_id=f"new {number}") | model)
        wanted = "UNKNOWN_MODEL" if status == "open" else "SUSPENDED"
        assert answer.reason.name == wanted
    assert (len(books.subscribers), len(books.limits)) == before


def test_a_session_whose_model_has_no_price_any_more_goes_on_holding_its_limits():
    line = line_of(cap=30)
    line.hold(**asked("1", 20))
    line.now += MINUTE
    fields = asked("1", 20) | {"model": "nobody's", "reported_utok": 5 * MILLION}
    assert line.hold(**fields, seq=1, action="update").reason.name == "UNKNOWN_MODEL"
    assert line.limit(CAP, "kid") == (0, 20 * MILLION, 30 * MILLION)
