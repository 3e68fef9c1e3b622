"""A gateway before the real line: admit, clamp, cut, settle, abort, and go on while charging is away."""

from __future__ import annotations

import asyncio
import time
import tomllib

import pytest
from charging_helpers import Line, line_settings

from tokenline.errors import (
    AccountSuspended,
    ChargingUnavailable,
    CutOff,
    QuotaExceeded,
    UnknownAccount,
    UnknownModel,
)
from tokenline.gateway.gateway import Gateway
from tokenline.rating.catalog import Catalog
from tokenline.wire.orders import Orders

MILLION = 1_000_000
WITHIN_S = 20
CATALOG = Catalog.model_validate(
    tomllib.loads(
        """
version = 1
effective_from = 2026-10-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[[rates]]
provider = "p"
model = "m"
input_tokens = 1
output_tokens = 2

[[rates]]
provider = "p"
model = "extra"
input_tokens = 1
output_tokens = 1

[[rates]]
provider = "p"
model = "gift"
input_tokens = 0
output_tokens = 0

[plans.strict]
title = "Strict"
fee = "1"
tokens = 1000
mode = "strict"
proration = "full"
hold_validity_s = 2

[plans.prepaid]
title = "Prepaid"
fee = "1"
tokens = 3000
mode = "prepaid"
proration = "full"
abort = "charge_granted"

[plans.postpaid]
title = "Postpaid"
fee = "1"
tokens = 1000
mode = "postpaid"
proration = "full"
abort = "release"

[plans.patient]
title = "Goes on a little while charging is away"
fee = "1"
tokens = 1000000
mode = "strict"
proration = "full"
hold_validity_s = 1
unreachable = "emergency"
emergency_tokens = 500
"""
    )
)
CALL = {"provider": "p", "model": "m", "prompt_tokens": 100, "max_tokens": 200}


@pytest.fixture
def settings(kafka, tmp_path):
    return line_settings(
        kafka, tmp_path, partitions=2, gateway_id="gw", lease_idle_ms=200, guard_stale_ms=3000
    )


