"""Limits and caps hold for usage, holds and decisions, from the catalog to the answer."""

from __future__ import annotations

import json

import pytest

from tests.limits import LIMITS_CATALOG
from tests.orders import catalog_version, hold_order, order
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, chunk_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.quota.decide import Rule, State

MILLION = 1_000_000


class Line:
    """A partition with account `t/a`; offsets count themselves."""

    def __init__(self, plan):
        self.state, self.offset, self.now = PartitionState(BOUNDS), 0, NOON
        fold_commands(self.state, [catalog_version(0, NOON, LIMITS_CATALOG)], 0)
        self.order(kind="open", plan=plan)

    def _next(self):
        self.offset += 1
        return self.offset

    def order(self, **fields):
        offset = self._next()
        return fold_commands(self.state, [order(offset, self.now, **fields)], offset)

    def hold(self, **fields):
        offset = self._next()
        step = fold_commands(self.state, [hold_order(offset, self.now, **fields)], offset)
        return step.replies[0].answer

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


def test_what_is_held_counts_against_the_cap_and_the_refusal_names_it(family):
    family.hold(session="1", subscriber_id="kid", max_tokens=10)
    family.use(tokens=9)
    asked = {"session": "2", "subscriber_id": "kid", "prompt_tokens": 1, "max_tokens": 10}
    refused = family.hold(**asked)
    assert refused.reason.name == "LIMIT_REACHED"
    assert (refused.limit_name, refused.limit_used) == ("subscriber_tokens", 29 * MILLION)
    assert refused.limit_value == 30 * MILLION
    assert refused.resets_at_ms == family.state.books.get(0, 8 + 1)  # the end of the cycle
    assert family.limit("subscriber_tokens", "kid") == (9 * MILLION, 20 * MILLION, 30 * MILLION)
    family.hold(session="1", seq=1, action="settle")
    assert family.hold(**asked) == refused
    assert family.hold(**asked | {"session": "3"}).granted_utok == 21 * MILLION


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
    assert decided.resets_at_ms == family.state.books.get(0, 9)
    assert told(family.use(tokens=1)) == []
    account, kid = family.order(kind="change_plan", plan="loose").decisions
    assert (account.subscriber, account.state) == ("", State.OPEN)
    assert (kid.subscriber, kid.state, kid.reason) == ("kid", State.OPEN, "window_reset")
    assert [account.version, kid.version] == [decided.version + 1, decided.version + 2]


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
