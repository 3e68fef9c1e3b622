"""Attack one almost empty account from many gateways at once, kill what serves it, and count.

What must come out: settled tokens are no more than the allowance (overshoot 0, strict), and all but
a hundredth of the allowance could be spent, whoever was killed in the middle.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenline.bench.mob import MODEL, PROVIDER
from tokenline.clock import SystemClock
from tokenline.errors import PlatformError, Unavailable
from tokenline.platform.kafka_config import as_role
from tokenline.platform.processes import kill, last_lines, spawn, wait_for
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.orders import Orders

UTOK = 1_000_000
CLOCK = SystemClock()
LOOK_S = 0.25
END_S = 40.0
UP_S = 90.0
# Less than the smallest call costs: nobody can spend it.
CRUMB_TOKENS = 102
VALIDITY_S = 5
MODES = ("strict", "prepaid", "postpaid")

_CATALOG = """
version = 1
effective_from = 2026-01-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[[rates]]
provider = "{provider}"
model = "{model}"
input_tokens = 1
output_tokens = 2
"""
_PLAN = """
[plans.{name}]
title = "{name}"
fee = "1"
tokens = {tokens}
mode = "{mode}"
proration = "full"
hold_validity_s = {validity}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Say how hard: `kills` are done one after another, each when its share of the allowance is used."""

    mode: str
    tokens: int
    gateways: int = 8
    callers: int = 200
    within_s: float = 120.0
    kills: tuple[tuple[float, str], ...] = ()


@dataclass(slots=True)
class Outcome:
    """Hold what came of it; tokens are standard tokens."""

    mode: str
    allowance_tokens: int
    used_utok: int = 0
    overshoot_utok: int = 0
    held_utok: int = 0
    seconds: float = 0.0
    killed: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def spendable_share(self) -> float:
        """What of the allowance was spent."""
        return self.used_utok / (self.allowance_tokens * UTOK)


def catalog_of(tokens: int, *, plenty_tokens: int = 0) -> Catalog:
    """Return a catalog with a plan of each mode that stops at `tokens`, and one of plenty."""
    plans = [
        _PLAN.format(name=mode, mode=mode, tokens=tokens, validity=VALIDITY_S) for mode in MODES
    ]
    plans.append(_PLAN.format(name="plenty", mode="strict", tokens=plenty_tokens, validity=60))
    text = _CATALOG.format(provider=PROVIDER, model=MODEL) + "".join(plans)
    return Catalog.model_validate(tomllib.loads(text))


class Gateways:
    """Own the gateway processes of an attack."""

    def __init__(self, settings: Settings, account: str, attack: Attack) -> None:
        self._settings = settings
        self._account = account
        self._attack = attack
        self._folder = settings.data_dir / "mob" / account
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._past: list[Path] = []
        self._turn = 0

    def start(self) -> None:
        """Start all of them, and let their callers go when all are up.

        Raises:
            PlatformError: one did not come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in range(self._attack.gateways):
            self._launch(f"{self._account}-{number}")
        if not wait_for(self._all_up, timeout_s=UP_S):
            raise PlatformError(f"not all gateways came up: see {self._folder}")
        (self._folder / "go").touch()

    def _all_up(self) -> bool:
        return len(list(self._folder.glob("*.json"))) == self._attack.gateways

    def kill_one(self) -> str:
        """End the next gateway with kill -9 and start it again on its outbox; return its name."""
        name = f"{self._account}-{self._turn % self._attack.gateways}"
        self._turn += 1
        kill(self._processes[name])
        kept = self._folder / f"{name}.{self._turn}.past"
        with suppress(FileNotFoundError):
            (self._folder / f"{name}.json").replace(kept)
            self._past.append(kept)
        self._launch(name)
        return name

    def stop(self) -> None:
        """Let all end their calls and go; one that was started again just now comes up first."""
        wait_for(self._all_up, timeout_s=UP_S)
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for name, process in self._processes.items():
            # Asked once only: a second signal may meet it on its way out.
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            if process.returncode != 0:
                raise PlatformError(f"gateway {name} did not end: {last_lines(self._log(name))}")

    def kill_all(self) -> None:
        """End all with kill -9."""
        for process in self._processes.values():
            kill(process)

    def counts(self) -> dict[str, Any]:
        """Return the sums of what gateways counted, those that were killed included, as far as told."""
        told = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in [*self._folder.glob("*.json"), *self._past]
        ]
        sums = {
            name: sum(int(one[name]) for one in told)
            for name in (told[0] if told else {})
            if not isinstance(told[0][name], list)
        }
        lists = {
            name: sorted(value for one in told for value in one[name])
            for name in ("grant_ms", "admit_us")
        }
        return sums | lists

    def _launch(self, name: str) -> None:
        argv = [name, self._account, str(self._attack.callers), str(self._folder / f"{name}.json")]
        self._processes[name] = spawn(
            [sys.executable, "-m", "tokenline.bench.mob", *argv],
            log=self._log(name),
            env={**os.environ, **as_role(self._settings, "gateway").to_env()},
        )

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


