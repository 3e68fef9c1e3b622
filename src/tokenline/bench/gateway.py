"""Measure what a gateway waits for: an admission from a lease in hand, and a grant through Kafka."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from tokenline.bench import load as loads
from tokenline.bench.mob import MODEL, PROVIDER
from tokenline.clock import SystemClock
from tokenline.errors import PlatformError
from tokenline.gateway.gateway import Gateway
from tokenline.settings import Settings
from tokenline.wire.orders import Orders

CLOCK = SystemClock()
ADMISSIONS = 20_000
GRANT_RATE = 500
GRANT_S = 10.0
GRANT_ACCOUNTS = 200
# The worker's and the broker's code warms up: the first second is not told.
WARM_S = 3.0
KNOWN_S = 30.0
CALL: dict[str, Any] = {
    "provider": PROVIDER,
    "model": MODEL,
    "prompt_tokens": 100,
    "max_tokens": 400,
}


async def open_accounts(settings: Settings, plan: str, names: list[str]) -> None:
    """Open accounts, some at a time."""
    async with Orders(settings) as orders:
        for first in range(0, len(names), 50):
            some = names[first : first + 50]
            await asyncio.gather(*(orders.order(name, kind="open", plan=plan) for name in some))


async def admissions_us(settings: Settings, account: str) -> list[float]:
    """Return µs that each admission from a lease in hand takes, the slow ones included.

    The calls end at once, so that the lease lasts; what they emit is not in the figure.
    """
    found: list[float] = []
    async with Gateway(settings, gateway_id=f"bench-{uuid.uuid4().hex[:8]}") as gateway:
        await _until_known(gateway, account)
        async with gateway.admit(account=account, **CALL) as first:
            first.finish({"input_tokens": 1})
        while len(found) < ADMISSIONS:
            began = time.perf_counter()
            admission = gateway.admit(account=account, **CALL)
            call = await admission.__aenter__()
            found.append((time.perf_counter() - began) * 1e6)
            call.finish({"input_tokens": 1})
            await admission.__aexit__(None, None, None)
            # A gateway does other things too: the lease's own task must get its turn.
            await asyncio.sleep(0)
    return sorted(found)


async def _until_known(gateway: Gateway, account: str) -> None:
    until_s = CLOCK.monotonic_s() + KNOWN_S
    while gateway.guard.check(account).stale:
        if CLOCK.monotonic_s() > until_s:
            raise PlatformError(f"charging did not speak of {account} within {KNOWN_S:g} s")
        await asyncio.sleep(0.05)


async def grants_ms(settings: Settings, accounts: list[str]) -> list[float]:
    """Return ms from each first question of a session to its answer, at a steady rate."""
    found: list[tuple[float, float]] = []
    async with Orders(settings) as orders:
        tasks = []
        began = time.perf_counter()
        for number in range(int(GRANT_RATE * (WARM_S + GRANT_S))):
            due = number / GRANT_RATE
            await asyncio.sleep(max(began + due - time.perf_counter(), 0))
            account = accounts[number % len(accounts)]
            tasks.append(asyncio.create_task(_grant(orders, account, due, found)))
        await asyncio.gather(*tasks)
    return sorted(took for due, took in found if due >= WARM_S)


async def _grant(
    orders: Orders, account: str, due: float, found: list[tuple[float, float]]
) -> None:
    began = time.perf_counter()
    fields: dict[str, Any] = {"lease": 1, "wanted_utok": 2_000_000, "reserved_utok": 1_000_000}
    reply = await orders.hold(
        account, uuid.uuid4().hex, 0, provider=PROVIDER, model=MODEL, **fields
    )
    if reply["outcome"] != "done":
        raise PlatformError(f"a grant was refused: {reply['reason']}")
    found.append((due, (time.perf_counter() - began) * 1000))


def grant_accounts() -> list[str]:
    """Return the names of the accounts that grants are asked for."""
    return [f"grant-{loads.account_name(number)}" for number in range(GRANT_ACCOUNTS)]
