"""Keepers of several gateways before the real engine: who gets what, who waits, who is refused and why."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tokenline.clock import SystemClock
from tokenline.errors import BadData, ChargingUnavailable, QuotaExceeded, Unavailable
from tokenline.gateway.keeper import Keeper
from tokenline.gateway.lease import MOST_UTOK, Granted, Key, Need, Reserved
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.cells import AccountCells, Cell
from tokenline.quota.holds import HoldOrder
from tokenline.quota.terms import SUBSCRIBER_CAP, Grant, Mode, Source, Terms, Use

KEY = Key("t", "a", "", "p", "m")


class Line:
    """Be the charging worker: one account, and a way to be out of reach."""

    def __init__(self, allowance, validity_ms=60_000, limits=()):
        terms = Terms(
            mode=Mode.STRICT,
            allowance_utok=allowance,
            prorated=False,
            hold_validity_ms=validity_ms,
            limits=limits,
        )
        cells = AccountCells()
        slot = cells.open("t/a")
        cells.matrix[slot, Cell.ZONE] = cells.zone_code("Asia/Shanghai")
        self.books = Books(cells, lambda *_: terms, 3_600_000)
        self.away = asyncio.Event()
        self.settled = asyncio.Event()
        self.asked = 0
        self.questions = []
        self.refuses = ""
        orders.open_account(self.books, 0, "strict", 0, self.now_ms)

    @property
    def now_ms(self):
        return time.time_ns() // 1_000_000

    async def ask(self, key, session, question):
        self.asked += 1
        self.questions.append(question)
        await asyncio.sleep(0.002)
        if self.away.is_set():
            raise Unavailable("nobody is there")
        if self.refuses:
            return Granted(
                reason=self.refuses,
                granted_utok=0,
                threshold_utok=0,
                validity_ms=0,
                final=False,
                late=False,
                rest_utok=0,
            )
        order = HoldOrder(
            session=(hash((key, session)) >> 2, 1),
            seq=question.seq,
            use=Use(key.provider, key.model, key.subscriber),
            lease=True,
            reported_utok=question.reported_utok,
            wanted_utok=question.wanted_utok,
            needed_utok=question.reserved_utok,
            first_utok=question.first_utok,
            keep_utok=question.keep_utok,
            settles=question.action == "settle",
        )
        answer = orders.hold(self.books, 0, order, self.now_ms)
        if order.settles:
            self.settled.set()
        return Granted(
            reason=answer.reason.name.lower(),
            granted_utok=answer.granted_utok,
            threshold_utok=answer.threshold_utok,
            validity_ms=answer.validity_ms,
            final=answer.final,
            late=answer.late,
            rest_utok=answer.rest_utok,
        )

    def keeper(self, idle_s=5.0):
        return Keeper(self.ask, SystemClock(), idle_s=idle_s)

    def top_up(self, amount):
        orders.grant(self.books, 0, Grant(amount_utok=amount, source=Source.TOP_UP), self.now_ms)

    @property
    def held(self):
        orders.bring_up_to(self.books, 0, self.now_ms)
        return self.books.get(0, Balance.HELD)


def need(full, least=None):
    return Need(full_utok=full, least_utok=full if least is None else least)


async def test_most_calls_are_admitted_without_asking():
    line = Line(1_000_000)
    keeper = line.keeper()
    first = await keeper.reserve(KEY, need(100), 1.0)
    for _ in range(50):
        held = keeper.try_reserve(KEY, 100) or await keeper.reserve(KEY, need(100), 1.0)
        keeper.finish(KEY, held, 60)
    keeper.finish(KEY, first, 60)
    assert line.asked < 15
    await keeper.close(1.0)
    # What is on its way as usage stays held until it is there.
    assert line.held == 51 * 60


async def test_a_scarce_call_gets_what_there_is_and_the_next_is_refused():
    line = Line(150)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(1000, 10), 1.0)
    assert held.amount_utok == 150
    with pytest.raises(QuotaExceeded) as refused:
        await keeper.reserve(KEY, need(100), 0.2)
    assert refused.value.reason == "balance_held"
    keeper.finish(KEY, held, 150)
    with pytest.raises(QuotaExceeded) as refused:
        await keeper.reserve(KEY, need(200), 1.0)
    assert refused.value.reason == "balance_used_up"
    assert refused.value.top_up_utok >= 50
    await keeper.close(1.0)


async def test_a_call_in_line_gets_what_another_leaves():
    line = Line(150)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(150), 1.0)
    waiting = asyncio.create_task(keeper.reserve(KEY, need(100), 2.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    keeper.finish(KEY, held, 20)
    assert (await waiting).amount_utok == 100
    await keeper.close(1.0)


async def test_the_last_units_move_from_an_idle_gateway_to_one_that_calls():
    line = Line(400)
    idle, busy = line.keeper(idle_s=30), line.keeper(idle_s=30)
    # Asks for much, so the answer says that there is no more than this.
    first = await idle.reserve(KEY, need(300), 1.0)
    idle.finish(KEY, first, 0)
    held = await busy.reserve(KEY, need(400), 3.0)
    assert held.amount_utok == 400
    await idle.close(1.0)
    await busy.close(1.0)


async def test_a_top_up_helps_at_once():
    line = Line(50)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(50), 1.0)
    with pytest.raises(QuotaExceeded) as refused:
        await keeper.reserve(KEY, need(100), 3.0)
    assert refused.value.reason == "balance_used_up"
    line.top_up(1000)
    assert (await keeper.reserve(KEY, need(100), 1.0)).amount_utok == 100
    keeper.finish(KEY, held, 50)
    await keeper.close(1.0)


async def test_who_is_cancelled_in_line_takes_nothing():
    line = Line(100)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    waiting = asyncio.create_task(keeper.reserve(KEY, need(100), 5.0))
    await asyncio.sleep(0.02)
    keeper.finish(KEY, held, 0)  # given to who waits, who is cancelled before it can notice
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await keeper.reserve(KEY, need(100), 1.0)).amount_utok == 100
    await keeper.close(1.0)


async def test_calls_go_on_from_what_is_in_hand_while_nobody_answers():
    line = Line(1_000_000)
    keeper = line.keeper()
    keeper.finish(KEY, await keeper.reserve(KEY, need(100), 1.0), 10)
    line.away.set()
    for _ in range(3):
        held = keeper.try_reserve(KEY, 100)
        assert held is not None
        keeper.finish(KEY, held, 10)
    with pytest.raises(ChargingUnavailable):
        await keeper.reserve(KEY, need(10**9), 0.1)
    line.away.clear()
    assert (await keeper.reserve(KEY, need(5000), 3.0)).amount_utok == 5000
    await keeper.close(1.0)


async def test_a_lease_is_good_for_its_validity_and_is_renewed_before():
    line = Line(1_000_000, validity_ms=300)
    keeper = line.keeper()
    keeper.finish(KEY, await keeper.reserve(KEY, need(100), 1.0), 10)
    for _ in range(8):
        await asyncio.sleep(0.1)
        held = keeper.try_reserve(KEY, 100)
        assert held is not None
        keeper.finish(KEY, held, 10)
    line.away.set()
    await asyncio.sleep(0.4)
    assert keeper.try_reserve(KEY, 100) is None
    line.away.clear()
    await keeper.close(1.0)


async def test_an_idle_lease_is_given_back():
    line = Line(1_000_000)
    keeper = line.keeper(idle_s=0.1)
    keeper.finish(KEY, await keeper.reserve(KEY, need(100), 1.0), 0)
    assert line.held > 0
    await asyncio.wait_for(line.settled.wait(), 3)
    assert line.held == 0


async def test_a_running_call_is_extended_from_its_own_lease():
    line = Line(250)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    assert await keeper.extend(KEY, held, need(100), 1.0)
    assert held.amount_utok == 200
    with pytest.raises(QuotaExceeded):
        await keeper.extend(KEY, held, need(100), 0.3)
    keeper.finish(KEY, held, 200)
    await keeper.close(1.0)


async def running_beside(line, amount):
    """Let a call of another gateway hold so much and no more."""
    other = line.keeper()
    await other.reserve(KEY, need(amount), 1.0)
    await asyncio.sleep(0.5)
    return other


async def test_a_small_call_passes_a_large_one_that_must_wait():
    line = Line(310)
    other, keeper = await running_beside(line, 230), line.keeper()
    large = asyncio.create_task(keeper.reserve(KEY, need(150), 1.0))
    await asyncio.sleep(0.1)
    for _ in range(3):
        held = await keeper.reserve(KEY, need(10, 3), 0.2)
        assert held.amount_utok == 10
        keeper.finish(KEY, held, 0)
    with pytest.raises(QuotaExceeded, match="balance_held"):
        await large
    await asyncio.gather(keeper.close(1.0), other.close(0.1))


async def test_what_comes_back_adds_up_for_a_large_call_that_was_passed():
    line = Line(100)
    keeper = line.keeper()
    passed = 0

    async def small_calls():
        nonlocal passed
        while True:
            held = await keeper.reserve(KEY, need(25), 5.0)
            await asyncio.sleep(0.05)
            keeper.finish(KEY, held, 0)
            passed += not large.done()

    others = [asyncio.create_task(small_calls()) for _ in range(8)]
    large = asyncio.create_task(keeper.reserve(KEY, need(80), 1.6))
    assert (await large).amount_utok == 80
    assert passed
    for task in others:
        task.cancel()
    await keeper.close(1.0)


async def test_a_row_of_calls_that_are_too_large_does_not_shut_out_small_ones():
    line = Line(310)
    other, keeper = await running_beside(line, 230), line.keeper()

    async def large_calls(from_s):
        await asyncio.sleep(from_s)
        while True:
            with contextlib.suppress(QuotaExceeded):
                await keeper.reserve(KEY, need(150), 1.0)

    # There is always one that has waited for long.
    row = [asyncio.create_task(large_calls(from_s)) for from_s in (0, 0.3, 0.6)]
    await asyncio.sleep(0.9)
    for _ in range(6):
        keeper.finish(KEY, await keeper.reserve(KEY, need(10), 0.7), 0)
        await asyncio.sleep(0.1)
    for task in row:
        task.cancel()
    await asyncio.gather(*row, return_exceptions=True)
    await asyncio.gather(keeper.close(1.0), other.close(0.1))


async def test_what_was_saved_up_in_vain_is_given_though_nobody_answers():
    line = Line(1_000_000)
    keeper = line.keeper()
    await keeper.reserve(KEY, need(100), 1.0)
    room = keeper._desks[KEY].lease.room_at(time.monotonic())
    keeper._ask = lambda *_: asyncio.sleep(60)
    large = asyncio.create_task(keeper.reserve(KEY, need(room + 1), 0.4))
    await asyncio.sleep(0.3)
    small = asyncio.create_task(keeper.reserve(KEY, need(room), 0.5))
    with pytest.raises(QuotaExceeded):
        await large
    assert (await small).amount_utok == room
    await keeper.close(0.0)


async def test_who_needs_more_than_a_limit_leaves_is_refused_alone():
    line = Line(10_000, limits=((SUBSCRIBER_CAP, 300),))
    keeper, key = line.keeper(), KEY._replace(subscriber="kid")
    large = asyncio.create_task(keeper.reserve(key, need(400), 3.0))
    small = [asyncio.create_task(keeper.reserve(key, need(100), 3.0)) for _ in range(2)]
    for one in small:
        assert (await one).amount_utok == 100
    with pytest.raises(QuotaExceeded):
        await large
    await keeper.close(0.1)


async def test_amounts_beyond_all_accounts_spoil_nothing():
    line = Line(1000)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    calls = [keeper.reserve(KEY, need(2**70, 100), 1.0) for _ in range(3)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    granted = [one.amount_utok for one in answers if isinstance(one, Reserved)]
    assert granted
    assert sum(granted) <= 900
    sent = ("reserved_utok", "first_utok", "keep_utok", "wanted_utok", "reported_utok")
    assert max(getattr(one, name) for one in line.questions for name in sent) <= MOST_UTOK
    keeper.finish(KEY, held, 100)
    await keeper.close(0.1)


async def test_a_question_that_cannot_be_put_refuses_who_asked_it():
    line = Line(1000)

    async def ask(key, session, question):
        if question.least_utok > 500:
            raise BadData("this does not fit")
        return await line.ask(key, session, question)

    keeper = Keeper(ask, SystemClock())
    held = await keeper.reserve(KEY, need(100), 1.0)
    with pytest.raises(BadData, match="does not fit"):
        await keeper.reserve(KEY, need(600), 1.0)
    assert await keeper.extend(KEY, held, need(200), 1.0)
    keeper.finish(KEY, held, 0)
    await keeper.close(1.0)


async def test_a_refusal_is_no_reason_to_ask_without_a_pause():
    line = Line(1000, validity_ms=800)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    await keeper.reserve(KEY, need(1000, 100), 1.0)
    line.refuses = "unknown_model"
    asked = line.asked
    await asyncio.sleep(1.2)
    assert asked < line.asked < asked + 8
    # It was not told that the lease is closed; that may be once it has lapsed.
    assert not held.lease.over
    await asyncio.sleep(1.0)
    assert held.lease.over
    assert not len(keeper)


async def test_a_lease_that_gave_back_what_lay_idle_does_not_grab_it_again():
    line = Line(310)
    keeper = line.keeper()
    await keeper.reserve(KEY, need(150), 1.0)
    await asyncio.sleep(0.5)
    asked = line.asked
    await asyncio.sleep(1.0)
    assert line.asked <= asked + 1
    await keeper.close(0.1)


async def test_what_others_hold_of_a_limit_is_waited_for():
    """It was refused at once, as if the cap were used up until the cycle's end."""
    line = Line(1_000_000, limits=((SUBSCRIBER_CAP, 1000),))
    first, second = line.keeper(idle_s=0.2), line.keeper()
    kid = KEY._replace(subscriber="kid")
    held = await first.reserve(kid, need(900), 1.0)
    with pytest.raises(QuotaExceeded, match="limit_held"):
        await second.reserve(kid, need(300), 0.1)
    asked = asyncio.create_task(second.reserve(kid, need(300), 5.0))
    await asyncio.sleep(0.05)
    first.finish(kid, held, 10)
    assert (await asked).amount_utok == 300
    for keeper in (first, second):
        await keeper.close(1.0)


