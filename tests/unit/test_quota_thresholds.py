"""A plan's own thresholds are told once a cycle, each account by its own list, and survive the worker."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from tests.orders import catalog_version, order
from tests.paper_line import Books, Journal, PaperLine, facts
from tests.strategies import BOUNDS, DAY, MINUTE, NOON, Record, chunk_of, event, key_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.quota.balance import Balance
from tokenline.quota.decided import State
from tokenline.quota.thresholds import percent_reached
from tokenline.rating.catalog import Catalog

PLAN = """
[plans.{name}]
title = "{name}"
fee = "1"
tokens = {tokens}
mode = "postpaid"
proration = "full"
thresholds = {thresholds}
"""
OVERAGE = 'used_up = "overage"\noverage_price = "2.5"\n'


def catalog(version=1, effective="2026-09-01", **thresholds):
    lists = {"early": [10, 90], "over": [50, 100, 150, 1000], "silent": [], "usual": [50, 80, 100]}
    text = f"""
version = {version}
effective_from = {effective}T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[[rates]]
provider = "p"
model = "max"
input_tokens = 1
output_tokens = 1
"""
    for name, percents in (lists | thresholds).items():
        text += PLAN.format(name=name, tokens=100, thresholds=percents)
        text += OVERAGE if name == "over" else ""
    return Catalog.model_validate(tomllib.loads(text))


@pytest.fixture
def state():
    state = PartitionState(BOUNDS)
    fold_commands(state, [catalog_version(0, NOON, catalog())], 0)
    return state


def opened(state, **plans):
    orders = [
        order(number, NOON, kind="open", account_id=account, plan=plan)
        for number, (account, plan) in enumerate(plans.items(), 1)
    ]
    fold_commands(state, orders, len(orders))


class Usage:
    """Use tokens and return what was told: account, state, threshold, reason."""

    def __init__(self, state):
        self.state, self.offset, self.now_ms = state, 0, NOON

    def __call__(self, **tokens):
        records = []
        for account, count in tokens.items():
            fields = {"account_id": account, "model": "max", "input_tokens": count}
            fields |= {"occurred_at": self.now_ms, "event_id": f"e{self.offset}"}
            records.append(record(self.offset, self.now_ms, **fields))
            self.offset += 1
        step = fold_usage(self.state, chunk_of(records))
        return [
            (
                self.state.cells.keys[one.slot].split("/")[1],
                one.state.name,
                one.threshold_percent,
                one.reason,
            )
            for one in step.decisions
        ]


def test_each_account_is_told_of_its_own_plans_thresholds_once(state):
    opened(state, a="early", b="usual", c="silent")
    use = Usage(state)
    warned = "threshold_reached"

    assert use(a=10, b=10, c=10) == [("a", "WARNED", 10, warned)]
    assert use(a=40, b=40, c=40) == [("b", "WARNED", 50, warned)]
    assert use(a=40, b=40, c=40) == [("a", "WARNED", 90, warned), ("b", "WARNED", 80, warned)]
    # 100 cuts where the plan stops, whether it is in the list or not; it is a threshold if it is.
    assert use(a=10, b=10, c=10) == [
        ("a", "CUT", 0, "limit_reached"),
        ("b", "CUT", 100, "limit_reached"),
        ("c", "CUT", 0, "limit_reached"),
    ]
    assert use(a=100, b=100, c=100) == []


def test_a_jump_to_the_end_tells_each_threshold_once(state):
    opened(state, a="early")
    assert Usage(state)(a=100) == [
        ("a", "WARNED", 10, "threshold_reached"),
        ("a", "WARNED", 90, "threshold_reached"),
        ("a", "CUT", 0, "limit_reached"),
    ]


def test_above_100_what_is_paid_beyond_the_allowance_counts(state):
    opened(state, a="over")
    use = Usage(state)
    told = [use(a=count) for count in (99, 1, 49, 1, 849, 1, 500)]
    assert [[one[1:3] for one in here] for here in told] == [
        [("WARNED", 50)],
        [("WARNED", 100)],
        [],
        [("WARNED", 150)],
        [],
        [("WARNED", 1000)],
        [],
    ]


def test_the_next_cycle_tells_them_again_and_counts_from_nothing(state):
    opened(state, a="over")
    use = Usage(state)
    use(a=160)
    use.now_ms += 40 * DAY
    assert use(a=49) == [("a", "OPEN", 0, "window_reset")]
    assert [one[2] for one in use(a=51)] == [50, 100]
    assert use(a=49) == []
    assert [one[2] for one in use(a=1)] == [150]


def test_a_cut_and_its_end_are_told_as_such_when_an_order_makes_them(state):
    opened(state, a="early")
    step = fold_commands(state, [order(2, NOON, kind="suspend", account_id="a")], 2)
    assert [(one.state, one.reason) for one in step.decisions] == [(State.CUT, "limit_reached")]
    step = fold_commands(state, [order(3, NOON, kind="resume", account_id="a")], 3)
    assert [(one.state, one.reason) for one in step.decisions] == [(State.OPEN, "resumed")]
    Usage(state)(a=100)
    more = order(4, NOON, kind="grant", account_id="a", amount_utok=900_000_000)
    step = fold_commands(state, [more], 4)
    assert [(one.state, one.reason) for one in step.decisions] == [(State.WARNED, "resumed")]
    same = order(5, NOON, kind="grant", account_id="a", amount_utok=1)
    step = fold_commands(state, [same], 5)
    assert [one.reason for one in step.decisions] == ["account_set"]


def test_lists_survive_the_worker_also_those_that_a_new_cycle_brings():
    journal = Journal()
    line = PaperLine(journal, Books())
    october = catalog(2, "2026-10-01", early=[30, 60])
    line.command(
        [
            catalog_version(0, NOON, catalog()),
            catalog_version(1, NOON, october),
            order(2, NOON, kind="open", account_id="a", plan="early"),
        ]
    )

    def used(offset, now_ms, tokens):
        said = event(
            event_id=f"e{offset}", account_id="a", model="max", occurred_at=now_ms,
            input_tokens=tokens, output_tokens=0,
        )  # fmt: skip
        return Record(offset, now_ms, key_of(said), said)

    later_ms = NOON + 40 * DAY
    line.charge([used(0, NOON, 1)])
    line.charge([used(1, later_ms, 29)])
    balances = line.state.books.balances.matrix
    code = int(balances[0, Balance.THRESHOLDS])
    assert line.state.books.thresholds[code] == (30, 60)
    again = PaperLine(journal, Books())
    assert facts(again.state) == facts(line.state)
    assert again.state.books.thresholds == line.state.books.thresholds
    again.charge([used(2, later_ms + MINUTE, 1)])
    assert again.state.cells.matrix[0].tolist() != line.state.cells.matrix[0].tolist()
    line_use = Usage(again.state)
    line_use.offset, line_use.now_ms = 3, later_ms + 2 * MINUTE
    assert [one[2] for one in line_use(a=30)] == [60]


@pytest.mark.parametrize("limit", [1, 7, 99, 10**18, 9 * 10**18 + 1, 2**63 - 1])
def test_percents_above_100_are_exact_and_cannot_overflow(limit):
    steps = (1, 50, 100, 101, 150, 999, 1000)
    for step in steps:
        least = -(-limit * step // 100)
        for used in (least - 1, least):
            if 0 <= used < 2**63:
                reached = [one for one in steps if used * 100 >= limit * one]
                found = percent_reached(np.array([used]), np.array([limit]), steps)
                assert found.tolist() == [max(reached, default=0)], (used, step)
