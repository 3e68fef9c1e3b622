"""Limits and caps hold for usage, holds and decisions, from the catalog to the answer."""

from __future__ import annotations

import json
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from streams.outputs import Outputs
from streams.replies import replies_of
from tests.limits import LIMITS_CATALOG
from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.journal import JournalWriter
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovery
from tokenline.charging.step import Step
from tokenline.charging.terms import not_enforced
from tokenline.quota.balance import Balance
from tokenline.quota.cells import Cell
from tokenline.quota.decided import Rule, State
from tokenline.quota.limits import Limit
from tokenline.quota.terms import Use
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import STATE_MAX_BYTES

MILLION = 1_000_000


class Line:
    """A partition with account `t/a`; offsets count themselves."""

    def __init__(self, plan, catalog=LIMITS_CATALOG):
        self.state, self.offset, self.now = PartitionState(BOUNDS), 0, NOON
        fold_commands(self.state, [catalog_version(0, NOON, catalog)], 0)
        self.order(kind="open", plan=plan)

    def _next(self):
        self.offset += 1
        return self.offset

    def order(self, **fields):
        offset = self._next()
        return fold_commands(self.state, [order(offset, self.now, **fields)], offset)

    def ask(self, **fields):
        offset = self._next()
        return fold_commands(self.state, [hold_order(offset, self.now, **fields)], offset)

    def hold(self, **fields):
        return self.ask(**fields).replies[0].answer

    def use(self, subscriber="kid", tokens=0, model="max", **fields):
        offset = self._next()
        said = {"occurred_at": self.now, "event_id": f"e{offset}", "input_tokens": tokens}
        said |= {"subscriber_id": subscriber, "model": model} | fields
        return fold_usage(self.state, chunk_of([record(offset, self.now, **said)]))

    def shown(self):
        return json.loads(self.order(kind="show").replies[0].answer.detail)

    def limit(self, name, subscriber=""):
        found = [
            one
            for one in self.shown()["limits"]
            if (one["limit"], one["subscriber"]) == (name, subscriber)
        ]
        return tuple(found[0][key] for key in ("used", "held", "ceiling"))


@pytest.fixture
def family():
    return Line("family")


@pytest.fixture
def limited():
    return Line("limited")


def read_back(records):
    recovery = Recovery(PartitionState(BOUNDS))
    for offset, (key, value) in enumerate(records):
        recovery.take(offset, key, value)
    return recovery.finish().state.books


def recovered(state):
    """Return the books that a new owner reads; every row is written anew."""
    for table in state.books.tables:
        table.touch_all(np.arange(len(table)))
    writer = JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms)
    step = Step(seq=1, minute_ms=NOON, touched=np.arange(1), new_keys=state.cells.keys)
    return read_back([*writer.opening(state), *writer.records(state, step, [])])


def told(step):
    return [(one.subscriber, one.state.name, one.limit_name) for one in step.decisions]


def test_a_cap_binds_what_its_subscriber_may_hold_and_the_pool_binds_all(family):
    kid = family.hold(session="k", subscriber_id="kid", max_tokens=100)
    assert (kid.granted_utok, kid.max_tokens, kid.final) == (30 * MILLION, 15, True)
    mother = family.hold(session="m", subscriber_id="mother", max_tokens=100)
    assert mother.granted_utok == 30 * MILLION
    nobody = family.hold(session="n", max_tokens=100)
    assert nobody.granted_utok == 40 * MILLION
    son = family.hold(session="s", subscriber_id="son", max_tokens=100)
    assert (son.reason.name, son.limit_name) == ("BALANCE_HELD", "")


