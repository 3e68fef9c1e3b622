"""What ends by time is told by a tick: cuts by limits, of accounts, subscribers and groups, months and cycles."""

from __future__ import annotations

import json

import pytest

from tests.limits import LIMITS_CATALOG
from tests.orders import CATALOG, catalog_version, order, tick
from tests.paper_line import Books as Readers
from tests.paper_line import Journal, PaperLine
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, chunk_of, command, record
from tests.unit.test_charging_limits import MILLION, Line
from tokenline.charging import commands
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.quota.terms import NEVER_MS
from tokenline.rating.catalog import Catalog

NOVEMBER = NOON + HOUR // 2


def ticked(line, after_ms=0):
    """Let time pass and a tick come; return what is told."""
    line.now += after_ms
    step = fold_commands(line.state, [tick(line._next(), line.now)], line.offset)
    return [(one.subscriber, one.group, one.state.name, one.reason) for one in step.decisions]


def limited(**limit):
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["loose"]["limits"] = [limit]
    return Line("loose", Catalog.model_validate(said))


@pytest.mark.parametrize("rolling", [False, True])
def test_a_minutes_cut_of_an_account_is_told_open_when_the_minute_is_over(rolling):
    line = limited(requests=2, per="minute", rolling=rolling)
    for _ in range(2):
        last = line.use(tokens=1)
    cut = last.decisions[-1]
    assert (cut.state.name, cut.resets_at_ms > line.now) == ("CUT", True)
    assert line.state.first_due_ms == cut.resets_at_ms
    assert ticked(line, cut.resets_at_ms - 1 - line.now) == []
    assert ticked(line, 1) == [("", "", "OPEN", "resumed")]
    assert not line.state.is_due(line.now)
    assert line.state.first_due_ms == NOVEMBER


def test_a_cut_of_a_subscriber_and_of_a_group_is_told_open_when_its_window_is_over():
    line = Line("limited")
    line.now = NOVEMBER
    line.use("kid", tokens=10)
    line.use("mum", tokens=200, model="mini")
    hour, day = NOVEMBER + HOUR, NOVEMBER + DAY
    assert ticked(line, hour - line.now) == [("", "hour_utok:minis", "OPEN", "resumed")]
    assert ticked(line, day - 1 - line.now) == []
    assert ("kid", "", "OPEN", "resumed") in ticked(line, 1)


def test_an_account_that_used_its_balance_up_is_told_open_when_its_cycle_begins():
    line = limited(requests=9, per="week")
    line.use(tokens=100)
    assert line.shown()["state"] == "cut"
    assert ticked(line, NOVEMBER - 1 - line.now) == []
    assert ticked(line, 1) == [("", "", "OPEN", "resumed")]


def test_an_account_is_told_cut_when_the_last_that_it_had_is_over():
    line = limited(requests=9, per="week")
    line.order(kind="adjust", bucket=1, amount_utok=-100 * MILLION)
    line.order(kind="grant", amount_utok=5 * MILLION, valid_to=NOON + 5 * MINUTE)
    assert line.shown()["state"] == "open"
    assert ticked(line, 5 * MINUTE - 1) == []
    assert ticked(line, 1) == [("", "", "CUT", "limit_reached")]


def test_a_warning_of_the_months_tokens_ends_with_the_month():
    state = PartitionState(BOUNDS)
    fold_commands(state, [command(0, NOON, month_tokens=10)], 0)
    said = fold_usage(state, chunk_of([record(0, NOON, input_tokens=6)])).decisions
    assert [one.state.name for one in said] == ["WARNED"]
    assert state.first_due_ms == NOVEMBER
    step = fold_commands(state, [tick(1, NOVEMBER - 1), tick(2, NOVEMBER)], 2)
    assert [(one.state.name, one.reason) for one in step.decisions] == [("OPEN", "window_reset")]
    assert not state.is_due(NOVEMBER)
    assert state.first_due_ms == NEVER_MS


