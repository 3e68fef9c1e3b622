"""Be one admitted call: say how much it may answer, follow how far it is, end with what it used.

enter ──> progress ... ──> finish(usage)      one event, charged to what was reserved
                └─> CutOff                    the gateway cancels its stream, then finishes
leave without finish ──> abort policy of the plan: what was reported, all, or nothing

However its block is left, a call is settled, and the caller's exception stays the caller's. Who ended
it is its outcome: the client, the line (`cut_off`), the provider, where the error is one that says so
(`upstream_errors`), and else the gateway itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from tokenline.counts import count_of
from tokenline.errors import CallRefused, CutOff, InvalidEvent, TokenlineError
from tokenline.gateway.reported import dearest_utok, event_of, filled, readable
from tokenline.reasons import Facts, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.event import Outcome, UsageEvent
    from tokenline.gateway.admission import Asked
    from tokenline.gateway.gateway import Gateway
    from tokenline.gateway.lease import Reserved
    from tokenline.gateway.prices import Rules
    from tokenline.rating.offers import Mode
    from tokenline.wire.receipt import Receipt
    from tokenline.wire.view import Decision

# A prepaid call reserves so many tokens ahead of what it has answered.
STEP_TOKENS = 256
# What says that the provider failed, whatever client a gateway has; see `Gateway` for more.
UPSTREAM_ERRORS: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError)

_log = structlog.get_logger(__name__)


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
        # What could be read of a report that was not kept; None while there was none.
        self._reported: dict[str, int] | None = None
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
            InvalidEvent: it is no count; nothing of it is kept.
            CutOff: stop: the account was cut off, what is reserved does not cover so much, or the line
                has closed the lease, because nothing was heard of it for too long.
            ChargingUnavailable: no more could be reserved in time.
        """
        if self.finished:
            return
        if type(output_tokens) is not int or not 0 <= output_tokens <= self._gateway.most_tokens:
            output_tokens = count_of("output_tokens", output_tokens, self._gateway.most_tokens)
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
        outcome: Outcome | None = None,
        provider: str | None = None,
        model: str | None = None,
        **fields: Any,  # noqa: ANN401  the fields of `UsageEvent`
    ) -> asyncio.Future[Receipt]:
        """Settle and emit in one step; the future resolves when the broker has the event.

        `usage` has the token kinds by name (`input_tokens`, `output_tokens`, ...), or is a whole event
        of the same account and subscriber. Name `provider` and `model` where another ran than was
        asked for (a fallback): what ran is charged, from what is held as far as that may pay for it.
        The event is in the outbox when this returns.

        Raises:
            InvalidEvent: the usage is not valid, or the call is finished; nothing was kept. Who leaves
                without mending that is settled by the abort policy, with what of it could be read.
            OutboxFull: no room; nothing was kept, call it again.
        """
        if self.finished:
            raise InvalidEvent("this call has ended: it is finished or was aborted")
        named = {"outcome": outcome, "provider": provider, "model": model}
        fields |= {name: value for name, value in named.items() if value is not None}
        told: object = usage if isinstance(usage, Mapping) else {}
        try:
            now_ms = self._gateway.now_ms()
            event = event_of(self._asked.key, self.hold_id, now_ms, usage, fields)
            told = event.record()
            receipt = self._gateway.emit(event)
        except (TokenlineError, OSError):
            self._reported = readable(told, self._gateway.most_tokens)
            raise
        self._end()
        self._gateway.settle(self._asked.key, self._held, event)
        return receipt

    def abort(self, error: BaseException | None) -> None:
        """End a call that nobody finished by its plan's policy; it does nothing to one that is.

        Raises:
            OutboxFull: its usage could not be kept; never where `error` is another one's to raise.
        """
        if self.finished:
            return
        outcome = self._outcome_of(error)
        usage = self._left_of(outcome)
        try:
            self.finish(usage, outcome=outcome, usage_source="estimated")
        except (TokenlineError, OSError, RuntimeError) as fault:
            key = self._asked.key
            _log.error("usage_not_kept", account=key.account, **usage, error=repr(fault))
            self._give_up(usage)
            if error is None:
                raise

    def _left_of(self, outcome: Outcome) -> dict[str, int]:
        """Return what is charged of a call that nobody finished, by its plan's policy."""
        prompt, answer = self._asked.prompt_tokens, self.max_tokens
        if self._rules.abort == "charge_granted":
            if self._held is not None:
                answer = min(answer, self._covered(self._held.amount_utok))
            return filled({}, prompt, answer)
        # Of a call that failed upstream before it said anything nothing was reported, nor the prompt used.
        if self._rules.abort == "release" or (outcome == "upstream_error" and not self._answered):
            return filled({}, 0, 0)
        return filled(self._reported or {}, prompt, self._answered)

    def _outcome_of(self, error: BaseException | None) -> Outcome:
        """Say whose doing the end was."""
        if self._reported is not None:
            return "gateway_error"
        if error is None:
            return "client_abort"
        errors = list(_leaves(error))
        if any(isinstance(one, CutOff) for one in errors):
            return "cut_off"
        if all(isinstance(one, asyncio.CancelledError | GeneratorExit) for one in errors):
            return "client_abort"
        upstream = all(isinstance(one, self._gateway.upstream_errors) for one in errors)
        return "upstream_error" if upstream else "gateway_error"

    def _give_up(self, usage: Mapping[str, int]) -> None:
        """End without an event: nobody will ever call again, so what is reserved must not stay so.

        What the lease has spent without an event is charged when the line closes its hold.
        """
        self._end()
        if self._held is not None:
            used_utok = dearest_utok(usage, self._rules.price)
            self._gateway.end(self._asked.key, self._held, min(used_utok, self._held.amount_utok))

    def _end(self) -> None:
        self.finished = True
        self._gateway.forget(self)

    def cut(self, reason: str) -> CallRefused:
        """Return the error that stops this call."""
        key, now_ms = self._asked.key, self._gateway.now_ms()
        return refusal(reason, key.account, Facts(subscriber=key.subscriber), now_ms, CutOff)

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


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group, of groups in it as well."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
