"""However plans and cycles change, allowances come to what the days of each plan are worth, and no more."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.balance_model import cycle, days
from tests.strategies import DAY, HOUR, NOON
from tests.unit.test_quota_books import ask
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.cells import LIMITS, NO_LIMIT, AccountCells, Cell
from tokenline.quota.terms import NOTHING, Source, Terms

PLANS = {
    "small": Terms(allowance_utok=300_000),
    "large": Terms(allowance_utok=3_000_000),
    "odd": Terms(allowance_utok=777_777, rollover_utok=10**12),
    "none": Terms(),
    "whole": Terms(allowance_utok=300_000, prorated=False),
    "large whole": Terms(allowance_utok=2_000_000, prorated=False),
}
SHARED = ("small", "large", "odd", "none")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("plan"), st.sampled_from(sorted(PLANS))),
        st.tuples(st.just("plan"), st.sampled_from(sorted(PLANS))),
        st.tuples(st.just("cycle"), st.integers(1, 31)),
        st.tuples(st.just("next day"), st.just(0)),
        st.tuples(st.just("use"), st.integers(1, 3_000_000)),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("hold"), st.integers(1, 3_000_000)),
        st.tuples(st.just("wait"), st.sampled_from([HOUR, DAY, DAY, 3 * DAY, 11 * DAY, 40 * DAY])),
    ),
    min_size=1,
    max_size=40,
)


class Walk:
    """Let an account do things, and note which plan it had on which day, of cycles of how many days."""

    def __init__(self, zone, plan, day):
        cells = AccountCells()
        slot = cells.open("t/a")
        row = cells.matrix[slot]
        row[Cell.ZONE], row[LIMITS] = cells.zone_code(zone), NO_LIMIT
        self.zone, self.now, self.changes, self.holds = zone, NOON, 0, 0
        self.books = Books(cells, lambda name, _: PLANS[name], HOUR)
        self.plan_of, self.cycle_of = {}, {}
        self.divisors, self.whole = defaultdict(set), defaultdict(set)
        orders.open_account(self.books, 0, plan, day, self.now)
        self.opened = self.today()
        self.note()

    def today(self):
        return datetime.fromtimestamp(self.now // 1000, ZoneInfo(self.zone)).date()

    def get(self, column):
        return self.books.get(0, column)

    def note(self):
        """Note today, and all days to the end of the cycle as they would be if nothing changed."""
        start, end = self.get(Balance.CYCLE_START), self.get(Balance.CYCLE_END)
        plan, day = self.books.plan(0), self.get(Balance.CYCLE_DAY)
        usual = days(self.zone, *cycle(self.zone, day, end - 1))
        length = days(self.zone, start, end)
        self.divisors[start] |= {usual, length} if abs(usual - length) <= 3 else {usual}
        if not PLANS[plan].prorated:
            self.whole[start].add(plan)
        last = datetime.fromtimestamp(end // 1000, ZoneInfo(self.zone)).date()
        date = self.today()
        self.plan_of = {at: name for at, name in self.plan_of.items() if at < date}
        while date < last:
            self.plan_of[date], self.cycle_of[date] = plan, start
            date += timedelta(days=1)

    def go_to(self, moment):
        """Let time pass, cycle by cycle, so that each is noted."""
        while (end := self.get(Balance.CYCLE_END)) <= moment:
            self.now = max(self.now, end)
            orders.bring_up_to(self.books, 0, self.now)
            self.note()
        self.now = moment
        orders.bring_up_to(self.books, 0, self.now)

    def do(self, what, value):
        if what == "plan":
            orders.change_plan(self.books, 0, value, self.now, when="now")
        elif what == "cycle":
            orders.change_cycle(self.books, 0, value, self.now)
        elif what == "next day":
            orders.change_cycle(self.books, 0, (self.today() + timedelta(days=1)).day, self.now)
        elif what == "wait":
            self.go_to(self.now + value)
        elif what == "hold":
            self.holds += 1
            ask(self.books, self.now, session=(self.holds, 1), wanted_utok=value, needed_utok=1)
        else:
            value = self.get(Balance.LEFT) if what == "drain" else value
            orders.charge(self.books, 0, NOTHING, value, occurred_ms=self.now, now_ms=self.now)
        if what in ("plan", "cycle", "next day"):
            self.changes += 1
        self.note()

    def granted(self):
        """Return what plans have given so far, debts counted."""
        own = {"GRANT", "PLAN_CHANGE", "CYCLE_CHANGE", "DEBT"}
        changes = [one for one in self.books.changes if one.source == Source.PLAN]
        return sum(one.amount_utok for one in changes if one.kind.name in own) - self.get(
            Balance.DEBT
        )

    def worth(self):
        """Return what the days of each plan come to, to the end of the cycle in hand."""
        sum_of_days = Fraction(0)
        for date, plan in self.plan_of.items():
            if PLANS[plan].prorated:
                per = min(self.divisors[self.cycle_of[date]])
                sum_of_days += Fraction(PLANS[plan].allowance_utok, per)
        whole = sum(
            max(PLANS[plan].allowance_utok for plan in plans) for plans in self.whole.values()
        )
        return sum_of_days + whole


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["Asia/Shanghai", "America/New_York"]),
    st.sampled_from(sorted(PLANS)),
    st.sampled_from([0, 1, 15, 31]),
    steps,
)
def test_allowances_come_to_no_more_than_the_days_of_each_plan(zone, plan, day, wanted):
    walk = Walk(zone, plan, day)
    for what, value in wanted:
        walk.do(what, value)
        # A rounding a change, and one a cycle.
        assert walk.granted() <= walk.worth() + walk.changes + len(walk.divisors)
        assert min(walk.get(Balance.DEBT), walk.get(Balance.OVERUSED)) >= 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SHARED), st.sampled_from(SHARED), steps)
def test_who_uses_no_more_than_his_days_are_worth_has_them_all(first, second, wanted):
    """Debts only ever come from use beyond: whoever stays within his days loses nothing by changes."""
    walk = Walk("Asia/Shanghai", first, 1)
    walk.go_to(walk.get(Balance.CYCLE_END))
    begun = walk.get(Balance.CYCLE_START)
    for what, value in wanted:
        if what in ("plan", "cycle", "next day", "wait"):
            walk.do(what, second if what == "plan" else value)
            first, second = (second, first) if what == "plan" else (first, second)
    assert walk.get(Balance.DEBT) == 0
    least = Fraction(0)
    for date, plan in walk.plan_of.items():
        if walk.cycle_of[date] >= begun:
            least += Fraction(PLANS[plan].allowance_utok, max(walk.divisors[walk.cycle_of[date]]))
    had = walk.granted() - sum(
        one.amount_utok
        for one in walk.books.changes
        if one.source == Source.PLAN and one.at_ms < begun
    )
    # A share is rounded down once a change and cycle, and may then grow from a day to many.
    assert had >= least - 100 * (walk.changes + len(walk.divisors))
