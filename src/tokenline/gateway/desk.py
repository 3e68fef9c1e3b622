"""Be the line of calls before one lease: ask for more before it runs out, give back what lies idle.

One question of a lease is out at a time; calls that find no room wait in line for the answer, each
for a while. What decides how much is asked for:

    plenty   so much that it lasts for a second or more; asked again when a fifth is left
    scarce   what the calls in line need; nothing idle is kept, so others can have it

    refused, but others hold some   asked again soon: what they hold comes back
    refused, and nothing is held    the calls in line are refused that need as much or more

Who is served when there is room: see `waiting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from tokenline.errors import BadData, CallRefused, ChargingUnavailable, Unavailable
from tokenline.gateway.lease import NO_ANSWER, Granted, Key, Lease, Need, Question, Reserved
from tokenline.gateway.said import refusal_by
from tokenline.gateway.waiting import Waiter, Waiters

if TYPE_CHECKING:
    from tokenline.gateway.keeper import Keeper

FIRST_CALLS = 4
SOON_S = 1.0
# That long without an answer, or so many times as long as the last took, and charging counts as away.
SILENT_S, SILENT_TIMES = 0.5, 2
LONG_S = 10.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 0.5
SCARCE_IDLE_S = 0.2
UNKNOWN_VALIDITY_S = 60.0
SLICE_MAX_UTOK = 10**17
WAITS = frozenset(("balance_held", "limit_held"))
# Who needs less may be granted it nevertheless.
BY_AMOUNT = frozenset(("balance_held", "balance_used_up", "limit_reached", "limit_held"))

Ask = Callable[[Key, str, Question], Awaitable[Granted]]


class Desk:
    """Be the line of calls before one lease, and the task that asks for it."""

    def __init__(self, keeper: Keeper, key: Key) -> None:
        self._keeper = keeper
        self._key = key
        self._clock = keeper._clock
        self.lease = Lease("", over=True)
        self.waiters = Waiters()
        self._asked_for: tuple[Waiter, ...] = ()
        self._slice_utok = 0
        self._asked_s = self._clock.monotonic_s() - SOON_S
        self._used_s = self._clock.monotonic_s()
        self._retry_s = 0.0
        self._refused_utok = 0
        self._answered = False
        self._took_s = 0.0
        self._held_by: Granted | None = None
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
        self.waiters.enter(waiter, self._clock.monotonic_s())
        self._slice_utok = self._slice_utok or FIRST_CALLS * waiter.need.full_utok
        self._serve()
        self._wake.set()

    def leave(self, waiter: Waiter) -> Reserved | None:
        """Leave the line; return what was given meanwhile."""
        if self.waiters.leave(waiter, self._clock.monotonic_s()):
            # What was saved is in hand: it must not wait for an answer, there may be nobody to give one.
            self._serve()
            self._wake.set()
        done = waiter.done
        if not done.done():
            done.cancel()
        return None if done.cancelled() or done.exception() else done.result()

    def last_of(self, waiter: Waiter) -> Reserved | None:
        """Give what is in hand, if that is of use, to a call whose time is over before its answer came."""
        now_s, need = self._clock.monotonic_s(), waiter.need
        given = min(need.full_utok, self.lease.room_at(now_s))
        if (
            not self.lease.scarce
            or given < need.least_utok
            or waiter not in self.waiters.in_turn(now_s)
        ):
            return None
        self.waiters.remove(waiter)
        self.lease.reserve(given)
        self._wake.set()
        return Reserved(self.lease, given)

    def returned(self) -> None:
        """Note that a call has ended: what it left may serve the next in line."""
        self._used_s = self._clock.monotonic_s()
        if self.waiters:
            self._serve()
            if self.waiters:
                self._wake.set()

    def too_late(self, need: Need) -> Exception:
        """Say why a call waited in vain."""
        if not self._is_away(self._clock.monotonic_s()):
            # What there is is held: by this gateway's own calls, or by others.
            held = self._held_by or NO_ANSWER
            return self._refusal(need, held.reason or "balance_held", held)
        return ChargingUnavailable(
            f"{self._key.tenant}/{self._key.account}: charging did not answer in time"
        )

    def _is_away(self, now_s: float) -> bool:
        """Say whether nobody answers: long before a question is given up that is clear."""
        question = self.lease.question
        silent_s = 0.0 if question is None else now_s - question.asked_at_s
        return not self._answered or silent_s >= self._silence_s()

    def _silence_s(self) -> float:
        """Return how long an answer may take; one that is slow, but comes, is no silence."""
        return max(SILENT_S, SILENT_TIMES * self._took_s)

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
        renews = now_s >= self._renew_s()
        return (0 if lease.scarce else self._slice_utok) if renews else None

    def _renew_s(self) -> float:
        """Return when to renew the lease: in time, or a hold is closed by its policy; not at once again."""
        lease = self.lease
        return max(lease.good_until_s - lease.validity_s / 2, self._asked_s + self._retry_s)

    def _question_of_waiters(self, now_s: float) -> Question | None:
        """Ask for all in line: it helps when it suffices for the smallest whose turn it is."""
        in_turn = list(self.waiters.in_turn(now_s))
        least = min(waiter.need.least_utok for waiter in in_turn)
        pauses = now_s < self._asked_s + self._retry_s and least >= self._refused_utok
        if pauses and not self._is_first_told(in_turn, now_s):
            return None
        if self.lease.over:
            self.lease = Lease(str(uuid.uuid4()))
            self._keeper.stats.sessions += 1
        first = next(iter(self.waiters))
        need = Need(full_utok=first.need.full_utok, least_utok=least)
        more = sum(waiter.need.full_utok for waiter in self.waiters)
        if not self.lease.scarce:
            more += self._slice(now_s)
        # What is in hand and of use to nobody in line may be so elsewhere.
        give_back = self.lease.scarce and self.lease.room_at(now_s) < least
        self._asked_for = tuple(self.waiters)
        return self._asking(now_s, self.lease.ask(now_s, need, more, give_back=give_back))

    def _is_first_told(self, in_turn: list[Waiter], now_s: float) -> bool:
        """Say whether an answer, to each its first, serves a call from what is in hand: only an amount was refused."""
        room = self.lease.room_at(now_s)
        return self._refused_utok > 0 and any(
            not waiter.told and waiter.need.least_utok <= room for waiter in in_turn
        )

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
            until_s = min(self._renew_s(), idle_from_s + self._patience_s())
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
            # Who waits takes what is in hand once it is clear that nobody is there.
            silence = asyncio.get_running_loop().call_later(self._silence_s() + 0.001, self._serve)
            try:
                answer = await self._keeper._ask(self._key, self.lease.session, question)
            finally:
                silence.cancel()
        except Unavailable:
            stats.unanswered += 1
            self._answered = False
            if self._clock.monotonic_s() > self._lapses_s(question):
                # The line has closed it by now, and calls that still run on it are told so.
                self.lease.over, self.lease.question = True, None
            await asyncio.sleep(RETRY_MAX_S)
            return
        except BadData as error:
            self._give_up(question, error)
            return
        self._took_s = self._clock.monotonic_s() - began_s
        stats.grant_ms.append(self._took_s * 1000)
        self.lease.take(answer)
        self._note(answer, question)

    def _give_up(self, question: Question, error: BadData) -> None:
        """Forget a question that cannot be put; who asks for less may still get it."""
        self.lease.withdraw()
        self._asked_for = ()
        self._retry_s, self._refused_utok = RETRY_MAX_S, question.least_utok
        self._turn_away(question.least_utok, lambda _: error)

    def _lapses_s(self, question: Question) -> float:
        """Return when a question is put no more: the lease has lapsed, or may never have been."""
        known = self.lease.validity_s
        return self.lease.lapses_s if known else question.asked_at_s + UNKNOWN_VALIDITY_S

    def _note(self, answer: Granted, question: Question) -> None:
        self._answered, self._rest_utok = True, answer.rest_utok
        for waiter in self._asked_for:
            waiter.told = True
        self._asked_for = ()
        self._held_by = answer if answer.reason in WAITS else None
        if question.action == "settle" or answer.reason == "none" or answer.late:
            self._retry_s = 0.0
            return
        self._keeper.stats.refused += 1
        self._retry_s = min(max(self._retry_s * 2, RETRY_MIN_S), RETRY_MAX_S)
        self._refused_utok = question.least_utok if answer.reason in BY_AMOUNT else 0
        if self.lease.reserved_utok and self._clock.monotonic_s() > self.lease.lapses_s:
            # Refused without a word of what calls run on: nothing was renewed, so it is closed by now.
            self.lease.over = True
        if answer.reason not in WAITS:
            refusal = partial(self._refusal, reason=answer.reason, answer=answer)
            self._turn_away(self._refused_utok, refusal)

    def _turn_away(self, least_utok: int, error_of: Callable[[Need], Exception]) -> None:
        """Refuse the calls in line that need as much or more."""
        for waiter in [one for one in self.waiters if one.need.least_utok >= least_utok]:
            self.waiters.remove(waiter)
            if not waiter.done.done():
                waiter.done.set_exception(error_of(waiter.need))

    def _refusal(self, need: Need, reason: str, answer: Granted) -> CallRefused:
        in_hand_utok = self._rest_utok + self.lease.room_at(self._clock.monotonic_s())
        now_ms = self._clock.wall_ms()
        return refusal_by(self._key, need, reason, answer, in_hand_utok, now_ms)

    def _serve(self) -> None:
        """Give to the calls in line, in their order, as far as there is room.

        Less than all it may use a call is given only if that is all there is: it was asked for, or
        nobody answers. What is in hand may be little because nobody needed more so far.
        """
        now_s = self._clock.monotonic_s()
        room, away = self.lease.room_at(now_s), self._is_away(now_s)
        for waiter in self.waiters:
            need = waiter.need
            given = min(need.full_utok, room)
            clamps = self.lease.scarce and (waiter.told or away) and given >= need.least_utok
            if waiter.done.done():
                self.waiters.remove(waiter)
            elif clamps or given == need.full_utok:
                self.lease.reserve(given)
                room -= given
                self._used_s = now_s
                waiter.done.set_result(Reserved(self.lease, given))
                self.waiters.remove(waiter)
            elif self.waiters.saves_for(waiter, now_s):
                break