def test_a_lease_takes_a_part_of_a_cap_and_what_is_left_too_little_is_waited_for(family):
    asked = {"subscriber_id": "kid", "max_tokens": 1, "lease": True, "wanted_utok": 90 * MILLION}
    granted = [family.hold(session=name, **asked).granted_utok for name in "abc"]
    assert granted == [15 * MILLION, 15 * MILLION // 2, 15 * MILLION // 4]
    large = {"subscriber_id": "kid", "prompt_tokens": 28, "max_tokens": 1}
    assert family.hold(session="d", **large).reason.name == "LIMIT_HELD"
    family.use(tokens=1)
    assert family.hold(session="e", **large).reason.name == "LIMIT_REACHED"


def test_what_is_held_counts_against_the_cap_and_the_refusal_names_it(family):
    family.hold(session="1", subscriber_id="kid", max_tokens=10)
    family.use(tokens=9)
    asked = {"session": "2", "subscriber_id": "kid", "prompt_tokens": 1, "max_tokens": 10}
    refused = family.hold(**asked)
    assert refused.reason.name == "LIMIT_HELD"
    assert refused.limit_name == "subscriber_tokens"
    assert (refused.limit_used, refused.limit_held) == (9 * MILLION, 20 * MILLION)
    assert refused.limit_value == 30 * MILLION
    assert refused.resets_at_ms == family.state.books.get(0, Balance.CYCLE_END)
    assert family.limit("subscriber_tokens", "kid") == (9 * MILLION, 20 * MILLION, 30 * MILLION)
    family.hold(session="1", seq=1, action="settle")
    assert family.hold(**asked) == refused
    assert family.hold(**asked | {"session": "3"}).granted_utok == 21 * MILLION


def test_what_a_sessions_own_calls_used_is_told_as_used_before_its_events_are_here(family):
    kid = {"session": "1", "subscriber_id": "kid", "max_tokens": 15}
    family.hold(**kid)
    refused = family.hold(**kid | {"max_tokens": 1}, seq=1, reported_utok=30 * MILLION)
    assert (refused.reason.name, refused.limit_name) == ("LIMIT_REACHED", "subscriber_tokens")
    assert (refused.limit_used, refused.limit_value) == (30 * MILLION, 30 * MILLION)


def test_usage_draws_a_hold_down_and_the_cap_stays_full(family):
    family.hold(session="1", subscriber_id="kid", max_tokens=15)
    family.use(tokens=12, hold_id="1")
    assert family.limit("subscriber_tokens", "kid") == (12 * MILLION, 18 * MILLION, 30 * MILLION)
    family.use(tokens=20, hold_id="1")
    assert family.limit("subscriber_tokens", "kid") == (32 * MILLION, 0, 30 * MILLION)


def test_a_subscriber_at_its_cap_is_cut_alone_and_opened_by_another_plan(family):
    assert told(family.use(tokens=29)) == []
    cut = family.use(tokens=1)
    assert told(cut) == [("kid", "CUT", "subscriber_tokens")]
    (decided,) = cut.decisions
    assert (decided.used, decided.limit, decided.rule) == (30 * MILLION, 30 * MILLION, Rule.LIMIT)
    assert decided.resets_at_ms == family.state.books.get(0, Balance.CYCLE_END)
    assert told(family.use(tokens=1)) == []
    account, kid = family.order(kind="change_plan", plan="loose").decisions
    assert (account.subscriber, account.state) == ("", State.OPEN)
    assert (kid.subscriber, kid.state, kid.reason) == ("kid", State.OPEN, "resumed")
    assert [account.version, kid.version] == [decided.version + 1, decided.version + 2]


def test_a_cycle_that_is_moved_tells_the_subscriber_who_is_cut_the_new_moment(family):
    family.now = NOON + HOUR
    (cut,) = family.use(tokens=30).decisions[-1:]
    moved = family.order(kind="change_cycle", cycle_day=20)
    (again,) = [one for one in moved.decisions if one.subscriber]
    assert again.state is State.CUT
    assert again.resets_at_ms == cut.resets_at_ms - 11 * DAY


def test_a_cap_begins_anew_with_the_bill_cycle(family):
    family.use(tokens=30)
    family.now += HOUR
    opened = family.use(tokens=1)
    assert ("kid", "OPEN", "") in told(opened)
    assert family.limit("subscriber_tokens", "kid") == (MILLION, 0, 30 * MILLION)


def test_an_expired_hold_that_was_charged_is_counted_once(family):
    family.hold(session="1", subscriber_id="kid", max_tokens=10)
    family.hold(session="1", seq=1, subscriber_id="kid", max_tokens=1, reported_utok=9 * MILLION)
    family.now += 2 * MINUTE
    assert family.limit("subscriber_tokens", "kid") == (9 * MILLION, 0, 30 * MILLION)
    family.use(tokens=7, hold_id="1")
    assert family.limit("subscriber_tokens", "kid") == (9 * MILLION, 0, 30 * MILLION)


def test_what_was_charged_at_an_expiry_and_not_used_is_given_back_to_the_cap():
    line = Line("granted")
    line.hold(session="1", subscriber_id="kid", max_tokens=15)
    line.now += 2 * MINUTE
    assert line.limit("subscriber_tokens", "kid") == (30 * MILLION, 0, 30 * MILLION)
    assert told(line.use(tokens=7, hold_id="1")) == []
    late = line.hold(session="1", seq=1, action="settle")
    assert late.late
    assert line.limit("subscriber_tokens", "kid") == (7 * MILLION, 0, 30 * MILLION)


def test_a_hold_is_refused_by_a_limit_of_the_accounts_file_too(family):
    offset = family._next()
    limits = command(offset, NOON, minute_requests=1, day_tokens=100)
    fold_commands(family.state, [limits], offset)
    assert family.hold(session="1", max_tokens=5).reason.name == "NONE"
    family.use(tokens=3)
    refused = family.hold(session="2", max_tokens=5)
    assert (refused.limit_name, refused.limit_used) == ("minute_requests", 1)
    assert (refused.limit_value, refused.resets_at_ms) == (1, NOON + MINUTE)
    family.now += MINUTE
    assert family.hold(session="3", max_tokens=5).reason.name == "NONE"


def test_an_answer_is_no_longer_than_the_tokens_that_a_limit_leaves(limited):
    kid = limited.hold(session="1", subscriber_id="kid", prompt_tokens=4, max_tokens=100)
    assert (kid.max_tokens, kid.granted_utok, kid.final) == (6, 16 * MILLION, True)
    too_long = limited.hold(session="2", subscriber_id="kid", prompt_tokens=10, max_tokens=100)
    assert (too_long.reason.name, too_long.limit_name) == ("LIMIT_REACHED", "subscriber_day_tokens")
    assert (
        limited.hold(session="3", subscriber_id="mum", max_tokens=100).granted_utok == 25 * MILLION
    )


def test_a_limit_of_a_group_binds_its_models_and_no_other(limited):
    limited.use(tokens=0, output_tokens=76, model="mini", subscriber="")
    asked = {"prompt_tokens": 10, "max_tokens": 4}
    refused = limited.hold(session="1", model="mini", **asked | {"prompt_tokens": 11})
    assert refused.reason.name == "LIMIT_REACHED"
    assert (refused.limit_name, refused.limit_used) == ("hour_utok:minis", 19 * MILLION)
    assert limited.hold(session="2", model="max", **asked).reason.name == "NONE"
    assert limited.shown()["state"] == "open"


def test_a_limit_of_the_account_cuts_it_for_all(limited):
    for subscriber in ("mum", "dad"):
        limited.use(tokens=20, subscriber=subscriber)
    step = limited.use(tokens=10, subscriber="")
    assert ("", "CUT", "week_utok") in told(step)
    shown = limited.shown()
    assert (shown["state"], shown["why"]) == ("cut", "limit: week_utok")
    assert limited.limit("week_utok") == (50 * MILLION, 0, 50 * MILLION)


def test_what_is_shown_names_every_limit_whether_used_or_not(limited):
    limited.use(tokens=1)
    assert [(one["limit"], one["subscriber"]) for one in limited.shown()["limits"]] == [
        ("subscriber_tokens", "*"),
        ("week_utok", ""),
        ("rolling_minute_requests", ""),
        ("hour_utok:minis", ""),
        ("subscriber_day_tokens", "*"),
        ("subscriber_day_tokens", "kid"),
        ("subscriber_rolling_hour_utok", "*"),
        ("cycle_requests", ""),
        ("subscriber_tokens", "kid"),
        ("subscriber_day_tokens", "kid"),
        ("subscriber_day_tokens", "kid"),
        ("subscriber_rolling_hour_utok", "kid"),
    ]


def test_a_hold_is_bound_by_any_number_of_limits_and_gives_back_what_it_held_against_each():
    said = json.loads(LIMITS_CATALOG.to_json())
    groups = [f"g{number}" for number in range(100)]
    said["groups"] |= {group: ["p/max"] for group in groups}
    said["plans"]["limited"]["limits"] = [
        {"utok": (200 - at) * MILLION, "per": "day", "group": group}
        for at, group in enumerate(groups)
    ]
    catalog = Catalog.from_json(json.dumps(said))
    assert not_enforced(catalog) == []
    line = Line("limited", catalog)
    held = line.hold(session="1", max_tokens=500)
    assert (held.granted_utok, held.final) == (101 * MILLION, True)
    again = recovered(line.state)
    for books in (again, line.state.books):
        (hold,) = books.holds.of_owner(0)
        assert len(hold.limits) == len(set(hold.limits)) == 100
        assert {books.limits.get(row, Limit.HELD) for row in hold.limits} == {101 * MILLION}
    # One token of an answer costs two: of the last but one a single one is left.
    refused = line.hold(session="2", max_tokens=1)
    assert (refused.reason.name, refused.limit_name) == ("LIMIT_HELD", "day_utok:g98")
    line.hold(session="1", seq=1, action="settle")
    assert {one["held"] for one in line.shown()["limits"]} == {0}


def test_limits_that_name_a_subscriber_count_for_that_one_alone():
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["limited"]["limits"] = [
        {"utok": MILLION, "per": "cycle", "of": "subscriber", "subscriber": f"key-{number}"}
        for number in range(10)
    ]
    catalog = Catalog.from_json(json.dumps(said))
    assert not_enforced(catalog) == []
    line = Line("limited", catalog)
    for number in range(10):
        held = line.hold(session=str(number), subscriber_id=f"key-{number}", prompt_tokens=2)
        assert (held.reason.name, held.limit_value) == ("LIMIT_REACHED", MILLION)


def test_a_pack_that_is_not_shared_pays_for_the_subscribers_named_and_no_other(family):
    family.order(kind="grant", pack="own", subscribers=["kid"])
    family.use(tokens=5, subscriber="kid")
    family.use(tokens=7, subscriber="mum")
    used = {one["source"]: one["used_utok"] for one in family.shown()["buckets"]}
    assert (used["pack"], used["plan"]) == (5 * MILLION, 7 * MILLION)


def test_a_subscribers_decision_has_a_key_of_its_own_and_the_next_owner_takes_the_old_one_away(
    family,
):
    settings = Settings()
    registry = open_registry(settings)
    codec, columns = Codec(registry), ColumnCodec(registry)
    outputs = Outputs(settings, codec, columns, None, 0)
    family.state.epoch = 4
    (cut,) = outputs.messages(family.state, family.use(tokens=30), [])[:1]
    assert cut.key == b"t/a\0kid#4"
    _, said = codec.decode(cut.value)
    assert (said["subscriber_id"], said["state"], said["rule"]) == (
        "kid",
        "cut",
        "subscriber_tokens",
    )
    family.state.epoch = 7
    step = family.order(kind="change_plan", plan="loose")
    decided = [one for one in outputs.messages(family.state, step, []) if one.topic == "decisions"]
    own = {one.key: one.value for one in decided if b"kid" in one.key}
    assert own.keys() == {b"t/a\0kid#7", b"t/a\0kid#4"}
    assert own[b"t/a\0kid#4"] is None


def test_the_answer_on_the_wire_says_which_limit_is_reached(family):
    family.use(tokens=30)
    offset = family._next()
    asked = hold_order(offset, NOON, subscriber_id="kid", max_tokens=9, reply_to="me")
    step = fold_commands(family.state, [asked], offset)
    codec = Codec(open_registry(Settings()))
    (message,) = replies_of(codec, step.replies)
    _, said = codec.decode(message.value)
    assert (said["reason"], said["limit_name"]) == ("limit_reached", "subscriber_tokens")
    assert (said["limit_used"], said["limit_value"]) == (30 * MILLION, 30 * MILLION)
    assert said["resets_at"] == family.state.books.get(0, Balance.CYCLE_END)


def test_a_step_of_many_subscribers_with_many_limits_fits_one_batch_of_the_journal():
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["limited"]["limits"] = [
        {unit: 10**9, "per": per, "rolling": rolling, "of": "subscriber"}
        for unit in ("tokens", "requests")
        for per in ("minute", "hour", "day", "week")
        for rolling in (False, True)
    ]
    line = Line("limited", Catalog.from_json(json.dumps(said)))
    line.state.seq = 0
    writer = JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms)
    said = {"model": "max", "occurred_at": NOON, "input_tokens": 1}
    names = [f"subscriber number {number}" for number in range(6_000)]
    records = [
        record(at, NOON, event_id=f"e{at}", subscriber_id=name, **said)
        for at, name in enumerate(names)
    ]
    step = fold_usage(line.state, chunk_of(records))
    written = writer.records(line.state, step, [])
    assert line.state.books.limits.matrix.nbytes > STATE_MAX_BYTES
    assert sum(len(key) + len(value or b"") for key, value in written) < STATE_MAX_BYTES - 4096
    back = read_back([*writer.opening(line.state), *written])
    for mine, theirs in zip(back.tables, line.state.books.tables, strict=True):
        assert mine.matrix.tobytes() == theirs.matrix.tobytes()
    assert back.limits.specs.specs == line.state.books.limits.specs.specs
    kid = Use("p", "max", names[77])
    assert back.limits.matching(0, kid) == line.state.books.limits.matching(0, kid)


