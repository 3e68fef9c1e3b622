"""Admit calls, follow them, emit what they used: all that a gateway process embeds of the line.

    async with Gateway(settings) as gateway:
        async with gateway.admit(
            account="acme", provider="deepseek", model="deepseek-chat", prompt_tokens=812, max_tokens=4000
        ) as call:
            ...                                  # send upstream with max_tokens=call.max_tokens
            await call.progress(output_tokens=n)  # raises CutOff when the line says stop
            call.finish({"input_tokens": 812, "output_tokens": n})

What decides, by the account's plan:

    postpaid   the guard's decisions, nothing is held; overshoot is what was in flight
    prepaid    a lease covers the call as it goes; at its end the call is cut
    strict     a lease covers the whole call, `call.max_tokens` is no more than it covers

One event loop, one gateway; not thread-safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tokenline.clock import Clock, SystemClock
from tokenline.errors import (
    BrokerUnavailable,
    CallRefused,
    ChargingUnavailable,
    SettingsError,
    Unavailable,
)
from tokenline.gateway.admission import Admission, Asked, asked_of
from tokenline.gateway.call import UPSTREAM_ERRORS, Call
from tokenline.gateway.emergency import Emergency
from tokenline.gateway.keeper import Keeper
from tokenline.gateway.lease import Granted, Key, Lease, Need, Question, Reserved
from tokenline.gateway.prices import Prices, Rules
from tokenline.gateway.said import cut_by, cut_off_of, granted_of, need_of, refusal_of
from tokenline.reasons import Facts, refusal
from tokenline.settings import Settings
from tokenline.wire.catalogs import Catalogs
from tokenline.wire.emitter import Emitter
from tokenline.wire.guard import Guard
from tokenline.wire.orders import Orders
from tokenline.wire.registry import open_registry
from tokenline.wire.tasks import end_tasks

if TYPE_CHECKING:
    from types import TracebackType

    from tokenline.event import UsageEvent
    from tokenline.wire.receipt import Receipt
    from tokenline.wire.view import Decision, Verdict

ASK_S = 2.0
START_S = 60.0
START_RETRY_S = 0.5
CLOSE_S = 5.0
MENDED_EVERY_S = 1.0


@dataclass(slots=True)
class GatewayStats:
    """Count what became of calls; `admit_us` are the newest admissions that waited for nothing."""

    admitted: int = 0
    refused: int = 0
    cut: int = 0
    clamped: int = 0
    aborted: int = 0
    emergency: int = 0
    overshoot_utok: int = 0
    admit_us: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))


class Gateway:
    """Bundle emitter, guard, catalogs and leases; an async context manager.

    `settings` default to the environment: `TOKENLINE_GATEWAY_ID` names this instance and must be
    set there or here, `TOKENLINE_GATEWAY_SOURCE` the logical producer that all instances share.
    `upstream_errors` are what the client of your providers raises when a provider fails, beside
    `ConnectionError` and `TimeoutError`: a call that ends so before it was answered is not charged. Any
    other exception of a call's block is the gateway's own, and what was reported is charged.

    Leaving it raises nothing, whatever is away, and takes no longer than some seconds: calls that still
    run are settled by the abort policy, and a log line says what is left in the outbox.

    Raises:
        SettingsError: a setting is wrong or missing; the text names it.
        BrokerUnavailable: at the start, when decisions or catalogs could not be read.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        gateway_id: str = "",
        upstream_errors: tuple[type[BaseException], ...] = (),
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings or Settings.from_env()
        self._id = gateway_id or self._settings.gateway_id
        if not self._id:
            raise SettingsError("TOKENLINE_GATEWAY_ID is not set: it names this gateway's outbox")
        self._clock = clock or SystemClock()
        self.upstream_errors = (*UPSTREAM_ERRORS, *upstream_errors)
        self.most_tokens = self._settings.max_tokens_per_event
        self._running: set[Call] = set()
        registry = open_registry(self._settings)
        self.emitter = Emitter(
            self._settings,
            source=self._settings.gateway_source,
            gateway_id=self._id,
            on_outage="spool",
            registry=registry,
            clock=self._clock,
        )
        self.guard = Guard(
            self._settings,
            stale_after_ms=self._settings.guard_stale_ms,
            registry=registry,
            clock=self._clock,
        )
        self._catalogs = Catalogs(self._settings, on_new=self._on_catalog, registry=registry)
        self._prices = Prices(self._catalogs.book)
        self._orders = Orders(self._settings, registry=registry, clock=self._clock)
        self.keeper = Keeper(self._ask, self._clock, idle_s=self._settings.lease_idle_ms / 1000)
        self._emergency: Emergency | None = None
        self._emergency_calls = 0
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.stats = GatewayStats()

    async def __aenter__(self) -> Self:
        """Read catalogs and decisions, send what earlier runs left."""
        self._emergency = Emergency(self._settings.data_dir / "emergency" / f"{self._id}.sqlite")
        self._stack.callback(self._emergency.close)
        try:
            await self._enter(self._catalogs)
            await self._enter(self._orders)
            await self._stack.enter_async_context(self.guard)
            await self._stack.enter_async_context(self.emitter)
            # All others were answered: an outbox of another line is said now, not with the first event.
            await self.emitter.reach(ASK_S)
        except BaseException:
            await self._stack.aclose()
            raise
        self._tasks = [asyncio.create_task(self._mend_slices(), name="tokenline-emergency")]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give all leases back, hand over what waits in the outbox, as far as it can be done in time."""
        for call in list(self._running):
            self.abort(call, Unavailable("the gateway closes"))
        await end_tasks(self._tasks)
        await self.keeper.close(CLOSE_S)
        await self._stack.aclose()

    async def _enter(self, part: Catalogs | Orders) -> None:
        """Wait for a broker that is away just now: a gateway must not depend on who starts first."""
        until_s = self._clock.monotonic_s() + START_S
        while True:
            try:
                await self._stack.enter_async_context(part)
            except BrokerUnavailable:
                if self._clock.monotonic_s() > until_s:
                    raise
                await asyncio.sleep(START_RETRY_S)
            else:
                return

    def admit(
        self,
        *,
        account: str,
        provider: str,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        subscriber: str = "",
        tenant: str = "default",
        within_ms: float | None = None,
        streams: bool = True,
    ) -> Admission:
        """Return a context manager that gives the `Call`, or raises that it may not be.

        `prompt_tokens` is the most the prompt can be, `max_tokens` the most the answer may be. It waits
        at most `within_ms` (default `TOKENLINE_ADMIT_WAIT_MS`) for units that others hold. An answer may
        not be longer than one event may say, whatever is asked.

        A prepaid call is held in steps as `progress` tells how far it is. Say `streams=False` where nobody
        will call `progress`: then it is held whole, and its `max_tokens` is what is held. Without that its
        overshoot is as large as its answer.

        Raises:
            InvalidEvent: no event may have such a name or count; the text says which.

        Raises, when entered:
            CallRefused: the account may not go on; it says why, and what would help. Its children say
                which kind it is: QuotaExceeded, UnknownAccount, UnknownModel, AccountSuspended, AccountClosed.
            ChargingUnavailable: charging does not answer, and the plan does not let calls go on.
            OutboxFull: nobody could tell what the call used; wait or shed.
        """
        wait_ms = self._settings.admit_wait_ms if within_ms is None else within_ms
        key = Key(tenant, account, subscriber, provider, model)
        asked = asked_of(key, prompt_tokens, max_tokens, wait_ms, self.most_tokens, streams=streams)
        return Admission(self, asked)

    async def open_call(self, asked: Asked) -> Call:
        """Admit one call; what `admit` does when it is entered."""
        began_s = self._clock.monotonic_s()
        try:
            call, waited = await self._open(asked)
        except CallRefused:
            self.stats.refused += 1
            raise
        self._running.add(call)
        self.stats.admitted += 1
        self.stats.clamped += call.clamped
        if not waited:
            self.stats.admit_us.append((self._clock.monotonic_s() - began_s) * 1e6)
        return call

    async def _open(self, asked: Asked) -> tuple[Call, bool]:
        # What cannot be reported once it is answered would be free.
        self.emitter.check_room()
        key = asked.key
        verdict = self._verdict(key)
        if verdict.state == "cut" or (verdict.state == "unknown" and not verdict.stale):
            raise refusal_of(asked, verdict, self._prices, self._clock.wall_ms())
        now_ms = self._clock.wall_ms()
        rules = self._prices.rules(verdict.terms, key.provider, key.model, now_ms)
        if rules is None:
            facts = Facts(subscriber=key.subscriber)
            raise refusal("unknown_model", key.account, facts, now_ms)
        if verdict.stale and rules.terms.unreachable == "stop":
            raise ChargingUnavailable(
                f"{key.tenant}/{key.account}: charging has said nothing for {verdict.fresh_ms} ms"
            )
        # Out of reach a call is reserved whole, whatever its plan: there is nobody to ask for more.
        whole = rules.mode != "prepaid" or verdict.stale or not asked.streams
        need = need_of(asked, whole=whole, price=rules.price)
        if not need.full_utok or (rules.mode == "postpaid" and not verdict.stale):
            return Call(self, asked, rules, None), False
        if (held := self.keeper.try_reserve(key, need.full_utok)) is not None:
            return Call(self, asked, rules, held), False
        if verdict.stale:
            return await self._open_emergency(asked, rules), True
        try:
            held = await self.keeper.reserve(key, need, asked.within_s)
        except ChargingUnavailable:
            if rules.terms.unreachable != "emergency":
                raise
            return await self._open_emergency(asked, rules), True
        return Call(self, asked, rules, held), True

    def abort(self, call: Call, error: BaseException | None) -> None:
        """Settle a call by its plan's abort policy; see `Call.abort`."""
        self.stats.aborted += 1
        call.abort(error)

    def forget(self, call: Call) -> None:
        """Note that a call has ended."""
        self._running.discard(call)

    def check_running(self, key: Key) -> None:
        """Raise CutOff when the line has cut the account, the subscriber or the model off."""
        verdict = self._verdict(key)
        if verdict.state == "cut":
            self.stats.cut += 1
            raise cut_off_of(key, verdict, self._clock.wall_ms())

    async def wait_cut(self, key: Key) -> Decision:
        """Return the decision that cuts the account, the subscriber or the model."""
        whom = key.account, key.subscriber or None, key.tenant
        return await self.guard.wait_cut(*whom, provider=key.provider, model=key.model)

    def _verdict(self, key: Key) -> Verdict:
        whom = key.account, key.subscriber, key.tenant
        return self.guard.check(*whom, provider=key.provider, model=key.model)

    async def extend(self, asked: Asked, held: Reserved, full_utok: int, least_utok: int) -> bool:
        """Reserve more for a call that runs; False when its lease has ended."""
        need = Need(full_utok=full_utok, least_utok=least_utok)
        try:
            return await self.keeper.extend(asked.key, held, need, asked.within_s)
        except CallRefused as error:
            self.stats.cut += 1
            raise cut_by(error) from error

    def is_held(self, held: Reserved) -> bool:
        """Say whether the line holds what a call reserved, as far as this gateway can know."""
        lease = held.lease
        return not lease.over and self._clock.monotonic_s() < lease.lapses_s

    def emit(self, event: UsageEvent) -> asyncio.Future[Receipt]:
        """Keep an event and hand it over; see `Emitter.emit_nowait`."""
        return self.emitter.emit_nowait(event)

    def settle(self, key: Key, held: Reserved | None, event: UsageEvent) -> None:
        """Turn what a call reserved into what its event costs, by the model that ran."""
        if held is None:
            return
        used_utok = self._prices.charge_utok(
            event.provider, event.model, event.kinds(), event.occurred_at
        )
        self.stats.overshoot_utok += max(0, used_utok - held.amount_utok)
        self.end(key, held, used_utok)

    def end(self, key: Key, held: Reserved, used_utok: int) -> None:
        """Turn what a call reserved into what it used, whether an event tells of it or not."""
        if held.lease is _EMERGENCY and self._emergency is not None:
            self._emergency_calls -= 1
            self._emergency.correct(key.tenant, key.account, used_utok - held.amount_utok)
        else:
            self.keeper.finish(key, held, used_utok)

    def now_ms(self) -> int:
        """Return the wall clock's time."""
        return self._clock.wall_ms()

    def _on_catalog(self) -> None:
        self._prices.changed()

    async def _open_emergency(self, asked: Asked, rules: Rules) -> Call:
        """Serve from the emergency slice, as far as it goes: the whole call, it is never extended."""
        key, need = asked.key, need_of(asked, whole=True, price=rules.price)
        slice_utok = rules.terms.emergency_utok
        why = "no lease is in hand"
        if slice_utok and self._emergency is not None:
            whose = key.tenant, key.account
            refused = await self._emergency.take(*whose, need.full_utok, slice_utok)
            why = f"{why} and {refused}" if refused else ""
        if why:
            raise ChargingUnavailable(
                f"{key.tenant}/{key.account}: charging does not answer, {why}"
            )
        self.stats.emergency += 1
        self._emergency_calls += 1
        return Call(
            self, asked, rules._replace(mode="strict"), Reserved(_EMERGENCY, need.full_utok)
        )

    async def _mend_slices(self) -> None:
        """Make emergency slices whole when charging is back and has all that was used of them."""
        while True:
            await asyncio.sleep(MENDED_EVERY_S)
            if self._emergency is None:
                continue
            # What a full disk has refused.
            self._emergency.write()
            if not self._emergency.in_use:
                continue
            told = not self.emitter.stats.waiting and not self._emergency_calls
            if told and 0 <= self.guard.oldest_fresh_ms <= self._settings.guard_stale_ms:
                self._emergency.restore()

    async def _ask(self, key: Key, session: str, question: Question) -> Granted:
        """Put a question of a lease to the line.

        Raises:
            Unavailable: no answer came in time; it is put again, with the same number.
        """
        reply = await self._orders.hold(
            key.account,
            session,
            question.seq,
            action=question.action,
            tenant=key.tenant,
            timeout_s=ASK_S,
            subscriber_id=key.subscriber,
            provider=key.provider,
            model=key.model,
            lease=1,
            wanted_utok=question.wanted_utok,
            reported_utok=question.reported_utok,
            reserved_utok=question.reserved_utok,
            first_utok=question.first_utok,
            keep_utok=question.keep_utok,
        )
        return granted_of(reply)


# What calls reserve of when charging is out of reach: no session, no answers.
_EMERGENCY = Lease("")
