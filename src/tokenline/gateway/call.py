"""Be one admitted call: say how much it may answer, follow how far it is, end with what it used.

enter ──> progress ... ──> finish(usage)      one event, charged to what was reserved
                └─> CutOff                    the gateway cancels its stream, then finishes
leave without finish ──> abort policy of the plan: what was reported, all, or nothing
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenline.errors import CutOff, InvalidEvent
from tokenline.event import Outcome, UsageEvent, bad_count

if TYPE_CHECKING:
    from tokenline.gateway.gateway import Gateway
    from tokenline.gateway.lease import Key, Reserved
    from tokenline.gateway.prices import Rules
    from tokenline.rating.offers import Mode
    from tokenline.wire.receipt import Receipt
    from tokenline.wire.view import Decision

# A prepaid call reserves so many tokens ahead of what it has answered.
STEP_TOKENS = 256
# Whose names were found good is remembered of so many: to look again costs as much as an admission.
KNOWN_KEYS = 16_384


class Asked(NamedTuple):
    """Hold what a gateway asked for; tokens."""

    key: Key
    prompt_tokens: int
    max_tokens: int
    within_s: float
    streams: bool = True


@lru_cache(maxsize=KNOWN_KEYS)
def check_names(key: Key) -> None:
    """Refuse names that no event may have: nobody could ever tell what such a call used.

    Raises:
        InvalidEvent: the text says which.
    """
    UsageEvent(
        tenant_id=key.tenant,
        account_id=key.account,
        subscriber_id=key.subscriber,
        provider=key.provider,
        model=key.model,
        event_id="-",
    )


def check_counts(prompt_tokens: int, max_tokens: int, most: int) -> None:
    """Refuse what is no count, and a prompt that no event could tell of.

    Raises:
        InvalidEvent: the text says which.
    """
    if (
        type(prompt_tokens) is type(max_tokens) is int
        and 0 <= prompt_tokens <= most
        and max_tokens >= 0
    ):
        return
    for name, count in (("prompt_tokens", prompt_tokens), ("max_tokens", max_tokens)):
        if type(count) is not int or count < 0:
            raise bad_count(name, count)
    raise InvalidEvent(f"prompt_tokens {prompt_tokens} is above {most}, the most of an event")


class Call:
    """Be handed out by `Gateway.admit`; one call, one `finish`.

    `max_tokens` is what to send upstream: never more than what is held for the call in strict mode, nor
    in prepaid mode when it does not stream.
    """

    def __init__(self, gateway: Gateway, asked: Asked, rules: Rules, held: Reserved | None) -> None:
        self._gateway = gateway
        self._asked = asked
        self._rules = rules
        self._held = held
        self._answered = 0
        self.finished = False
        self.clamped = False
        self.max_tokens = asked.max_tokens
        # A prepaid call that tells nothing while it answers could use any amount that nobody holds.
        if held is not None and (
            rules.mode == "strict" or (rules.mode == "prepaid" and not asked.streams)
        ):
            self._clamp(held.amount_utok)

    @property
    def mode(self) -> Mode:
        """How the call is charged."""
        return self._rules.mode

    @property
    def hold_id(self) -> str:
        """The session that pays for the call; empty where nothing is held."""
        return self._held.lease.session if self._held else ""

    @property
    def reserved_utok(self) -> int:
        """What is reserved for the call now."""
        return self._held.amount_utok if self._held else 0

    async def progress(self, *, output_tokens: int) -> None:
        """Say how many tokens are answered so far, all told; returns at once nearly always.

        It does nothing once the call is finished: what it reserved then nobody would ever give back.

        Raises:
            CutOff: stop: the account was cut off, what is reserved does not cover so much, or the line
                has closed the lease, because nothing was heard of it for too long.
            ChargingUnavailable: no more could be reserved in time.
        """
        if self.finished:
            return
        self._answered = max(self._answered, output_tokens)
        self._gateway.check_running(self._asked.key)
        if self._rules.mode != "postpaid" and self._held is not None:
            self._check_held(self._held)
        if self._rules.mode == "strict" and output_tokens > self.max_tokens:
            raise self.cut("reserved_used_up")
        if self._rules.mode == "prepaid" and self._held is not None:
            await self._reserve_ahead()

    async def wait_cut(self) -> Decision:
        """Return the decision that cuts the call's account or subscriber off; cancel it when done."""
        return await self._gateway.wait_cut(self._asked.key)

    def finish(
        self,
        usage: UsageEvent | Mapping[str, int],
        *,
        outcome: Outcome = "completed",
        **fields: Any,  # noqa: ANN401  the fields of `UsageEvent`
    ) -> asyncio.Future[Receipt]:
        """Settle and emit in one step; the future resolves when the broker has the event.

        `usage` has the token kinds by name (`input_tokens`, `output_tokens`, ...), or is a whole event
        of the same account and model. The event is in the outbox when this returns.

        Raises:
            InvalidEvent: the usage is not valid, or the call is finished; nothing was kept.
            OutboxFull: no room; nothing was kept, call it again.
        """
        if self.finished:
            raise InvalidEvent("this call has ended: it is finished or was aborted")
        event = self._event(usage, self._gateway.now_ms(), {"outcome": outcome, **fields})
        receipt = self._gateway.emit(event)
        self.finished = True
        self._gateway.settle(self._asked.key, self._held, event)
        return receipt

    def _event(
        self, usage: UsageEvent | Mapping[str, int], now_ms: int, fields: dict[str, Any]
    ) -> UsageEvent:
        key = self._asked.key
        if isinstance(usage, UsageEvent):
            _check_same(usage, key)
            return replace(usage, hold_id=self.hold_id, occurred_at=usage.occurred_at or now_ms)
        kinds: dict[str, Any] = dict(usage)
        return UsageEvent(
            tenant_id=key.tenant,
            account_id=key.account,
            subscriber_id=key.subscriber,
            provider=key.provider,
            model=key.model,
            hold_id=self.hold_id,
            occurred_at=now_ms,
            **kinds,
            **fields,
        )

    def abort(self, error: BaseException | None) -> None:
        """End a call that nobody finished by its plan's policy; it does nothing to one that is."""
        if self.finished:
            return
        prompt, answer = self._asked.prompt_tokens, self.max_tokens
        if self._held is not None:
            answer = min(answer, self._covered(self._held.amount_utok))
        outcome = _outcome_of(error)
        # Of a call that failed upstream before it said anything nothing was reported, nor the prompt used.
        reported = 0 if outcome == "upstream_error" and not self._answered else prompt
        said = {
            "charge_reported": (reported, self._answered),
            "charge_granted": (prompt, answer),
        }.get(self._rules.abort, (0, 0))
        usage = {"input_tokens": said[0], "output_tokens": said[1]}
        try:
            self.finish(usage, outcome=outcome, usage_source="estimated")
        finally:
            if not self.finished:
                self._give_up(*said)

    def _give_up(self, prompt_tokens: int, answer_tokens: int) -> None:
        """End without an event: nobody will ever call again, so what is reserved must not stay so.

        What the lease has spent without an event is charged when the line closes its hold.
        """
        self.finished = True
        if self._held is not None:
            price = self._rules.price
            used_utok = prompt_tokens * price.prompt_utok + answer_tokens * price.answer_utok
            used_utok = min(used_utok, self._held.amount_utok)
            self._gateway.end(self._asked.key, self._held, used_utok)

    def cut(self, reason: str) -> CutOff:
        """Return the error that stops this call."""
        key = self._asked.key
        return CutOff(key.account, reason, subscriber=key.subscriber)

    def _check_held(self, held: Reserved) -> None:
        """Stop once the line has closed the lease: others may have what it held."""
        if not self._gateway.is_held(held):
            raise self.cut("lease_ended")

    def _clamp(self, granted_utok: int) -> None:
        covered = self._covered(granted_utok)
        self.clamped = covered < self.max_tokens
        self.max_tokens = min(self.max_tokens, covered)

    def _covered(self, reserved_utok: int) -> int:
        """Return how many tokens of answer a reservation covers behind the prompt."""
        price = self._rules.price
        if not price.answer_utok:
            return self.max_tokens
        prompt_utok = self._asked.prompt_tokens * price.prompt_utok
        return max(0, (reserved_utok - prompt_utok) // price.answer_utok)

    async def _reserve_ahead(self) -> None:
        assert self._held is not None  # noqa: S101  # the caller looked
        price, asked = self._rules.price, self._asked
        prompt_utok = asked.prompt_tokens * price.prompt_utok
        used_utok = prompt_utok + self._answered * price.answer_utok
        short_utok = used_utok - self._held.amount_utok
        ahead = min(self._answered + STEP_TOKENS, max(asked.max_tokens, self._answered))
        full_utok = prompt_utok + ahead * price.answer_utok - self._held.amount_utok
        # Half a step is left, or the answer can be no longer than what is reserved.
        if short_utok + STEP_TOKENS * price.answer_utok // 2 <= 0 or full_utok <= 0:
            return
        more = await self._gateway.extend(asked, self._held, full_utok, max(0, short_utok))
        if not more and not self.finished:
            raise self.cut("lease_ended")


def _outcome_of(error: BaseException | None) -> Outcome:
    if isinstance(error, CutOff):
        return "cut_off"
    if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "client_abort"
    return "upstream_error"


def _check_same(event: UsageEvent, key: Key) -> None:
    said = (event.tenant_id, event.account_id, event.subscriber_id, event.provider, event.model)
    if said != tuple(key):
        raise InvalidEvent(f"the call was admitted for {'/'.join(key)}, the usage is of {said}")