async def test_no_desk_outlives_its_keeper_though_calls_come_while_it_closes():
    line = Line(1_000_000)
    keeper = line.keeper()
    keeper.finish(KEY, await keeper.reserve(KEY, need(100), 1.0), 100)
    closing = asyncio.create_task(keeper.close(1.0))
    await asyncio.sleep(0)
    await keeper.reserve(KEY._replace(model="n"), need(100), 1.0)
    await closing
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "tokenline-lease"]


async def test_a_call_whose_lease_has_ended_gets_nothing_more_of_it_or_of_another():
    line = Line(1_000_000)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    assert not await keeper.extend(KEY._replace(model="other"), held, need(10), 1.0)
    held.lease.over = True
    assert not await keeper.extend(KEY, held, need(10), 1.0)
    second = await keeper.reserve(KEY, need(100), 1.0)
    assert second.lease is not held.lease
    assert not await keeper.extend(KEY, held, need(10), 1.0)
    assert (held.amount_utok, second.lease.reserved_utok) == (100, 100)
    # What it used is nobody else's; its own lease is told.
    keeper.finish(KEY, held, 60)
    assert (held.lease.spent_utok, second.lease.spent_utok) == (60, 0)
    await keeper.close(0.1)


async def test_a_call_that_waits_for_more_while_its_lease_ends_takes_nothing_of_the_next():
    line = Line(1_000_000)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(100), 1.0)
    line.away.set()
    more = asyncio.create_task(keeper.extend(KEY, held, need(10**5), 3.0))
    await asyncio.sleep(0.05)
    held.lease.over, held.lease.question = True, None
    line.away.clear()
    assert await more is False
    (desk,) = keeper._desks.values()
    assert desk.lease is not held.lease
    assert (held.amount_utok, desk.lease.reserved_utok) == (100, 0)
    await keeper.close(0.1)


