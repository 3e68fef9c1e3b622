"""What a gateway tells of a call at its edges: how much it may answer, how it ended, what is counted of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.gateway_stand import CALL, MILLION, PREPAID, WORST, standing, version_of
from tests.orders import CATALOG
from tests.strategies import DAY, MINUTE, NOON
from tokenline.errors import CutOff, InvalidEvent, QuotaExceeded, SettingsError, UnknownModel
from tokenline.event import UsageEvent
from tokenline.gateway.gateway import Gateway
from tokenline.gateway.lease import MOST_UTOK
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings


@pytest.fixture
async def stand(tmp_path):
    async with standing(tmp_path) as stand:
        stand.publish(CATALOG)
        yield stand


def counts(stand):
    """Return what was counted of calls, without what is nothing."""
    names = ("admitted", "refused", "cut", "clamped", "aborted", "emergency", "overshoot_utok")
    found = {name: getattr(stand.gateway.stats, name) for name in names}
    return {name: count for name, count in found.items() if count}


async def test_a_strict_call_answers_no_more_than_is_held_for_it(stand):
    stand.scarce_utok = 50 * MILLION
    async with stand.gateway.admit(**CALL, subscriber="kid") as call:
        assert (call.max_tokens, call.clamped, call.reserved_utok) == (20, True, 50 * MILLION)
        stand.scarce_utok = MOST_UTOK  # what comes later is for later calls
        await call.progress(output_tokens=20)
        assert call.reserved_utok == 50 * MILLION
        with pytest.raises(CutOff, match="reserved_used_up") as cut:
            await call.progress(output_tokens=21)
        assert (cut.value.account, cut.value.subscriber) == ("a", "kid")
        call.finish({"input_tokens": 10, "output_tokens": 20}, outcome="cut_off")
    assert counts(stand) == {"admitted": 1, "clamped": 1}


async def test_what_a_call_used_beyond_what_was_held_is_counted_and_what_it_left_is_not(stand):
    for tokens in (60, 45, 0):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"input_tokens": 10, "output_tokens": tokens})
    assert counts(stand) == {"admitted": 3, "overshoot_utok": 30 * MILLION}


async def test_only_what_was_admitted_from_what_is_in_hand_says_how_long_that_takes(stand):
    for _ in range(3):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"input_tokens": 10})
    assert len(stand.gateway.stats.admit_us) == 2


async def test_what_is_refused_cut_or_forsaken_is_counted_once(stand):
    with pytest.raises(UnknownModel, match="unknown_model") as refused:
        async with stand.gateway.admit(**CALL | {"model": "other"}, subscriber="kid"):
            pass
    assert refused.value.subscriber == "kid"
    assert counts(stand) == {"refused": 1}
    async with stand.gateway.admit(**CALL) as call:
        stand.says("strict", state="cut", reason="suspended", version=1)
        with pytest.raises(CutOff, match="suspended"):
            await call.progress(output_tokens=1)
    assert counts(stand) == {"admitted": 1, "refused": 1, "cut": 1, "aborted": 1}


async def test_a_postpaid_call_holds_nothing_and_asks_nobody(stand):
    stand.says("postpaid")
    async with stand.gateway.admit(**CALL) as call:
        assert (call.mode, call.hold_id, call.reserved_utok) == ("postpaid", "", 0)
        await call.progress(output_tokens=1000)
        call.finish({"input_tokens": 10, "output_tokens": 1000})
    assert stand.questions == []
    assert counts(stand) == {"admitted": 1}


def with_prices(number, **rate):
    said = json.loads(CATALOG.to_json())
    said["rates"].append({"provider": "p", "model": "cheap"} | rate)
    return Catalog.model_validate(said | {"version": number})


async def test_a_call_whose_answer_costs_nothing_may_answer_all_that_is_asked(stand):
    stand.publish(with_prices(2, input_tokens="1", output_tokens="0"))
    stand.scarce_utok = 10 * MILLION
    async with stand.gateway.admit(**CALL | {"model": "cheap"}) as call:
        assert (call.reserved_utok, call.max_tokens, call.clamped) == (10 * MILLION, 45, False)
        call.finish({"input_tokens": 10, "output_tokens": 45})


async def test_a_call_that_costs_nothing_is_served_without_asking_and_bound_all_the_same(stand):
    stand.publish(with_prices(2, input_tokens="0", output_tokens="0"))
    async with stand.gateway.admit(**CALL | {"model": "cheap"}) as call:
        assert (call.hold_id, call.reserved_utok, call.max_tokens) == ("", 0, 45)
        with pytest.raises(CutOff, match="reserved_used_up"):
            await call.progress(output_tokens=46)
        call.finish({"input_tokens": 10, "output_tokens": 46})
    assert stand.questions == []


async def test_a_prepaid_call_that_costs_nothing_may_tell_how_far_it_is(stand):
    stand.publish(with_prices(2, input_tokens="0", output_tokens="0"))
    stand.says("small")
    async with stand.gateway.admit(**CALL | {"model": "cheap"}) as call:
        await call.progress(output_tokens=40)
        assert (call.mode, call.reserved_utok) == ("prepaid", 0)
        call.finish({"input_tokens": 10, "output_tokens": 46})
    assert stand.questions == []


async def test_terms_that_come_are_in_force_for_the_next_call(stand):
    async with stand.gateway.admit(**CALL) as call:
        call.finish({"input_tokens": 10})
    lenient = CATALOG.plans["strict"].model_copy(update={"mode": "postpaid"})
    stand.publish(version_of(2, NOON - DAY, plans={"strict": lenient}))
    async with stand.gateway.admit(**CALL) as call:
        assert call.mode == "postpaid"
        call.finish({"input_tokens": 10})


@pytest.mark.parametrize(("answered", "held"), [(0, 256), (128, 256), (129, 385), (500, 756)])
async def test_a_prepaid_call_is_held_a_step_ahead_once_half_a_step_is_left(stand, answered, held):
    stand.says("small")
    async with stand.gateway.admit(**PREPAID) as call:
        await call.progress(output_tokens=answered)
        assert call.reserved_utok == 1000 * MILLION // 10 + held * MILLION // 4
        call.finish({"input_tokens": 1000, "output_tokens": answered})


async def test_a_prepaid_call_is_held_no_further_than_it_can_answer(stand):
    stand.says("small")
    async with stand.gateway.admit(**PREPAID | {"max_tokens": 300}) as call:
        held = []
        for answered in (200, 290, 310):
            await call.progress(output_tokens=answered)
            held.append((call.reserved_utok - 100 * MILLION) * 4 // MILLION)
        # It says that it answered more than it was to: that is held as well.
        assert held == [300, 300, 310]
        # What was said before counts: nobody takes an answer back.
        await call.progress(output_tokens=1)
        call.finish({"input_tokens": 1000, "output_tokens": 310})


async def test_what_a_forsaken_call_is_charged_at_most_is_what_was_held_of_its_answer(stand):
    plan = CATALOG.plans["small"].model_copy(update={"abort": "charge_granted"})
    stand.publish(version_of(2, NOON - DAY, plans={"small": plan}))
    stand.says("small")
    async with stand.gateway.admit(**PREPAID):
        pass
    (event,) = stand.sent
    assert (event.input_tokens, event.output_tokens) == (1000, 256)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CutOff("a", "balance"), "cut_off"),
        (asyncio.CancelledError(), "client_abort"),
        (GeneratorExit(), "client_abort"),
        (ConnectionError(), "upstream_error"),
    ],
)
async def test_a_call_that_is_left_by_an_error_says_which_kind(stand, error, outcome):
    async def serve():
        async with stand.gateway.admit(**CALL):
            raise error

    with pytest.raises(type(error)):
        await serve()
    assert [event.outcome for event in stand.sent] == [outcome]


async def test_usage_says_whose_it_is_and_which_session_pays(stand):
    stand.says("strict", tenant_id="t")
    async with stand.gateway.admit(**CALL, tenant="t", subscriber="kid") as call:
        assert call.hold_id == stand.questions[0][1]
        call.finish({"input_tokens": 10})
    (event,) = stand.sent
    said = (event.tenant_id, event.account_id, event.subscriber_id, event.provider, event.model)
    assert said == ("t", "a", "kid", "p", "max")
    assert (event.hold_id, event.occurred_at, event.outcome) == (call.hold_id, NOON, "completed")


@pytest.mark.parametrize("occurred_at", [0, NOON - 5000])
async def test_a_whole_event_is_kept_as_it_is_but_for_the_session_that_pays(stand, occurred_at):
    said = UsageEvent(
        account_id="a",
        provider="p",
        model="max",
        event_id="mine",
        output_tokens=4,
        occurred_at=occurred_at,
        hold_id="another's",
    )
    async with stand.gateway.admit(**CALL) as call:
        call.finish(said)
    (event,) = stand.sent
    assert (event.event_id, event.output_tokens) == ("mine", 4)
    assert (event.hold_id, event.occurred_at) == (call.hold_id, occurred_at or NOON)
    assert stand.lease.spent_utok == 8 * MILLION


@pytest.mark.parametrize("whose", [{"account_id": "b"}, {"subscriber_id": "x"}, {"tenant_id": "t"}])
async def test_a_whole_event_of_another_call_is_refused_and_the_call_goes_on(stand, whose):
    said = {"account_id": "a", "provider": "p", "model": "max", "event_id": "x", "input_tokens": 1}
    other = UsageEvent(**said | whose)
    async with stand.gateway.admit(**CALL) as call:
        with pytest.raises(InvalidEvent, match="the usage is of"):
            call.finish(other)
        assert stand.sent == []
        call.finish({"input_tokens": 10})
    assert stand.lease.spent_utok == 10 * MILLION


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"prompt_tokens": True}, "prompt_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9", "prompt_tokens": 0}, "max_tokens"),
        ({"prompt_tokens": 1_000_000_001}, "prompt_tokens is above 1000000000"),
    ],
)
async def test_a_count_that_is_none_is_named(stand, wrong, named):
    with pytest.raises(InvalidEvent, match=named):
        stand.gateway.admit(**CALL | wrong)


async def test_the_largest_and_the_smallest_call_are_calls(stand):
    async with stand.gateway.admit(**CALL | {"prompt_tokens": 1_000_000_000}) as call:
        assert call.reserved_utok == (1_000_000_000 + 90) * MILLION
        call.finish({"input_tokens": 10})
    async with stand.gateway.admit(**CALL | {"max_tokens": 0}) as call:
        assert (call.max_tokens, call.reserved_utok, call.clamped) == (0, 10 * MILLION, False)
        call.finish({"input_tokens": 10})


@pytest.mark.parametrize("of", ["", "kid"])
async def test_a_call_hears_of_a_cut_of_its_account_and_of_its_subscriber(stand, of):
    async with stand.gateway.admit(**CALL, subscriber="kid") as call:
        waiting = asyncio.create_task(call.wait_cut())
        stand.says("strict", subscriber_id="mum", state="cut", reason="limit_reached", version=1)
        await asyncio.sleep(0)
        assert not waiting.done()
        stand.says("strict", subscriber_id=of, state="cut", reason="limit_reached", version=1)
        assert (await asyncio.wait_for(waiting, 1)).state == "cut"
        call.finish({"input_tokens": 10})


async def test_a_call_that_runs_out_of_balance_hears_what_would_help(stand):
    stand.says("small")
    stand.scarce_utok = 170 * MILLION
    async with stand.gateway.admit(**PREPAID, subscriber="kid") as call:
        stand.refusal = {"reason": "balance_used_up"}
        with pytest.raises(CutOff, match="balance_used_up") as cut:
            await call.progress(output_tokens=2000)
        call.finish({"input_tokens": 10}, outcome="cut_off")
    assert (cut.value.subscriber, cut.value.account) == ("kid", "a")
    # 2000 tokens of answer and the prompt are 600; 164 were held for it.
    assert cut.value.top_up_utok == 436 * MILLION
    assert counts(stand) == {"admitted": 1, "cut": 1}


async def test_a_call_waits_as_long_as_the_setting_says_or_the_caller(tmp_path):
    async with standing(tmp_path, admit_wait_ms=30) as stand:
        stand.publish(CATALOG)
        stand.refusal = {"reason": "balance_held"}
        loop = asyncio.get_running_loop()
        for fields, least_s in (({}, 0.03), ({"within_ms": 90}, 0.09)):
            began_s = loop.time()
            with pytest.raises(QuotaExceeded, match="balance_held"):
                async with stand.gateway.admit(**CALL, **fields):
                    pass
            assert least_s <= loop.time() - began_s < least_s + 1


async def test_a_lease_is_given_back_when_it_lay_idle_for_as_long_as_the_setting_says(tmp_path):
    async with standing(tmp_path, lease_idle_ms=150) as stand:
        stand.publish(CATALOG)
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"input_tokens": 10})
        stand.clock.ms += 149
        await asyncio.sleep(0.2)
        assert [question.action for _, _, question in stand.questions] == ["hold"]
        stand.clock.ms += 1
        await asyncio.sleep(0.1)
        assert [question.action for _, _, question in stand.questions] == ["hold", "settle"]
        assert len(stand.gateway.keeper) == 0


def test_a_gateway_needs_a_name_and_the_callers_word_counts_for_more(tmp_path):
    with pytest.raises(SettingsError, match="GATEWAY_ID"):
        Gateway(Settings(data_dir=tmp_path))
    assert Gateway(Settings(data_dir=tmp_path), gateway_id="mine")._id == "mine"
    assert Gateway(Settings(data_dir=tmp_path, gateway_id="gw"), gateway_id="mine")._id == "mine"
    assert WORST  # a gateway that is not entered keeps no file
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("plan", "least", "asked", "short"),
    [
        ("strict", None, CALL, 12 * MILLION),
        ("strict", None, CALL | {"prompt_tokens": 0, "max_tokens": 0}, 1001002),
        ("strict", 500, CALL, 500 * MILLION + 1),
        ("strict", 0, CALL, 12 * MILLION),
        ("strict", 500, CALL | {"prompt_tokens": 900}, 902 * MILLION),
        ("postpaid", None, CALL, 1),
        ("strict", None, CALL | {"model": "nobody knows it"}, 1),
    ],
)
async def test_who_is_cut_for_its_balance_hears_what_lets_the_call_pass(
    stand, plan, least, asked, short
):
    said = dict(CATALOG.plans)
    said["strict"] = said["strict"].model_copy(update={"least_call_tokens": least})
    stand.publish(version_of(2, NOON - MINUTE, plans=said))
    cut = {"state": "cut", "rule": "balance", "reason": "limit_reached", "version": 1}
    stand.says(plan, used=1000 * MILLION, limit=1000 * MILLION, **cut)
    with pytest.raises(QuotaExceeded) as refused:
        async with stand.gateway.admit(**asked):
            pass
    assert (refused.value.reason, refused.value.top_up_utok) == ("balance_used_up", short)


ONLY_MINI = [{"models": ["p/mini"], "subscribers": []}]


async def test_a_call_of_a_model_that_nothing_pays_for_is_refused_and_hears_what_lets_it_pass(
    stand,
):
    stand.publish(CATALOG)
    # There is plenty, but for another model.
    stand.says("strict", used=0, limit=1000 * MILLION, covers=ONLY_MINI, version=1)
    with pytest.raises(QuotaExceeded) as refused:
        async with stand.gateway.admit(**CALL):
            pass
    assert (refused.value.reason, refused.value.top_up_utok) == ("not_covered", 12 * MILLION)
    async with stand.gateway.admit(**CALL | {"model": "mini"}) as call:
        call.finish({"input_tokens": 1})


async def test_a_running_call_stops_when_nothing_pays_for_its_model_any_more(stand):
    stand.publish(CATALOG)
    stand.says("postpaid", version=1)
    async with stand.gateway.admit(**CALL) as call:
        async with stand.gateway.admit(**CALL | {"model": "mini"}) as other:
            waiting = asyncio.create_task(call.wait_cut())
            await call.progress(output_tokens=1)
            stand.says("postpaid", covers=ONLY_MINI, version=2)
            with pytest.raises(CutOff, match="not_covered"):
                await call.progress(output_tokens=2)
            assert (await waiting).reason == "not_covered"
            await other.progress(output_tokens=2)
            other.finish({"input_tokens": 1})
        call.finish({"input_tokens": 1}, outcome="cut_off")


async def test_a_call_that_costs_nothing_goes_on_when_the_balance_is_used_up(stand):
    free = [one for one in CATALOG.rates if one.model == "mini"]
    gift = free[0].model_copy(update={"model": "gift", "utok": (0,) * len(free[0].utok)})
    stand.publish(version_of(2, NOON - MINUTE, rates=(*CATALOG.rates, gift)))
    cut = {"state": "cut", "rule": "balance", "reason": "limit_reached", "version": 1}
    covers = [{"models": ["p/gift"], "subscribers": []}]
    stand.says("strict", used=9, limit=9, covers=covers, **cut)
    async with stand.gateway.admit(**CALL | {"model": "gift"}) as call:
        await call.progress(output_tokens=5)
        call.finish({"input_tokens": 1})
    with pytest.raises(QuotaExceeded):
        async with stand.gateway.admit(**CALL):
            pass
