"""Measure what a gateway waits for: an admission from a lease in hand, and a grant through Kafka."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, NamedTuple

from tokenline.bench import load as loads
from tokenline.bench.mob import MODEL, PROVIDER
from tokenline.clock import SystemClock
from tokenline.errors import PlatformError
from tokenline.gateway.gateway import Gateway
from tokenline.settings import Settings
from tokenline.wire.orders import Orders

CLOCK = SystemClock()
ADMISSIONS = 10_000
GRANT_RATE = 500
GRANT_S = 10.0
GRANT_ACCOUNTS = 200
# The broker compiles what it runs often, and takes a third of a core for that meanwhile: not told.
WARM_S = 10.0
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


class Admissions(NamedTuple):
    """Hold µs of each admission from a lease in hand, ascending: by the clock, and of the processor."""

    took_us: list[float]
    cpu_us: list[float]


async def admissions(settings: Settings, account: str) -> Admissions:
    """Measure admissions from a lease in hand, the slow ones included.

    The calls end at once, so that the lease lasts; what they emit is not in the figure. What the
    clock says and the processor does not is that another thread or process had its turn.
    """
    took_us: list[float] = []
    cpu_us: list[float] = []
    async with Gateway(settings, gateway_id=f"bench-{uuid.uuid4().hex[:8]}") as gateway:
        await _until_known(gateway, account)
        async with gateway.admit(account=account, **CALL) as first:
            first.finish({"input_tokens": 1})
        while len(took_us) < ADMISSIONS:
            began, began_cpu = time.perf_counter(), time.thread_time()
            admission = gateway.admit(account=account, **CALL)
            call = await admission.__aenter__()
            cpu_us.append((time.thread_time() - began_cpu) * 1e6)
            took_us.append((time.perf_counter() - began) * 1e6)
            call.finish({"input_tokens": 1})
            await admission.__aexit__(None, None, None)
            # A gateway does other things too: the lease's own task must get its turn.
            await asyncio.sleep(0)
    return Admissions(sorted(took_us), sorted(cpu_us))


async def _until_known(gateway: Gateway, account: str) -> None:
    until_s = CLOCK.monotonic_s() + KNOWN_S
    while gateway.guard.check(account).stale:
        if CLOCK.monotonic_s() > until_s:
            raise PlatformError(f"charging did not speak of {account} within {KNOWN_S:g} s")
        await asyncio.sleep(0.05)


async def grants_ms(settings: Settings, accounts: list[str], warm_s: float) -> list[float]:
    """Return ms from each first question of a session to its answer, at a steady rate.

    What was due in the first `warm_s` is not told.
    """
    found: list[tuple[float, float]] = []
    async with Orders(settings) as orders:
        tasks = []
        began = time.perf_counter()
        for number in range(int(GRANT_RATE * (warm_s + GRANT_S))):
            due = number / GRANT_RATE
            await asyncio.sleep(max(began + due - time.perf_counter(), 0))
            account = accounts[number % len(accounts)]
            tasks.append(asyncio.create_task(_grant(orders, account, due, found)))
        await asyncio.gather(*tasks)
    return [took for due, took in found if due >= warm_s]


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
