"""What is shown of an account says why it is so, with units, in its own time zone."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.strategies import BOUNDS, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.cli import common
from tokenline.cli.account_show import print_account, why_text

MILLION = 1_000_000
NOVEMBER = "2026-11-01 00:00:00 +0800 (Asia/Shanghai)"


@pytest.fixture
def state():
    state = PartitionState(BOUNDS)
    fold_commands(state, [catalog_version(0, NOON, CATALOG)], 0)
    return state


def opened(state, plan="strict"):
    fold_commands(state, [order(1, NOON, kind="open", plan=plan)], 1)


def use(state, tokens, offset=0):
    said = {"occurred_at": NOON, "event_id": f"e{offset}", "model": "max", "input_tokens": tokens}
    fold_usage(state, chunk_of([record(offset, NOON, account_id="a", **said)]))


def found(state):
    """Return what is shown, as a command gets it."""
    asked = order(90, NOON, kind="show", command_id="look")
    return json.loads(fold_commands(state, [asked], 90).replies[0].answer.detail)


def test_an_open_account_says_what_is_used_and_when_it_starts_anew(state):
    opened(state)
    use(state, 3)
    said = found(state)
    assert said["figure"] == {
        "used": 3 * MILLION,
        "limit": 10 * MILLION,
        "unit": "utok",
        "overage": 0,
        "resets_at_ms": said["cycle_end_ms"],
    }
    assert why_text(said) == f"open: 3 of 10 standard tokens used; the next cycle begins {NOVEMBER}"


def test_what_calls_hold_is_not_used_and_not_free(state):
    opened(state)
    fold_commands(state, [hold_order(2, NOON, max_tokens=2)], 2)
    assert "0 of 10 standard tokens used (4 standard tokens more held for calls);" in why_text(
        found(state)
    )


def test_a_warned_account_says_how_much_is_used(state):
    opened(state)
    use(state, 9)
    said = found(state)
    assert said["why"] == "balance"
    assert why_text(said).startswith("warned: 90 % is used: 9 of 10 standard tokens used;")


def test_an_account_that_is_used_up_says_so_and_when_it_resets(state):
    opened(state)
    use(state, 40)
    assert (
        why_text(found(state))
        == f"cut: its balance is used up: 10 of 10 standard tokens used; resets {NOVEMBER}"
    )


def test_an_account_whose_rest_pays_for_no_call_does_not_say_that_all_is_used(state):
    opened(state)
    more = order(2, NOON, kind="grant", amount_utok=990 * MILLION)
    fold_commands(state, [more], 2)
    use(state, 999)
    said = why_text(found(state))
    assert said.startswith("cut: what is left of its balance pays for no call: 999 of 1,000 ")


def test_an_account_at_a_limit_names_it_in_its_own_unit(state):
    opened(state, "limited")
    use(state, 1, 0)
    use(state, 1, 1)
    minute = "2026-10-31 23:31:00 +0800 (Asia/Shanghai)"
    assert (
        why_text(found(state))
        == f"cut: the limit minute_requests is reached: 2 of 2 requests used; resets {minute}"
    )


def test_an_account_at_a_limit_that_is_not_in_its_cells_names_it_too(state):
    opened(state, "limited")
    use(state, 1000)
    assert (
        why_text(found(state))
        == "cut: the limit week_tokens is reached: 1,000 of 1,000 tokens used; "
        "resets 2026-11-02 00:00:00 +0800 (Asia/Shanghai)"
    )


@pytest.mark.parametrize(
    ("kind", "told"),
    [("suspend", "until somebody resumes it (tokenline account resume a)"), ("close", "for good")],
)
def test_a_status_says_who_ends_it(state, kind, told):
    opened(state)
    fold_commands(state, [order(2, NOON, kind=kind)], 2)
    assert told in why_text(found(state))


def test_an_account_with_limits_of_a_file_says_what_is_used_of_its_month(state):
    fold_commands(state, [command(2, NOON, month_tokens=0)], 2)
    said = found(state)
    assert said["figure"]["unit"] == "tokens"
    told = "cut: the limit month_tokens is reached: 0 of 0 tokens used; no clock ends that"
    assert why_text(said) == told


def test_an_account_that_nothing_limits_says_so(state):
    fold_commands(state, [command(2, NOON)], 2)
    said = found(state)
    assert said["figure"] is None
    assert why_text(said) == "open: nothing limits all of it together"


def test_every_limit_says_its_unit(state):
    opened(state, "household")
    fold_commands(state, [command(2, NOON, day_tokens=9)], 2)
    units = {one["limit"]: one["unit"] for one in found(state)["limits"]}
    assert units == {
        "day_tokens": "tokens",
        "subscriber_tokens": "utok",
        "subscriber_rolling_minute_utok": "utok",
        "hour_utok:minis": "utok",
        "week_requests": "requests",
    }


def test_people_read_standard_tokens_and_the_accounts_own_time(state, capsys):
    opened(state, "household")
    granted = {"amount_utok": MILLION // 2, "valid_to": NOON + 60_000, "subscribers": ["[/kid]"]}
    fold_commands(state, [order(2, NOON, kind="grant", **granted)], 2)
    use(state, 1)
    print_account(found(state))
    why, *table = capsys.readouterr().out.splitlines()
    rows = [" ".join(line.replace("│", " ").split()) for line in table]
    assert why.startswith("t/a is open: 1 of 10.5 standard tokens used; the next cycle begins ")
    assert "allowance 10.5 standard tokens" in rows
    assert f"cycle end {NOVEMBER}" in rows
    assert "buckets, in standard tokens; times of Asia/Shanghai" in rows
    assert "2 top_up 100 0.5 0 2026-10-31 23:31:00 +0800 [/kid]" in rows
    assert "subscriber_tokens * 0 0 60 standard tokens" in rows
    assert "week_requests 1 0 9 requests 2026-11-02 00:00:00 +0800" in rows


def test_what_can_be_paid_is_said_where_not_everything_can(state, capsys):
    opened(state, "small")
    packed = {"kind": "grant", "amount_utok": MILLION, "subscribers": ["kid", "mum"]}
    fold_commands(state, [order(2, NOON, **packed)], 2)
    print_account(found(state))
    said = capsys.readouterr().out.splitlines()[1]
    assert said == "all that can be paid: p/mini for everybody; every model for kid, mum"
    opened_whole = found(state) | {"covers": []}
    print_account(opened_whole)
    assert "can be paid" not in capsys.readouterr().out


def test_overage_is_said_beside_what_is_used(state):
    opened(state, "postpaid")
    use(state, 9)
    said = found(state)
    assert (said["used_utok"], said["overage_utok"]) == (
        said["allowance_utok"],
        said["figure"]["overage"],
    )
    told = why_text(said)
    assert told.startswith("warned: 279 % is used: 3.225806 of 3.225806 standard tokens used and ")
    assert "used and 5.774194 beyond them; the next cycle begins" in told


def test_a_narrow_terminal_cuts_no_number_off(state, capsys, monkeypatch):
    monkeypatch.setattr(common, "out", Console(width=40, force_terminal=True, color_system=None))
    common.print_table(["what", "total"], [["a word or two " * 5, "80,000,000,000,000"]])
    assert "80,000,000,000,000" in capsys.readouterr().out
