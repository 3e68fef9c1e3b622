"""Each option of `tokenline account` reaches its order; what is wrong is one line and a non-zero exit."""

from __future__ import annotations

import json

import pytest
import typer

from tests.paper_orders import PaperOrders, run_command
from tokenline.cli import account, account_order
from tokenline.errors import Unavailable
from tokenline.quota.books import MOST_UTOK
from tokenline.wire import orders

MILLION = 1_000_000


@pytest.fixture
def line(monkeypatch):
    line = PaperOrders()
    monkeypatch.setattr(orders, "Orders", line)
    monkeypatch.setattr(account_order, "line_settings", lambda data: data)
    return line


@pytest.fixture
def run(capsys):
    return lambda *words: run_command(capsys, "account", *words)


# What is typed, and the fields of the order that say so.
OPTIONS = [
    ("open acme --plan p", {"kind": "open", "account_id": "acme", "plan": "p", "cycle_day": 0}),
    ("open acme --plan p --cycle-day 31", {"cycle_day": 31}),
    ("open acme --plan p", {"time_zone": "Asia/Shanghai"}),
    ("open acme --plan p --time-zone Asia/Tokyo", {"time_zone": "Asia/Tokyo"}),
    ("grant acme 5", {"kind": "grant", "amount_utok": 5 * MILLION, "pack": "", "valid_days": 0}),
    ("grant acme 5", {"source": "top_up", "priority": 100, "transferable": 0}),
    ("grant acme 5", {"models": [], "subscribers": []}),
    ("grant acme --pack coupon", {"pack": "coupon", "amount_utok": 0}),
    ("grant acme 5 --source gift", {"source": "gift"}),
    ("grant acme 5 --days 3", {"valid_days": 3}),
    ("grant acme 5 --days 0", {"valid_days": 0}),
    ("grant acme 5 --priority 0", {"priority": 0}),
    ("grant acme 5 --transferable", {"transferable": 1}),
    ("grant acme 5 --subscriber kim --subscriber lee", {"subscribers": ["kim", "lee"]}),
    ("grant acme --pack own --subscriber kim", {"subscribers": ["kim"]}),
    ("grant acme 5 --models p/max --models q/*", {"models": ["p/max", "q/*"]}),
    ("adjust acme 2 5", {"kind": "adjust", "bucket": 2, "amount_utok": 5 * MILLION}),
    ("adjust acme 2 -5", {"amount_utok": -5 * MILLION}),
    ("adjust acme 2 -- -5", {"amount_utok": -5 * MILLION}),
    ("transfer acme lab 5", {"kind": "transfer", "to_account": "lab", "amount_utok": 5 * MILLION}),
    ("cap acme kim 5", {"kind": "cap", "subscribers": ["kim"], "amount_utok": 5 * MILLION}),
    ("cap acme kim 0", {"amount_utok": 0, "uncap": 0}),
    ("cap acme kim --none", {"kind": "cap", "subscribers": ["kim"], "uncap": 1}),
    ("plan acme p2", {"kind": "change_plan", "plan": "p2", "when": ""}),
    ("plan acme p2 --when now", {"kind": "change_plan", "when": "now"}),
    ("plan acme p2 --when next_cycle", {"kind": "change_plan", "when": "next_cycle"}),
    ("cycle acme 15", {"kind": "change_cycle", "cycle_day": 15}),
    ("suspend acme", {"kind": "suspend"}),
    ("resume acme", {"kind": "resume"}),
    ("close acme", {"kind": "close"}),
]
# One right line of each command, to which the options that all of them have are added.
USUAL = {typed.split()[0]: typed for typed, _ in reversed(OPTIONS)}
COMMON = {"--tenant", "--command-id", "--data", "--json", "--help"}


@pytest.mark.parametrize(("typed", "fields"), OPTIONS)
def test_what_is_typed_is_what_is_ordered(line, run, typed, fields):
    code, _, told = run(*typed.split())
    assert (code, told) == (0, [])
    (sent,) = line.sent
    assert {name: sent[name] for name in fields} == fields


@pytest.mark.parametrize("command", USUAL)
def test_the_options_that_all_commands_have(line, run, tmp_path, command):
    words = USUAL[command].split()
    code, told, _ = run(
        *words, "--tenant", "t", "--command-id", "c1", "--data", str(tmp_path), "--json"
    )
    assert code == 0
    assert (line.sent[0]["tenant_id"], line.sent[0]["command_id"]) == ("t", "c1")
    assert line.settings_of == [tmp_path]
    assert json.loads(told)["command_id"] == "c1"


