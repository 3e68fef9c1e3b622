"""An account is open, warned or cut as its rules and what it used say, and told of it once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies import DAY, HOUR, MINUTE, NOON
from tokenline.metering.calendar import spans_at
from tokenline.quota.cells import LIMITS, AccountCells, Cell
from tokenline.quota.decide import decide
from tokenline.quota.decided import Rule, State
from tokenline.quota.usage import Counted, add_usage, roll_rates

ZONE = "Asia/Shanghai"
NOW = NOON // MINUTE * MINUTE
MONTH = spans_at(ZONE, NOW).month


class Account:
    """One account, its limits and its clock; `use` returns the decisions in short form."""

    def __init__(self, **limits):
        self.cells = AccountCells()
        self.cells.open("t/a")
        self.cells.zone_code(ZONE)
        self.row[LIMITS] = -1
        self.now, self.offset, self.epoch = NOW, 0, 1
        self.limit(**limits)

    @property
    def row(self):
        return self.cells.matrix[0]

    def limit(self, **limits):
        for name, value in limits.items():
            self.row[Cell[f"{name.upper()}_LIMIT"]] = value
        slots = np.array([0])
        roll_rates(self.cells, slots, self.now)
        return decide(self.cells, slots, self.now, self.epoch, announce=True)

    def use_all(self, tokens):
        self.offset += 1
        counted = Counted(
            slots=np.array([0]),
            tokens=np.array([tokens]),
            months_ms=np.array([spans_at(ZONE, self.now).month[0]]),
            versions=np.array([self.offset]),
        )
        slots = add_usage(self.cells, counted, self.now)
        return decide(self.cells, slots, self.now, self.epoch)

    def use(self, tokens):
        return [(one.state.name, one.threshold_percent) for one in self.use_all(tokens)]


def test_warned_at_50_and_80_and_cut_at_100_once_each():
    account = Account(month_tokens=100)
    told = [account.use(10) for _ in range(11)]

    assert told == [
        *[[]] * 4,
        [("WARNED", 50)],
        *[[]] * 2,
        [("WARNED", 80)],
        [],
        [("CUT", 100)],
        [],
    ]


def test_a_jump_from_nothing_to_all_tells_every_threshold():
    assert Account(month_tokens=100).use(100) == [("WARNED", 50), ("WARNED", 80), ("CUT", 100)]


def test_one_token_below_a_threshold_tells_nothing():
    account = Account(month_tokens=101)
    assert [account.use(50), account.use(1), account.use(29), account.use(1)] == [
        [],
        [("WARNED", 50)],
        [],
        [("WARNED", 80)],
    ]


def test_a_cut_says_reason_used_limit_and_when_it_ends():
    (*_, cut) = Account(month_tokens=100).use_all(130)

    assert (cut.state, cut.rule, cut.reason) == (State.CUT, Rule.MONTH_TOKENS, "limit_reached")
    assert (cut.used, cut.limit) == (130, 100)
    assert (cut.window_start_ms, cut.resets_at_ms) == MONTH


def test_the_largest_allowance_warns_of_nothing_early():
    account = Account()
    (said,) = account.limit(month_tokens=2**63 - 1)
    assert (said.state, said.threshold_percent) == (State.OPEN, 0)
    assert account.use(10**9) == []


def test_thresholds_of_a_huge_allowance_are_exact():
    limit = 9 * 10**18 + 1
    account = Account(month_tokens=limit)
    assert account.use(limit // 2) == []
    assert account.use(1) == [("WARNED", 50)]


def test_a_minute_limit_cuts_and_the_next_minute_opens():
    account = Account(minute_tokens=100)
    cut = account.use_all(100)[0]
    account.now += MINUTE
    opened = account.use_all(1)[0]

    assert (cut.state, cut.rule, cut.resets_at_ms) == (
        State.CUT,
        Rule.MINUTE_TOKENS,
        NOW + MINUTE,
    )
    assert (opened.state, opened.reason, opened.resets_at_ms) == (State.OPEN, "resumed", 0)


def test_a_minute_cut_again_in_the_next_minute_says_the_new_end():
    account = Account(minute_tokens=100)
    account.use(100)
    account.now += MINUTE
    (again,) = account.use_all(100)

    assert (again.state, again.resets_at_ms) == (State.CUT, NOW + 2 * MINUTE)


def test_requests_are_limited_like_tokens():
    account = Account(minute_requests=2)
    assert account.use(0) == []
    (cut,) = account.use_all(0)
    assert (cut.rule, cut.used, cut.limit) == (Rule.MINUTE_REQUESTS, 2, 2)


def test_of_several_rules_the_one_that_resets_last_is_named():
    account = Account(minute_tokens=10, hour_tokens=10, day_tokens=10, month_tokens=10**6)
    account.now -= 12 * HOUR
    (cut,) = account.use_all(10)

    assert (cut.rule, cut.resets_at_ms) == (Rule.DAY_TOKENS, spans_at(ZONE, NOW).day[1])


def test_a_threshold_reached_with_a_minute_cut_is_told_once_and_by_the_month():
    account = Account(month_tokens=100, minute_tokens=10)
    warned50, warned80, cut = account.use_all(85)

    assert [(one.threshold_percent, one.rule) for one in (warned50, warned80)] == [
        (50, Rule.MONTH_TOKENS),
        (80, Rule.MONTH_TOKENS),
    ]
    assert (cut.state, cut.rule, cut.threshold_percent) == (State.CUT, Rule.MINUTE_TOKENS, 0)


def test_a_limit_of_zero_cuts_when_it_is_set():
    account = Account()
    (*_, cut) = account.limit(month_tokens=0)
    assert (cut.state, cut.reason, cut.used, cut.limit) == (State.CUT, "limit_reached", 0, 0)


def test_without_limits_nothing_is_ever_decided():
    account = Account()
    assert [account.use(10**12) for _ in range(3)] == [[], [], []]


def test_setting_an_account_always_says_where_it_stands():
    account = Account(month_tokens=100)
    (said,) = account.limit(month_tokens=100)
    assert (said.state, said.reason) == (State.OPEN, "account_set")


def test_raising_the_allowance_opens_and_does_not_warn_again_this_month():
    account = Account(month_tokens=100)
    account.use(100)
    (opened,) = account.limit(month_tokens=1000)
    (warned,) = account.use_all(400)

    assert (opened.state, opened.limit) == (State.OPEN, 1000)
    assert (warned.state, warned.threshold_percent) == (State.WARNED, 0)
    assert account.use(500) == [("CUT", 0)]


def test_lowering_the_allowance_below_what_was_used_cuts():
    account = Account(month_tokens=1000)
    account.use(100)
    assert account.limit(month_tokens=100)[-1].state is State.CUT


def test_a_new_month_opens_and_its_thresholds_are_told_again():
    account = Account(month_tokens=100)
    account.use(100)
    account.now = MONTH[1]
    assert account.use(10) == [("OPEN", 0)]
    assert account.use(40) == [("WARNED", 50)]


def test_deciding_again_on_the_same_cells_says_nothing():
    account = Account(month_tokens=100, minute_tokens=10)
    account.use(60)
    assert decide(account.cells, np.array([0]), account.now, 1) == []


def test_versions_rise_by_one_and_name_the_epoch_that_decided_before():
    account = Account(month_tokens=100)
    account.use(50)
    account.epoch = 7
    (first, second) = account.use_all(50)

    assert (first.old_epoch, second.old_epoch) == (1, 7)
    assert second.version == first.version + 1


@pytest.mark.parametrize("step_ms", [MINUTE, HOUR, DAY])
def test_rate_windows_forget_when_the_clock_leaves_them(step_ms):
    account = Account()
    account.use(5)
    account.now += step_ms
    account.use(7)
    row = {name: int(account.row[Cell[f"{name}_TOKENS"]]) for name in ("MINUTE", "HOUR", "DAY")}

    same_hour, same_day = step_ms < 30 * MINUTE, step_ms < 30 * MINUTE
    assert row == {"MINUTE": 7, "HOUR": 12 if same_hour else 7, "DAY": 12 if same_day else 7}


def test_an_account_that_moves_to_another_zone_keeps_what_it_used_this_month():
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        account = Account(month_tokens=100)
        account.now += -20 * DAY
        account.use(60)
        account.row[Cell.ZONE] = account.cells.zone_code(zone)
        counted = Counted(
            slots=np.array([0]),
            tokens=np.array([40]),
            months_ms=np.array([spans_at(zone, account.now).month[0]]),
            versions=np.array([9]),
        )
        slots = add_usage(account.cells, counted, account.now)
        decisions = decide(account.cells, slots, account.now, 1)

        assert [(one.state.name, one.threshold_percent, one.used) for one in decisions] == [
            ("WARNED", 80, 100),
            ("CUT", 100, 100),
        ]
        assert int(account.row[Cell.MONTH_TOKENS]) == 100


@pytest.mark.parametrize(
    "limits",
    [{"month_tokens": 0}, {"minute_requests": 0}, {"month_tokens": 0, "day_tokens": 5}],
)
def test_a_limit_of_zero_never_resets(limits):
    """Guards open by `resets_at` alone: a zero that had one would open by itself."""
    account = Account()
    # No warning comes before it: a guard would let the account go on between the two.
    (cut,) = account.limit(**limits)

    assert (cut.state, cut.resets_at_ms, cut.limit) == (State.CUT, 0, 0)
    account.now += 40 * DAY
    account.use(7)
    assert (account.row[Cell.STATE], account.row[Cell.RESETS_AT]) == (State.CUT, 0)


def test_of_a_zero_and_a_limit_that_resets_the_zero_decides():
    account = Account(minute_tokens=5, hour_requests=0)
    account.use(10)
    (told,) = account.limit()
    assert (told.rule, told.resets_at_ms) == (Rule.HOUR_REQUESTS, 0)
