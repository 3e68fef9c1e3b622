"""Charging is out of reach: who stops, who goes on with what is in hand, who may use an emergency slice."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway_stand import CALL, MILLION, PREPAID, WORST, standing, version_of
from tests.orders import CATALOG
from tests.strategies import DAY, NOON
from tokenline.errors import ChargingUnavailable, CutOff, QuotaExceeded, UnknownAccount
from tokenline.gateway import gateway as gateway_module
from tokenline.gateway.emergency import Emergency

# The stand hears nothing after it; a view is stale 20 s later.
LAST_WORD = NOON + DAY
STALE_MS = 20_001


def plan_of(name, unreachable, **changed):
    emergency = 250 if unreachable == "emergency" else None
    said = {"unreachable": unreachable, "emergency_tokens": emergency}
    return CATALOG.plans[name].model_copy(update=said | changed)


@pytest.fixture
async def stand(tmp_path):
    async with standing(tmp_path / "data") as stand:
        stand.clock.ms = LAST_WORD
        stand.gateway._emergency = Emergency(tmp_path / "slices.sqlite")
        yield stand


def publish(stand, unreachable, name="strict", **changed):
    plan = plan_of(name, unreachable, **changed)
    stand.publish(version_of(1, NOON - DAY, plans=CATALOG.plans | {name: plan}))
    stand.says(name)


async def serve(stand, tokens=45, **fields):
    async with stand.gateway.admit(**CALL | fields) as call:
        call.finish({"input_tokens": 10, "output_tokens": tokens})


async def serve_while_it_may(stand, **fields):
    """Serve calls one after another until none may be any more; return how many and why."""
    for number in range(50):
        try:
            await serve(stand, **fields)
        except ChargingUnavailable as error:
            return number, str(error)
    raise AssertionError("nothing stops it")


async def test_a_plan_that_stops_stops_though_units_are_in_hand(stand):
    publish(stand, "stop")
    await serve(stand)
    stand.clock.ms += STALE_MS - 1
    await serve(stand)
    stand.clock.ms += 1
    with pytest.raises(ChargingUnavailable, match="has said nothing for 20001 ms"):
        await serve(stand)
    assert stand.lease.room_at(stand.clock.monotonic_s()) >= WORST


async def test_a_plan_that_goes_on_with_leases_serves_what_is_in_hand_and_no_more(stand):
    publish(stand, "leases")
    await serve(stand)
    in_hand = stand.lease.room_at(stand.clock.monotonic_s())
    stand.clock.ms += STALE_MS
    served, why = await serve_while_it_may(stand)
    assert served == in_hand // WORST > 0
    assert stand.lease.spent_utok == (1 + served) * WORST <= stand.lease.ceiling_utok
    assert "no lease is in hand" in why
    assert "emergency" not in why
    assert not stand.gateway._emergency.in_use


async def test_what_is_in_hand_is_good_until_its_validity_ends(stand):
    publish(stand, "leases")
    await serve(stand)
    stand.clock.ms += 59_999
    await serve(stand)
    stand.clock.ms += 1
    with pytest.raises(ChargingUnavailable, match="no lease is in hand"):
        await serve(stand)


async def test_a_prepaid_call_is_reserved_whole_while_there_is_nobody_to_ask_for_more(stand):
    publish(stand, "leases", name="small")
    call = PREPAID | {"prompt_tokens": 10}
    async with stand.gateway.admit(**call | {"max_tokens": 400}) as first:
        assert first.reserved_utok == MILLION + 256 * MILLION // 4
        first.finish({"input_tokens": 10})
    asked = len(stand.questions)
    stand.clock.ms += STALE_MS
    async with stand.gateway.admit(**call | {"max_tokens": 400}) as second:
        assert second.reserved_utok == MILLION + 400 * MILLION // 4
        await second.progress(output_tokens=400)
        second.finish({"input_tokens": 10, "output_tokens": 400})
    assert len(stand.questions) == asked
    with pytest.raises(ChargingUnavailable):
        await serve(stand, **call)


async def test_leases_do_not_help_a_postpaid_call_while_charging_is_out_of_reach(stand):
    publish(stand, "leases", name="postpaid")
    await serve(stand)
    assert stand.questions == []
    stand.clock.ms += STALE_MS
    with pytest.raises(ChargingUnavailable, match="no lease is in hand"):
        await serve(stand)


async def test_a_call_that_costs_nothing_goes_on_whatever_is_in_hand(stand):
    publish(stand, "leases")
    stand.clock.ms += STALE_MS
    await serve(stand, tokens=0, prompt_tokens=0, max_tokens=0)
    assert stand.questions == []


@pytest.mark.parametrize("name", ["strict", "small", "postpaid"])
async def test_an_emergency_slice_serves_any_plan_as_far_as_it_goes(stand, name):
    publish(stand, "emergency", name=name)
    stand.clock.ms += STALE_MS
    async with stand.gateway.admit(**CALL) as call:
        assert (call.mode, call.hold_id, call.reserved_utok) == ("strict", "", WORST)
        assert stand.gateway._emergency.used_utok("default", "a") == WORST
        await call.progress(output_tokens=45)
        with pytest.raises(CutOff, match="reserved_used_up"):
            await call.progress(output_tokens=46)
        call.finish({"input_tokens": 10, "output_tokens": 20})
    assert stand.gateway._emergency.used_utok("default", "a") == 50 * MILLION
    # 250 tokens are the slice: two more calls of a hundred end it to the last.
    served, why = await serve_while_it_may(stand)
    assert (served, stand.gateway.stats.emergency) == (2, 3)
    assert "emergency slice is used up" in why
    assert stand.questions == []
    assert {event.hold_id for event in stand.sent} == {""}


async def test_what_is_in_hand_is_used_before_the_emergency_slice(stand):
    publish(stand, "emergency")
    await serve(stand)
    in_hand = stand.lease.room_at(stand.clock.monotonic_s())
    stand.clock.ms += STALE_MS
    served, _ = await serve_while_it_may(stand)
    assert served == in_hand // WORST + 2
    assert stand.gateway.stats.emergency == 2


async def test_each_account_and_tenant_has_an_emergency_slice_of_its_own(stand):
    publish(stand, "emergency")
    for tenant, account in (("default", "b"), ("other", "a")):
        stand.says("strict", tenant_id=tenant, account_id=account)
    stand.clock.ms += STALE_MS
    assert (await serve_while_it_may(stand))[0] == 2
    assert (await serve_while_it_may(stand, account="b"))[0] == 2
    assert (await serve_while_it_may(stand, tenant="other"))[0] == 2


@pytest.mark.parametrize("unreachable", ["stop", "leases", "emergency"])
async def test_charging_that_does_not_answer_in_time_is_out_of_reach_though_it_was_heard_of(
    stand, unreachable
):
    publish(stand, unreachable)
    stand.away = True
    if unreachable == "emergency":
        async with stand.gateway.admit(**CALL, within_ms=20) as call:
            assert call.hold_id == ""
            call.finish({"input_tokens": 10})
        # It waited, so it says nothing of how long an admission takes.
        assert list(stand.gateway.stats.admit_us) == []
    else:
        with pytest.raises(ChargingUnavailable, match="did not answer in time"):
            async with stand.gateway.admit(**CALL, within_ms=20):
                pass
    assert stand.gateway.stats.emergency == (unreachable == "emergency")
    assert len(stand.questions) >= 1


async def test_an_account_nobody_spoke_of_is_refused_only_while_charging_is_heard(stand):
    publish(stand, "emergency")
    with pytest.raises(UnknownAccount, match="unknown_account"):
        await serve(stand, account="nobody")
    stand.clock.ms += STALE_MS
    with pytest.raises(ChargingUnavailable):
        await serve(stand, account="nobody")
    assert not stand.gateway._emergency.in_use


async def test_who_is_cut_stays_cut_while_charging_is_out_of_reach(stand):
    publish(stand, "emergency")
    stand.says("strict", state="cut", reason="limit_reached", version=1)
    stand.clock.ms += STALE_MS
    with pytest.raises(QuotaExceeded, match="limit_reached"):
        await serve(stand)


@pytest.fixture
async def mending(stand, monkeypatch):
    """A stand that serves from an emergency slice and looks every few ms whether it can be made whole."""
    monkeypatch.setattr(gateway_module, "MENDED_EVERY_S", 0.002)
    publish(stand, "emergency")
    stand.clock.ms += STALE_MS
    task = asyncio.create_task(stand.gateway._mend_slices())
    yield stand
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def slice_used(stand):
    """Return what is used of the slice after some looks, in tokens."""
    await asyncio.sleep(0.02)
    return stand.gateway._emergency.used_utok("default", "a") // MILLION


def arrives(stand):
    """Let the broker take all that was emitted."""
    for receipt in stand.post.receipts:
        receipt.set_result(None)


async def test_a_slice_is_whole_again_when_charging_is_back_and_has_all_that_was_used(mending):
    await serve(mending)
    arrives(mending)
    assert await slice_used(mending) == 100  # charging is still away
    mending.clock.ms -= 1
    assert await slice_used(mending) == 0
    assert not mending.gateway._emergency.in_use
    mending.clock.ms += 1
    assert (await serve_while_it_may(mending))[0] == 2


async def test_a_slice_is_not_whole_while_what_was_used_waits_in_the_outbox(mending):
    await serve(mending)
    mending.clock.ms = LAST_WORD
    assert await slice_used(mending) == 100
    arrives(mending)
    assert await slice_used(mending) == 0


async def test_a_slice_is_not_whole_while_a_call_runs_on_it(mending):
    async with mending.gateway.admit(**CALL) as call:
        mending.clock.ms = LAST_WORD
        assert await slice_used(mending) == 100
        call.finish({"input_tokens": 10})
        arrives(mending)
    assert await slice_used(mending) == 0


async def test_a_slice_is_not_whole_before_charging_was_ever_heard(mending):
    await serve(mending)
    arrives(mending)
    mending.gateway.guard._view.heard_by_partition.clear()
    assert await slice_used(mending) == 100