def test_every_option_of_every_command_is_tried_here():
    """An option that is added and reaches no order would be passed over in silence."""
    group = typer.main.get_command(account.app)
    for name, command in group.commands.items():
        own = {option for one in command.params for option in one.opts if option[0] == "-"}
        tried = {word for typed, _ in OPTIONS if typed.split()[0] == name for word in typed.split()}
        assert name in {*USUAL, "show"}
        assert own - COMMON <= tried, name


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("grant acme", "say either how many tokens to grant, or --pack"),
        ("grant acme 5 --pack coupon", "say either how many tokens to grant, or --pack"),
        ("grant acme --pack coupon --source gift", "the pack itself says --source:"),
        ("grant acme --pack coupon --days 3", "the pack itself says --days:"),
        ("grant acme --pack coupon --days 0", "the pack itself says --days:"),
        ("grant acme --pack coupon --priority 100", "the pack itself says --priority:"),
        ("grant acme --pack coupon --transferable", "the pack itself says --transferable:"),
        ("grant acme --pack coupon --models p/max", "the pack itself says --models:"),
        ("grant acme 5 --models gpt", "--models 'gpt' is no provider/model"),
        ("grant acme 5 --models /gpt", "--models '/gpt' is no provider/model"),
        ("grant acme 5 --subscriber=", "a subscriber needs a name"),
        ("grant acme 5 --source found", "Invalid value for '--source': 'found' is not one of"),
        ("grant acme 5 --days -1", "Invalid value for '--days'"),
        ("grant acme 5 --days soon", "Invalid value for '--days'"),
        ("grant acme 5 --days 999999999999", "Invalid value for '--days'"),
        ("grant acme 5 --priority 99999999999999999999", "Invalid value for '--priority'"),
        ("grant acme 0", "Invalid value for"),
        ("grant acme 1000000000001", "Invalid value for"),
        ("grant acme 1.5", "Invalid value for"),
        ("grant acme -5", "No such option: -5 (a number below zero is written behind --)"),
        ("grant acme 5 --dayz 3", "No such option: --dayz"),
        ("open acme", "Missing option '--plan'"),
        ("open acme --plan p --cycle-day 32", "Invalid value for '--cycle-day'"),
        ("adjust acme 0 5", "Invalid value for"),
        ("adjust acme 1 -1000000000001", "Invalid value for"),
        ("transfer acme lab 0", "Invalid value for"),
        ("transfer acme", "Missing argument"),
        ("cap acme kim", "say either how many tokens the subscriber may use, or --none"),
        ("cap acme kim 5 --none", "say either how many tokens the subscriber may use, or --none"),
        ("cap acme kim 1000000000001", "Invalid value for"),
        ("cap acme", "Missing argument"),
        ("cycle acme 0", "Invalid value for"),
        ("cycle acme 2026-10-01", "Invalid value for"),
        ("suspend", "Missing argument"),
        ("grnt acme 5", "No such command 'grnt'. Did you mean 'grant'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_sent(line, run, typed, told):
    code, out, (said,) = run(*typed.split())
    assert (code, out, line.sent) == (2, "", [])
    assert told in said


def test_a_zone_that_is_none_never_leaves_this_machine(line, run):
    code, _, (said,) = run("open", "acme", "--plan", "p", "--time-zone", "Mars/Olympus")
    assert (code, line.sent) == (1, [])
    assert said == "tokenline: time_zone 'Mars/Olympus' is not an IANA zone such as Asia/Shanghai"


def test_the_bounds_of_what_may_be_typed_are_those_of_the_books():
    assert account.MOST_TOKENS * MILLION == MOST_UTOK


def test_an_id_that_was_made_here_is_told_so_that_the_order_can_be_repeated(line, run):
    line.says = {"bucket": 3}
    _, told, _ = run("grant", "acme", "5")
    made = line.sent[0]["command_id"]
    assert len(made) == 36
    assert told == f"grant: done, bucket 3; 7 standard tokens left (command id {made})\n"
    _, told, _ = run("grant", "acme", "5", "--json")
    assert json.loads(told)["command_id"] == line.sent[1]["command_id"] != made


def test_who_transfers_is_told_that_it_may_come_back(line, run):
    _, told, _ = run("transfer", "acme", "lab", "5", "--command-id", "c1")
    assert told == (
        "transfer: done, and what lab cannot take comes back; 7 standard tokens left (command id c1)\n"
    )


@pytest.mark.parametrize("fails", [Unavailable("no answer"), KeyboardInterrupt()])
def test_who_gets_no_answer_is_told_how_to_ask_again(line, run, fails):
    line.fails = fails
    code, _, said = run("suspend", "acme", "--command-id", "c1")
    assert code in (1, 130)
    assert "the same order with --command-id c1 is carried out once" in said[0]


@pytest.mark.parametrize(
    ("reason", "detail", "told"),
    [
        ("bad_amount", "only 5 left", "bad amount: only 5 left"),
        (
            "unknown_plan",
            "",
            "unknown plan (tokenline catalog show lists the newest, and from when on)",
        ),
        ("unknown_account", "", "(an account is opened first: tokenline account open acme --plan"),
        ("limit_held", "", "limit held"),
    ],
)
def test_a_refusal_says_why_and_what_helps(line, run, reason, detail, told):
    line.says = {"outcome": "refused", "reason": reason, "detail": detail}
    code, out, (said,) = run("suspend", "acme")
    assert (code, out) == (1, "")
    assert said.startswith("tokenline: suspend of default/acme is refused: ")
    assert told in said

    code, out, (said,) = run("suspend", "acme", "--json")
    assert (code, json.loads(out)["reason"]) == (1, reason)


def test_an_account_that_looks_like_a_key_is_told_how_tenants_are_named(line, run):
    line.says = {"outcome": "refused", "reason": "unknown_account"}
    code, _, (said,) = run("show", "t/acme")
    assert code == 1
    assert said.endswith("(the account of another tenant is named by --tenant)")


def test_a_plan_that_is_in_force_later_says_from_when_on(line, run):
    line.says = {"detail": "p2 is in force from 2026-12-01 00:00:00 +0800 (Asia/Shanghai) on"}
    code, out, _ = run("plan", "acme", "p2")
    assert code == 0
    assert out.startswith("change_plan: done, p2 is in force from 2026-12-01 00:00:00")
