"""A gateway's calls without Kafka: by which rules they go, and what becomes of them at their edges."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.gateway_stand import CALL, MILLION, PREPAID, WORST, standing, told, version_of
from tests.orders import CATALOG
from tests.strategies import DAY, MINUTE, NOON
from tokenline.errors import ChargingUnavailable, CutOff, InvalidEvent, OutboxFull, QuotaExceeded
from tokenline.gateway.emergency import Emergency
from tokenline.gateway.lease import Key, Lease, Need
from tokenline.gateway.prices import CACHED_MOST, Prices
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog
from tokenline.wire.plan_terms import NO_PLAN, plan_terms


@pytest.fixture
async def stand(tmp_path):
    async with standing(tmp_path) as stand:
        yield stand


def terms(plan="strict", **changed):
    said = told(CATALOG.plans[plan].model_copy(update=changed), 1)
    return plan_terms({"plan": plan} | said)


def prices_of(*catalogs):
    book = CatalogBook()
    for one in catalogs:
        book.add(one)
    return Prices(book)


async def test_a_gateway_goes_by_the_terms_that_charging_told_and_not_by_the_catalog(stand):
    """A version that makes a strict plan postpaid is in force when charging says so for the account."""
    stand.publish(CATALOG)
    lenient = CATALOG.plans["strict"].model_copy(update={"mode": "postpaid"})
    version = version_of(2, NOON - DAY, plans={"strict": lenient})
    stand.publish(version, for_accounts=False)
    async with stand.gateway.admit(**CALL) as call:
        assert (call.mode, call.reserved_utok) == ("strict", WORST)
        call.finish({"input_tokens": 10})
    stand.says("strict")
    async with stand.gateway.admit(**CALL) as call:
        assert (call.mode, call.reserved_utok) == ("postpaid", 0)
        call.finish({"input_tokens": 10})


def test_a_clock_that_is_behind_makes_no_plan_free():
    for at_ms in (NOON, NOON - 40 * DAY):
        rules = prices_of(version_of(1, NOON)).rules(terms(), "p", "max", at_ms)
        assert (rules.mode, rules.price) == ("strict", (MILLION, 2 * MILLION))


def test_terms_are_kept_once_for_all_accounts_that_have_them():
    assert terms() is terms()
    assert terms() is not terms(mode="prepaid")
    assert (terms().plan, terms().version, terms("limited").mode) == ("strict", 1, "postpaid")
    assert plan_terms({"plan": ""}) is NO_PLAN


@pytest.mark.parametrize("mode", ["strict", "prepaid"])
def test_prices_look_as_far_ahead_as_the_plan_does(mode):
    plan = CATALOG.plans["strict"].model_copy(update={"mode": mode, "hold_validity_s": 77})
    assert terms(mode=mode, hold_validity_s=77).priced_ahead_ms == plan.priced_ahead_s * 1000


def test_without_a_plan_a_call_is_charged_afterwards_and_free_before_the_first_catalog():
    for prices, price in ((prices_of(CATALOG), (MILLION, 2 * MILLION)), (prices_of(), (0, 0))):
        rules = prices.rules(NO_PLAN, "p", "max", NOON)
        assert (rules.mode, rules.terms.plan, rules.price) == ("postpaid", "", price)


async def test_a_call_on_a_plan_of_which_no_terms_were_told_is_held_whole(stand):
    stand.publish(CATALOG)
    stand.says("brought by a version that is still on its way")
    async with stand.gateway.admit(**CALL) as call:
        assert (call.mode, call.reserved_utok, call.max_tokens) == ("strict", WORST, 45)
        call.finish({"input_tokens": 10, "output_tokens": 45})


async def test_a_call_on_a_plan_waits_for_a_catalog_to_price_it(stand):
    with pytest.raises(ChargingUnavailable, match="no catalog has come yet"):
        async with stand.gateway.admit(**CALL):
            pass
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL) as call:
        assert call.reserved_utok == WORST
        call.finish({"input_tokens": 10})


def test_a_clock_that_was_ahead_leaves_no_prices_of_another_day_behind():
    later = json.loads(version_of(2, NOON + 9 * DAY).to_json())
    later["rates"][0]["utok"] = [MILLION] * 10
    prices = prices_of(version_of(1, NOON - DAY), Catalog.from_json(json.dumps(later)))
    ahead = prices.rules(terms(), "p", "max", NOON + 10 * DAY)
    right = prices.rules(terms(), "p", "max", NOON)
    assert [rules.price.answer_utok // MILLION for rules in (ahead, right)] == [1, 2]


def test_what_callers_name_does_not_pile_up():
    prices = prices_of(CATALOG)
    for number in range(CACHED_MOST + 10):
        assert prices.rules(terms(), "p", f"nobody's {number}", NOON) is None
    assert len(prices._cached) <= CACHED_MOST


@pytest.mark.parametrize(
    "wrong",
    [
        {"subscriber": "user\t7"},
        {"subscriber": "u" * 257},
        {"account": ""},
        {"tenant": "a/b"},
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**40},
        {"max_tokens": 1.5},
    ],
)
async def test_a_call_that_no_event_could_tell_of_is_not_admitted(stand, wrong):
    stand.publish(CATALOG)
    with pytest.raises(InvalidEvent):
        async with stand.gateway.admit(**CALL | wrong):
            pass
    assert not stand.questions


async def test_an_answer_is_no_longer_than_an_event_may_say(stand):
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL | {"max_tokens": 2**63 - 1}) as call:
        assert call.max_tokens == 1_000_000_000
        call.finish({"input_tokens": 10})


@pytest.mark.parametrize("outage", [OutboxFull("no room"), OSError(28, "no space left")])
async def test_a_call_whose_usage_cannot_be_kept_holds_nothing_for_ever(stand, outage):
    stand.publish(CATALOG)
    stand.post.outage, calls = outage, []

    async def serve():
        async with stand.gateway.admit(**CALL) as call:
            calls.append(call)
            await call.progress(output_tokens=20)
            call.finish({"input_tokens": 10, "output_tokens": 20})

    with pytest.raises(type(outage)):
        await serve()
    # It has ended: what comes too late is neither emitted nor settled a second time.
    stand.post.outage = None
    with pytest.raises(InvalidEvent, match="has ended"):
        calls[0].finish({"input_tokens": 10, "output_tokens": 20})
    # Reported as spent, so that the line charges it when it closes the hold.
    assert (stand.lease.reserved_utok, stand.lease.spent_utok) == (0, 50 * MILLION)
    assert not stand.sent


async def test_there_is_room_for_the_event_of_a_call_that_asks_again(stand):
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL) as call:
        stand.post.outage = OutboxFull("no room")
        with pytest.raises(OutboxFull):
            call.finish({"input_tokens": 10})
        stand.post.outage = None
        call.finish({"input_tokens": 10})
    assert [event.input_tokens for event in stand.sent] == [10]
    assert (stand.lease.reserved_utok, stand.lease.spent_utok) == (0, 10 * MILLION)


async def test_an_emergency_call_whose_usage_cannot_be_kept_has_ended(stand, tmp_path):
    patient = CATALOG.plans["strict"].model_copy(
        update={"unreachable": "emergency", "emergency_tokens": 200}
    )
    stand.publish(version_of(1, NOON - DAY, plans={"strict": patient}))
    stand.gateway._emergency = Emergency(tmp_path / "slices.sqlite")
    stand.clock.ms += 2 * DAY  # so long since anything was heard
    stand.post.outage = OutboxFull("no room")
    with pytest.raises(OutboxFull):
        async with stand.gateway.admit(**CALL):
            pass
    assert stand.gateway._emergency_calls == 0
    assert stand.gateway._emergency.used_utok("default", "a") == 10 * MILLION


async def test_a_strict_call_is_told_when_the_line_has_closed_its_lease(stand):
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL) as call:
        stand.clock.ms += 2 * MINUTE - 1
        await call.progress(output_tokens=1)
        stand.clock.ms += 1
        with pytest.raises(CutOff, match="lease_ended"):
            await call.progress(output_tokens=2)
        call.finish({"input_tokens": 10, "output_tokens": 2}, outcome="cut_off")


async def test_a_strict_call_is_told_when_the_line_has_closed_its_lease_before(stand):
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL) as call:
        stand.lease.over = True
        with pytest.raises(CutOff, match="lease_ended"):
            await call.progress(output_tokens=2)


async def test_a_question_names_whose_call_it_is_and_of_which_model(stand):
    asked = {}

    class Office:
        async def hold(self, account, *_, **fields):
            asked.update(fields, account=account)
            raise ChargingUnavailable("away")

    stand.gateway._orders = Office()
    key = Key("t", "a", "kid", "p", "max")
    question = Lease("s").ask(0.0, Need(full_utok=9, least_utok=5), 9)
    with pytest.raises(ChargingUnavailable):
        await stand.gateway._ask(key, "s", question)
    names = ("tenant", "account", "subscriber_id", "provider", "model")
    assert tuple(asked[name] for name in names) == tuple(key)


async def test_a_subscriber_that_is_cut_is_refused_alone_and_stopped_while_it_answers(stand):
    stand.publish(CATALOG)
    async with stand.gateway.admit(**CALL, subscriber="kid") as call:
        stand.says("strict", subscriber_id="kid", state="cut", reason="limit_reached", version=1)
        with pytest.raises(CutOff, match="kid"):
            await call.progress(output_tokens=1)
        call.finish({"input_tokens": 10}, outcome="cut_off")
    with pytest.raises(QuotaExceeded, match="kid"):
        async with stand.gateway.admit(**CALL, subscriber="kid"):
            pass
    async with stand.gateway.admit(**CALL, subscriber="mother") as other:
        other.finish({"input_tokens": 10})


@pytest.mark.parametrize("plan", ["strict", "postpaid"])
async def test_a_group_of_models_that_is_cut_is_refused_and_stopped_and_no_other_model(stand, plan):
    stand.publish(CATALOG)
    stand.says(plan)
    cut = {"state": "cut", "rule": "day_requests:maxes", "used": 3, "limit": 3, "version": 1}
    async with stand.gateway.admit(**CALL) as call:
        stand.says(plan, model_group="day_requests:maxes", models=["p/max"], **cut)
        with pytest.raises(CutOff, match="day_requests:maxes"):
            await call.progress(output_tokens=1)
        assert (await asyncio.wait_for(call.wait_cut(), 1)).rule == "day_requests:maxes"
        call.finish({"input_tokens": 10}, outcome="cut_off")
    with pytest.raises(QuotaExceeded) as refused:
        async with stand.gateway.admit(**CALL):
            pass
    said = refused.value
    assert (said.reason, said.limit_name, said.limit) == ("limit_reached", "day_requests:maxes", 3)
    assert (said.unit, said.retry_after_ms) == ("requests", 0)
    async with stand.gateway.admit(**CALL | {"model": "mini"}) as other:
        other.finish({"input_tokens": 10})


@pytest.mark.parametrize(
    ("policy", "usage"),
    [("charge_reported", (10, 20)), ("charge_granted", (10, 45)), ("release", (0, 0))],
)
async def test_who_leaves_without_finish_is_settled_by_the_plans_policy(stand, policy, usage):
    plan = CATALOG.plans["strict"].model_copy(update={"abort": policy})
    stand.publish(version_of(1, NOON - DAY, plans={"strict": plan}))
    async with stand.gateway.admit(**CALL) as call:
        await call.progress(output_tokens=20)
    (event,) = stand.sent
    assert (event.input_tokens, event.output_tokens) == usage
    assert (event.usage_source, event.outcome) == ("estimated", "client_abort")
    with pytest.raises(InvalidEvent, match="has ended"):
        call.finish({"input_tokens": 10})


@pytest.mark.parametrize(("answered", "prompt"), [(0, 0), (3, 10)])
async def test_a_call_that_fails_upstream_pays_for_its_prompt_once_it_was_answered(
    stand, answered, prompt
):
    stand.publish(CATALOG)

    async def serve():
        async with stand.gateway.admit(**CALL) as call:
            await call.progress(output_tokens=answered)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await serve()
    (event,) = stand.sent
    assert (event.input_tokens, event.output_tokens) == (prompt, answered)
    assert event.outcome == "upstream_error"


async def test_a_prepaid_call_that_does_not_stream_is_held_whole(stand):
    """It held 256 tokens of its answer and could use all of them, again and again."""
    stand.publish(CATALOG)
    stand.says("small")
    async with stand.gateway.admit(**PREPAID, streams=False) as call:
        assert (call.mode, call.max_tokens, call.clamped) == ("prepaid", 4000, False)
        assert call.reserved_utok == 1000 * MILLION // 10 + 4000 * MILLION // 4
        call.finish({"input_tokens": 10})
    async with stand.gateway.admit(**PREPAID) as call:
        assert call.reserved_utok == 1000 * MILLION // 10 + 256 * MILLION // 4
        call.finish({"input_tokens": 10})


async def test_what_a_prepaid_call_that_does_not_stream_may_answer_is_what_is_held(stand):
    stand.publish(CATALOG)
    stand.says("small")
    stand.scarce_utok = 300 * MILLION
    async with stand.gateway.admit(**PREPAID, streams=False) as call:
        assert (call.max_tokens, call.clamped) == (800, True)
        call.finish({"input_tokens": 10})


@pytest.mark.parametrize("waits", [True, False])
async def test_what_a_call_is_told_after_its_end_reserves_nothing(stand, waits):
    """A lease with anything reserved is renewed for ever, and never given back."""
    stand.publish(CATALOG)
    stand.says("small")
    async with stand.gateway.admit(**PREPAID | {"max_tokens": 100_000}) as call:
        told = call.progress(output_tokens=50_000)
        if waits:
            told = asyncio.create_task(told)
            await asyncio.sleep(0)
            assert not told.done()
        call.finish({"input_tokens": 10})
        await told
    assert stand.lease.reserved_utok == 0


async def test_a_prepaid_call_that_charging_leaves_unanswered_is_served_whole(stand, tmp_path):
    """It was cut to its first step, which is all that it had asked charging for."""
    patient = {"unreachable": "emergency", "emergency_tokens": 1100}
    plans = {"small": CATALOG.plans["small"].model_copy(update=patient)}
    stand.publish(version_of(1, NOON - DAY, plans=plans))
    stand.says("small")
    stand.gateway._emergency = Emergency(tmp_path / "slices.sqlite")
    stand.gateway.keeper._ask = lambda *_: asyncio.Event().wait()
    async with stand.gateway.admit(**PREPAID, within_ms=20) as call:
        assert (call.max_tokens, call.reserved_utok) == (4000, 1100 * MILLION)
        call.finish({"input_tokens": 10})
    with pytest.raises(ChargingUnavailable, match="slice is used up"):
        async with stand.gateway.admit(**PREPAID, within_ms=20):
            pass


async def test_a_call_that_is_cut_by_a_limit_hears_which_and_until_when(stand):
    stand.publish(CATALOG)
    stand.says("small")
    stand.scarce_utok = 170 * MILLION
    async with stand.gateway.admit(**PREPAID) as call:
        stand.refusal = {"reason": "limit_reached", "limit_name": "subscriber_tokens"}
        stand.refusal |= {"limit_used": 5, "limit_held": 2, "limit_value": 8}
        stand.refusal |= {"resets_at_ms": NOON + DAY}
        with pytest.raises(CutOff, match="subscriber_tokens") as cut:
            await call.progress(output_tokens=2000)
        call.finish({"input_tokens": 10}, outcome="cut_off")
    assert (cut.value.used, cut.value.held, cut.value.limit) == (5, 2, 8)
    assert cut.value.resets_at_ms == NOON + DAY
    assert "5 used and 2 held of 8 utok" in str(cut.value)
