"""Balances where a rule has an edge: times, sums at their ends, and sessions that ended."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from tokenline.errors import Declined
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import MOST_UTOK, Books
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import LIMITS, NO_LIMIT, AccountCells, Cell
from tokenline.quota.charge import Rated, charge_chunk
from tokenline.quota.decide import decide
from tokenline.quota.holds import HoldOrder
from tokenline.quota.terms import (
    NEVER_MS,
    NOTHING,
    Grant,
    HoldExpiry,
    Mode,
    Source,
    Terms,
)

HOUR = 3_600_000
DAY = 24 * HOUR
ONE, TWO = (1, 1), (2, 2)


def at(text, zone="Asia/Shanghai"):
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def books_of(terms_of, linger_ms=DAY + 60_000):
    """Return books that know one account, in slot 0; amounts of a test are µtok."""
    cells = AccountCells()
    slot = cells.open("t/a")
    row = cells.matrix[slot]
    row[Cell.ZONE] = cells.zone_code("Asia/Shanghai")
    row[LIMITS] = NO_LIMIT
    if isinstance(terms_of, Terms):
        return Books(cells, lambda _plan, _at: terms_of, linger_ms)
    find = (lambda plan, _: terms_of.get(plan)) if isinstance(terms_of, dict) else terms_of
    return Books(cells, find, linger_ms)


def opened(terms_of, when="2026-11-01T00:00", plan="a", **kw):
    books = books_of(terms_of, **kw)
    orders.open_account(books, 0, plan, 1, at(when))
    return books


def rows(books):
    """Return (number, source, total, used, held) of each bucket, in burn order."""
    get = books.buckets.get
    columns = (Bucket.TOTAL, Bucket.USED, Bucket.HELD)
    return [
        (
            get(one, Bucket.NUMBER),
            Source(get(one, Bucket.SOURCE)).name,
            *(get(one, column) for column in columns),
        )
        for one in books.chain(0)
    ]


def unpaid(books):
    return int(books.unpaid(np.array([0]))[0])


def use(books, amount, occurred_ms, now_ms=None, session=None):
    now_ms = occurred_ms if now_ms is None else now_ms
    return orders.charge(
        books, 0, NOTHING, amount, occurred_ms=occurred_ms, now_ms=now_ms, session=session
    )


def ask(books, now_ms, seq=0, session=ONE, **fields):
    return orders.hold(books, 0, HoldOrder(session=session, seq=seq, **fields), now_ms)


def chunk(books, amounts, occurred_ms, now_ms):
    count = len(amounts)
    charge_chunk(
        books,
        Rated(
            slots=np.zeros(count, np.int64),
            charges_utok=np.array(amounts, np.int64),
            occurred_ms=np.full(count, occurred_ms),
            appended_ms=np.full(count, now_ms),
            named=np.zeros(count, np.bool_),
            tokens=np.zeros(count, np.int64),
            uses=lambda events: [NOTHING] * len(events),
            session=lambda _: ONE,
        ),
    )


def decided(books, now_ms):
    found = decide(books.cells, np.array([0]), now_ms, 1, books=books)
    return [(one.state.name, one.rule.name, one.threshold_percent) for one in found]


def declined(call, *args):
    with pytest.raises(Declined) as caught:
        call(*args)
    return str(caught.value)


def test_no_order_brings_an_account_beyond_what_a_balance_holds():
    now = at("2026-11-01T08:00")
    books = opened(Terms(allowance_utok=7))
    top_up = Grant(amount_utok=MOST_UTOK, source=Source.TOP_UP)
    assert declined(orders.grant, books, 0, top_up, now) == "bad_amount"
    assert declined(orders.adjust, books, 0, 1, MOST_UTOK, now) == "bad_amount"
    orders.adjust(books, 0, 1, MOST_UTOK - 7, now)
    assert declined(orders.adjust, books, 0, 1, 1, now) == "bad_amount"
    assert books.get(0, Balance.LEFT) == MOST_UTOK


def test_sessions_hold_no_more_beyond_all_buckets_than_a_balance_may_have():
    now = at("2026-11-01T08:00")
    books = opened(Terms(overage=True))
    for number in range(12):
        ask(books, now, session=(number, 0), wanted_utok=MOST_UTOK)
    assert books.get(0, Balance.OVERAGE_HELD) == MOST_UTOK
    use(books, MOST_UTOK, now, session=(0, 0))
    assert (books.get(0, Balance.OVERAGE), books.get(0, Balance.OVERAGE_HELD)) == (MOST_UTOK, 0)


@pytest.mark.parametrize("overage", [True, False])
def test_nothing_is_charged_to_nobody_however_much_it_is(overage):
    now = at("2026-11-01T08:00")
    books = opened(Terms(allowance_utok=100, overage=overage))
    chunk(books, [MOST_UTOK] * 3, now, now)
    chunk(books, [MOST_UTOK] * 3, now, now)
    assert rows(books) == [(1, "PLAN", 100, 100, 0)]
    counter = Balance.OVERAGE if overage else Balance.WRITTEN_OFF
    assert unpaid(books) == books.get(0, counter) == 6 * MOST_UTOK - 100
    assert books.get(0, Balance.LEFT) == 0
    assert books.alarmed == {0}


def test_a_settled_hold_is_charged_what_it_owes_though_the_policy_releases():
    now = at("2026-11-01T08:00")
    books = opened(Terms(mode=Mode.STRICT, allowance_utok=100, hold_expiry=HoldExpiry.RELEASE))
    ask(books, now, wanted_utok=100)
    ask(books, now + 1, 1, settles=True, reported_utok=90)
    late = ask(books, now + HOUR, session=TWO, wanted_utok=100, needed_utok=1)
    assert late.granted_utok == 10
    use(books, 90, now, now + HOUR + 1, session=ONE)
    assert rows(books) == [(1, "PLAN", 100, 90, 10)]


@pytest.mark.parametrize("many", [True, False])
def test_usage_of_a_clock_that_is_ahead_is_paid_by_what_is_there_now(many):
    books = opened(Terms(allowance_utok=100))
    end = at("2026-12-01T00:00")
    if many:
        chunk(books, [40], end + 3000, end - 2000)
    else:
        use(books, 40, end + 3000, end - 2000)
    assert rows(books) == [(1, "PLAN", 100, 40, 0)]
    assert unpaid(books) == 0


def test_what_a_session_used_beyond_its_hold_is_paid_by_what_was_valid_when_it_occurred():
    books = opened(Terms(allowance_utok=100))
    end = at("2026-12-01T00:00")
    ask(books, end - 30_000, wanted_utok=10)
    ask(books, end - 10_000, 1, settles=True)
    use(books, 10, end - 10_000, end + 5000, session=ONE)
    assert rows(books) == [(1, "PLAN", 100, 10, 0), (2, "PLAN", 100, 0, 0)]


def test_a_session_that_was_refused_asks_anew():
    now = at("2026-11-01T08:00")
    books = opened(Terms(mode=Mode.STRICT))
    assert ask(books, now, wanted_utok=5, needed_utok=5).reason.name == "BALANCE_USED_UP"
    orders.grant(books, 0, Grant(amount_utok=50, source=Source.TOP_UP), now)
    again = ask(books, now + 1, 1, wanted_utok=5, needed_utok=5)
    assert (again.outcome.name, again.granted_utok, again.late) == ("DONE", 5, False)
    use(books, 5, now + 2, session=ONE)
    assert rows(books) == [(1, "TOP_UP", 50, 5, 0)]


def test_a_session_that_has_ended_is_refused_more_and_may_still_settle():
    now = at("2026-11-01T08:00")
    books = opened(Terms(mode=Mode.STRICT, allowance_utok=100))
    ask(books, now, wanted_utok=5)
    more = ask(books, now + HOUR, 1, wanted_utok=5)
    assert (more.reason.name, more.granted_utok, more.late) == ("UNKNOWN_HOLD", 0, True)
    # It stays so however often it asks.
    assert ask(books, now + HOUR, 2, wanted_utok=5).reason.name == "UNKNOWN_HOLD"
    settled = ask(books, now + HOUR, 3, settles=True)
    assert (settled.reason.name, settled.late) == ("NONE", True)


def test_a_session_that_was_settled_holds_nothing_anew_and_keeps_what_it_owes():
    """Its last usage closes it: what it were granted meanwhile would be free for others, and be used."""
    now = at("2026-11-01T08:00")
    books = opened(Terms(mode=Mode.STRICT, allowance_utok=100))
    ask(books, now, wanted_utok=10)
    ask(books, now, 1, settles=True, reported_utok=6)
    more = ask(books, now, 2, wanted_utok=4, reported_utok=6)
    assert (more.reason.name, more.granted_utok, more.late) == ("UNKNOWN_HOLD", 0, True)
    assert rows(books) == [(1, "PLAN", 100, 0, 6)]
    use(books, 6, now, session=ONE)
    assert rows(books) == [(1, "PLAN", 100, 6, 0)]


def test_a_grant_that_ends_before_it_begins_is_none():
    now = at("2026-11-01T08:00")
    books = opened(Terms(allowance_utok=100))
    never = Grant(amount_utok=5, source=Source.GIFT, valid_from_ms=now + 9, valid_to_ms=now + 9)
    assert declined(orders.grant, books, 0, never, now) == "bad_amount"


def test_a_model_that_costs_nothing_may_answer_all_that_is_asked():
    books = opened(Terms(mode=Mode.STRICT))
    free = ask(books, at("2026-11-01T08:00"), max_tokens=100)
    assert (free.outcome.name, free.max_tokens) == ("DONE", 100)


PLANS = {"a": Terms(allowance_utok=300), "b": Terms(allowance_utok=600)}


def moved(books, plan, when):
    orders.change_plan(books, 0, plan, at(when), when="now")
    return [total for _, _, total, _, _ in rows(books)]


def test_each_plan_pays_for_its_own_days_however_often_it_is_changed():
    books = opened(PLANS)
    assert moved(books, "b", "2026-11-11T09:00") == [100, 400]
    assert moved(books, "a", "2026-11-21T09:00") == [100, 200, 100]
    assert moved(books, "b", "2026-11-21T10:00") == [100, 200, 0, 200]


def test_what_an_earlier_plan_used_is_not_taken_from_a_later_one():
    books = opened(PLANS)
    moved(books, "b", "2026-11-11T09:00")
    use(books, 100, at("2026-11-12T09:00"))
    assert moved(books, "a", "2026-11-21T09:00") == [100, 200, 100]


@pytest.mark.parametrize("between", ["none", "whole"])
def test_no_plan_in_between_wipes_out_what_was_used_beyond_a_share(between):
    plans = PLANS | {"none": Terms(), "whole": Terms(allowance_utok=70, prorated=False)}
    books = opened(plans)
    use(books, 300, at("2026-11-01T09:00"))
    before = moved(books, between, "2026-11-11T09:00")
    after = moved(books, "a", "2026-11-11T10:00")
    # 200 of the 300 were for days after the tenth: nothing is left of the 200 that these would give,
    # nor of what a plan grants whole in a cycle in which 300 were used.
    assert sum(after) == sum(before) == 300


@pytest.mark.parametrize("asked", ["10-31T16:01", "11-01T00:00", "11-01T00:30", "11-02T00:00"])
def test_what_a_move_leaves_of_a_cycle_belongs_to_the_next_whoever_looks_when(asked):
    books = opened(Terms(allowance_utok=100), "2026-10-20T00:00")
    books.cells.matrix[0, Cell.ZONE] = books.cells.zone_code("UTC")
    now, ends = at(f"2026-{asked}", "UTC"), at("2026-12-01T00:00", "UTC")
    orders.bring_up_to(books, 0, now)
    row = books.row(0)
    assert books.get(row, Balance.CYCLE_START) == at("2026-11-01T00:00")
    assert books.get(row, Balance.CYCLE_END) == ends
    ends_of = [books.buckets.get(bucket, Bucket.VALID_TO) for bucket in books.chain(row)]
    assert [end for end in ends_of if now < end < NEVER_MS] == [ends]


def test_a_pack_without_an_end_that_is_used_up_is_forgotten_with_its_cycle():
    books = opened(Terms())
    for day in (2, 3):
        orders.grant(
            books, 0, Grant(amount_utok=5, source=Source.PACK), at(f"2026-11-0{day}T09:00")
        )
    use(books, 7, at("2026-11-04T09:00"))
    assert [one[2:4] for one in rows(books)] == [(5, 5), (5, 2)]
    orders.bring_up_to(books, 0, at("2026-12-01T00:01"))
    assert [one[2:4] for one in rows(books)] == [(5, 2)]


def test_a_refusal_says_how_the_balance_stands_and_when_there_is_more():
    books = opened(Terms(mode=Mode.STRICT, allowance_utok=100))
    now = at("2026-11-01T09:00")
    use(books, 30, now)
    ask(books, now, wanted_utok=60)
    refused = ask(books, now, session=(9, 9), wanted_utok=90, needed_utok=90)
    assert (refused.reason.name, refused.limit_name) == ("BALANCE_USED_UP", "")
    assert (refused.limit_used, refused.limit_held, refused.limit_value) == (30, 60, 100)
    assert refused.resets_at_ms == at("2026-12-01T00:00")


def test_an_account_opened_within_a_cycle_shares_the_days_it_has():
    books = opened(PLANS, "2026-11-16T09:00")
    assert moved(books, "b", "2026-11-21T09:00") == [50, 200]
    orders.change_cycle(books, 0, 26, at("2026-11-22T09:00"))
    assert [total for _, _, total, _, _ in rows(books)] == [50, 100]


def test_a_cycle_that_is_cut_short_has_its_share_also_of_a_plan_granted_whole():
    books = opened(Terms(allowance_utok=300, prorated=False))
    orders.change_cycle(books, 0, 2, at("2026-11-01T09:00"))
    assert rows(books) == [(1, "PLAN", 10, 0, 0)]
    books = opened(Terms(allowance_utok=300, prorated=False), "2026-11-16T09:00")
    assert rows(books) == [(1, "PLAN", 300, 0, 0)]


def test_a_cycle_has_one_cap_of_what_rolls_over_whatever_plans_it_had():
    plans = {
        "a": Terms(allowance_utok=300, rollover_utok=50),
        "b": Terms(allowance_utok=600, rollover_utok=50),
    }
    books = opened(plans)
    moved(books, "b", "2026-11-11T09:00")
    orders.bring_up_to(books, 0, at("2026-12-02T00:01"))
    assert [one[2] for one in rows(books) if one[1] == "ROLLOVER"] == [50]


@pytest.mark.parametrize("then", ["nothing", "all"])
def test_what_rolls_over_goes_by_the_plan_that_granted_it(then):
    plans = {
        "a": Terms(allowance_utok=300, rollover_utok=50),
        "nothing": Terms(allowance_utok=600),
        "all": Terms(allowance_utok=600, rollover_utok=600, priority=7),
    }
    books = opened(plans)
    orders.change_plan(books, 0, then, at("2026-12-01T00:30"))
    orders.bring_up_to(books, 0, at("2026-12-02T00:01"))
    assert [one[2] for one in rows(books) if one[1] == "ROLLOVER"] == [50]


@pytest.mark.parametrize("looks", [[], ["2026-12-01T10:00"]])
def test_what_rolled_over_burns_first_whoever_looked_when(looks):
    books = opened(Terms(allowance_utok=100, rollover_utok=50))
    for look in looks:
        orders.bring_up_to(books, 0, at(look))
    use(books, 60, at("2026-12-03T10:00"))
    assert [one[1:4] for one in rows(books)] == [("ROLLOVER", 50, 50), ("PLAN", 100, 10)]


def opens_at(books, now_ms):
    """Decide, and return when the cut that is told ends."""
    assert ("CUT", "BALANCE") in [one[:2] for one in decided(books, now_ms)]
    return int(books.cells.matrix[0, Cell.RESETS_AT])


def test_a_cut_ends_when_what_rolls_over_begins_to_be_valid():
    books = opened(Terms(allowance_utok=100, rollover_utok=50))
    now = at("2026-12-01T09:00")
    use(books, 100, now)
    closes = at("2026-12-02T00:01")
    assert opens_at(books, now) == closes
    use(books, 10, closes)
    assert unpaid(books) == 0


def test_a_cut_ends_when_a_top_up_begins_to_be_valid():
    books = opened(Terms(allowance_utok=100))
    now, later = at("2026-11-01T09:00"), at("2026-11-10T00:00")
    orders.grant(books, 0, Grant(amount_utok=5, source=Source.TOP_UP, valid_from_ms=later), now)
    use(books, 100, now)
    assert opens_at(books, now) == later
    use(books, 5, later)
    assert opens_at(books, later) == at("2026-12-01T00:00")


def test_a_cut_of_a_plan_that_gives_nothing_ends_by_no_clock():
    books = opened(Terms())
    assert opens_at(books, at("2026-11-01T09:00")) == 0


def test_an_account_that_moves_to_the_west_is_given_one_allowance_a_cycle():
    books = opened(Terms(allowance_utok=100, rollover_utok=30), "2026-10-05T10:00")
    books.cells.matrix[0, Cell.ZONE] = books.cells.zone_code("UTC")
    early, late = at("2026-11-01T00:30"), at("2026-11-01T09:00")
    use(books, 90, early)
    use(books, 90, late)
    assert unpaid(books) == 80
    assert books.get(0, Balance.CYCLE_END) == at("2026-12-01T00:00", "UTC")
    orders.bring_up_to(books, 0, at("2026-11-03T00:00"))
    assert [one[2] for one in rows(books) if one[1] == "ROLLOVER"] == [30]


def test_usage_of_a_cycle_in_which_nobody_asked_is_paid_by_its_allowance():
    books = opened(Terms(allowance_utok=100), "2026-09-05T10:00")
    use(books, 40, at("2026-10-31T23:59"), at("2026-11-01T00:05"))
    assert [one[2:4] for one in rows(books)] == [(100, 40), (100, 0)]
    assert unpaid(books) == 0


def test_every_month_that_nobody_asked_in_is_in_the_ledger_at_its_own_moments():
    books = opened(Terms(allowance_utok=100, rollover_utok=30), "2026-10-31T10:00")
    books.take()
    orders.bring_up_to(books, 0, at("2027-01-03T10:00"))
    entered = [(one.at_ms, one.kind.name, one.amount_utok) for one in books.take()[0]]
    nov, dec, jan = (at(f"{month}-01T00:00") for month in ("2026-11", "2026-12", "2027-01"))
    linger_ms = books.linger_ms
    assert entered == [
        (nov, "GRANT", 100),
        # Of the single day of October three of a hundred are left.
        (nov + linger_ms, "ROLLOVER_OUT", -3),
        (nov + linger_ms, "ROLLOVER_IN", 3),
        (dec, "GRANT", 100),
        (dec + linger_ms, "EXPIRY", -3),
        (dec + linger_ms, "ROLLOVER_OUT", -30),
        (dec + linger_ms, "EXPIRY", -70),
        (dec + linger_ms, "ROLLOVER_IN", 30),
        (jan, "GRANT", 100),
        (jan + linger_ms, "EXPIRY", -30),
        (jan + linger_ms, "ROLLOVER_OUT", -30),
        (jan + linger_ms, "EXPIRY", -70),
        (jan + linger_ms, "ROLLOVER_IN", 30),
    ]
    assert [one[1:3] for one in rows(books)] == [("ROLLOVER", 30), ("PLAN", 100)]


def test_a_closed_account_is_granted_nothing_in_the_months_that_follow():
    books = opened(Terms(allowance_utok=100, rollover_utok=30))
    orders.close_account(books, 0, at("2026-11-05T00:00"))
    orders.bring_up_to(books, 0, at("2027-02-03T10:00"))
    assert rows(books) == []
    assert books.get(0, Balance.CYCLE_START) == at("2027-02-01T00:00")


def test_thresholds_are_told_again_in_a_cycle_that_begins_a_day_later():
    books = opened(Terms(allowance_utok=100))
    first, second = at("2026-11-01T08:00"), at("2026-11-02T09:00")
    use(books, 95, first)
    assert [percent for _, _, percent in decided(books, first)] == [50, 80]
    orders.change_cycle(books, 0, 2, first)
    use(books, 60, second)
    assert ("WARNED", "BALANCE", 50) in decided(books, second)


@pytest.mark.parametrize("overage", [True, False])
def test_whether_a_plan_stops_is_settled_for_a_cycle(overage):
    flip = at("2026-11-03T00:00")
    books = opened(lambda _, now: Terms(allowance_utok=100, overage=overage == (now < flip)))
    later = at("2026-11-05T08:00")
    use(books, 120, later)
    states = [state for state, _, _ in decided(books, later)]
    assert ("CUT" in states) is not overage
    assert (ask(books, later, wanted_utok=5, needed_utok=5).reason.name == "NONE") is overage


def test_a_plan_that_is_gone_leaves_all_terms_as_they_are():
    gone = at("2026-11-15T00:00")
    plan = Terms(mode=Mode.STRICT, allowance_utok=100, ceilings=((Cell.DAY_TOKENS_LIMIT, 5),))
    books = opened(lambda _, now: plan if now < gone else None)
    orders.bring_up_to(books, 0, at("2026-12-05T00:00"))
    assert rows(books) == [(2, "PLAN", 100, 0, 0)]
    assert books.get(0, Balance.MODE) == Mode.STRICT
    assert books.cells.matrix[0, Cell.DAY_TOKENS_LIMIT] == 5


def test_a_hold_whose_row_was_another_accounts_is_not_found_there():
    slow, fast = (Terms(allowance_utok=900, hold_validity_ms=ms) for ms in (300_000, 60_000))
    books = books_of({"a": slow, "b": fast})
    slot = books.cells.open("t/b")
    books.cells.matrix[slot] = books.cells.matrix[0]
    start = at("2026-11-01T00:00")
    for each in (0, slot):
        orders.open_account(books, each, "a", 1, start)
    ask(books, start, wanted_utok=7)
    for each in (0, slot):
        orders.change_plan(books, each, "b", start + 1)
    ask(books, start + 1, 1, wanted_utok=7)
    ask(books, start + 2, 2, settles=True)
    # Another hold is due earlier, so the moment of the first one is not yet met and forgotten.
    ask(books, start + 100_000, session=TWO, wanted_utok=7)
    orders.bring_up_to(books, 0, start + 3 * 60_000)
    assert [hold.session for hold in books.holds.of_owner(0)] == [TWO]
    # The row is given to the other account, and is due when the first one's hold once was.
    orders.hold(books, slot, HoldOrder(session=TWO, seq=0, wanted_utok=9), start + 480_000)
    orders.bring_up_to(books, 0, start + 600_000)
    assert (books.holds.next_due_ms(0) > start + 600_000, len(books.holds.of_owner(slot))) == (
        True,
        1,
    )
    assert books.holds.of_owner(slot)[0].status.name == "OPEN"


@pytest.mark.parametrize("overage", [True, False])
def test_a_hold_may_take_from_any_number_of_buckets(overage):
    now = at("2026-11-01T08:00")
    books = opened(Terms(overage=overage))
    for _ in range(40):
        orders.grant(books, 0, Grant(amount_utok=10, source=Source.GIFT), now)
    held = ask(books, now, wanted_utok=395, needed_utok=395, output_utok=1, max_tokens=400)
    assert (held.outcome.name, held.granted_utok, len(held.split)) == ("DONE", 395, 8)
    assert sum(one[4] for one in rows(books)) == 395
    # Three rows of it come and go with what it holds.
    assert len(books.holds) == 3
    recovered = Books(books.cells, books.terms_of, books.linger_ms)
    recovered.plans, recovered.kept_terms = list(books.plans), books.kept_terms
    for table, old in zip(recovered.tables, books.tables, strict=True):
        table.adopt(old.matrix.copy())
    recovered.adopt()
    assert recovered.holds.find(0, ONE) == books.holds.find(0, ONE)
    for one in (books, recovered):
        use(one, 50, now, session=ONE)
        ask(one, now + 1, 1, reported_utok=50, wanted_utok=100)
        ask(one, now + 2, 2, reported_utok=50, settles=True)
    assert [one[2:] for one in rows(books)][:6] == [(10, 10, 0)] * 5 + [(10, 0, 0)]
    for table, old in zip(recovered.tables[:3], books.tables[:3], strict=True):
        assert (table.matrix == old.matrix).all()
    assert np.count_nonzero(books.holds.matrix[:, 0] >= 0) == 1


def test_usage_of_a_call_that_ran_on_after_the_expiry_is_charged_once():
    plan = Terms(mode=Mode.STRICT, allowance_utok=100, priced_ahead_ms=600_000)
    now, books = at("2026-11-01T08:00"), opened(plan)
    ask(books, now, wanted_utok=50)
    ask(books, now + 1, 1, reported_utok=50, wanted_utok=0)
    orders.bring_up_to(books, 0, now + 121_000)
    assert rows(books) == [(1, "PLAN", 100, 50, 0)]
    occurred = now + 600_000
    use(books, 50, occurred, occurred + books.linger_ms - 60_000, session=ONE)
    assert rows(books) == [(1, "PLAN", 100, 50, 0)]


@pytest.mark.parametrize("used", [250, 300])
def test_what_a_plan_used_beyond_its_days_is_not_forgotten_by_the_change_after_next(used):
    books = opened(PLANS | {"c": Terms(allowance_utok=30)})
    use(books, used, at("2026-11-02T09:00"))
    moved(books, "c", "2026-11-11T09:00")
    assert sum(moved(books, "a", "2026-11-11T10:00")) == 300
    # Twenty days of `b` give 400; the first ten gave 100.
    assert sum(moved(books, "b", "2026-11-11T11:00")) == 500


def test_a_bucket_that_closes_within_a_chunk_pays_as_if_its_events_came_alone():
    books = opened(Terms(allowance_utok=100, rollover_utok=50, hold_validity_ms=3 * DAY))
    end = at("2026-12-01T00:00")
    now = end + books.linger_ms
    ask(books, end - HOUR, wanted_utok=10)
    ask(books, end - HOUR, 1, reported_utok=10, settles=True)
    events = Rated(
        slots=np.zeros(2, np.int64),
        charges_utok=np.array([10, 5]),
        occurred_ms=np.full(2, now),
        appended_ms=np.full(2, now),
        named=np.array([True, False]),
        tokens=np.zeros(2, np.int64),
        uses=lambda events: [NOTHING] * len(events),
        session=lambda _: ONE,
    )
    charge_chunk(books, events)
    assert rows(books) == [(3, "ROLLOVER", 50, 5, 0), (2, "PLAN", 100, 0, 0)]