async def test_a_keeper_that_closes_gives_back_all_but_what_calls_run_on():
    line = Line(1_000_000)
    keeper = line.keeper()
    for model in ("m", "n"):
        key = KEY._replace(model=model)
        keeper.finish(key, await keeper.reserve(key, need(100), 1.0), 0)
    running = KEY._replace(model="runs")
    held = await keeper.reserve(running, need(100), 1.0)
    assert len(keeper) == 3
    await keeper.close(1.0)
    assert len(keeper) == 0
    assert held.amount_utok <= line.held < 1000
    assert [one.action for one in line.questions].count("settle") == 2


@pytest.mark.parametrize("within_s", [0.7, 0.05])
async def test_who_gives_up_while_nobody_answers_hears_that_charging_is_away(within_s):
    """Also of a question that will be waited for longer than that; but a moment is no silence."""
    line = Line(1_000)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(1_000), 1.0)
    keeper._ask = lambda *_: asyncio.Event().wait()
    error = ChargingUnavailable if within_s > 0.5 else QuotaExceeded
    with pytest.raises(error):
        await keeper.reserve(KEY, need(500), within_s)
    keeper.finish(KEY, held, 0)
    await keeper.close(0.01)


async def test_no_call_is_clamped_by_what_is_in_hand_while_there_is_more():
    """One caller after the other, each of half of what is left; only the last is given less than it asks."""
    line = Line(20_000)
    keeper = line.keeper()
    given = []
    for _ in range(5):
        held = await keeper.reserve(KEY, need(4_500, 500), 1.0)
        given.append(held.amount_utok)
        keeper.finish(KEY, held, held.amount_utok)
        await asyncio.sleep(0.05)
    assert given == [4_500] * 4 + [2_000]
    await keeper.close(0.1)


