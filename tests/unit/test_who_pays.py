"""Who pays a use, what is owed, and what decisions say of both (D1, D2, D6, D7, D9, D14, C17)."""

from __future__ import annotations

import asyncio

import pytest

from tests.strategies import DAY, MINUTE
from tests.told_line import MILLION, ToldLine

SCOPED = {"groups": ["pp"]}
MONTH = 31 * DAY


# D1: a plan that stops


def test_a_plan_that_stops_is_stopped_for_models_that_its_buckets_do_not_cover():
    line = ToldLine(**SCOPED)
    assert (line.allows("pp"), line.allows("max")) == (True, False)
    for _ in range(3):
        line.use(1_000_000, model="max")
    assert line.used() == {"written_off": 3_000_000}
    assert (line.allows("pp"), line.allows("max")) == (True, False)
    assert line.shown()["state"] == "open"


def test_a_pack_of_one_subscriber_pays_for_nobody_else_when_the_plan_is_used_up():
    line = ToldLine()
    line.order(kind="grant", amount_utok=50 * MILLION, subscribers=["kid"])
    assert line.allows(subscriber="mum")
    line.use(1000, subscriber="mum")
    assert (line.allows(subscriber="kid"), line.allows(subscriber="mum")) == (True, False)
    line.use(10, subscriber="mum")
    assert line.used() == {"written_off": 10, "plan": 1000}
    assert line.shown()["state"] == "warned"


def test_what_can_be_paid_is_told_when_it_changes_and_everything_when_it_can_be_again():
    line = ToldLine()
    line.order(kind="grant", amount_utok=50 * MILLION, models=["p/pp"])
    line.order(kind="grant", amount_utok=50 * MILLION, subscribers=["kid"])
    line.use(1000)
    last = line.decisions[-1]
    assert [(one["models"], one["subscribers"]) for one in last["covers"][:2]] == [
        (["p/pp"], []),
        ([], ["kid"]),
    ]
    line.use(50, model="pp")
    assert line.decisions[-1]["reason"] == "covers_changed"
    assert (line.allows("pp"), line.allows("pp", subscriber="kid")) == (False, True)
    line.order(kind="grant", amount_utok=MILLION)
    assert line.decisions[-1]["covers"] == []
    assert line.allows()


def test_an_account_is_cut_when_no_scope_has_anything_left():
    line = ToldLine(**SCOPED)
    line.use(1000, model="pp")
    assert (line.decisions[-1]["state"], line.decisions[-1]["rule"]) == ("cut", "balance")
    assert not line.allows("pp")
    line.wait(MONTH)
    assert line.allows("pp")


def test_what_is_not_covered_is_so_until_units_for_everything_begin_to_be_valid():
    line = ToldLine()
    line.order(kind="grant", amount_utok=50 * MILLION, models=["p/pp"])
    line.use(1000)
    assert line.decisions[-1]["resets_at"] == line.shown()["cycle_end_ms"]
    assert not line.allows()
    # Nobody looks: the clock alone lets everything pass, as it ends a cut.
    line.wait(MONTH)
    assert line.allows()


def test_what_can_be_paid_is_told_by_time_when_a_cycle_or_a_pack_begins():
    line = ToldLine(**SCOPED)
    line.order(kind="grant", amount_utok=50 * MILLION, models=["open/*"])
    begins = {"valid_from": line.now + 10 * MINUTE, "models": ["p/max"]}
    line.order(kind="grant", amount_utok=50 * MILLION, **begins)
    line.use(1000, model="pp")
    assert [line.allows(model) for model in ("pp", "max")] == [False, False]
    line.wait(10 * MINUTE)
    line.tick()
    assert [line.allows(model) for model in ("pp", "max")] == [False, True]
    assert line.decisions[-1]["reason"] == "covers_changed"
    line.wait(DAY)
    line.tick()
    assert [line.allows(model) for model in ("pp", "max")] == [True, True]


def test_what_is_held_for_a_running_call_is_covered_still():
    line = ToldLine(mode="strict", **SCOPED)
    line.hold(1000, session="1", model="pp")
    assert line.allows("pp")
    line.use(1000, model="pp", hold_id="1")
    assert not line.allows("pp")


