"""`tokenline quota` answers for whoever pays by a file of limits, by a plan, or by both."""

from __future__ import annotations

import json

import pytest

from tests.orders import CATALOG, catalog_version, order
from tests.paper_orders import PaperOrders, run_command
from tests.strategies import BOUNDS, NOON, command
from tokenline.charging.commands import fold_commands
from tokenline.charging.partition import PartitionState
from tokenline.cli import ask
from tokenline.errors import BrokerUnavailable
from tokenline.landing import queries
from tokenline.wire import orders

MILLION = 1_000_000
GONE = {"outcome": "refused", "reason": "unknown_account"}


@pytest.fixture
def line(monkeypatch):
    line = PaperOrders()
    monkeypatch.setattr(orders, "Orders", line)
    monkeypatch.setattr(ask, "line_settings", lambda data: data)
    landed(monkeypatch, known=False)
    return line


@pytest.fixture
def run(capsys):
    return lambda *words: run_command(capsys, "quota", *words)


def landed(monkeypatch, **fields):
    """Let the warehouse answer; `fields` say what is different from nothing."""
    plain = {
        "tenant_id": "t",
        "account_id": "a",
        "known": True,
        "plan": "file-plan",
        "used": 1550,
        "limit": 15_000_000,
        "late_used": 0,
        "state": "open",
        "rule": "",
        "reason": "",
        "month_start_ms": NOON,
        "resets_at_ms": NOON,
        "as_of_ms": NOON,
    }
    view = queries.QuotaView(**plain | fields)
    monkeypatch.setattr(queries, "quota", lambda *_: view)


def charged(*commands):
    """Return what charging answers of account `t/a` behind the commands."""
    state = PartitionState(BOUNDS)
    fold_commands(state, [catalog_version(0, NOON, CATALOG), *commands], 1)
    shown = fold_commands(state, [order(2, NOON, kind="show")], 2).replies[0].answer
    return {"detail": shown.detail}


def test_an_account_with_a_plan_shows_its_balance(line, run):
    line.says = charged(order(1, NOON, kind="open", plan="strict"))
    code, told, said = run("a", "--tenant", "t")
    assert (code, said) == (0, [])
    assert (line.sent[0]["tenant_id"], line.sent[0]["kind"]) == ("t", "show")
    rows = [" ".join(row.replace("│", " ").split()) for row in told.splitlines()]
    assert rows[0].startswith("t/a is open: 0 of 10 standard tokens used; the next cycle begins ")
    assert {"plan strict", "balance of this bill cycle 10 standard tokens"} <= set(rows)
    assert {"balance used 0 standard tokens", "balance left 10 standard tokens"} <= set(rows)
    assert "bill cycle ends 2026-11-01 00:00:00 +0800 (Asia/Shanghai)" in rows

    _, told, _ = run("a", "--tenant", "t", "--json")
    balance = json.loads(told)["balance"]
    assert (balance["state"], balance["allowance_utok"]) == ("open", 10 * MILLION)


def test_an_account_of_a_file_shows_its_month_in_its_own_zone(line, run, monkeypatch):
    landed(monkeypatch)
    line.says = charged(command(1, NOON, month_tokens=15_000_000, time_zone="Asia/Tokyo"))
    code, told, said = run("a", "--tenant", "t")
    assert (code, said) == (0, [])
    assert "t/a is open: 0 of 15,000,000 tokens used; resets 2026-12-01 00:00:00 +0900" in told
    assert "1,550 tokens" in told
    assert "2026-11-01 00:30:00 +0900 (Asia/Tokyo)" in told
    assert json.loads(run("a", "--tenant", "t", "--json")[1])["balance"] is None


def test_while_charging_is_away_the_month_that_has_landed_is_shown(line, run, monkeypatch):
    landed(monkeypatch, limit=-1)
    line.fails = BrokerUnavailable("Kafka at here: gone")
    code, told, (said,) = run("a", "--tenant", "t")
    assert code == 0
    assert "1,550 tokens" in told
    assert "none" in told
    assert said == "tokenline: a balance is not shown: Kafka at here: gone"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_account_that_nobody_knows_is_told_so_and_what_helps(line, run, more):
    line.says = GONE
    code, told, (said,) = run("nobody", *more)
    assert (code, bool(told)) == (1, bool(more))
    assert "default/nobody was never applied" in said
    assert "nor opened on a plan" in said


def test_while_charging_is_away_nobody_says_that_there_is_no_such_account(line, run):
    line.fails = BrokerUnavailable("Kafka at here: gone")
    code, _, (said,) = run("a", "--tenant", "t")
    assert code == 1
    assert said.endswith("account t/a is in no accounts file; its balance: Kafka at here: gone")


@pytest.mark.parametrize(("answer", "printed"), [("a\n1\n", "a\n1"), ("", "no rows")])
def test_a_query_that_finds_nothing_says_so(line, capsys, monkeypatch, answer, printed):
    monkeypatch.setattr(queries, "sql", lambda *_: answer)
    said = run_command(capsys, "sql", "SELECT 1 WHERE 0")
    assert printed in "".join(map(str, said))