def test_a_question_that_finds_a_hold_expired_decides_by_what_that_left():
    line = Line("small", CATALOG)
    mini = {"model": "mini", "max_tokens": 10_000}
    assert not line.ask(session="1", **mini).decisions
    line.now += 2 * MINUTE
    step = line.ask(session="2", **mini)
    # All that was granted is charged: nothing is left, and nothing held.
    cut = step.decisions[-1]
    assert (cut.state, cut.rule, cut.reason) == (State.CUT, Rule.BALANCE, "limit_reached")


def test_a_question_after_the_minute_that_was_full_opens_the_account_again():
    line = Line("limited", CATALOG)
    for _ in range(2):
        line.use(subscriber="", tokens=1)
    assert line.state.cells.matrix[0, Cell.RULE] == Rule.MINUTE_REQUESTS
    line.now += MINUTE
    # Usage of whomever moves the minute.
    fold_usage(line.state, chunk_of([record(line._next(), line.now, account_id="other")]))
    step = line.ask(session="1", max_tokens=1)
    assert [(one.state.name, one.reason) for one in step.decisions] == [("OPEN", "resumed")]


def test_a_question_finds_the_month_full_by_usage_that_came_ahead_of_it():
    line = Line("strict", CATALOG)
    line.order(kind="change_cycle", cycle_day=15)
    border = int(datetime(2026, 11, 1, tzinfo=ZoneInfo("Asia/Shanghai")).timestamp()) * 1000
    line.now = border - 20_000
    offset = line._next()
    said = command(offset, line.now, month_tokens=50, time_zone="Asia/Shanghai")
    fold_commands(line.state, [said], offset)
    # Counted into November while October lasts: the gateway's clock is ahead.
    line.use(subscriber="", tokens=60, occurred_at=border + 20_000)
    line.now = border + MINUTE
    fold_usage(line.state, chunk_of([record(line._next(), line.now, account_id="other")]))
    step = line.ask(session="1", max_tokens=1)
    assert [(one.state, one.rule) for one in step.decisions] == [(State.CUT, Rule.MONTH_TOKENS)]