class Office:
    """Open accounts and look at them."""

    def __init__(self, line, orders):
        self.line = line
        self.orders = orders

    async def open(self, account, plan):
        await self.orders.order(account, kind="open", plan=plan, cycle_day=0)

    async def used(self, account):
        """Return what is used of the plan's bucket and beyond it, and what is held, in tokens."""
        found = await self.orders.show(account)
        used = {one["bucket"]: one["used_utok"] // MILLION for one in found["buckets"]}
        beyond = sum(amount for bucket, amount in used.items() if bucket < 1)
        return used[1], beyond, found["held_utok"] // MILLION

    async def until_used(self, account, wanted):
        deadline = time.monotonic() + WITHIN_S
        while (found := await self.used(account)) != wanted:
            assert time.monotonic() < deadline, f"{found} and not {wanted}"
            await asyncio.sleep(0.05)
        return found


@pytest.fixture
async def office(settings, tmp_path):
    """A running line with the catalog published."""
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        await orders.publish_catalog(CATALOG.version, CATALOG.effective_ms, CATALOG.to_json())
        yield Office(line, orders)


async def test_a_strict_call_is_clamped_charged_and_at_the_end_refused(settings, office):
    await office.open("acme", "strict")
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")
        async with gateway.admit(account="acme", **CALL) as call:
            assert call.max_tokens == 200
            await call.progress(output_tokens=100)
            receipt = await call.finish({"input_tokens": 100, "output_tokens": 150})
            assert receipt.status == "acknowledged"
        # 600 are left: 100 for the prompt, 250 answers at 2.
        async with gateway.admit(account="acme", **(CALL | {"max_tokens": 1000})) as call:
            assert call.max_tokens == 250
            with pytest.raises(CutOff, match="reserved_used_up"):
                await call.progress(output_tokens=251)
            call.finish({"input_tokens": 100, "output_tokens": 250}, outcome="cut_off")
        with pytest.raises(QuotaExceeded) as refused:
            async with gateway.admit(account="acme", **CALL):
                pass
        assert refused.value.reason in ("balance", "balance_used_up")
        assert refused.value.top_up_utok > 0
        await office.until_used("acme", (1000, 0, 0))
        await office.orders.order("acme", kind="grant", amount_utok=500 * MILLION)
        await known(gateway, "acme", "open", "warned")
        async with gateway.admit(account="acme", **CALL) as call:
            call.finish({"input_tokens": 10})
    assert gateway.stats.overshoot_utok == 0


async def test_a_prepaid_call_runs_until_its_balance_is_used(settings, office):
    await office.open("acme", "prepaid")
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")
        answered = 0

        async def stream():
            nonlocal answered
            async with gateway.admit(account="acme", **(CALL | {"max_tokens": 10_000})) as call:
                assert call.max_tokens == 10_000
                while True:
                    answered += 100
                    await call.progress(output_tokens=answered)

        with pytest.raises(CutOff) as cut:
            await stream()
        # Left without `finish`: the plan charges all that was reserved.
        assert cut.value.reason in ("balance_used_up", "balance_held")
        assert 1300 <= answered <= 1550
        used, over, _ = await office.until_used("acme", (3000, 0, 0))
        assert (used, over) == (3000, 0)
    assert gateway.stats.aborted == 1


async def test_a_postpaid_call_is_cut_by_the_decision_and_an_aborted_one_is_free(settings, office):
    await office.open("acme", "postpaid")
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")

        async def fail():
            async with gateway.admit(account="acme", **CALL) as call:
                await call.progress(output_tokens=50)
                raise RuntimeError("upstream is gone")

        with pytest.raises(RuntimeError, match="upstream"):
            await fail()
        async with (
            gateway.admit(account="acme", **CALL) as first,
            gateway.admit(account="acme", **CALL) as second,
        ):
            first.finish({"input_tokens": 100, "output_tokens": 600})
            await asyncio.wait_for(second.wait_cut(), 10)
            with pytest.raises(CutOff) as cut:
                await second.progress(output_tokens=10)
            assert cut.value.reason == "balance_used_up"
            second.finish({"input_tokens": 100, "output_tokens": 10}, outcome="cut_off")
        with pytest.raises(QuotaExceeded, match="balance"):
            async with gateway.admit(account="acme", **CALL):
                pass
        await office.until_used("acme", (1000, 420, 0))
    assert gateway.keeper.stats.questions == 0


async def test_a_plan_that_stops_stops_the_calls_that_nothing_pays_for_any_more(settings, office):
    await office.open("acme", "postpaid")
    pack = {"models": ["p/extra"], "amount_utok": 500 * MILLION}
    await office.orders.order("acme", kind="grant", **pack)
    extra, gift = CALL | {"model": "extra"}, CALL | {"model": "gift"}
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")
        async with (
            gateway.admit(account="acme", **CALL) as first,
            gateway.admit(account="acme", **CALL) as second,
            gateway.admit(account="acme", **extra) as paid,
        ):
            first.finish({"input_tokens": 100, "output_tokens": 600})
            await asyncio.wait_for(second.wait_cut(), 10)
            with pytest.raises(CutOff):
                await second.progress(output_tokens=10)
            second.finish({"input_tokens": 10}, outcome="cut_off")
            # The pack's model goes on, and then it is used up as well.
            await paid.progress(output_tokens=10)
            with pytest.raises(QuotaExceeded, match="not_covered"):
                async with gateway.admit(account="acme", **CALL):
                    pass
            paid.finish({"input_tokens": 600})
        await asyncio.wait_for(gateway.guard.wait_cut("acme"), 10)
        with pytest.raises(QuotaExceeded, match="balance"):
            async with gateway.admit(account="acme", **extra):
                pass
        async with gateway.admit(account="acme", **gift) as free:
            free.finish({"input_tokens": 100})
        assert await office.until_used("acme", (1000, 300 + 10 + 100, 0))
        shown = await office.orders.show("acme")
        assert (shown["state"], shown["covers"]) == (
            "cut",
            [{"models": ["p/gift"], "subscribers": []}],
        )
        assert shown["written_off_utok"] == 410 * MILLION


async def test_who_is_suspended_unknown_or_asks_for_an_unknown_model_is_refused(settings, office):
    await office.open("acme", "strict")
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")
        with pytest.raises(UnknownModel):
            async with gateway.admit(account="acme", **(CALL | {"model": "other"})):
                pass
        with pytest.raises(UnknownAccount):
            async with gateway.admit(account="nobody", **CALL):
                pass
        await office.orders.order("acme", kind="suspend")
        await known(gateway, "acme", "cut")
        with pytest.raises(AccountSuspended):
            async with gateway.admit(account="acme", **CALL):
                pass


async def test_a_gateway_that_vanishes_leaves_nothing_held(settings, office):
    await office.open("acme", "strict")
    gateway = Gateway(settings)
    await gateway.__aenter__()
    await known(gateway, "acme")
    await gateway.admit(account="acme", **CALL).__aenter__()
    assert (await office.used("acme"))[2] > 0
    for desk in gateway.keeper._desks.values():
        desk.stop()  # as kill -9: nothing is given back
    await gateway._stack.aclose()
    await office.until_used("acme", (0, 0, 0))


async def test_the_emergency_slice_goes_so_far_and_is_charged_afterwards(settings, office):
    await office.open("acme", "patient")
    await office.open("strict", "strict")
    async with Gateway(settings) as gateway:
        await known(gateway, "acme")
        await known(gateway, "strict")
        (worker,) = office.line.workers
        worker.kill()
        await until(lambda: gateway.guard.check("acme").stale)
        with pytest.raises(ChargingUnavailable, match="said nothing"):
            async with gateway.admit(account="strict", **CALL):
                pass
        async with gateway.admit(account="acme", **CALL) as call:
            assert call.hold_id == ""
            call.finish({"input_tokens": 100, "output_tokens": 100})
        with pytest.raises(ChargingUnavailable, match="used up"):
            async with gateway.admit(account="acme", **(CALL | {"max_tokens": 150})):
                pass
        await office.line.started()
        await office.until_used("acme", (300, 0, 0))
        await until(lambda: not gateway._emergency.in_use)
        async with gateway.admit(account="acme", **CALL) as call:
            assert call.hold_id
            call.finish({"input_tokens": 1})


async def known(gateway, account, *states):
    """Wait until the guard hears of the account in one of `states`, or open or warned."""

    def heard():
        verdict = gateway.guard.check(account)
        return not verdict.stale and verdict.state in (states or ("open", "warned"))

    await until(heard)


async def until(condition):
    """Wait for what only a look can tell."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.02)
