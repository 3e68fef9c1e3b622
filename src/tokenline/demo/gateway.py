"""Be one gateway process: admit calls by the guard, stream them, stop them when cut, emit what they used.

    python -m tokenline.demo.gateway ID RATE SECONDS ACCOUNTS

Prints one JSON line a second and a last one with `"final": true`. Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tokenline import Emitter, Guard
from tokenline.clock import SystemClock
from tokenline.demo.call import Call, draw_call
from tokenline.demo.stories import STORIES
from tokenline.errors import CallRefused, ChargingUnavailable, CutOff
from tokenline.event import Outcome, UsageEvent
from tokenline.gateway.call import Call as Admitted
from tokenline.gateway.gateway import Gateway as Line
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key, client_options
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import USAGE

BAD_RECORDS_PER_CALL = 0.003
DRAIN_S = 10.0
BURST_EVERY_S = 5.0
BURST_FACTOR = 4
# Calls of the few accounts with plans: they are to be used up while one watches.
STORY_SHARE = 0.12


@dataclass(slots=True)
class Counts:
    """Count what this gateway did; `bad` are records put beside the emitter on purpose."""

    calls: int = 0
    refused: int = 0
    stopped: int = 0
    emitted: int = 0
    tokens: int = 0
    bad: int = 0
    open_calls: int = 0


@dataclass(slots=True)
class Gateway:
    """Run calls for a while; those of accounts with a plan are admitted by `tokenline.Gateway`."""

    name: str
    rate: float
    seconds: float
    accounts: int
    line: Line
    raw: AIOKafkaProducer
    settings: Settings
    codec: Codec
    rng: random.Random
    counts: Counts = field(default_factory=Counts)
    clock: SystemClock = field(default_factory=SystemClock)
    asked_to_stop: asyncio.Event = field(default_factory=asyncio.Event)
    story_names: tuple[str, ...] = tuple(STORIES)
    _calls: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Start calls at the rate until the time is over or SIGTERM comes, then let the open ones end."""
        began = self.clock.monotonic_s()
        while (
            elapsed := self.clock.monotonic_s() - began
        ) < self.seconds and not self.asked_to_stop.is_set():
            busy = elapsed % BURST_EVERY_S < 0.5
            await asyncio.sleep(self.rng.expovariate(self.rate * (BURST_FACTOR if busy else 0.7)))
            task = asyncio.create_task(self._call(draw_call(self.rng, self.accounts)))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        if self._calls:
            await asyncio.wait(self._calls, timeout=DRAIN_S)

    @property
    def emitter(self) -> Emitter:
        """Hand events of calls that nobody holds for over by itself."""
        return self.line.emitter

    @property
    def guard(self) -> Guard:
        """Ask about accounts that are limited and have no balance."""
        return self.line.guard

    async def _story_call(self, call: Call) -> None:
        """Let the line admit a call, stream it as far as it may go, and settle it."""
        prompt, answer = call.input_tokens + call.cached_tokens, call.answer_tokens
        try:
            async with self.line.admit(
                account=call.account,
                subscriber=call.subscriber,
                provider=call.provider,
                model=call.model,
                prompt_tokens=prompt,
                max_tokens=2 * answer,
                within_ms=1000,
            ) as admitted:
                self.counts.open_calls += 1
                try:
                    share, outcome = await self._stream_admitted(call, admitted)
                finally:
                    self.counts.open_calls -= 1
                event = call.event(share, outcome, self.clock.wall_ms())
                await admitted.finish(event)
        except (CallRefused, ChargingUnavailable):
            self.counts.refused += 1
            return
        self.counts.emitted += 1
        self.counts.tokens += event.total_tokens

    async def _stream_admitted(self, call: Call, admitted: Admitted) -> tuple[float, Outcome]:
        """Answer in steps; a clamped call ends where its `max_tokens` does."""
        steps, most = 5, min(1.0, admitted.max_tokens / call.answer_tokens)
        for step in range(1, steps + 1):
            await asyncio.sleep(call.stream_s * most / steps)
            share = most * step / steps
            try:
                await admitted.progress(output_tokens=int(call.answer_tokens * share))
            except (CutOff, ChargingUnavailable):
                self.counts.stopped += 1
                return share, "cut_off"
        return most, "completed"

    async def _call(self, call: Call) -> None:
        self.counts.calls += 1
        if self.rng.random() < STORY_SHARE:
            await self._story_call(call.of(self.rng.choice(self.story_names)))
            return
        if call.fault != "unknown_account" and not self.guard.check(call.account).allowed:
            self.counts.refused += 1
            return
        self.counts.open_calls += 1
        share, outcome = await self._stream(call)
        self.counts.open_calls -= 1
        await self._report(call, call.event(share, outcome, self.clock.wall_ms()))

    async def _stream(self, call: Call) -> tuple[float, Outcome]:
        """Stream until the end, the caller's going, or the line's word to stop."""
        planned = call.stream_s * (self.rng.random() if call.outcome == "client_abort" else 1.0)
        began = self.clock.monotonic_s()
        try:
            await asyncio.wait_for(self.guard.wait_cut(call.account), planned)
        except TimeoutError:
            return planned / call.stream_s, call.outcome
        self.counts.stopped += 1
        return min((self.clock.monotonic_s() - began) / call.stream_s, 1.0), "cut_off"

    async def _report(self, call: Call, event: UsageEvent) -> None:
        await self._emit(event)
        if call.fault == "duplicate":
            await self._emit(event)
        if self.rng.random() < BAD_RECORDS_PER_CALL:
            await self._send_bad(event)

    async def _emit(self, event: UsageEvent) -> None:
        await self.emitter.emit(event)
        self.counts.emitted += 1
        self.counts.tokens += sum(event.kinds())

    async def _send_bad(self, event: UsageEvent) -> None:
        """Put a record on the topic that no emitter would send."""
        key = account_key(event.tenant_id, event.account_id)
        negative = {
            "source": "misbehaving",
            "event_id": event.event_id,
            "account_id": event.account_id,
            "gateway_id": "not-an-emitter",
            "provider": event.provider,
            "model": event.model,
            "occurred_at": event.occurred_at,
            "input_tokens": -5,
        }
        frames = (
            b"\x00\x00\x00\x00\x01truncated",
            b'{"tokens": 5}',
            b"",
            self.codec.encode("usage_event", negative),
        )
        try:
            await self.raw.send_and_wait(
                self.settings.topic(USAGE), self.rng.choice(frames), key=key
            )
        except KafkaError:
            # The broker is away: a bad record that was not sent is no loss.
            return
        self.counts.bad += 1


async def main(name: str, rate: float, seconds: float, accounts: int) -> None:
    """Run one gateway and report on standard output."""
    settings = Settings.from_env()
    codec = Codec(open_registry(settings))
    async with (
        Line(settings, gateway_id=name) as line,
        AIOKafkaProducer(**client_options(settings), acks="all") as raw,
    ):
        gateway = Gateway(
            name, rate, seconds, accounts, line, raw, settings, codec, random.Random(name)
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, gateway.asked_to_stop.set)
        teller = asyncio.create_task(_tell(gateway))
        await gateway.run()
        teller.cancel()
        await line.emitter.flush()
        _print(gateway, final=True)


async def _tell(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(1)
        _print(gateway, final=False)


def _print(gateway: Gateway, *, final: bool) -> None:
    counts = gateway.counts
    line = {
        "gateway": gateway.name,
        "final": final,
        **{name: getattr(counts, name) for name in Counts.__slots__},
    }
    line["latency_ms"] = list(gateway.guard.latency) if final else []
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