async def test_while_nobody_answers_a_call_takes_what_is_in_hand():
    line = Line(1_000)
    keeper = line.keeper()
    first = await keeper.reserve(KEY, need(300), 1.0)
    keeper.finish(KEY, first, 300)
    line.away.set()
    # Of a scarce balance half was granted: 200 are in hand.
    held = await keeper.reserve(KEY, need(900, 100), 3.0)
    assert held.amount_utok == 200
    keeper.finish(KEY, held, 0)
    await keeper.close(0.1)


async def test_while_charging_is_silent_a_call_takes_what_is_in_hand_before_it_gives_up():
    """A question is given up after seconds: it waited for all of them beside room that it could use."""
    line = Line(1_000)
    keeper = line.keeper()
    keeper.finish(KEY, await keeper.reserve(KEY, need(300), 1.0), 300)
    keeper._ask = lambda *_: asyncio.Event().wait()
    held = await keeper.reserve(KEY, need(900, 100), 1.5)
    assert held.amount_utok == 200
    await keeper.close(0.01)


async def test_charging_that_is_slow_but_answers_is_not_away():
    """Who gave up while an answer was on its way for long was told so, and could begin an emergency."""
    line = Line(1_000)

    async def ask(key, session, question):
        await asyncio.sleep(0.7)
        return await line.ask(key, session, question)

    keeper = Keeper(ask, SystemClock())
    held = await keeper.reserve(KEY, need(1_000), 2.0)
    with pytest.raises(QuotaExceeded, match="balance_held"):
        await keeper.reserve(KEY, need(500), 0.6)
    keeper.finish(KEY, held, 0)
    await keeper.close(0.01)