def test_a_running_call_of_an_uncovered_model_is_cut_when_coverage_ends():
    line = ToldLine()
    line.order(kind="grant", amount_utok=50 * MILLION, models=["p/pp"])

    async def follow():
        wait = line.guard.wait_cut
        calls = {
            model: asyncio.create_task(wait("a", "kid", "t", provider="p", model=model))
            for model in ("pp", "max")
        }
        calls["any"] = asyncio.create_task(wait("a", "kid", "t"))
        await asyncio.sleep(0)
        line.use(1000)
        await asyncio.sleep(0)
        stopped = {name for name, call in calls.items() if call.done()}
        told = calls["max"].result()
        line.use(50, model="pp")
        await asyncio.sleep(0)
        return stopped, told, {name for name, call in calls.items() if call.done()}

    stopped, told, in_the_end = asyncio.run(follow())
    assert (stopped, in_the_end) == ({"max"}, {"pp", "max", "any"})
    assert (told.state, told.rule, told.reason) == ("cut", "balance", "not_covered")


def test_a_guard_that_is_told_no_model_goes_by_the_state_of_the_account():
    line = ToldLine(**SCOPED)
    assert line.guard.check("a", None, "t").allowed
    line.use(1000, model="pp")
    assert not line.guard.check("a", None, "t").allowed


@pytest.mark.parametrize("goes_on", [{"used_up": "overage", "overage_price": "1"}])
def test_where_the_plan_goes_on_everything_can_be_paid(goes_on):
    line = ToldLine(**SCOPED, **goes_on)
    line.use(1_000_000)
    assert line.decisions[-1]["covers"] == []
    assert line.allows()
    assert line.used() == {"overage": 1_000_000}


# D2: usage beyond a plan that goes on

OVERAGE = {"used_up": "overage", "overage_price": "1", "thresholds": [50, 100, 150]}


def test_overage_is_seen_at_once_whatever_is_left_elsewhere():
    line = ToldLine(**SCOPED, **OVERAGE)
    line.use(600)
    assert line.figures("used", "overage", "allowance") == [0, 600, 1000]
    assert (line.decisions[-1]["used"], line.decisions[-1]["overage_utok"]) == (0, 600 * MILLION)
    assert line.thresholds() == [50]
    line.use(100, model="pp")
    line.use(400)
    assert line.figures("used", "overage") == [100, 1000]
    assert line.thresholds() == [50, 100]


def test_no_top_up_makes_what_is_used_fall_nor_tells_a_threshold_again():
    line = ToldLine(**OVERAGE)
    line.use(1600)
    assert line.figures("used", "overage") == [1000, 600]
    line.order(kind="grant", amount_utok=5000 * MILLION)
    assert line.figures("used", "overage", "allowance") == [1000, 600, 6000]
    line.use(1500)
    assert line.figures("used", "overage") == [2500, 600]
    assert line.thresholds() == [50, 100, 150]


# D6: what the customer owes, and what the house bears


def test_what_was_written_off_is_not_owed_after_a_change_to_a_plan_that_goes_on():
    line = ToldLine({"on": OVERAGE})
    line.use(11_000)
    assert line.used() == {"written_off": 10_000, "plan": 1000}
    line.order(kind="change_plan", plan="on")
    line.use(1001)
    shown = line.shown()
    assert shown["overage_utok"] + shown["written_off_utok"] == line.burns[0] + line.burns[-1]
    assert line.burns[-1] == 10_000 * MILLION
    assert shown["overage_utok"] == line.burns[0] <= 1001 * MILLION
    sources = {one["bucket"]: one["source"] for one in shown["buckets"] if one["bucket"] < 1}
    assert sources == {0: "overage", -1: "written_off"}


# D7: usage beyond what others hold