async def run_attack(
    settings: Settings, attack: Attack, killers: dict[str, Callable[[], Any]]
) -> Outcome:
    """Open an account, let all gateways at it, kill on the way, and return how it ended.

    `killers` end a component by name and bring it back; `gateway` is ours.

    Raises:
        PlatformError: a gateway failed by itself.
        Unavailable: charging did not come back.
    """
    account = f"prey-{attack.mode}-{CLOCK.wall_ms()}"
    gateways = Gateways(settings, account, attack)
    outcome = Outcome(attack.mode, attack.tokens)
    async with Orders(settings) as orders:
        await orders.order(account, kind="open", plan=attack.mode, cycle_day=0)
        try:
            await asyncio.to_thread(gateways.start)
            began_s = CLOCK.monotonic_s()
            await _until_spent(orders, account, attack, outcome, gateways, killers)
            outcome.seconds = round(CLOCK.monotonic_s() - began_s, 1)
            await asyncio.to_thread(gateways.stop)
        finally:
            gateways.kill_all()
        await _until_quiet(orders, account, outcome)
    outcome.counts = gateways.counts()
    return outcome


async def _until_spent(
    orders: Orders,
    account: str,
    attack: Attack,
    outcome: Outcome,
    gateways: Gateways,
    killers: dict[str, Callable[[], Any]],
) -> None:
    waiting = list(attack.kills)
    until_s = CLOCK.monotonic_s() + attack.within_s
    while CLOCK.monotonic_s() < until_s:
        await _look(orders, account, outcome)
        share = outcome.spendable_share
        while waiting and share >= waiting[0][0]:
            victim = waiting.pop(0)[1]
            does = gateways.kill_one if victim == "gateway" else killers[victim]
            outcome.killed.append(str(await asyncio.to_thread(does) or victim))
        left = attack.tokens * UTOK - outcome.used_utok
        if left < CRUMB_TOKENS * UTOK and not outcome.held_utok:
            return
        await asyncio.sleep(LOOK_S)


async def _until_quiet(orders: Orders, account: str, outcome: Outcome) -> None:
    """Look until nothing is held and nothing changes any more."""
    until_s, before = CLOCK.monotonic_s() + 4 * VALIDITY_S, (-1, -1)
    while CLOCK.monotonic_s() < until_s:
        await asyncio.sleep(1.0)
        await _look(orders, account, outcome)
        now = outcome.used_utok, outcome.overshoot_utok
        if now == before and not outcome.held_utok:
            return
        before = now


async def _look(orders: Orders, account: str, outcome: Outcome) -> None:
    """Note how the account stands; while charging is away it stands as before."""
    try:
        shown = await orders.show(account, timeout_s=20)
    except Unavailable:
        return
    used = [(int(one["bucket"]), int(one["used_utok"])) for one in shown["buckets"]]
    outcome.used_utok = sum(amount for number, amount in used if number > 0)
    outcome.overshoot_utok = sum(amount for number, amount in used if number < 1)
    outcome.held_utok = int(shown["held_utok"])
