"""An offer says nothing beyond its bounds, and what it leaves out is the careful choice."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tokenline.rating.exact import NANO, UTOK, YUAN_MAX
from tokenline.rating.offers import Pack, Plan, PlanLimit
from tokenline.rating.parts import TOKENS_MAX

PLAN = {"title": "T", "fee_nano": 1, "tokens": 10, "mode": "prepaid"}
PACK = {"title": "T", "fee_nano": 1, "tokens": 10, "valid_days": 30}
LIMIT = {"tokens": 10, "per": "hour"}
OVERAGE = {"used_up": "overage"}
EMERGENCY = {"unreachable": "emergency"}


@pytest.mark.parametrize(
    ("part", "usual", "field", "least", "most"),
    [
        (Plan, PLAN, "fee_nano", 0, YUAN_MAX * NANO),
        (Plan, PLAN, "tokens", 0, TOKENS_MAX),
        (Plan, PLAN, "priority", 0, 1_000_000),
        (Plan, PLAN, "rollover_tokens", 0, TOKENS_MAX),
        (Plan, PLAN, "hold_validity_s", 1, 3600),
        (Plan, PLAN, "longest_call_s", 1, 14_400),
        (Plan, PLAN, "subscriber_tokens", 0, TOKENS_MAX),
        (Plan, PLAN | OVERAGE, "overage_nano", 0, YUAN_MAX * NANO),
        (Plan, PLAN | EMERGENCY, "emergency_tokens", 1, TOKENS_MAX),
        (Pack, PACK, "fee_nano", 0, YUAN_MAX * NANO),
        (Pack, PACK, "tokens", 1, TOKENS_MAX),
        (Pack, PACK, "valid_days", 1, 3660),
        (Pack, PACK, "priority", 0, 1_000_000),
        (PlanLimit, {"per": "hour"}, "tokens", 0, 10**15),
        (PlanLimit, {"per": "hour"}, "requests", 0, 10**15),
        (PlanLimit, {"per": "hour"}, "utok", 0, TOKENS_MAX * UTOK),
    ],
)
def test_a_number_of_an_offer_goes_so_far_and_no_farther(part, usual, field, least, most):
    for number in (least, most):
        assert getattr(part.model_validate(usual | {field: number}), field) == number
    for number in (least - 1, most + 1):
        with pytest.raises(ValidationError):
            part.model_validate(usual | {field: number})


@pytest.mark.parametrize(
    ("percents", "taken"),
    [
        ((), True),
        ((1, 1000), True),
        ((0, 50), False),
        ((50, 1001), False),
        ((50, 50), False),
        ((80, 50), False),
    ],
)
def test_thresholds_are_percents_that_ascend(percents, taken):
    if taken:
        assert Plan.model_validate(PLAN | {"thresholds": percents}).thresholds == percents
        return
    with pytest.raises(ValidationError):
        Plan.model_validate(PLAN | {"thresholds": percents})


@pytest.mark.parametrize(
    ("said", "ahead_s"),
    [
        ({}, 120),
        ({"hold_validity_s": 30}, 60),
        ({"longest_call_s": 900}, 120),
        ({"mode": "strict"}, 600),
        ({"mode": "strict", "longest_call_s": 900}, 900),
        ({"mode": "strict", "longest_call_s": 10}, 120),
        ({"mode": "postpaid"}, 120),
    ],
)
def test_a_plan_looks_for_the_dearest_price_as_far_as_a_call_of_it_may_run(said, ahead_s):
    assert Plan.model_validate(PLAN | said).priced_ahead_s == ahead_s


def test_amounts_are_the_same_in_microtokens():
    said = {"tokens": 3, "rollover_tokens": 2, "subscriber_tokens": 1}
    plan = Plan.model_validate(PLAN | said | EMERGENCY | {"emergency_tokens": 4})
    assert (plan.allowance_utok, plan.rollover_utok) == (3 * UTOK, 2 * UTOK)
    assert (plan.subscriber_utok, plan.emergency_utok) == (UTOK, 4 * UTOK)
    bare = Plan.model_validate(PLAN)
    assert (bare.rollover_utok, bare.subscriber_utok, bare.emergency_utok) == (0, None, 0)
    # A cap of nothing is a cap.
    assert Plan.model_validate(PLAN | {"subscriber_tokens": 0}).subscriber_utok == 0
    assert Pack.model_validate(PACK).allowance_utok == 10 * UTOK


@pytest.mark.parametrize("per", ["minute", "hour", "day", "week", "month", "cycle"])
def test_a_window_rolls_where_it_has_a_fixed_length(per):
    if per in ("month", "cycle"):
        with pytest.raises(ValidationError, match="no fixed length"):
            PlanLimit.model_validate(LIMIT | {"per": per, "rolling": True})
    else:
        limit = PlanLimit.model_validate(LIMIT | {"per": per, "rolling": True})
        assert limit.window == ("tokens", per, "rolling", "account", "", "")
    limit = PlanLimit.model_validate(LIMIT | {"per": per})
    assert limit.window == ("tokens", per, "calendar", "account", "", "")


@pytest.mark.parametrize("unit", ["tokens", "utok", "requests"])
def test_a_limit_of_nothing_is_a_limit_of_its_unit(unit):
    limit = PlanLimit.model_validate({unit: 0, "per": "day", "of": "subscriber", "subscriber": "k"})
    assert (limit.unit, limit.ceiling) == (unit, 0)
    assert limit.window == (unit, "day", "calendar", "subscriber", "", "k")


@pytest.mark.parametrize(
    ("mode", "taken"), [("strict", False), ("prepaid", True), ("postpaid", True)]
)
def test_only_a_plan_that_may_go_beyond_its_tokens_has_overage(mode, taken):
    said = PLAN | OVERAGE | {"mode": mode, "overage_nano": 1}
    if taken:
        assert Plan.model_validate(said).overage_nano == 1
        return
    with pytest.raises(ValidationError, match="never goes beyond"):
        Plan.model_validate(said)


@pytest.mark.parametrize(
    "said",
    [
        OVERAGE,
        EMERGENCY,
        {"overage_nano": 1},
        {"emergency_tokens": 1},
        {"unreachable": "leases", "emergency_tokens": 1},
    ],
)
def test_a_choice_and_the_value_that_belongs_to_it_come_together(said):
    with pytest.raises(ValidationError, match=r"needs|takes no"):
        Plan.model_validate(PLAN | said)


def test_what_a_pack_leaves_out_is_the_careful_choice():
    pack = Pack.model_validate(PACK)
    assert (pack.priority, pack.source, pack.transferable, pack.shared) == (
        100,
        "pack",
        False,
        True,
    )
    assert (pack.groups, pack.issuer) == ((), None)


def test_what_is_free_has_no_fee():
    assert Pack.model_validate(PACK | {"source": "free", "fee_nano": 0}).source == "free"
    with pytest.raises(ValidationError, match="a free pack has no fee"):
        Pack.model_validate(PACK | {"source": "free"})
