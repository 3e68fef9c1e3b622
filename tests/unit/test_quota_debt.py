"""Whatever plans and cycles an account changes to and fro, its allowances come to what its days are worth."""

from __future__ import annotations

import pytest

from tests.unit.test_quota_books import at, declined, opened, rows, use
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.terms import Grant, Source, Terms

PLANS = {
    "small": Terms(allowance_utok=300),
    "large": Terms(allowance_utok=3000),
    "whole": Terms(allowance_utok=300, prorated=False),
    "other whole": Terms(allowance_utok=600, prorated=False),
    "nothing": Terms(),
}


def change(books, plan, when):
    orders.change_plan(books, 0, plan, at(when), when="now")


def left(books):
    return books.get(0, Balance.LEFT)


def totals(books):
    return [total for _, source, total, _, _ in sorted(rows(books)) if source == "PLAN"]


def debt(books):
    return books.get(0, Balance.DEBT)


def drained(books, when):
    """Use all there is; return how much that was."""
    amount = left(books)
    use(books, amount, at(when))
    return amount


def test_an_adjustment_is_not_scaled_by_a_change_of_cycle():
    books = opened(PLANS, plan="small")
    orders.adjust(books, 0, 1, 3000, at("2026-11-01T09:00"))
    orders.change_cycle(books, 0, 16, at("2026-11-01T09:00"))
    assert totals(books) == [300 * 15 // 30 + 3000]
    orders.change_cycle(books, 0, 10, at("2026-11-12T09:00"))
    assert totals(books) == [300 * 39 // 30 + 3000]


def test_an_adjustment_is_not_scaled_by_a_change_of_plan():
    books = opened(PLANS, plan="small")
    orders.adjust(books, 0, 1, 3000, at("2026-11-01T09:00"))
    change(books, "large", "2026-11-16T09:00")
    assert totals(books) == [150 + 3000, 1500]


def test_choosing_the_plan_an_account_is_on_grants_nothing():
    books = opened(PLANS, plan="whole")
    drained(books, "2026-11-02T09:00")
    change(books, "whole", "2026-11-03T09:00")
    assert (totals(books), left(books)) == ([300], 0)


@pytest.mark.parametrize("rounds", [1, 5])
def test_an_upgrade_drained_and_left_on_one_day_is_a_debt_that_the_days_to_come_pay(rounds):
    books = opened(PLANS, plan="small")
    had = 0
    for hour in range(9, 9 + 2 * rounds, 2):
        change(books, "large", f"2026-11-01T{hour:02}:00")
        had += drained(books, f"2026-11-01T{hour:02}:30")
        change(books, "small", f"2026-11-01T{hour + 1:02}:00")
        had += drained(books, f"2026-11-01T{hour + 1:02}:30")
    assert had == 3000
    assert debt(books) == 3000 - 300
    # Nine months of three hundred pay for it; with the tenth there is something again.
    orders.bring_up_to(books, 0, at("2027-08-02T00:00"))
    assert (left(books), debt(books)) == (0, 0)
    orders.bring_up_to(books, 0, at("2027-09-02T00:00"))
    assert left(books) == 300


def test_the_ledger_says_what_was_taken_off_for_a_debt():
    books = opened(PLANS, plan="large")
    drained(books, "2026-11-01T09:00")
    change(books, "small", "2026-11-01T10:00")
    books.take()
    orders.bring_up_to(books, 0, at("2026-12-01T00:00"))
    entered = [(one.kind.name, one.amount_utok) for one in books.take()[0]]
    assert entered == [("GRANT", 300), ("DEBT", -300)]


def test_a_debt_touches_no_pack_and_no_top_up():
    books = opened(PLANS, plan="large")
    drained(books, "2026-11-01T09:00")
    orders.grant(books, 0, Grant(amount_utok=50, source=Source.TOP_UP), at("2026-11-01T09:30"))
    change(books, "small", "2026-11-01T10:00")
    assert left(books) == 50


def test_a_cycle_that_is_cut_short_again_and_again_gives_what_its_days_are_worth():
    books = opened(PLANS, plan="small")
    had = 0
    for day in range(1, 21):
        had += drained(books, f"2026-11-{day:02}T09:00")
        orders.change_cycle(books, 0, day + 1, at(f"2026-11-{day:02}T10:00"))
    # 300 on the first day; the debt of it is paid for the rest of the month.
    assert had == 300
    assert had - debt(books) <= 10 * 20


def test_a_plan_that_grants_whole_shrinks_with_its_cycle_and_owes_what_was_used_beyond():
    books = opened(PLANS, plan="whole")
    drained(books, "2026-11-01T09:00")
    orders.change_cycle(books, 0, 2, at("2026-11-01T10:00"))
    assert debt(books) == 290
    orders.bring_up_to(books, 0, at("2026-11-02T00:00"))
    assert (left(books), debt(books)) == (10, 0)


def test_a_plan_that_grants_whole_gives_a_cycle_that_was_cut_short_its_days_alone():
    books = opened(PLANS, plan="whole")
    orders.change_cycle(books, 0, 2, at("2026-11-01T10:00"))
    change(books, "other whole", "2026-11-01T11:00")
    # A cycle that begins on the second has thirty-one days in October.
    assert left(books) == 600 // 31


def test_of_plans_that_grant_whole_a_cycle_has_no_more_than_the_largest():
    books = opened(PLANS, plan="whole")
    had = 0
    for hour, plan in enumerate(("other whole", "whole", "other whole", "whole"), 9):
        had += drained(books, f"2026-11-01T{hour:02}:00")
        change(books, plan, f"2026-11-01T{hour:02}:30")
    assert had + left(books) == 600
    assert debt(books) == 0


def test_a_plan_that_grants_whole_makes_up_for_what_was_used_before_it_and_no_debt_stays():
    books = opened(PLANS, plan="small")
    use(books, 200, at("2026-11-01T09:00"))
    change(books, "whole", "2026-11-01T10:00")
    assert (left(books), debt(books)) == (100, 0)


def test_no_round_between_a_shared_and_a_whole_plan_gives_more_than_both_once():
    books = opened(PLANS, plan="small")
    had = 0
    for hour, plan in enumerate(("whole", "small") * 5, 9):
        had += drained(books, f"2026-11-01T{hour:02}:00")
        change(books, plan, f"2026-11-01T{hour:02}:30")
    assert had + left(books) == 600


def test_an_allowance_that_was_granted_whole_and_used_leaves_no_debt_behind():
    books = opened(PLANS, plan="whole")
    drained(books, "2026-11-01T09:00")
    change(books, "small", "2026-11-16T09:00")
    assert (left(books), debt(books)) == (150, 0)


def test_what_an_earlier_cycle_owes_is_not_forgiven_by_a_plan_that_grants_whole():
    books = opened(PLANS, plan="large")
    drained(books, "2026-11-01T09:00")
    change(books, "nothing", "2026-11-01T10:00")
    orders.bring_up_to(books, 0, at("2026-12-01T00:00"))
    assert debt(books) == 3000
    change(books, "other whole", "2026-12-01T10:00")
    assert (left(books), debt(books)) == (0, 2400)


@pytest.mark.parametrize("plan", ["small", "whole"])
def test_a_bucket_that_is_over_takes_no_adjustment(plan):
    books = opened(PLANS, plan=plan)
    orders.bring_up_to(books, 0, at("2026-12-01T00:00"))
    for amount in (5, -5):
        assert declined(orders.adjust, books, 0, 1, amount, at("2026-12-01T00:00")) == "expired"
    orders.adjust(books, 0, 2, 5, at("2026-12-01T00:00"))
    assert left(books) == 305


def test_an_adjustment_that_takes_is_not_given_back_by_a_change():
    books = opened(PLANS, plan="small")
    orders.adjust(books, 0, 1, -250, at("2026-11-01T09:00"))
    change(books, "large", "2026-11-16T09:00")
    # Of 150 for fifteen days 250 were taken: a hundred are still to be made up for.
    assert (totals(books), debt(books)) == ([0, 1400], 0)


WHEN = Terms(allowance_utok=300, change="next_cycle")
SOON = Terms(allowance_utok=100, change="now")


@pytest.mark.parametrize(
    ("plan", "when", "now"),
    [
        ("large", "", True),
        ("equal", "", True),
        ("lesser", "", False),
        ("late", "", False),
        ("soon", "", True),
        ("large", "next_cycle", False),
        ("lesser", "now", True),
        ("late", "now", True),
        ("soon", "next_cycle", False),
    ],
)
def test_an_upgrade_is_now_and_a_downgrade_with_the_next_cycle_unless_plan_or_order_say_else(
    plan, when, now
):
    plans = PLANS | {"late": WHEN, "soon": SOON}
    plans |= {"lesser": Terms(allowance_utok=299), "equal": Terms(allowance_utok=300, priority=7)}
    books = opened(plans, plan="small")
    moment = at("2026-11-16T09:00")
    orders.change_plan(books, 0, plan, moment, when=when)
    assert (books.plan(0) == plan) is now
    assert books.pending_plan(0) == ("" if now else plan)
    orders.bring_up_to(books, 0, at("2026-12-01T00:00"))
    assert (books.plan(0), books.pending_plan(0)) == (plan, "")
    assert totals(books)[-1] == plans[plan].allowance_utok


def test_a_pending_change_is_replaced_by_a_newer_one_and_cancelled_by_the_present_plan():
    books = opened(PLANS, plan="large")
    moment = at("2026-11-16T09:00")
    for plan, pending in (("small", "small"), ("nothing", "nothing"), ("large", "")):
        orders.change_plan(books, 0, plan, moment)
        assert (books.plan(0), books.pending_plan(0)) == ("large", pending)
    orders.change_plan(books, 0, "small", moment)
    orders.change_plan(books, 0, "nothing", moment, when="now")
    assert (books.plan(0), books.pending_plan(0)) == ("nothing", "")


def test_a_pending_plan_that_is_gone_by_its_day_leaves_the_account_where_it_is():
    gone = at("2026-11-20T00:00")
    books = opened(
        lambda plan, now: None if plan == "small" and now >= gone else PLANS[plan], plan="large"
    )
    orders.change_plan(books, 0, "small", at("2026-11-16T09:00"))
    orders.bring_up_to(books, 0, at("2026-12-01T00:00"))
    assert (books.plan(0), books.pending_plan(0), totals(books)[-1]) == ("large", "", 3000)


def test_a_cut_ends_with_the_cycle_in_which_a_pending_plan_gives_something():
    books = opened(PLANS, plan="nothing")
    orders.change_plan(books, 0, "small", at("2026-11-16T09:00"), when="next_cycle")
    assert books.get(0, Balance.OPENS_AT) == at("2026-12-01T00:00")
