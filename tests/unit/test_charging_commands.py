"""An order is carried out once or refused with a reason; what is no order is a dead letter."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.terms import not_enforced
from tokenline.quota.balance import Balance
from tokenline.quota.books import MOST_UTOK
from tokenline.quota.buckets import Bucket
from tokenline.quota.decided import Rule, State
from tokenline.rating.catalog import Catalog

MILLION = 1_000_000


@pytest.fixture
def state():
    """A partition that knows the small catalog."""
    state = PartitionState(BOUNDS)
    fold_commands(state, [catalog_version(0, NOON, CATALOG)], 0)
    return state


def ask(state, *commands):
    """Fold the commands and return the answers."""
    step = fold_commands(state, commands, commands[-1].offset)
    return [replied.answer for replied in step.replies]


def opened(state, account="a", plan="strict", **fields):
    (answer,) = ask(state, order(1, NOON, kind="open", account_id=account, plan=plan, **fields))
    assert answer.outcome.name == "DONE", answer.reason
    return state.cells.slot(f"t/{account}")


def use(state, offset, now_ms=NOON, **fields):
    return fold_usage(
        state,
        chunk_of([record(offset, now_ms, occurred_at=now_ms, event_id=f"e{offset}", **fields)]),
    )


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"kind": "dance"}, "no order 'dance'"),
        ({"kind": "open", "plan": "strict", "time_zone": "Mars/Olympus"}, "not an IANA zone"),
        ({"kind": "grant", "amount_utok": 10**19}, "beyond any balance"),
        (
            {"kind": "open", "plan": "strict", "account_id": ""},
            "names no tenant_id or no account_id",
        ),
        ({"kind": "open", "plan": "strict", "tenant_id": "t/u"}, "has a slash"),
    ],
)
def test_what_is_no_order_is_a_dead_letter_and_leaves_nothing(state, fields, detail):
    step = fold_commands(state, [order(1, NOON, **fields)], 1)

    reason = "bad_name" if "slash" in detail else "bad_command"
    assert [refused.reason for refused in step.refused] == [reason]
    assert detail in step.refused[0].detail
    assert (len(state.cells), len(state.books.balances), step.replies) == (0, 0, [])


def test_a_look_that_is_no_order_leaves_the_account_as_it_was(state):
    """A row that changed in memory and not in the journal is another after a restart."""
    slot = opened(state)
    opened(state, "b")
    use(state, 2, input_tokens=5)
    use(state, 3, NOON + HOUR, account_id="b", input_tokens=5)
    before = state.cells.matrix[slot].tolist()
    looked = order(4, NOON + HOUR, kind="show", amount_utok=10**19)
    step = fold_commands(state, [looked], 4)
    assert [one.reason for one in step.refused] == ["bad_command"]
    assert state.cells.matrix[slot].tolist() == before
    assert step.decisions == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "grant", "account_id": "nobody"}, "UNKNOWN_ACCOUNT"),
        ({"kind": "open", "account_id": "b", "plan": "gone"}, "UNKNOWN_PLAN"),
        ({"kind": "open", "account_id": "b", "plan": "strict", "cycle_day": 32}, "BAD_AMOUNT"),
        ({"kind": "open", "plan": "strict"}, "ALREADY_OPEN"),
        ({"kind": "grant", "pack": "gone"}, "UNKNOWN_PACK"),
        ({"kind": "grant"}, "BAD_AMOUNT"),
        ({"kind": "adjust", "bucket": 7, "amount_utok": 1}, "UNKNOWN_BUCKET"),
        ({"kind": "adjust", "bucket": 1, "amount_utok": -(10**12)}, "BAD_AMOUNT"),
        ({"kind": "resume"}, "NOT_SUSPENDED"),
        ({"kind": "change_plan", "plan": "gone"}, "UNKNOWN_PLAN"),
    ],
)
def test_an_order_the_rules_do_not_allow_is_answered_so_and_changes_nothing(state, fields, reason):
    opened(state)
    before = [table.matrix.copy() for table in state.books.tables[:3]]
    (answer,) = ask(state, order(2, NOON, **fields))

    assert (answer.outcome.name, answer.reason.name) == ("REFUSED", reason)
    assert state.cells.slot("t/b") is None
    for table, rows in zip(state.books.tables[:3], before, strict=True):
        assert (table.matrix == rows).all()


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"kind": "grant"}, "must be above zero, and is 0 standard tokens"),
        ({"kind": "grant", "amount_utok": -1}, "and is -0.000001 standard tokens"),
        (
            {"kind": "grant", "amount_utok": MOST_UTOK},
            "more than it may hold: there is room for 999,999,999,990 standard tokens of 1,000,000",
        ),
        (
            {"kind": "grant", "amount_utok": 1, "valid_from": NOON + DAY, "valid_to": NOON + HOUR},
            "end before it begins: valid to 2026-11-01 00:30:00 +0800 (Asia/Shanghai), from 2026-11",
        ),
        ({"kind": "grant", "amount_utok": 1, "valid_to": NOON - 1}, "would end in the past"),
        ({"kind": "grant", "amount_utok": 1, "valid_to": NOON * 1000}, "after the year 9999"),
        (
            {"kind": "grant", "amount_utok": 1, "valid_from": -(2**63), "valid_to": 1 - 2**63},
            "in the past: valid to -9223372036854775807 ms since the epoch",
        ),
        ({"kind": "adjust", "bucket": 1}, "an adjustment of nothing"),
        (
            {"kind": "adjust", "bucket": 1, "amount_utok": -11 * MILLION},
            "bucket 1 has only 10 standard tokens left that are neither used nor held",
        ),
        (
            {"kind": "adjust", "bucket": 1, "amount_utok": MOST_UTOK},
            "more than it may hold",
        ),
        ({"kind": "adjust", "bucket": 7, "amount_utok": 1}, "no bucket 7 to adjust; it has 1"),
        (
            {"kind": "transfer", "to_account": "b", "amount_utok": 2},
            "not transferable enough: 0 standard tokens are",
        ),
        ({"kind": "transfer", "to_account": "b"}, "what is moved must be above zero"),
        ({"kind": "transfer", "to_account": "a"}, "cannot give to itself"),
        ({"kind": "transfer"}, "names nobody to give to"),
        ({"kind": "change_cycle", "cycle_day": 32}, "a day from 1 to 31, not on day 32"),
        ({"kind": "change_plan", "plan": "gone"}, "has a plan 'gone'"),
        ({"kind": "open", "account_id": "b", "plan": "gone"}, "has a plan 'gone'"),
        (
            {"kind": "open", "account_id": "b", "plan": "strict", "cycle_day": -1},
            "a day from 1 to 31, or 0 for today, not on day -1",
        ),
        ({"kind": "grant", "pack": "gone"}, "has a pack 'gone'"),
    ],
)
def test_a_refusal_says_which_rule_was_broken_and_by_what(state, fields, detail):
    opened(state)
    (answer,) = ask(state, order(2, NOON, **fields))

    assert answer.outcome.name == "REFUSED"
    assert detail in answer.detail


def test_the_words_of_a_refusal_are_never_long_and_come_each_time(state):
    opened(state)
    gone = {"kind": "grant", "pack": "x" * 250, "command_id": "x"}
    first, again = ask(state, order(2, NOON, **gone), order(3, NOON, **gone))
    assert 0 < len(first.detail) <= 500
    assert again == first


def test_the_same_command_id_is_carried_out_once_and_answered_alike_for_a_week(state):
    slot = opened(state)
    granted = {"kind": "grant", "amount_utok": 5 * MILLION, "command_id": "x"}
    first, again, later = ask(
        state,
        order(2, NOON, **granted),
        order(3, NOON + HOUR, **granted),
        order(4, NOON + 6 * DAY, **granted),
    )
    assert first == again == later
    assert len(state.books.chain(state.books.row(slot))) == 2

    ask(state, order(5, NOON + 8 * DAY, kind="suspend", command_id="y"))
    (forgotten,) = ask(state, order(6, NOON + 8 * DAY, **granted))
    assert forgotten.bucket > first.bucket


def test_an_account_that_is_used_up_is_cut_and_a_grant_opens_it(state):
    opened(state)
    step = use(state, 0, account_id="a", model="max", input_tokens=400)
    (cut,) = [decided for decided in step.decisions if decided.state is State.CUT]
    assert (cut.rule, cut.used, cut.limit) == (Rule.BALANCE, 10 * MILLION, 10 * MILLION)
    told = [decided.threshold_percent for decided in step.decisions]
    assert told == [50, 80, 100]

    step = fold_commands(state, [order(2, NOON, kind="grant", amount_utok=MILLION)], 2)
    (opened_again,) = step.decisions
    assert opened_again.state is State.WARNED


def test_a_suspension_cuts_whatever_is_left_and_ends_by_no_clock(state):
    opened(state)
    (suspended,) = fold_commands(state, [order(2, NOON, kind="suspend")], 2).decisions
    assert (suspended.state, suspended.rule) == (State.CUT, Rule.SUSPENDED)
    assert suspended.resets_at_ms == 0
    (resumed,) = fold_commands(state, [order(3, NOON, kind="resume")], 3).decisions
    assert resumed.state is State.OPEN


def test_limits_of_the_accounts_file_stand_beside_the_balance(state):
    opened(state)
    fold_commands(state, [command(2, NOON, minute_requests=1)], 2)
    step = use(state, 0, account_id="a", model="max", input_tokens=1)
    assert [decided.rule for decided in step.decisions] == [Rule.MINUTE_REQUESTS]


def test_usage_of_a_model_without_a_rate_is_a_dead_letter_once_a_catalog_is_known():
    state = PartitionState(BOUNDS)
    fold_commands(state, [command(0)], 0)
    assert use(state, 0, model="max").counted == 1
    fold_commands(state, [catalog_version(1, NOON, CATALOG)], 1)
    (refused,) = use(state, 1, model="unheard-of").refused
    assert refused.reason == "unknown_model"
    assert use(state, 2, model="max").counted == 1


def test_a_catalog_that_goes_back_is_refused_with_the_reason(state):
    changed = Catalog.from_json(CATALOG.to_json().replace('"Strict"', '"Stricter"'))
    (answer,) = ask(state, catalog_version(1, NOON, changed))
    assert answer.reason.name == "BAD_CATALOG"
    assert "not greater than 1" in answer.detail


def test_a_hold_of_an_unknown_model_or_account_is_refused(state):
    opened(state)
    unknown, nobody = ask(
        state,
        hold_order(2, NOON, model="unheard-of", max_tokens=1),
        hold_order(3, NOON, account_id="nobody", max_tokens=1),
    )
    assert (unknown.reason.name, nobody.reason.name) == ("UNKNOWN_MODEL", "UNKNOWN_ACCOUNT")


def test_a_call_goes_on_by_the_price_it_was_held_at_when_its_model_leaves_the_catalog(state):
    slot = opened(state)
    asked = hold_order(2, NOON, max_tokens=4, lease=True, first_utok=8 * MILLION)
    (first,) = ask(state, asked)
    rates = json.loads(CATALOG.to_json())["rates"]
    ask(state, catalog_version(3, NOON + 1, second(rates[1:], NOON + 9 * MINUTE)))

    (again,) = ask(state, hold_order(4, NOON + 2, max_tokens=4, lease=True))
    assert again == first
    held = {"lease": True, "max_tokens": 4, "keep_utok": 8 * MILLION, "reserved_utok": 8 * MILLION}
    for seq in range(1, 9):
        now_ms = NOON + seq * MINUTE
        (kept,) = ask(state, hold_order(4 + seq, now_ms, seq=seq, action="update", **held))
        assert (kept.reason.name, kept.granted_utok) == ("UNKNOWN_MODEL", 8 * MILLION)
        assert kept.validity_ms > 0
    assert state.books.holds.of_owner(slot)[0].held_utok == 8 * MILLION


def test_a_session_that_was_refused_a_model_is_refused_again_when_the_question_is_repeated(state):
    opened(state)
    (first,) = ask(state, hold_order(2, NOON, model="new", max_tokens=1))
    rates = json.loads(CATALOG.to_json())["rates"]
    ask(state, catalog_version(3, NOON + 1, second([*rates, rates[0] | {"model": "new"}], NOON)))

    (again,) = ask(state, hold_order(4, NOON + 2, model="new", max_tokens=1))
    assert again == first
    (anew,) = ask(state, hold_order(5, NOON + 3, seq=1, model="new", max_tokens=1))
    assert anew.outcome.name == "DONE"


def second(rates, effective_ms):
    said = json.loads(CATALOG.to_json())
    changes = {"version": 2, "effective_ms": effective_ms // MINUTE * MINUTE, "rates": rates}
    return Catalog.model_validate(said | changes)


def test_a_hold_is_clamped_to_what_is_left_and_repeated_word_for_word(state):
    opened(state)
    asked = hold_order(2, NOON, prompt_tokens=2, max_tokens=100)
    (first,) = ask(state, asked)
    # Ten tokens are left in October: two for the prompt, eight buy four of the answer.
    assert (first.granted_utok, first.max_tokens, first.final) == (10 * MILLION, 4, True)
    assert first.split == ((1, 10 * MILLION),)
    ask(state, order(3, NOON, kind="grant", amount_utok=50 * MILLION))
    assert ask(state, hold_order(4, NOON + 1, prompt_tokens=2, max_tokens=100)) == [first]


def test_a_forsaken_hold_gives_everything_back_after_twice_its_validity(state):
    slot = opened(state)
    ask(state, hold_order(2, NOON, prompt_tokens=2, max_tokens=100))
    assert state.books.holds.of_owner(slot)[0].held_utok == 10 * MILLION
    shown = json.loads(ask(state, order(3, NOON + 2 * MINUTE, kind="show"))[0].detail)
    assert (shown["held_utok"], shown["rest_utok"]) == (0, 10 * MILLION)
    assert shown["holds"] == []


def test_what_is_shown_says_how_an_account_stands_and_why(state):
    opened(state)
    use(state, 0, account_id="a", model="max", input_tokens=400)
    shown = json.loads(ask(state, order(2, NOON, kind="show"))[0].detail)

    assert (shown["plan"], shown["state"], shown["why"]) == ("strict", "cut", "balance")
    used = {one["bucket"]: one["used_utok"] // MILLION for one in shown["buckets"]}
    assert used == {-1: 390, 1: 10}


def test_the_limits_of_a_plan_stand_until_the_next_plan(state):
    opened(state, plan="limited")
    step = use(state, 0, account_id="a", model="max", input_tokens=1)
    assert [decided.rule for decided in step.decisions] == []
    step = use(state, 1, account_id="a", model="max", input_tokens=1)
    assert [decided.rule for decided in step.decisions] == [Rule.MINUTE_REQUESTS]
    (changed,) = fold_commands(
        state, [order(2, NOON, kind="change_plan", plan="strict")], 2
    ).decisions
    assert changed.state is not State.CUT


def test_what_a_plan_says_and_nobody_enforces_is_named():
    assert not_enforced(CATALOG) == [
        "plans.limited: unreachable = leases: a postpaid plan has none, so its calls stop",
    ]


@pytest.mark.parametrize("plan", ["strict", "postpaid"])
@pytest.mark.parametrize(
    "field",
    [
        *("prompt_tokens", "max_tokens", "wanted_utok"),
        *("reported_utok", "reserved_utok", "keep_utok"),
    ],
)
def test_whatever_number_a_session_names_it_is_answered(state, plan, field):
    opened(state, plan=plan)
    for number in range(12):
        said = {"max_tokens": 1, field: 2**63 - 1, "session": f"x{number}", "lease": True}
        ask(state, hold_order(2 + number, NOON, **said))
    ask(state, hold_order(20, NOON + HOUR, session="late"))
    assert state.books.buckets.matrix.min() >= -1


def test_a_pack_that_is_not_shared_is_for_somebody(state):
    own = CATALOG.to_json().replace('"shared":true', '"shared":false')
    own = own.replace('"version":1', '"version":2', 1)
    assert own.count('"shared":false') == 1
    ask(state, catalog_version(1, NOON, Catalog.from_json(own)))
    opened(state)
    nobody, son = ask(
        state,
        order(2, NOON, kind="grant", pack="coupon"),
        order(3, NOON, kind="grant", pack="coupon", subscribers=["son"]),
    )
    assert (nobody.reason.name, son.reason.name) == ("BAD_AMOUNT", "NONE")
    assert "not shared: name the subscribers" in nobody.detail


def test_a_shared_pack_is_not_granted_to_some_who_would_share_it_with_all(state):
    opened(state)
    (answer,) = ask(state, order(2, NOON, kind="grant", pack="coupon", subscribers=["son"]))
    assert (answer.reason.name, answer.detail) == (
        "BAD_AMOUNT",
        "pack coupon is shared: name no subscribers for it",
    )


@pytest.mark.parametrize(
    "beside",
    [
        {"amount_utok": 1},
        {"source": "gift"},
        {"priority": 7},
        {"valid_from": NOON},
        {"valid_to": NOON + DAY},
        {"valid_days": 3},
        {"models": ["p/max"]},
        {"transferable": 1},
    ],
)
def test_what_a_pack_decides_is_refused_beside_it_and_not_passed_over(state, beside):
    opened(state)
    (answer,) = ask(state, order(2, NOON, kind="grant", pack="coupon", **beside))
    assert answer.reason.name == "BAD_AMOUNT"
    assert answer.detail == f"the pack itself says {next(iter(beside))}: leave it out"


@pytest.mark.parametrize(
    ("zone", "days", "ends"),
    [
        ("Asia/Shanghai", 1, "2026-11-02T00:00:00+08:00"),
        ("Asia/Shanghai", 30, "2026-12-01T00:00:00+08:00"),
        # It has 25 hours.
        ("America/New_York", 1, "2026-11-02T00:00:00-05:00"),
    ],
)
def test_a_grant_of_days_ends_with_a_local_day_of_its_account(state, zone, days, ends):
    ask(
        state,
        order(1, NOON, kind="open", plan="strict", time_zone=zone),
        order(2, NOON, kind="grant", amount_utok=5, valid_days=days),
    )
    last = state.books.chain(state.books.row(state.cells.slot("t/a")))[-1]
    want = datetime.fromisoformat(ends).timestamp() * 1000
    assert state.books.buckets.get(last, Bucket.VALID_TO) == want


def test_a_pack_of_a_day_is_for_a_whole_day_whenever_it_is_bought(state):
    almost_midnight = int(datetime.fromisoformat("2026-10-31T23:50:00+08:00").timestamp()) * 1000
    opened(state)
    ask(state, order(2, almost_midnight, kind="grant", pack="coupon"))
    chain = list(state.books.chain(state.books.row(state.cells.slot("t/a"))))
    ends_ms = [state.books.buckets.get(bucket, Bucket.VALID_TO) for bucket in chain]
    assert almost_midnight + 10 * 60_000 + DAY in ends_ms


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ({"valid_days": -1}, "a grant is valid for 1 to 365,000 days, not for -1"),
        ({"valid_days": 10**15}, "a grant is valid for 1 to 365,000 days, not for 1,000,"),
        ({"valid_days": 3, "valid_to": NOON + DAY}, "say either valid_to or valid_days"),
    ],
)
def test_days_of_a_grant_that_are_none_are_refused(state, said, detail):
    opened(state)
    (answer,) = ask(state, order(2, NOON, kind="grant", amount_utok=5, **said))
    assert answer.reason.name == "BAD_AMOUNT"
    assert detail in answer.detail


def test_what_is_shown_is_as_of_the_question_and_showing_tells_nobody_anything(state):
    opened(state)
    use(state, 0, account_id="a", model="max", input_tokens=400)
    later = NOON + 40 * DAY
    step = fold_commands(state, [order(2, later, kind="show")], 2)
    shown = json.loads(step.replies[0].answer.detail)
    assert (shown["state"], shown["why"], shown["resets_at_ms"]) == ("open", "", 0)
    assert [one.reason for one in step.decisions] == ["resumed"]
    assert fold_commands(state, [order(3, later, kind="show")], 3).decisions == []


def test_an_order_that_is_repeated_tells_no_decision(state):
    opened(state)
    granted = {"kind": "grant", "amount_utok": 5, "command_id": "x"}
    assert fold_commands(state, [order(2, NOON, **granted)], 2).decisions
    step = fold_commands(state, [order(3, NOON + 1, **granted)], 3)
    assert ([len(step.replies)], step.decisions) == ([1], [])


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (hold_order(2, NOON, action="realease", max_tokens=9), "cannot ask 'realease'"),
        (hold_order(2, NOON, session="", max_tokens=9), "without a session"),
        (order(2, NOON, kind="grant", amount_utok=5, command_id=""), "without a command_id"),
    ],
)
def test_what_could_mean_something_else_is_a_dead_letter(state, said, detail):
    opened(state)
    step = fold_commands(state, [said], 2)
    assert detail in step.refused[0].detail
    assert step.replies == []


def test_an_account_that_is_set_in_a_new_cycle_has_its_allowance(state):
    opened(state)
    use(state, 0, account_id="a", model="max", input_tokens=400)
    later = NOON + 40 * DAY
    (told,) = fold_commands(state, [command(2, later, account_id="a")], 2).decisions
    assert (told.state, told.reason) == (State.OPEN, "resumed")


def test_an_account_that_was_set_and_is_opened_has_the_zone_it_is_opened_in(state):
    fold_commands(state, [command(1, NOON, account_id="a", time_zone="UTC")], 1)
    ask(state, order(2, NOON, kind="open", plan="strict", time_zone="Asia/Tokyo"))
    shown = json.loads(ask(state, order(3, NOON, kind="show"))[0].detail)
    assert shown["time_zone"] == "Asia/Tokyo"


@pytest.mark.parametrize(("plan", "held"), [("strict", 6), ("postpaid", 3)])
def test_a_strict_call_is_held_at_the_price_of_the_dearer_hour_it_may_run_into(state, plan, held):
    # It is 23:30; five minutes later a token costs twice as much.
    cheap = {"from": "22:00", "to": "23:35", "multiply": "0.5"}
    said = CATALOG.model_dump(mode="json") | {"version": 2}
    said["rates"][0] |= {"hours": [cheap]}
    ask(state, catalog_version(1, NOON, Catalog.model_validate(said)))
    opened(state, plan=plan)
    (answer,) = ask(state, hold_order(2, NOON, prompt_tokens=2, max_tokens=2))
    assert answer.granted_utok == held * MILLION


def test_a_scope_first_made_by_usage_that_begins_a_cycle_survives_the_worker(state):
    bigger = CATALOG.model_dump(mode="json") | {"version": 2}
    bigger["groups"] = {"minis": ["p/max", "p/mini"]}
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([catalog_version(0, NOON, CATALOG)])
    line.command([order(1, NOON, kind="open", plan="small")])
    line.command([catalog_version(2, NOON, Catalog.model_validate(bigger))])
    line.charge([one_record(0, NOON + 20 * DAY)])

    again = PaperLine(journal, Books())
    assert again.state.books.scopes.scopes == line.state.books.scopes.scopes
    again.charge([one_record(1, NOON + 20 * DAY + MINUTE)])


def one_record(offset, now_ms):
    return record(
        offset, now_ms, occurred_at=now_ms, event_id=f"e{offset}", account_id="a", model="max"
    )


def test_a_session_that_renews_in_time_is_in_time_though_usage_of_others_is_ahead(state):
    opened(state)
    opened(state, account="b")
    ask(state, hold_order(2, NOON, max_tokens=2))
    use(state, 0, now_ms=NOON + 3 * MINUTE, account_id="b", model="max", input_tokens=1)
    renewed, again = ask(
        state,
        hold_order(3, NOON + MINUTE, seq=1, action="update", max_tokens=2),
        hold_order(4, NOON + 2 * MINUTE, seq=2, action="update", max_tokens=2),
    )
    assert (renewed.granted_utok, renewed.late) == (4 * MILLION, False)
    assert (again.granted_utok, again.late) == (4 * MILLION, False)
    # Nothing goes back: what was released once stays so.
    use(state, 1, now_ms=NOON + 5 * MINUTE, account_id="a", model="max", input_tokens=1)
    (late,) = ask(state, hold_order(5, NOON + 3 * MINUTE, seq=3, action="update", max_tokens=2))
    assert (late.granted_utok, late.late) == (0, True)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("suspend", {}),
        ("resume", {}),
        ("close", {}),
        ("change_plan", {"plan": "postpaid"}),
        ("change_cycle", {"cycle_day": 9}),
    ],
)
def test_an_order_that_brings_nothing_names_no_bucket_and_says_what_is_left(state, kind, fields):
    slot = opened(state)
    if kind == "resume":
        ask(state, order(2, NOON, kind="suspend"))
    (answer,) = ask(state, order(3, NOON + 1, kind=kind, **fields))
    assert (answer.outcome.name, answer.bucket, answer.amount_utok) == ("DONE", 0, 0)
    left = state.books.get(state.books.row(slot), Balance.LEFT)
    assert (answer.rest_utok, answer.at_ms) == (left, NOON + 1)


def test_a_hold_names_the_catalog_it_was_priced_by_and_keeps_no_more_than_it_asks(state):
    opened(state)
    (first,) = ask(state, hold_order(2, NOON, max_tokens=5))
    assert (first.catalog_version, first.granted_utok) == (1, 10 * MILLION)
    # Only a lease has calls of its own to keep units for.
    less = {"seq": 1, "action": "update", "max_tokens": 2, "keep_utok": 10 * MILLION}
    less |= {"first_utok": 9 * MILLION, "reserved_utok": 9 * MILLION, "wanted_utok": 9 * MILLION}
    (second,) = ask(state, hold_order(3, NOON, **less))
    assert second.granted_utok == 4 * MILLION


@pytest.mark.parametrize("chars", [16, 17])
def test_a_grant_may_name_so_many_and_no_more(state, chars):
    opened(state)
    names = [f"{number}".zfill(chars) for number in range(1000)]
    asked = {"kind": "grant", "amount_utok": 5, "models": names[:500]}
    step = fold_commands(state, [order(2, NOON, **asked, subscribers=names[500:])], 2)
    assert len(step.refused) == (chars == 17)
    more = fold_commands(state, [order(3, NOON, **asked, subscribers=["x"] * 501)], 3)
    assert "may name 1000" in more.refused[0].detail


@pytest.mark.parametrize("source", ["plan", "rollover", "transfer", "", "uncovered"])
def test_nobody_grants_what_only_the_line_itself_makes(state, source):
    opened(state)
    step = fold_commands(state, [order(2, NOON, kind="grant", amount_utok=5, source=source)], 2)
    assert "cannot be of source" in step.refused[0].detail


@pytest.mark.parametrize("name", ["max_tokens", "keep_utok", "seq"])
def test_a_count_below_zero_is_a_dead_letter(state, name):
    opened(state)
    step = fold_commands(state, [hold_order(2, NOON, **{name: -1})], 2)
    assert "a count below zero" in step.refused[0].detail


@pytest.mark.parametrize(("day", "done"), [(0, True), (1, True), (31, True), (32, False)])
def test_a_cycle_begins_on_a_day_of_a_month(state, day, done):
    said = {"kind": "open", "plan": "strict", "cycle_day": day}
    answers = ask(state, order(1, NOON, **said), order(2, NOON, kind="show"))
    assert [one.outcome.name for one in answers] == ["DONE" if done else "REFUSED"] * 2
    if done:
        assert json.loads(answers[1].detail)["cycle_day"] == (day or 31)


@pytest.mark.parametrize("amount", [MOST_UTOK, MOST_UTOK + 1, -MOST_UTOK, -MOST_UTOK - 1])
def test_no_amount_is_beyond_what_a_balance_holds(state, amount):
    opened(state)
    step = fold_commands(state, [order(2, NOON, kind="adjust", bucket=1, amount_utok=amount)], 2)
    assert len(step.refused) == (abs(amount) > MOST_UTOK)


@pytest.mark.parametrize(("prompt", "granted"), [(8, 10), (9, 0)])
def test_a_call_is_not_worth_making_without_a_token_of_an_answer(state, prompt, granted):
    opened(state)  # ten tokens are left in October, and a token of an answer costs two
    (answer,) = ask(state, hold_order(2, NOON, prompt_tokens=prompt, max_tokens=5))
    assert (answer.granted_utok, answer.max_tokens) == (granted * MILLION, min(granted, 1))


def test_a_refusal_says_when_it_was_given(state):
    nobody, _, gone = ask(
        state,
        order(1, NOON, kind="suspend"),
        order(2, NOON + 1, kind="open", plan="strict"),
        order(3, NOON + 2, kind="grant", pack="gone"),
    )
    assert (nobody.reason.name, nobody.at_ms) == ("UNKNOWN_ACCOUNT", NOON)
    assert (gone.reason.name, gone.at_ms) == ("UNKNOWN_PACK", NOON + 2)