def test_what_others_hold_is_claimed_and_paid_when_it_comes_back():
    line = ToldLine(mode="strict")
    line.hold(790, session="1")
    line.use(210, 500)
    assert line.used() == {"claim": 500, "plan": 210}
    assert line.figures("claimed", "held", "rest") == [500, 790, 0]
    line.hold(session="1", seq=1, action="settle")
    assert line.used() == {"plan": 710}
    assert line.figures("claimed", "written_off", "rest") == [0, 0, 290]
    kinds = [(one.kind.name, one.bucket, one.amount_utok // MILLION) for one in line.changes[-2:]]
    assert kinds == [("CLAIM_PAID", 1, -500), ("CLAIM_PAID", -3, 500)]


def test_what_was_claimed_and_used_by_those_who_held_it_is_written_off():
    line = ToldLine(mode="strict")
    line.hold(1000, session="1")
    line.use(700)
    line.use(600, hold_id="1")
    assert line.used() == {"written_off": 300, "claim": 400, "plan": 600}
    lost = [
        (one.bucket, one.amount_utok // MILLION)
        for one in line.changes
        if one.kind.name == "CLAIM_LOST"
    ]
    assert lost == [(-3, 300), (-1, -300)]
    line.hold(session="1", seq=1, action="settle", reported_utok=600 * MILLION)
    assert line.used() == {"written_off": 300, "plan": 1000}


def test_units_on_which_a_claim_lies_are_there_for_nobody():
    line = ToldLine(mode="strict")
    line.hold(1000, session="1")
    line.use(900)
    assert line.hold(200, session="2").reason.name == "BALANCE_USED_UP"
    assert line.hold(100, session="3").reason.name == "BALANCE_HELD"
    # What a second use needs beyond it, nobody can give back.
    line.use(150)
    assert line.used() == {"written_off": 50, "claim": 1000}


def test_a_claim_lies_only_on_what_covers_the_use():
    line = ToldLine(mode="strict", **SCOPED)
    line.hold(1000, session="1", model="pp")
    line.use(10, model="max")
    assert line.used() == {"written_off": 10}


def test_an_expired_hold_pays_its_claims_with_what_it_releases():
    line = ToldLine(mode="strict", hold_expiry="release")
    line.hold(1000, session="1")
    line.use(700)
    line.wait(2 * MINUTE)
    assert line.used() == {"plan": 700}
    assert line.figures("rest", "claimed") == [300, 0]


# D9: a session pays what its buckets cover


@pytest.mark.parametrize("field", [{"model": "max"}, {"subscriber_id": "mum", "model": "pp"}])
def test_a_session_spends_no_bucket_that_does_not_cover_the_use(field):
    line = ToldLine(mode="strict", tokens=0)
    line.order(kind="grant", amount_utok=100 * MILLION, models=["p/pp"], subscribers=["kid"])
    line.order(kind="grant", amount_utok=100 * MILLION)
    pack = {"session": "1", "model": "pp", "subscriber_id": "kid"}
    line.hold(60, **pack)
    line.use(40, hold_id="1", **field)
    used = {one["bucket"]: one["used_utok"] // MILLION for one in line.shown()["buckets"]}
    assert used == {1: 0, 2: 40}
    assert line.figures("held") == [60]


def test_what_an_ended_session_was_charged_comes_back_for_what_is_paid_elsewhere():
    line = ToldLine(mode="strict", hold_expiry="charge_granted", **SCOPED)
    line.order(kind="grant", amount_utok=100 * MILLION)
    line.hold(60, session="1", model="pp")
    line.wait(2 * MINUTE)
    assert line.used() == {"plan": 60}
    line.use(45, hold_id="1", model="max")
    # Once: what the session held for another model is not charged beside it.
    assert line.used() == {"plan": 15, "top_up": 45}


# D14: a cycle counts what is used in it


def test_thresholds_of_a_cycle_do_not_count_what_earlier_ones_used_of_a_top_up():
    line = ToldLine(tokens=0, thresholds=[50])
    line.order(kind="grant", amount_utok=1000 * MILLION)
    line.use(600)
    assert line.thresholds() == [50]
    line.wait(MONTH)
    line.use(10)
    assert line.figures("used", "allowance", "rest") == [10, 400, 390]
    assert line.thresholds() == [50]
    line.use(190)
    assert line.thresholds() == [50, 50]


# C17: what costs nothing


def test_a_model_that_costs_nothing_needs_no_balance():
    line = ToldLine(mode="strict")
    line.use(2000)
    assert line.decisions[-1]["state"] == "cut"
    assert [line.allows(model) for model in ("max", "gift")] == [False, True]
    assert line.allows("any", "open")
    assert line.hold(10, session="1", model="gift").outcome.name == "DONE"
    line.use(10, model="gift")
    assert line.used() == {"written_off": 1000, "plan": 1000}


def test_a_plan_may_say_that_what_costs_nothing_needs_a_balance_too():
    line = ToldLine(mode="strict", zero_rated_needs_balance=True)
    assert line.hold(10, session="1", model="gift").outcome.name == "DONE"
    line.use(1000)
    assert not line.allows("gift")
    assert line.hold(10, session="2", model="gift").reason.name == "BALANCE_USED_UP"


def test_what_costs_nothing_passes_beside_what_some_buckets_cover():
    line = ToldLine(**SCOPED)
    assert [line.allows(model) for model in ("pp", "gift", "max")] == [True, True, False]


@pytest.mark.parametrize("kind", ["suspend", "close"])
def test_a_status_bars_what_costs_nothing_all_the_same(kind):
    line = ToldLine()
    line.use(1000)
    line.order(kind=kind)
    assert not line.allows("gift")


def test_a_limit_bars_what_costs_nothing_all_the_same():
    limits = [{"requests": 1, "per": "minute"}]
    line = ToldLine(limits=limits)
    line.use(1000)
    assert (line.decisions[-1]["rule"], line.allows("gift")) == ("balance", False)


# What decisions and refusals say


def test_a_decision_says_in_which_unit_it_counts():
    line = ToldLine(limits=[{"requests": 3, "per": "minute"}, {"utok": 10**9, "per": "week"}])
    assert line.decisions[-1]["unit"] == "utok"
    line.use(1, 1, 1)
    assert (line.decisions[-1]["rule"], line.decisions[-1]["unit"]) == (
        "minute_requests",
        "requests",
    )


def test_a_decision_carries_the_terms_that_a_gateway_goes_by():
    line = ToldLine(
        mode="strict",
        hold_validity_s=20,
        longest_call_s=90,
        least_call_tokens=7,
        abort="release",
        unreachable="leases",
    )
    names = ("mode", "hold_validity_ms", "longest_call_ms", "least_call_utok", "abort")
    said = line.decisions[-1]
    assert [said[name] for name in names] == ["strict", 20_000, 90_000, 7 * MILLION, "release"]
    assert (said["unreachable"], said["emergency_utok"], said["terms_version"]) == ("leases", 0, 1)
    assert said["zero_rated_needs_balance"] == 0


def test_a_refusal_says_apart_what_is_used_and_what_is_held():
    line = ToldLine(mode="strict", limits=[{"utok": 500 * MILLION, "per": "day"}])
    line.use(100)
    line.hold(300, session="1")
    by_limit = line.hold(200, session="2")
    assert by_limit.limit_name == "day_utok"
    assert (by_limit.limit_used, by_limit.limit_held) == (100 * MILLION, 300 * MILLION)
    free = ToldLine(mode="strict")
    free.use(100)
    free.hold(850, session="1")
    refused = free.hold(200, session="2")
    assert refused.reason.name == "BALANCE_HELD"
    assert (refused.limit_used, refused.limit_held) == (100 * MILLION, 850 * MILLION)


def test_an_account_may_have_no_more_scopes_than_a_decision_can_say():
    line = ToldLine()
    names = [f"a subscriber with a long name {number:04}" for number in range(400)]

    def grant(some):
        return line.order(kind="grant", amount_utok=MILLION, subscribers=some).replies[0].answer

    for first in range(4):
        assert grant(names[first:]).outcome.name == "DONE"
    refused = grant(names[:-1])
    assert (refused.reason.name, "65,536 bytes" in refused.detail) == ("TOO_MANY_SCOPES", True)
    # The same scope again is no other one.
    assert grant(names[1:]).outcome.name == "DONE"
