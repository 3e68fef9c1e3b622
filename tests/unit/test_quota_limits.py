"""Windows of limits begin where the calendar says; a rolling one never lets more through than it may."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import DAY, HOUR, MINUTE
from tokenline.metering.calendar import week_at
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.cells import LIMITS, AccountCells, Cell
from tokenline.quota.counting import count_events
from tokenline.quota.decide import decide
from tokenline.quota.holds import HoldOrder
from tokenline.quota.limit_decisions import limit_decisions
from tokenline.quota.limit_windows import resets_at, rolled, start_of
from tokenline.quota.limits import Limit
from tokenline.quota.subscribers import Subscribers
from tokenline.quota.terms import HoldExpiry, LimitSpec, Mode, Per, Terms, Unit, Use

MILLION = 1_000_000
KID = Use("p", "max", "kid")
LENGTHS = {Per.MINUTE: MINUTE, Per.HOUR: HOUR, Per.DAY: DAY, Per.WEEK: 7 * DAY}


def at(zone, *when):
    return int(datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def books_with(*limits, zone="America/New_York", now, day=1, mode=Mode.STRICT):
    terms = Terms(mode=mode, allowance_utok=10**12, prorated=False, limits=limits)
    books = Books(AccountCells(), lambda _plan, _at: terms, HOUR)
    open_account(books, "t/a", zone, now, day)
    return books


def open_account(books, key, zone, now, day=1):
    cells = books.cells
    slot = cells.open(key)
    cells.matrix[slot, Cell.ZONE] = cells.zone_code(zone)
    cells.matrix[slot, LIMITS] = -1
    orders.open_account(books, slot, "plan", day, now)
    return slot


def spec(per, unit=Unit.REQUESTS, name="limit", **more):
    return LimitSpec(name=name, per=per, unit=unit, **more)


def use(books, now, tokens=0, utok=0, use=KID):
    orders.charge(books, 0, use, utok, occurred_ms=now, now_ms=now, tokens=tokens)


def used(books, now):
    return rolled(books, 0, now)[Limit.USED]


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        # Clocks go back on 2026-11-01 and forward on 2026-03-08: the week has 169 and 167 hours.
        ("America/New_York", (2026, 11, 1, 12), (2026, 10, 26), 169),
        ("America/New_York", (2026, 3, 8, 23, 59), (2026, 3, 2), 167),
        ("Asia/Shanghai", (2026, 10, 5), (2026, 10, 5), 168),
        ("Asia/Shanghai", (2026, 10, 4, 23, 59), (2026, 9, 28), 168),
        ("Europe/Berlin", (2027, 1, 1), (2026, 12, 28), 168),
    ],
)
def test_a_week_begins_on_monday_at_local_midnight(zone, moment, start, hours):
    begins, ends = week_at(zone, at(zone, *moment))
    assert (begins, ends - begins) == (at(zone, *start), hours * HOUR)


@pytest.mark.parametrize(
    ("per", "last", "first"),
    [
        (Per.MINUTE, (2026, 11, 1, 0, 59, 59), (2026, 11, 1, 1)),
        (Per.HOUR, (2026, 11, 1, 0, 59, 59), (2026, 11, 1, 1)),
        (Per.DAY, (2026, 11, 1, 23, 59, 59), (2026, 11, 2)),
        (Per.WEEK, (2026, 11, 1, 23, 59, 59), (2026, 11, 2)),
        (Per.MONTH, (2026, 10, 31, 23, 59, 59), (2026, 11, 1)),
        (Per.CYCLE, (2026, 11, 14, 23, 59, 59), (2026, 11, 15)),
    ],
)
def test_a_calendar_window_begins_anew_at_its_edge_in_the_zone_of_the_account(per, last, first):
    last, first = (at("America/New_York", *when) for when in (last, first))
    books = books_with((spec(per), 5), now=last - MINUTE // 2, day=15)
    use(books, last - 1)
    use(books, last)
    assert used(books, last) == 2
    assert rolled(books, 0, last)[Limit.END] == first
    use(books, first)
    assert used(books, first) == 1
    assert rolled(books, 0, first)[Limit.START] == first


def test_the_day_on_which_clocks_go_back_has_one_hour_more():
    midnight = at("America/New_York", 2026, 11, 1)
    books = books_with((spec(Per.DAY), 5), now=midnight)
    use(books, midnight)
    assert used(books, midnight + 25 * HOUR - 1) == 1
    assert used(books, midnight + 25 * HOUR) == 0


@pytest.mark.parametrize("day", [29, 30, 31])
def test_a_cycle_of_the_31st_ends_with_a_shorter_month(day):
    zone = "Asia/Shanghai"
    books = books_with((spec(Per.CYCLE), 5), zone=zone, now=at(zone, 2027, 2, 1), day=day)
    use(books, at(zone, 2027, 2, 27, 23))
    assert used(books, at(zone, 2027, 2, 27, 23, 59)) == 1
    assert used(books, at(zone, 2027, 2, 28)) == 0


def test_an_account_that_moves_to_another_zone_ends_the_day_it_has_begun():
    midnight = at("America/New_York", 2026, 10, 20)
    books = books_with((spec(Per.DAY), 5), now=midnight)
    use(books, midnight + HOUR)
    books.cells.matrix[0, Cell.ZONE] = books.cells.zone_code("Asia/Shanghai")
    use(books, midnight + 23 * HOUR)
    assert used(books, midnight + 23 * HOUR) == 2
    assert used(books, midnight + 24 * HOUR) == 0


@pytest.mark.parametrize("accounts", [1, 9])
@pytest.mark.parametrize("per", [Per.DAY, Per.CYCLE])
def test_what_a_hold_was_charged_when_its_account_had_moved_is_taken_back_once(per, accounts):
    """Nine accounts are rolled together, one is rolled alone."""
    ends = at("Asia/Shanghai", 2026, 11, 1)
    terms = Terms(
        mode=Mode.STRICT,
        allowance_utok=100,
        prorated=False,
        limits=((spec(per, Unit.UTOK), 90),),
        hold_expiry=HoldExpiry.CHARGE_GRANTED,
    )
    books = Books(AccountCells(), lambda _plan, _at: terms, HOUR)
    late = 0 if per is Per.CYCLE else 3 * MINUTE
    for number in range(accounts):
        open_account(books, f"t/a{number}", "Asia/Shanghai", ends - 2 * DAY)
        ask = HoldOrder(session=(1, 1), seq=0, use=KID, wanted_utok=50, needed_utok=1)
        orders.hold(books, number, ask, ends - 2 * MINUTE - late)
        books.cells.matrix[number, Cell.ZONE] = books.cells.zone_code("UTC")
        orders.bring_up_to(books, number, ends + MINUTE - late)
    for slot in range(accounts):
        assert books.limits.get(slot, Limit.USED) == 50
    now, ones = ends + 2 * MINUTE, np.ones(accounts, np.int64)
    count_events(books, [(slot, KID) for slot in range(accounts)], ones, ones, now)
    counted = 51 if per is Per.CYCLE else 1
    assert [books.limits.get(slot, Limit.USED) for slot in range(accounts)] == [counted] * accounts
    for slot in range(accounts):
        settled = HoldOrder(session=(1, 1), seq=1, use=KID, settles=True)
        assert orders.hold(books, slot, settled, now).late
        assert books.limits.get(slot, Limit.USED) == 1


@given(
    st.sampled_from(sorted(LENGTHS)),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_a_rolling_window_lets_no_window_have_more_and_forgets_a_slice_late(per, steps, ceiling):
    """Whoever asks first and uses only when there is room never exceeds any window at all."""
    length, now = LENGTHS[per], at("UTC", 2026, 10, 20)
    books = books_with((spec(per, Unit.TOKENS, rolling=True), ceiling), now=now)
    taken = []
    for hundredths, tokens in steps:
        now += hundredths * length // 100
        values = rolled(books, 0, now)
        exact = sum(count for moment, count in taken if moment > now - length)
        late = sum(count for moment, count in taken if moment > now - length - length // 12)
        assert exact <= values[Limit.USED] <= late
        if values[Limit.USED] + tokens <= ceiling:
            use(books, now, tokens=tokens)
            taken.append((now, tokens))
    for moment, _ in taken:
        assert sum(one for when, one in taken if moment - length < when <= moment) <= ceiling


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=20))
def test_a_rolling_limit_resets_when_it_says_and_not_a_moment_before(steps):
    now = at("UTC", 2026, 10, 20)
    books = books_with((spec(Per.HOUR, Unit.TOKENS, rolling=True), 12), now=now)
    for minutes, tokens in steps:
        now += minutes * MINUTE
        use(books, now, tokens=tokens)
    values = rolled(books, 0, now)
    if values[Limit.USED] >= 12:
        ends = resets_at(values)
        assert rolled(books, 0, ends - 1)[Limit.USED] >= 12
        assert rolled(books, 0, ends)[Limit.USED] < 12
        assert start_of(rolled(books, 0, ends)) > start_of(values)


def test_a_limit_of_the_account_cuts_it_and_the_one_that_resets_last_decides():
    zone, now = "Asia/Shanghai", at("Asia/Shanghai", 2026, 10, 20)
    limits = (spec(Per.WEEK, name="week"), 2), (spec(Per.MONTH, name="month"), 3)
    books = books_with(*limits, zone=zone, now=now)
    slots, names = np.array([0]), []
    for _ in range(4):
        use(books, now)
        decided = decide(books.cells, slots, now, 1, books=books)
        names += [one.limit_name for one in limit_decisions(books, decided, now, 1)]
    assert names == ["week", "month"]
    assert books.cells.matrix[0, Cell.RESETS_AT] == at(zone, 2026, 11, 1)


def test_a_limit_of_nothing_cuts_from_the_start_and_never_resets():
    now = at("Asia/Shanghai", 2026, 10, 20)
    books = books_with((spec(Per.DAY), 0), now=now)
    (decided,) = decide(books.cells, np.array([0]), now, 1, books=books)
    assert (decided.state.name, decided.rule.name, decided.resets_at_ms) == ("CUT", "LIMIT", 0)
    refused = orders.hold(books, 0, HoldOrder(session=(1, 1), seq=0, use=KID), now)
    assert (refused.reason.name, refused.resets_at_ms) == ("LIMIT_REACHED", 0)


def test_one_account_among_many_pays_for_its_limits_and_no_other():
    now = at("Asia/Shanghai", 2026, 10, 20)
    books = books_with((spec(Per.DAY), 3), now=now)
    books.cells.open("t/b")
    books.add_account(1, {Balance.PLAN: books.plan_code("plan"), Balance.DUE_AT: 1 << 62})
    nobody = np.ones(2, np.int64)
    count_events(books, [(1, KID), (1, Use())], nobody, nobody, now)
    assert used(books, now) == 0
    assert len(books.limits) == 1


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_a_subscribers_name_is_kept_whole_however_long_it_is(names):
    names = [*names, "x" * 48, "y" * 49, "词元" * 60]
    subscribers = Subscribers()
    rows = {name: subscribers.row(7, name) for name in names}
    again = Subscribers()
    again.adopt(subscribers.matrix.copy())
    again.index()
    for name, row in rows.items():
        assert subscribers.row(7, name) == again.row(7, name) == row
        assert again.name(row) == name
        assert again.row(8, name) != row


def test_what_a_member_used_is_known_after_the_cycle_was_made_longer_and_the_plan_taken_anew():
    now = at("America/New_York", 2026, 10, 31, 23)
    books = books_with((spec(Per.CYCLE, Unit.UTOK, each=True), 25), now=now)
    use(books, now, utok=7)
    orders.change_cycle(books, 0, 8, now)
    # The day on which the cycle would have ended; it goes on until the eighth.
    later = now + 2 * HOUR
    orders.change_plan(books, 0, books.plan(0), later)
    rows = [row for row in books.limits.matrix.tolist() if row[Limit.OWNER] == 0]
    assert [row[Limit.USED] for row in rows if row[Limit.SUBSCRIBER] >= 0] == [7]
