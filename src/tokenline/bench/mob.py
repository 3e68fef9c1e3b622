"""Be one gateway of an attack: many callers on one account, all at once, until told to stop.

    python -m tokenline.bench.mob NAME ACCOUNT CALLERS FILE

Callers begin when a file `go` lies beside FILE. Ends on SIGTERM with every open call finished; FILE
then holds what it counted, as JSON, and so it does once a second before. Settings come from the
environment.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenline.errors import CallRefused, ChargingUnavailable, CutOff
from tokenline.gateway.call import Call
from tokenline.gateway.gateway import Gateway
from tokenline.settings import Settings

PROVIDER, MODEL = "mob", "chat"
PROMPT_TOKENS, MAX_TOKENS = 100, 400
STEPS, STEP_S = 4, 0.05
REFUSED_S = 0.3


@dataclass(slots=True)
class Counts:
    """Count what callers saw."""

    calls: int = 0
    finished: int = 0
    refused: int = 0
    cut: int = 0
    unreachable: int = 0
    clamped: int = 0
    settled_tokens: int = 0


@dataclass(slots=True)
class Mob:
    """Run the callers of one gateway."""

    gateway: Gateway
    account: str
    stop: asyncio.Event
    rng: random.Random
    counts: Counts

    async def caller(self) -> None:
        """Call again and again."""
        await asyncio.sleep(self.rng.random() * STEP_S)
        while not self.stop.is_set():
            try:
                await self._call()
            except CallRefused:
                self.counts.refused += 1
                await asyncio.sleep(REFUSED_S)
            except ChargingUnavailable:
                self.counts.unreachable += 1
                await asyncio.sleep(REFUSED_S)

    async def _call(self) -> None:
        async with self.gateway.admit(
            account=self.account,
            provider=PROVIDER,
            model=MODEL,
            prompt_tokens=PROMPT_TOKENS,
            max_tokens=MAX_TOKENS,
        ) as call:
            self.counts.calls += 1
            self.counts.clamped += call.clamped
            answered = await self._stream(call, self.rng.randint(1, max(1, call.max_tokens)))
            call.finish({"input_tokens": PROMPT_TOKENS, "output_tokens": answered})
            self.counts.finished += 1
            self.counts.settled_tokens += PROMPT_TOKENS + answered

    async def _stream(self, call: Call, length: int) -> int:
        """Answer in steps until the end, or until it is cut; return how much was answered."""
        answered = 0
        for step in range(1, STEPS + 1):
            await asyncio.sleep(STEP_S)
            answered = length * step // STEPS
            try:
                await call.progress(output_tokens=answered)
            except (CutOff, ChargingUnavailable):
                self.counts.cut += 1
                return answered
        return answered


async def main(name: str, account: str, callers: int, file: Path) -> None:
    """Run one gateway of the attack."""
    stop = asyncio.Event()
    # Before anything else: it may be told to end while the broker it needs is away.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Gateway(Settings.from_env(), gateway_id=name) as gateway:
        mob = Mob(gateway, account, stop, random.Random(name), Counts())
        _write(mob, file)
        # Another process makes it: there is no event to wait for.
        while not (file.with_name("go").exists() or stop.is_set()):  # noqa: ASYNC110
            await asyncio.sleep(STEP_S)
        teller = asyncio.create_task(_tell(mob, file))
        await asyncio.gather(*(mob.caller() for _ in range(callers)))
        teller.cancel()
        await gateway.emitter.flush(within_ms=30_000)
        _write(mob, file)


async def _tell(mob: Mob, file: Path) -> None:
    while True:
        await asyncio.sleep(1)
        _write(mob, file)


def _write(mob: Mob, file: Path) -> None:
    stats = mob.gateway.keeper.stats
    admit_us = sorted(mob.gateway.stats.admit_us)
    told = asdict(mob.counts) | {
        "questions": stats.questions,
        "sessions": stats.sessions,
        "overshoot_utok": mob.gateway.stats.overshoot_utok,
        "grant_ms": sorted(stats.grant_ms)[:: max(1, len(stats.grant_ms) // 100)],
        "admit_us": admit_us[:: max(1, len(admit_us) // 100)],
    }
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
