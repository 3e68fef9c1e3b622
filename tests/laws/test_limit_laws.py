"""Who uses no more than was granted exceeds no limit and no cap, whatever the order of things."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.strategies import DAY, HOUR, MINUTE
from tests.unit.test_quota_limits import at, books_with, open_account, spec
from tokenline.quota import orders
from tokenline.quota.buckets import Bucket
from tokenline.quota.charge import Rated, charge_chunk
from tokenline.quota.hold_rows import HoldStatus
from tokenline.quota.holds import HoldOrder
from tokenline.quota.limit_windows import (
    LENGTHS_MS,
    TOGETHER,
    note_use,
    roll,
    roll_all,
    rolled,
)
from tokenline.quota.limits import EACH, Limit
from tokenline.quota.terms import Per, Unit, Use

CAP = (spec(Per.CYCLE, Unit.UTOK, "cap", each=True), 60)
LIMITS = (
    CAP,
    (spec(Per.HOUR, Unit.UTOK, "rolling", rolling=True), 90),
    (spec(Per.DAY, Unit.UTOK, "group", models=("p/mini",)), 50),
    (spec(Per.MINUTE, Unit.UTOK, "each", each=True, rolling=True), 40),
    (spec(Per.DAY, Unit.UTOK, "kid", each=True, subscriber="kid"), 30),
)
uses = st.builds(Use, st.just("p"), st.sampled_from(["max", "mini"]), st.sampled_from(["kid", "m"]))
steps = st.lists(
    st.tuples(
        st.sampled_from(["hold", "hold", "use", "use", "settle", "wait"]),
        st.integers(0, 5),
        st.integers(1, 80),
        uses,
        st.sampled_from([0, 999, 10_000, MINUTE, HOUR, DAY]),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_used_and_held_never_exceed_a_limit_when_usage_comes_through_holds(wanted):
    now = at("America/New_York", 2026, 10, 31, 22)
    books = books_with(*LIMITS, now=now)
    sessions = {}
    for turn, (what, number, amount, use, wait) in enumerate(wanted):
        now += wait if what == "wait" else 0
        orders.bring_up_to(books, 0, now)
        live = {
            name: one
            for name, one in sessions.items()
            if (hold := books.holds.find(0, name)) is not None and hold.status.name == "OPEN"
        }
        if what == "hold":
            order = HoldOrder(session=(turn, 1), seq=0, use=use, wanted_utok=amount, needed_utok=1)
            answer = orders.hold(books, 0, order, now)
            assert answer.granted_utok <= amount
            if answer.granted_utok:
                sessions[turn, 1] = [use, answer.granted_utok]
        elif live:
            name = sorted(live)[number % len(live)]
            held_for, left = live[name]
            if what == "use":
                used = min(left, amount)
                live[name][1] -= used
                orders.charge(books, 0, held_for, used, occurred_ms=now, now_ms=now, session=name)
            elif what == "settle":
                order = HoldOrder(session=name, seq=1, use=held_for, settles=True)
                orders.hold(books, 0, order, now)
        nothing_is_exceeded(books, now)


def nothing_is_exceeded(books, now):
    for row in books.limits.of_owner(0):
        values = rolled(books, row, now)
        if values[Limit.SUBSCRIBER] != EACH:
            assert min(values[Limit.USED], values[Limit.HELD]) >= 0
            assert values[Limit.USED] + values[Limit.HELD] <= values[Limit.CEILING]
    rows = [books.buckets.matrix[row].tolist() for row in books.chain(0)]
    for row in rows:
        assert row[Bucket.USED] + row[Bucket.HELD] <= row[Bucket.TOTAL]
    holding = [hold for hold in books.holds.of_owner(0) if hold.status < HoldStatus.EXPIRED]
    assert sum(row[Bucket.HELD] for row in rows) == sum(hold.held_utok for hold in holding)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(uses, st.integers(0, 40)), min_size=1, max_size=30), st.data())
def test_it_does_not_matter_how_events_are_cut_into_chunks(events, data):
    """Counted at once or one by one, every limit has used the same."""
    now = at("America/New_York", 2026, 10, 31, 22)
    one_by_one = books_with(*LIMITS, now=now)
    for use, amount in events:
        orders.charge(one_by_one, 0, use, amount, occurred_ms=now, now_ms=now, tokens=amount)
    chunked = books_with(*LIMITS, now=now)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events)), max_size=4)) | {0, len(events)})
    for lo, hi in pairwise(cuts):
        charge_at_once(chunked, events[lo:hi], now)
    assert used_by_name(chunked, now) == used_by_name(one_by_one, now)


def charge_at_once(books, events, now):
    charge_chunk(
        books,
        Rated(
            slots=np.zeros(len(events), np.int64),
            charges_utok=np.array([amount for _, amount in events], np.int64),
            occurred_ms=np.full(len(events), now),
            appended_ms=np.full(len(events), now),
            named=np.zeros(len(events), np.bool_),
            late=np.zeros(len(events), np.bool_),
            uses=lambda asked: [events[event][0] for event in asked],
            session=lambda _: (0, 0),
            tokens=np.array([amount for _, amount in events], np.int64),
        ),
    )


def used_by_name(books, now):
    limits = books.limits
    return sorted(
        (limits.spec(row).name, limits.get(row, Limit.SUBSCRIBER), rolled(books, row, now)[9:])
        for row in limits.of_owner(0)
    )


EVERY_WINDOW = tuple(
    (spec(per, Unit.UTOK, f"{per.name}-{rolling}", rolling=rolling, each=each), 10**9)
    for each in (False, True)
    for rolling in (False, True)
    for per in Per
    if not rolling or per in LENGTHS_MS
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 7_000, MINUTE, HOUR // 12, HOUR, 3 * HOUR, DAY, 8 * DAY, 40 * DAY]),
            st.sampled_from(["kid", "m", "dad"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_rows_rolled_together_are_as_if_rolled_alone(turns):
    """Whether or not the account was brought up to the moment: a cycle may end within a chunk."""
    now = at("America/New_York", 2026, 10, 31, 22)
    together, alone = (books_with(*EVERY_WINDOW, now=now) for _ in range(2))
    for books in (together, alone):
        open_account(books, "t/elsewhere", "Asia/Shanghai", now, day=9)
    for wait, name, entered in turns:
        now += wait
        for books in (together, alone):
            for slot in range(2):
                if entered:
                    orders.bring_up_to(books, slot, now)
                books.limits.matching(slot, Use("p", "max", name))
        rows = np.arange(len(together.limits))
        assert len(rows) >= TOGETHER
        roll_all(together, rows, now)
        for row in rows.tolist():
            roll(alone, row, now)
        assert (together.limits.matrix == alone.limits.matrix).all()
        for books in (together, alone):
            note_use(books, rows, rows + 1)
