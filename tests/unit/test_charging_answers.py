"""A command id is of one order: that order again is answered alike, and another is refused."""

from __future__ import annotations

import pytest

from tests.orders import order
from tests.strategies import DAY, NOON
from tests.unit.test_charging_limits import MILLION, Line, recovered
from tokenline.charging.balances import session_of
from tokenline.charging.commands import fold_commands
from tokenline.quota.answers import OrderAnswer

TOP_UP = {"kind": "grant", "amount_utok": 5 * MILLION, "command_id": "x"}


@pytest.fixture
def line():
    return Line("loose")


def ask(line, appended_ms=NOON, **fields):
    offset = line._next()
    step = fold_commands(line.state, [order(offset, appended_ms, **fields)], offset)
    return step.replies[0].answer


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "suspend"},
        {"kind": "grant", "amount_utok": 6 * MILLION},
        TOP_UP | {"source": "gift"},
        TOP_UP | {"models": ["p/max"]},
        TOP_UP | {"subscribers": ["kid"]},
        TOP_UP | {"transferable": 1},
        TOP_UP | {"priority": 7},
        TOP_UP | {"valid_to": NOON + DAY},
        TOP_UP | {"valid_from": NOON},
        TOP_UP | {"valid_days": 3},
        TOP_UP | {"time_zone": "UTC"},
        {"kind": "change_plan", "plan": "family", "when": "now"},
        {"kind": "grant", "pack": "own", "subscribers": ["kid"]},
        {"kind": "change_plan", "plan": "family"},
        {"kind": "change_cycle", "cycle_day": 5},
        {"kind": "adjust", "bucket": 1, "amount_utok": 5 * MILLION},
        {"kind": "transfer", "to_account": "b", "amount_utok": 5 * MILLION},
        {"kind": "cap", "subscribers": ["kid"], "amount_utok": 5 * MILLION},
    ],
)
def test_another_order_under_a_known_id_is_refused_and_changes_nothing(line, other):
    first = ask(line, **TOP_UP)
    before = [table.matrix.tobytes() for table in line.state.books.tables]
    refused = ask(line, **other | {"command_id": "x"})
    assert (refused.outcome.name, refused.reason.name) == ("REFUSED", "COMMAND_ID_REUSED")
    assert "command_id" in refused.detail
    assert [table.matrix.tobytes() for table in line.state.books.tables] == before
    assert ask(line, **TOP_UP) == first


def test_the_same_order_said_again_later_is_the_same_order(line):
    """Who repeats `--days 31` says 31 days again; who asks and when is no part of what is asked."""
    said = TOP_UP | {"valid_days": 31}
    first = ask(line, **said, reply_to="me", issued_at=NOON)
    assert ask(line, NOON + DAY, **said, reply_to="you", issued_at=NOON + 9) == first


def test_a_change_of_plan_under_a_known_id_says_the_same_when(line):
    change = {"kind": "change_plan", "plan": "family", "command_id": "x", "when": "next_cycle"}
    assert ask(line, **change).outcome.name == "DONE"
    assert ask(line, **change | {"when": "now"}).reason.name == "COMMAND_ID_REUSED"


def test_a_refusal_is_not_remembered_when_its_cause_is_gone(line):
    ask(line, kind="suspend", command_id="s")
    wanted = {"kind": "transfer", "to_account": "b", "amount_utok": 1, "command_id": "x"}
    assert ask(line, **wanted).reason.name == "SUSPENDED"
    ask(line, kind="resume", command_id="r")
    ask(line, kind="grant", amount_utok=5, transferable=1, command_id="g")
    assert ask(line, **wanted).outcome.name == "DONE"
    moved = line.state.books.chain(line.state.books.row(0))
    assert ask(line, **wanted).outcome.name == "DONE"
    assert line.state.books.chain(line.state.books.row(0)) == moved


def test_an_order_that_was_refused_may_be_mended_under_its_id(line):
    wrong = {"kind": "change_plan", "plan": "unheard-of", "command_id": "x"}
    assert ask(line, **wrong).reason.name == "UNKNOWN_PLAN"
    assert ask(line, **wrong | {"plan": "family"}).outcome.name == "DONE"
    assert ask(line, **wrong).reason.name == "COMMAND_ID_REUSED"


def test_what_was_asked_is_known_after_a_restart(line):
    ask(line, **TOP_UP)
    line.state.books = recovered(line.state)
    assert ask(line, **TOP_UP).outcome.name == "DONE"
    assert ask(line, kind="suspend", command_id="x").reason.name == "COMMAND_ID_REUSED"


def test_of_an_answer_that_an_older_worker_kept_nobody_knows_the_order(line):
    kept = OrderAnswer(at_ms=line.state.clock_ms)
    line.state.books.answers.remember(0, session_of("old"), kept)
    assert ask(line, kind="suspend", command_id="old").outcome.name == "DONE"
    assert line.shown()["status"] == "active"
