"""What is due by a moment has happened at it: allowances begin, end, roll over, and are forgotten in time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.test_quota_books import (
    ask,
    at,
    books_of,
    chunk,
    declined,
    opened,
    rows,
    unpaid,
    use,
)
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import NO_LIMIT, Cell
from tokenline.quota.charge import Rated, charge_chunk
from tokenline.quota.terms import Grant, HoldExpiry, Mode, Scope, Source, Terms, Use

HOUR = 3_600_000
END = at("2026-12-01T00:00")
CLOSES = at(
    "2026-12-02T00:01"
)  # a day and a minute later, when no usage of November can come any more
ROLLS = Terms(allowance_utok=100, rollover_utok=50)


def ends(books, source):
    """Return when the buckets of a source end."""
    get = books.buckets.get
    found = [one for one in books.chain(0) if get(one, Bucket.SOURCE) == source]
    return [(get(one, Bucket.VALID_FROM), get(one, Bucket.VALID_TO)) for one in found]


def sources(books):
    return [(source, total, used) for _, source, total, used, _ in rows(books)]


@pytest.mark.parametrize(("when_ms", "closed"), [(CLOSES - 1, False), (CLOSES, True)])
def test_an_allowance_is_closed_the_moment_no_usage_of_it_can_come(when_ms, closed):
    books = opened(ROLLS)
    orders.bring_up_to(books, 0, when_ms)
    wanted = [("ROLLOVER", 50, 0)] if closed else [("PLAN", 100, 0)]
    assert sources(books) == [*wanted, ("PLAN", 100, 0)]


@pytest.mark.parametrize(("when_ms", "number"), [(END - 1, 1), (END, 2)])
def test_a_cycle_begins_at_its_first_moment(when_ms, number):
    books = opened(Terms(allowance_utok=100))
    use(books, 30, when_ms)
    assert [one[0] for one in rows(books) if one[3] == 30] == [number]
    begun = END if number == 2 else at("2026-11-01T00:00")
    assert books.get(0, Balance.CYCLE_START) == begun


def test_what_rolled_over_ends_with_the_cycle_it_rolled_into_also_when_that_is_moved():
    books = opened(ROLLS)
    orders.bring_up_to(books, 0, CLOSES)
    assert ends(books, Source.ROLLOVER) == [(END, at("2027-01-01T00:00"))]
    books = opened(ROLLS)
    orders.change_cycle(books, 0, 15, END + HOUR)
    orders.bring_up_to(books, 0, CLOSES)
    assert ends(books, Source.ROLLOVER) == [(END, at("2026-12-15T00:00"))]
    assert books.get(0, Balance.CYCLE_END) == at("2026-12-15T00:00")


def test_what_rolled_over_ends_with_its_cycle_also_when_the_account_has_moved_to_another_zone():
    books = opened(ROLLS)
    orders.bring_up_to(books, 0, END + HOUR)
    books.cells.matrix[0, Cell.ZONE] = books.cells.zone_code("UTC")
    orders.bring_up_to(books, 0, CLOSES)
    ((_, ends_ms),) = ends(books, Source.ROLLOVER)
    assert ends_ms == books.get(0, Balance.CYCLE_END) == at("2027-01-01T00:00")


def test_what_rolled_over_rolls_no_further():
    books = opened(ROLLS)
    orders.bring_up_to(books, 0, CLOSES)
    orders.bring_up_to(books, 0, at("2027-01-02T00:01"))
    assert sources(books) == [("ROLLOVER", 50, 0), ("PLAN", 100, 0)]


@pytest.mark.parametrize(("days", "rolled"), [(1, [50, 50]), (40, [50])])
def test_nothing_rolls_over_into_a_cycle_that_is_over_when_a_hold_lets_go(days, rolled):
    charged = Terms(
        allowance_utok=100,
        rollover_utok=50,
        hold_expiry=HoldExpiry.CHARGE_GRANTED,
        priced_ahead_ms=days * 24 * HOUR,
    )
    books = opened(charged)
    ask(books, END - HOUR, wanted_utok=10)
    books.take()
    orders.bring_up_to(books, 0, at("2027-01-15T00:00"))
    found = [one.amount_utok for one in books.take()[0] if one.kind.name == "ROLLOVER_IN"]
    # What is left of December rolls over either way.
    assert found == rolled


def test_nothing_of_a_closed_account_rolls_over_and_it_is_given_nothing_more():
    books = opened(ROLLS)
    orders.close_account(books, 0, END - HOUR)
    orders.bring_up_to(books, 0, CLOSES)
    assert sources(books) == []
    assert books.get(0, Balance.LEFT) == 0


def test_what_is_left_of_a_pack_does_not_roll_over():
    books = opened(Terms())
    pack = Grant(amount_utok=9, source=Source.PACK, valid_to_ms=END, rolls_utok=9)
    orders.grant(books, 0, pack, END - HOUR)
    orders.bring_up_to(books, 0, CLOSES)
    assert sources(books) == []


def test_a_pack_without_an_end_that_has_something_left_outlives_every_cycle():
    books = opened(Terms())
    orders.grant(books, 0, Grant(amount_utok=9, source=Source.PACK), END - HOUR)
    use(books, 8, END - HOUR)
    orders.bring_up_to(books, 0, at("2027-03-01T00:00"))
    assert sources(books) == [("PACK", 9, 8)]


def test_a_chunk_that_reports_what_occurred_before_the_cycle_is_paid_by_the_one_before():
    books = opened(Terms(allowance_utok=100))
    orders.bring_up_to(books, 0, END + 1)
    chunk(books, [40], END - 1, END + HOUR)
    chunk(books, [30], END, END + HOUR)
    assert sources(books) == [("PLAN", 100, 40), ("PLAN", 100, 30)]


def test_a_chunk_that_reports_what_occurred_before_a_gift_was_over_is_paid_by_the_gift():
    books = opened(Terms(allowance_utok=100))
    over = END - HOUR
    gift = Grant(amount_utok=50, source=Source.GIFT, valid_to_ms=over, priority=1)
    orders.grant(books, 0, gift, over - HOUR)
    orders.bring_up_to(books, 0, over)
    chunk(books, [20], over - 1, over + 1000)
    chunk(books, [10], over, over + 1000)
    assert sources(books) == [("GIFT", 50, 20), ("PLAN", 100, 10)]


def test_a_chunk_is_not_paid_by_a_bucket_that_begins_later():
    books = opened(Terms(allowance_utok=100))
    begins = END - 2 * HOUR
    later = Grant(amount_utok=50, source=Source.GIFT, priority=1, valid_from_ms=begins)
    orders.grant(books, 0, later, begins - HOUR)
    chunk(books, [10], begins - 1, begins - 1)
    chunk(books, [20], begins, begins)
    assert sources(books) == [("GIFT", 50, 20), ("PLAN", 100, 10)]


@pytest.mark.parametrize("model", ["mini", "max"])
@pytest.mark.parametrize("amount", [1, 40])
def test_a_chunk_is_paid_by_a_bucket_with_a_scope_only_where_it_may(model, amount):
    books = opened(Terms(allowance_utok=100))
    now = END - HOUR
    scoped = Grant(amount_utok=50, source=Source.GIFT, priority=1, scope=Scope(models=("p/mini",)))
    orders.grant(books, 0, scoped, now)
    events = Rated(
        slots=np.zeros(1, np.int64),
        charges_utok=np.array([amount]),
        occurred_ms=np.full(1, now),
        appended_ms=np.full(1, now),
        named=np.zeros(1, np.bool_),
        tokens=np.zeros(1, np.int64),
        uses=lambda events: [Use("p", model)] * len(events),
        session=lambda _: (1, 1),
    )
    charge_chunk(books, events)
    paid = {source: used for source, _, used in sources(books) if used}
    assert paid == {"GIFT" if model == "mini" else "PLAN": amount}


def test_a_chunk_goes_on_with_the_next_bucket_when_one_is_empty():
    books = opened(Terms(allowance_utok=100))
    now = END - HOUR
    for priority in (1, 2):
        gift = Grant(amount_utok=5, source=Source.GIFT, priority=priority)
        orders.grant(books, 0, gift, now)
    for _ in range(6):
        chunk(books, [2], now, now)
    assert sources(books) == [("GIFT", 5, 5), ("GIFT", 5, 5), ("PLAN", 100, 2)]
    chunk(books, [99], now, now)
    assert (unpaid(books), books.get(0, Balance.LEFT)) == (1, 0)


def test_a_cut_ends_when_the_first_of_what_is_to_come_begins():
    books = opened(Terms(allowance_utok=100))
    now = at("2026-11-10T09:00")
    for day in (20, 15, 25):
        later = Grant(amount_utok=5, source=Source.TOP_UP, valid_from_ms=at(f"2026-11-{day}T00:00"))
        orders.grant(books, 0, later, now)
    use(books, 100, now)
    assert books.get(0, Balance.OPENS_AT) == at("2026-11-15T00:00")
    use(books, 5, at("2026-11-15T00:00"))
    assert books.get(0, Balance.OPENS_AT) == at("2026-11-20T00:00")


@pytest.mark.parametrize("rolls", [0, 50])
@pytest.mark.parametrize("now", [END, END + HOUR])
def test_what_would_roll_over_opens_an_account_only_where_something_does(rolls, now):
    books = opened(lambda *_: Terms(allowance_utok=100, rollover_utok=rolls))
    use(books, 100, now)
    assert books.get(0, Balance.OPENS_AT) == (CLOSES if rolls else at("2027-01-01T00:00"))


def test_balances_are_summed_over_what_is_valid_now():
    books = opened(Terms(allowance_utok=100))
    now = at("2026-11-10T09:00")
    for start, end in ((0, now + HOUR), (now + HOUR, now + 2 * HOUR)):
        gift = Grant(amount_utok=7, source=Source.GIFT, valid_from_ms=start, valid_to_ms=end)
        orders.grant(books, 0, gift, now)
    found = []
    for later in (0, HOUR - 1, HOUR, 2 * HOUR - 1, 2 * HOUR):
        orders.bring_up_to(books, 0, now + later)
        found.append((books.get(0, Balance.LEFT), books.get(0, Balance.TOTAL)))
    assert found == [(107, 107)] * 4 + [(100, 100)]


def test_a_plan_that_is_not_there_yet_opens_nothing():
    books = books_of({})
    assert declined(orders.open_account, books, 0, "a", 1, END) == "unknown_plan"
    assert len(books.balances) == 0


def test_the_ledger_says_what_rolled_over_and_what_expired():
    books = opened(ROLLS)
    use(books, 30, END - HOUR)
    orders.bring_up_to(books, 0, END)
    books.take()
    orders.bring_up_to(books, 0, CLOSES)
    found = [(one.kind.name, one.amount_utok) for one in books.take()[0]]
    assert found == [("ROLLOVER_OUT", -50), ("EXPIRY", -20), ("ROLLOVER_IN", 50)]


def test_a_bucket_is_not_closed_while_a_hold_may_still_give_back_to_it():
    charged = Terms(allowance_utok=100, rollover_utok=50, hold_expiry=HoldExpiry.CHARGE_GRANTED)
    books = opened(charged)
    ask(books, END - 30_000, wanted_utok=60)
    # The hold ended after two minutes; usage of its call may be told of for two and a day longer.
    orders.bring_up_to(books, 0, END + 90_000)
    late = END + 90_000 + 120_000 + books.linger_ms
    orders.bring_up_to(books, 0, late - 1)
    assert late > CLOSES
    assert sources(books) == [("PLAN", 100, 60), ("PLAN", 100, 0)]
    ask(books, late - 1, 1, settles=True, reported_utok=20)
    assert sources(books) == [("PLAN", 100, 20), ("PLAN", 100, 0)]
    orders.bring_up_to(books, 0, late)
    assert sources(books) == [("ROLLOVER", 50, 0), ("PLAN", 100, 0)]


def test_a_plan_that_says_something_else_is_in_force_with_the_next_cycle_and_not_before():
    flip = at("2026-11-15T00:00")
    before = Terms(allowance_utok=100, thresholds=(10,), ceilings=((Cell.DAY_TOKENS_LIMIT, 5),))
    after = Terms(mode=Mode.STRICT, allowance_utok=70, overage=True, thresholds=(20, 30))
    books = opened(lambda _, now: before if now < flip else after)

    def in_force():
        thresholds = books.thresholds[books.get(0, Balance.THRESHOLDS)]
        limit = int(books.cells.matrix[0, Cell.DAY_TOKENS_LIMIT])
        mode, stops = books.get(0, Balance.MODE), bool(books.get(0, Balance.STOPS))
        return mode, stops, thresholds, limit, books.get(0, Balance.LEFT)

    orders.bring_up_to(books, 0, END - 1)
    assert in_force() == (Mode.POSTPAID, True, (10,), 5, 100)
    orders.bring_up_to(books, 0, END)
    assert in_force() == (Mode.STRICT, False, (20, 30), NO_LIMIT, 70)
