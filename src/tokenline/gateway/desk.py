"""Be the line of calls before one lease: ask for more before it runs out, give back what lies idle.

One question of a lease is out at a time; calls that find no room wait in line for the answer, each
for a while. What decides how much is asked for:

    plenty   so much that it lasts for a second or more; asked again when a fifth is left
    scarce   what the calls in line need; nothing idle is kept, so others can have it

    refused, but others hold some   asked again soon: what they hold comes back
    refused, and nothing is held    the calls in line are refused
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenline.errors import ChargingUnavailable, QuotaExceeded, Unavailable
from tokenline.gateway.lease import Granted, Key, Lease, Need, Question, Reserved

if TYPE_CHECKING:
    from tokenline.gateway.keeper import Keeper

FIRST_CALLS = 4
SOON_S = 1.0
LONG_S = 10.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 0.5
SCARCE_IDLE_S = 0.2
UNKNOWN_VALIDITY_S = 60.0
SLICE_MAX_UTOK = 10**17
WAITS = frozenset(("balance_held",))
SPENDABLE = frozenset(("balance_held", "balance_used_up"))

Ask = Callable[[Key, str, Question], Awaitable[Granted]]


@dataclass(slots=True, eq=False)
class Waiter:
    """Stand in line: what a call needs, and of which lease if it runs."""

    need: Need
    done: asyncio.Future[Reserved]
    lease: Lease | None = None


class Desk:
    """Be the line of calls before one lease, and the task that asks for it."""

    def __init__(self, keeper: Keeper, key: Key) -> None:
        self._keeper = keeper
        self._key = key
        self._clock = keeper._clock
        self.lease = Lease("", over=True)
        self.waiters: deque[Waiter] = deque()
        self._slice_utok = 0
        self._asked_s = self._clock.monotonic_s() - SOON_S
        self._used_s = self._clock.monotonic_s()
        self._retry_s = 0.0
        self._answered = False
        self._rest_utok = 0
        self._wake = asyncio.Event()
        self._closing = False
        self.task = asyncio.create_task(self._run(), name="tokenline-lease")

    def try_reserve(self, amount_utok: int) -> Reserved | None:
        """Reserve from what is in hand; None where there is not enough."""
        now_s, lease = self._clock.monotonic_s(), self.lease
        room = lease.room_at(now_s)
        if room < amount_utok:
            return None
        lease.reserve(amount_utok)
        self._used_s = now_s
        if room - amount_utok < lease.threshold_utok and not lease.scarce:
            self._wake.set()
        return Reserved(lease, amount_utok)

    def enter(self, waiter: Waiter) -> None:
        """Stand in line; a call that runs goes before those that have not begun."""
        if waiter.lease is None:
            self.waiters.append(waiter)
        else:
            self.waiters.appendleft(waiter)
        self._slice_utok = self._slice_utok or FIRST_CALLS * waiter.need.full_utok
        self._serve()
        self._wake.set()

    def leave(self, waiter: Waiter) -> Reserved | None:
        """Leave the line; return what was given meanwhile."""
        with contextlib.suppress(ValueError):
            self.waiters.remove(waiter)
        done = waiter.done
        if not done.done():
            done.cancel()
        return None if done.cancelled() or done.exception() else done.result()

    def returned(self) -> None:
        """Note that a call has ended: what it left may serve the next in line."""
        self._used_s = self._clock.monotonic_s()
        if self.waiters:
            self._serve()
            if self.waiters:
                self._wake.set()

    def too_late(self, need: Need) -> Exception:
        """Say why a call waited in vain."""
        if self._answered:
            # What there is is held: by this gateway's own calls, or by others.
            return self._refusal(need, "balance_held")
        return ChargingUnavailable(
            f"{self._key.tenant}/{self._key.account}: charging did not answer in time"
        )

    def close(self) -> bool:
        """Begin to give the lease back; say whether that can be waited for: no call runs on it."""
        self._closing = True
        self._wake.set()
        return not self.lease.reserved_utok

    def stop(self) -> None:
        """End without waiting for anything."""
        self.task.cancel()

    async def _run(self) -> None:
        try:
            while not self._ends():
                question = self._next_question()
                if question is None:
                    await self._sleep()
                    continue
                await self._put(question)
                self._serve()
        finally:
            self._keeper._forget(self._key)
            for waiter in self.waiters:
                if not waiter.done.done():
                    waiter.done.set_exception(self.too_late(waiter.need))

    def _ends(self) -> bool:
        return self.lease.over and not self.waiters and not self.lease.question

    def _next_question(self) -> Question | None:
        """Return what is to be asked now, None when nothing is."""
        now_s, lease = self._clock.monotonic_s(), self.lease
        if lease.question is not None:
            return lease.question
        if self.waiters:
            return self._question_of_waiters(now_s)
        idle_s = now_s - self._used_s
        if not lease.reserved_utok and (self._closing or idle_s >= self._patience_s()):
            return lease.settle(now_s)
        more = self._more(now_s)
        if more is None:
            return None
        return self._asking(now_s, lease.ask(now_s, None, more, give_back=lease.scarce))

    def _more(self, now_s: float) -> int | None:
        """Return how much to ask for beyond what runs when no call waits; None: ask nothing."""
        lease = self.lease
        if lease.scarce and lease.room_at(now_s) and now_s - self._asked_s >= SCARCE_IDLE_S:
            return 0
        if not lease.scarce and lease.room_at(now_s) < lease.threshold_utok:
            return self._slice(now_s)
        # In time: a hold that nobody renews is closed by its policy.
        renews = now_s >= lease.good_until_s - lease.validity_s / 2
        return (0 if lease.scarce else self._slice_utok) if renews else None

    def _question_of_waiters(self, now_s: float) -> Question | None:
        if now_s < self._asked_s + self._retry_s:
            return None
        if self.lease.over:
            self.lease = Lease(str(uuid.uuid4()))
            self._keeper.stats.sessions += 1
        need = self.waiters[0].need
        more = sum(waiter.need.full_utok for waiter in self.waiters)
        if not self.lease.scarce:
            more += self._slice(now_s)
        give_back = self.lease.scarce
        return self._asking(now_s, self.lease.ask(now_s, need, more, give_back=give_back))

    def _asking(self, now_s: float, question: Question) -> Question:
        self._asked_s = now_s
        return question

    def _slice(self, now_s: float) -> int:
        """Return how much to have in hand: so much that it is asked for about once a second."""
        since_s = now_s - self._asked_s
        if since_s < SOON_S:
            self._slice_utok = min(self._slice_utok * 2, SLICE_MAX_UTOK)
        elif since_s > LONG_S:
            self._slice_utok = max(1, self._slice_utok // 2)
        return self._slice_utok

    def _patience_s(self) -> float:
        return SCARCE_IDLE_S if self.lease.scarce else self._keeper._idle_s

    async def _sleep(self) -> None:
        """Sleep until somebody comes or something may be due."""
        self._wake.clear()
        now_s, lease = self._clock.monotonic_s(), self.lease
        if self.waiters:
            until_s = self._asked_s + self._retry_s
        else:
            # A call that ends wakes nobody: that would cost each call a turn of this task.
            idle_from_s = now_s if lease.reserved_utok else self._used_s
            until_s = min(
                lease.good_until_s - lease.validity_s / 2, idle_from_s + self._patience_s()
            )
            if lease.scarce and lease.room_at(now_s):
                until_s = min(until_s, self._asked_s + SCARCE_IDLE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, until_s - now_s)):
                await self._wake.wait()

    async def _put(self, question: Question) -> None:
        """Put a question until it is answered, or its lease has ended without an answer."""
        stats, began_s = self._keeper.stats, self._clock.monotonic_s()
        stats.questions += 1
        try:
            answer = await self._keeper._ask(self._key, self.lease.session, question)
        except Unavailable:
            stats.unanswered += 1
            self._answered = False
            if self._clock.monotonic_s() > self._lapses_s(question):
                # The line has closed it by now, and calls that still run on it are told so.
                self.lease.over, self.lease.question = True, None
            await asyncio.sleep(RETRY_MAX_S)
            return
        stats.grant_ms.append((self._clock.monotonic_s() - began_s) * 1000)
        self.lease.take(answer)
        self._note(answer, question)

    def _lapses_s(self, question: Question) -> float:
        """Return when a question is put no more: the lease has lapsed, or may never have been."""
        known = self.lease.validity_s
        return self.lease.lapses_s if known else question.asked_at_s + UNKNOWN_VALIDITY_S

    def _note(self, answer: Granted, question: Question) -> None:
        self._answered, self._rest_utok = True, answer.rest_utok
        if question.action == "settle" or answer.reason == "none" or answer.late:
            self._retry_s = 0.0
            return
        self._keeper.stats.refused += 1
        self._retry_s = min(max(self._retry_s * 2, RETRY_MIN_S), RETRY_MAX_S)
        if answer.reason in WAITS:
            return
        for waiter in list(self.waiters):
            if not waiter.done.done() and (
                answer.reason not in SPENDABLE or waiter.need.least_utok >= question.least_utok
            ):
                waiter.done.set_exception(self._refusal(waiter.need, answer.reason, answer))
                self.waiters.remove(waiter)

    def _refusal(self, need: Need, reason: str, answer: Granted | None = None) -> QuotaExceeded:
        short = max(1, need.least_utok - self._rest_utok) if reason in SPENDABLE else 0
        return QuotaExceeded(
            self._key.account,
            (answer.limit_name if answer else "") or reason,
            subscriber=self._key.subscriber,
            used=answer.limit_used if answer else 0,
            limit=answer.limit_value if answer else -1,
            resets_at_ms=answer.resets_at_ms if answer else 0,
            top_up_utok=short,
        )

    def _serve(self) -> None:
        """Give to the calls in line, in their order, as far as there is room."""
        now_s = self._clock.monotonic_s()
        while self.waiters:
            waiter, room = self.waiters[0], self.lease.room_at(now_s)
            if waiter.done.done():
                self.waiters.popleft()
                continue
            given = min(waiter.need.full_utok, room)
            short = given < waiter.need.full_utok
            if given < waiter.need.least_utok or (short and not self.lease.scarce):
                break
            self.lease.reserve(given)
            self._used_s = now_s
            waiter.done.set_result(Reserved(self.lease, given))
            self.waiters.popleft()