async def test_room_in_hand_is_not_waited_for_because_others_were_refused_just_now():
    """The pause after a refusal was kept beside room that came back meanwhile."""
    line = Line(1_000)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(1_000), 1.0)
    with pytest.raises(QuotaExceeded, match="balance_held"):
        await keeper.reserve(KEY, need(900, 10), 0.4)
    # It asked after 0.35 s for the last time, and would again after 0.4 s more.
    asked = line.asked
    keeper.finish(KEY, held, 700)
    given = await keeper.reserve(KEY, need(900, 10), 0.15)
    assert given.amount_utok == 300
    assert line.asked <= asked + 2
    keeper.finish(KEY, given, 300)
    await keeper.close(0.1)


async def test_whose_time_is_over_before_its_answer_takes_what_is_in_hand():
    """It was refused beside room that it could use, only because nobody had told yet that this is all."""
    line = Line(1_000)

    async def ask(key, session, question):
        await asyncio.sleep(0.15)
        return await line.ask(key, session, question)

    keeper = Keeper(ask, SystemClock())
    keeper.finish(KEY, await keeper.reserve(KEY, need(300), 1.0), 300)
    held = await keeper.reserve(KEY, need(900, 100), 0.05)
    assert held.amount_utok == 200
    keeper.finish(KEY, held, 200)
    with pytest.raises(QuotaExceeded):
        await keeper.reserve(KEY, need(900, 600), 0.05)
    await keeper.close(0.1)


async def test_what_a_keeper_did_is_counted():
    line = Line(150)
    keeper = line.keeper()
    held = await keeper.reserve(KEY, need(150), 1.0)
    stats = keeper.stats
    assert (stats.questions, stats.sessions, stats.refused, stats.unanswered) == (1, 1, 0, 0)
    assert len(stats.grant_ms) == 1
    assert 2 <= stats.grant_ms[0] < 1000
    with pytest.raises(QuotaExceeded):
        await keeper.reserve(KEY, need(100), 0.02)
    assert (stats.questions, stats.sessions, stats.refused, stats.unanswered) == (2, 1, 1, 0)
    line.away.set()
    with pytest.raises(ChargingUnavailable):
        await keeper.reserve(KEY, need(100), 0.2)
    assert (stats.unanswered, len(stats.grant_ms)) == (1, 2)
    keeper.finish(KEY, held, 0)
    await keeper.close(0.1)
