"""Kill -9 everything, over and over, under load, and show that the books balance all the same."""

from __future__ import annotations

import asyncio
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tokenline.accounts.apply import apply_accounts
from tokenline.clock import SystemClock
from tokenline.demo.crowd import Crowd
from tokenline.demo.payments import STRICT, Payments, granted_tokens
from tokenline.demo.plans import sample_accounts
from tokenline.demo.run import GATEWAYS, DemoOptions
from tokenline.demo.stories import open_stories
from tokenline.errors import PlatformError
from tokenline.landing.reconcile import reconcile, render
from tokenline.platform.kafka_config import as_role
from tokenline.platform.processes import remove_folder
from tokenline.platform.stack import Stack
from tokenline.settings import Settings

# Who dies in a round; workers more often than servers, as in life.
VICTIMS = ("charging", "landing", "charging", "landing", "gateway", "warehouse", "kafka")
BACK_WITHIN_S = 60.0
RECONCILE_WAIT_S = 120.0
SESSION_TIMEOUT_MS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveOptions:
    """Say how often something is killed, how far apart, and how hard gateways send meanwhile."""

    rounds: int
    pause_s: float
    rate: int
    accounts: int
    seed: int


def run_prove(options: ProveOptions, console: Console) -> dict[str, Any]:
    """Run the rounds, then reconcile; returns the report with the kills and the recovery times.

    Raises:
        PlatformError: a component did not come back.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="tokenline-prove-"))
    given = {"data_dir": data_dir, "session_timeout_ms": SESSION_TIMEOUT_MS}
    settings = Settings.from_env().model_copy(update=given)
    try:
        with Stack(
            settings,
            data_dir,
            free_ports=True,
            say=lambda line: console.print(f"  {line}", style="dim", markup=False),
        ) as stack:
            return _rounds(options, stack, console)
    finally:
        remove_folder(data_dir)


def _rounds(options: ProveOptions, stack: Stack, console: Console) -> dict[str, Any]:
    asyncio.run(apply_accounts(stack.settings, sample_accounts(options.accounts).commands()))
    asyncio.run(open_stories(stack.settings))
    payments = Payments(stack.settings)
    rng, clock = random.Random(options.seed), SystemClock()
    kills: list[dict[str, Any]] = []
    load = DemoOptions(seconds=86_400, rate=options.rate, accounts=options.accounts, keep=False)
    with Crowd(stack.settings, GATEWAYS, load) as crowd, ThreadPoolExecutor(1) as desk:
        for number in range(1, options.rounds + 1):
            crowd.wait(options.pause_s * (0.5 + rng.random()))
            victim = VICTIMS[(number - 1) % len(VICTIMS)]
            began_s = clock.monotonic_s()
            paid = desk.submit(payments.pay, number)
            name = crowd.kill_one(rng) if victim == "gateway" else _kill(stack, victim)
            back_s = round(clock.monotonic_s() - began_s, 1)
            paid.result()
            kills.append({"round": number, "killed": name, "back_s": back_s})
            sent = crowd.counts().get("emitted", 0)
            console.print(
                f"  round {number:>2}: kill -9 {name:<10} back after {back_s} s, {sent:,} events so far"
            )
        crowd.wait(options.pause_s)
        crowd.stop_calling()
    orders = payments.result()
    report = reconcile(as_role(stack.settings, "reader"), RECONCILE_WAIT_S)
    console.print(render(report))
    orders["granted_tokens"] = granted_tokens(stack.settings)
    console.print(
        f"{orders['orders']} orders under fire, asked twice: {orders['answered_otherwise']} answered otherwise; "
        f"{orders['paid_tokens']:,} tokens paid for, {orders['granted_tokens']:,} granted; strict account "
        f"{orders['overshoot_tokens'][STRICT]:,} beyond its balance"
    )
    return {
        "kills": kills,
        "conservation": report.ok,
        "totals": report.totals,
        "orders": orders,
        "proven": report.ok and _kept(orders),
    }


def _kept(orders: dict[str, Any]) -> bool:
    """Say whether every order was carried out once, and the strict account kept to what it had."""
    return (
        not orders["answered_otherwise"]
        and not orders["held_tokens"]
        and not orders["overshoot_tokens"][STRICT]
        and orders["granted_tokens"] == orders["paid_tokens"]
    )


def _kill(stack: Stack, name: str) -> str:
    """Kill one component and return when it, or its replacement, is ready."""
    before = stack.process(name).pid
    stack.kill(name, restart=True)
    clock = SystemClock()
    began_s = clock.monotonic_s()
    while clock.monotonic_s() - began_s < BACK_WITHIN_S:
        states = {one.component: one for one in stack.status()}
        if states[name].state == "ready" and states[name].pid != before:
            return name
        _nap(0.2)
    raise PlatformError(
        f"{name} did not come back within {BACK_WITHIN_S:g} s: see {stack.data_dir / 'logs'}"
    )


def _nap(seconds: float) -> None:
    import time  # noqa: PLC0415  waiting, not reading a clock

    time.sleep(seconds)