def brought(line, limits):
    """Publish limits for the plan `loose` and let the account choose them at once."""
    version = line.state.catalogs.versions[-1].version + 1
    said = json.loads(LIMITS_CATALOG.to_json()) | {
        "version": version,
        "effective_ms": NOON - MINUTE,
    }
    said["plans"]["loose"]["limits"] = limits
    catalog = Catalog.model_validate(said)
    fold_commands(line.state, [catalog_version(line._next(), line.now, catalog)], line.offset)
    line.order(kind="change_plan", plan="loose", when="now")


@pytest.mark.parametrize("unit", ["tokens", "requests"])
@pytest.mark.parametrize("per", ["minute", "hour", "day", "week", "month", "cycle"])
@pytest.mark.parametrize("of", ["account", "subscriber"])
def test_limits_that_a_change_of_plan_brings_count_from_the_change_on_all_of_them_alike(
    family, unit, per, of
):
    family.use(tokens=7)
    brought(family, [{unit: 30, "per": per, "of": of}])
    name = f"{per}_{unit}" if of == "account" else f"subscriber_{per}_{unit}"
    family.use(tokens=2)
    assert family.limit(name, "kid" if of == "subscriber" else "")[0] == {"tokens": 2}.get(unit, 1)


@pytest.mark.parametrize("per", ["minute", "hour", "day", "week", "month"])
def test_a_limit_that_was_there_before_a_change_of_plan_goes_on_counting(family, per):
    brought(family, [{"tokens": 30, "per": per}])
    family.use(tokens=7)
    brought(family, [{"tokens": 50, "per": per}])
    family.use(tokens=2)
    assert family.limit(f"{per}_tokens") == (9, 0, 50)


def test_usage_that_comes_with_a_new_cycle_counts_into_the_limits_that_the_cycle_brings(family):
    said = json.loads(LIMITS_CATALOG.to_json()) | {"version": 2, "effective_ms": NOON - MINUTE}
    said["plans"]["family"]["limits"] = [
        {"tokens": 30, "per": "day"},
        {"tokens": 30, "per": "week"},
    ]
    catalog = Catalog.model_validate(said)
    fold_commands(
        family.state, [catalog_version(family._next(), family.now, catalog)], family.offset
    )
    family.now += HOUR
    family.use(tokens=5)
    assert [family.limit(name)[0] for name in ("day_tokens", "week_tokens")] == [5, 5]