def test_a_hold_that_nobody_renews_is_closed_by_a_tick():
    line = Line("family")
    line.hold(max_tokens=10)
    assert line.shown()["holds"]
    assert ticked(line, 2 * MINUTE) == []
    assert [one["held_utok"] for one in line.shown()["holds"]] == []


def test_usage_that_comes_behind_a_tick_and_is_older_cuts_nobody_for_a_minute_that_is_over():
    line = limited(requests=2, per="minute")
    line.use(tokens=1)
    at = line.now
    ticked(line, MINUTE)
    line.now = at + 1
    assert [one.state.name for one in line.use(tokens=1).decisions] == []
    line.now = at + MINUTE + 1
    assert line.limit("minute_requests") == (0, 0, 2)


def test_a_tick_leaves_the_windows_that_older_usage_counts_into():
    line = limited(requests=3, per="day")
    line.use(tokens=1)
    at = line.now
    ticked(line, DAY)
    line.now = at + 1
    line.use(tokens=1)
    counted = line.state.cells.matrix[0, commands.Cell.DAY_REQUESTS]
    assert counted == 2


def many(count):
    """Return a partition with accounts of which half have used all they had."""
    state = PartitionState(BOUNDS)
    names = [f"a{number}" for number in range(count)]
    opened = [
        order(1 + at, NOON, account_id=name, kind="open", plan="strict")
        for at, name in enumerate(names)
    ]
    fold_commands(state, [catalog_version(0, NOON, CATALOG), *opened], count)
    used = [
        record(at, NOON, account_id=name, event_id=name, model="max", input_tokens=310)
        for at, name in enumerate(names)
        if at % 2
    ]
    fold_usage(state, chunk_of(used))
    return state


def test_a_tick_takes_a_slice_of_what_is_due_those_first_who_wait_for_it(monkeypatch):
    monkeypatch.setattr(commands, "TICK_ACCOUNTS", 4)
    state, told, count = many(10), [], 10
    for turn in range(3):
        step = fold_commands(state, [tick(count + 1 + turn, NOVEMBER)], count + 1 + turn)
        told.append(sorted(state.cells.keys[one.slot] for one in step.decisions))
        assert state.is_due(NOVEMBER) is (turn < 2)
    # An account that was warned of nothing has nothing told.
    assert told == [["t/a1", "t/a3", "t/a5", "t/a7"], ["t/a9"], []]


def test_nothing_is_due_after_a_tick_that_took_all_of_it():
    state = many(3)
    assert state.first_due_ms == NOVEMBER
    fold_commands(state, [tick(9, NOVEMBER)], 9)
    assert not state.is_due(NOVEMBER)
    # What November's first allowances leave of October closes when no usage of it can come any more.
    assert state.first_due_ms == NOVEMBER + state.books.linger_ms


def test_a_successor_knows_what_is_due():
    journal, books = Journal(), Readers()
    line = PaperLine(journal, books)
    line.command(
        [
            catalog_version(0, NOON, LIMITS_CATALOG),
            order(1, NOON, kind="open", plan="limited"),
            tick(2, NOON + 1),
        ]
    )
    for offset, who, tokens, model in ((0, "kid", 10, "max"), (1, "mum", 200, "mini")):
        said = {"subscriber_id": who, "input_tokens": tokens, "model": model}
        line.charge([record(offset, NOON + 1, event_id=who, **said)])
    line.rest()
    again = PaperLine(journal, books).state
    assert again.first_due_ms == line.state.first_due_ms == NOON // HOUR * HOUR + HOUR
    assert again.ticked_ms == NOON + 1
    for moment in (NOON + HOUR, NOON + DAY):
        assert again.books.dues.due(moment, 9) == line.state.books.dues.due(moment, 9)
        assert again.books.told.dues.due(moment, 9) == line.state.books.told.dues.due(moment, 9)
