"""What a plan, a pack or an order says of an allowance is what the account then has, word for word."""

from __future__ import annotations

import json
import tomllib

import pytest

from tests.limits import LIMITS_CATALOG
from tests.orders import catalog_version, hold_order, order
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, chunk_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.terms import not_enforced, terms_at
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog

MILLION = 1_000_000
# A month begins half an hour after NOON.
NOVEMBER = NOON + HOUR // 2
CATALOG = Catalog.model_validate(
    tomllib.loads(
        """
version = 1
effective_from = 2026-09-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[[rates]]
provider = "p"
model = "max"
input_tokens = 1
output_tokens = 2

[[rates]]
provider = "p"
model = "mini"
input_tokens = 1
output_tokens = 2

[groups]
minis = ["p/mini"]

[plans.plain]
title = "What a plan is that says no more than it must"
fee = "1"
tokens = 100
mode = "postpaid"
proration = "full"

[plans.special]
title = "A plan that says everything else than the plain one"
fee = "1"
tokens = 100
mode = "prepaid"
proration = "full"
rollover_tokens = 30
priority = 7
groups = ["minis"]
thresholds = [10, 90]
hold_validity_s = 20

[plans.endless]
title = "A plan that goes on"
fee = "1"
tokens = 100
mode = "postpaid"
proration = "full"
used_up = "overage"
overage_price = "2.5"

[packs.pack]
title = "What a pack is that says no more than it must"
fee = "1"
tokens = 20
valid_days = 1

[packs.gift]
title = "Another"
fee = "1"
tokens = 30
valid_days = 7
priority = 3
source = "gift"
transferable = true
groups = ["minis"]

[packs.free]
title = "A third"
fee = "0"
tokens = 40
valid_days = 3660
priority = 0
source = "free"
shared = false
"""
    )
)


class Line:
    """A partition with account `t/a` on a plan; offsets count themselves."""

    def __init__(self, plan, catalog=CATALOG):
        self.state, self.offset, self.now = PartitionState(BOUNDS), 0, NOON
        self.entered = []
        fold_commands(self.state, [catalog_version(0, NOON, catalog)], 0)
        self.order(kind="open", plan=plan)

    def _fold(self, make, fields):
        self.offset += 1
        step = fold_commands(self.state, [make(self.offset, self.now, **fields)], self.offset)
        self.entered += step.changes
        return step

    def order(self, **fields):
        return self._fold(order, fields)

    def hold(self, **fields):
        return self._fold(hold_order, fields).replies[0].answer

    def use(self, tokens, model="max", subscriber="", at_ms=0):
        self.offset += 1
        said = {"input_tokens": tokens, "model": model, "subscriber_id": subscriber}
        said |= {"occurred_at": at_ms or self.now, "event_id": f"e{self.offset}"}
        step = fold_usage(self.state, chunk_of([record(self.offset, self.now, **said)]))
        self.entered += step.changes
        return step

    def shown(self):
        return json.loads(self.order(kind="show").replies[0].answer.detail)

    def buckets(self, source=""):
        return [one for one in self.shown()["buckets"] if source in ("", one["source"])]

    def used(self):
        """Return what is used of each source, in tokens."""
        return {one["source"]: one["used_utok"] // MILLION for one in self.buckets()}


@pytest.fixture
def plain():
    return Line("plain")


# The end of the local day on which these packs are bought.
MIDNIGHT = NOON + HOUR // 2


def bucket(number, source, tokens, ends_ms, **fields):
    usual = {"priority": 100, "used_utok": 0, "held_utok": 0, "claimed_utok": 0}
    usual |= {"models": [], "subscribers": [], "transferable": 0}
    named = {"bucket": number, "source": source, "total_utok": tokens * MILLION}
    return named | {"valid_to_ms": ends_ms} | usual | fields


@pytest.mark.parametrize(
    ("pack", "asked", "found"),
    [
        ("pack", [], bucket(2, "pack", 20, MIDNIGHT + DAY)),
        (
            "gift",
            [],
            bucket(
                2, "gift", 30, MIDNIGHT + 7 * DAY, priority=3, models=["p/mini"], transferable=1
            ),
        ),
        (
            "free",
            ["kid", "mum"],
            bucket(2, "free", 40, MIDNIGHT + 3660 * DAY, priority=0, subscribers=["kid", "mum"]),
        ),
    ],
)
def test_a_pack_is_the_bucket_that_the_catalog_says(plain, pack, asked, found):
    answer = plain.order(kind="grant", pack=pack, subscribers=asked).replies[0].answer
    assert (answer.bucket, answer.amount_utok) == (2, found["total_utok"])
    assert plain.buckets(found["source"]) == [found]


def test_a_pack_pays_until_its_days_are_over_and_not_a_moment_longer(plain):
    plain.order(kind="grant", pack="pack")
    plain.use(100)  # the plan's own
    ends_ms = MIDNIGHT + DAY
    plain.now = ends_ms + 5000
    # By then November has an allowance; the pack, of equal priority, ends earlier and burns first.
    plain.use(3, at_ms=ends_ms - 1)
    plain.use(4, at_ms=ends_ms)
    used = [(one["source"], one["used_utok"] // MILLION) for one in plain.buckets()]
    assert ("pack", 3) in used
    assert ("plan", 4) in used


def test_only_a_pack_that_is_transferable_can_be_given_away(plain):
    plain.order(kind="grant", pack="pack")
    plain.order(kind="grant", pack="gift")
    asked = {"kind": "transfer", "to_account": "b"}
    more = plain.order(**asked, amount_utok=30 * MILLION + 1)
    assert more.replies[0].answer.reason.name == "BAD_AMOUNT"
    all_of_it = plain.order(**asked, amount_utok=30 * MILLION)
    assert [one.fields["amount_utok"] for one in all_of_it.sent] == [30 * MILLION]
    assert all_of_it.sent[0].fields["valid_to"] == MIDNIGHT + 7 * DAY


@pytest.mark.parametrize("source", ["top_up", "gift", "free", "pack", "refund"])
def test_a_grant_is_the_bucket_that_its_order_says(plain, source):
    said = {"priority": 5, "valid_to": NOON + HOUR, "models": ["p/mini"], "subscribers": ["kid"]}
    said |= {"amount_utok": 6 * MILLION, "source": source, "transferable": True}
    answer = plain.order(kind="grant", **said).replies[0].answer
    scope = {"models": ["p/mini"], "subscribers": ["kid"], "transferable": 1}
    assert (answer.bucket, answer.amount_utok) == (2, 6 * MILLION)
    assert plain.buckets(source) == [bucket(2, source, 6, NOON + HOUR, priority=5, **scope)]
    plain.order(kind="grant", amount_utok=MILLION, source=source)
    # Without an end it has none, and is everybody's.
    assert plain.buckets(source)[-1] == bucket(3, source, 1, 0)


def test_a_grant_that_begins_later_pays_for_nothing_before(plain):
    begins_ms = NOON + 10 * MINUTE
    plain.order(kind="grant", amount_utok=9 * MILLION, valid_from=begins_ms, priority=1)
    assert plain.shown()["rest_utok"] == 100 * MILLION
    plain.use(1)
    plain.now = begins_ms
    plain.use(2, at_ms=begins_ms - 1)
    plain.use(4)
    assert plain.used() == {"plan": 3, "top_up": 4}


def test_what_an_answer_says_is_left_is_what_is_left(plain):
    answer = plain.order(kind="grant", amount_utok=9 * MILLION).replies[0].answer
    assert (answer.rest_utok, answer.at_ms) == (109 * MILLION, NOON)
    less = plain.order(kind="adjust", bucket=2, amount_utok=-2 * MILLION).replies[0].answer
    assert (less.bucket, less.amount_utok, less.rest_utok) == (2, -2 * MILLION, 107 * MILLION)


def test_a_plan_is_the_allowance_that_the_catalog_says():
    plain, special = Line("plain"), Line("special")
    assert [plain.shown()[name] for name in ("plan", "mode", "status")] == [
        "plain",
        "postpaid",
        "active",
    ]
    assert special.shown()["mode"] == "prepaid"
    assert plain.buckets("plan") == [bucket(1, "plan", 100, NOVEMBER)]
    scope = {"priority": 7, "models": ["p/mini"]}
    assert special.buckets("plan") == [bucket(1, "plan", 100, NOVEMBER, **scope)]


def test_an_allowance_for_a_group_pays_for_its_models_alone():
    line = Line("special")
    line.use(5, model="mini")
    line.use(3, model="max")
    assert line.used() == {"written_off": 3, "plan": 5}


@pytest.mark.parametrize(("plan", "kept"), [("plain", []), ("special", [30])])
def test_as_much_of_an_allowance_rolls_over_as_the_plan_says(plan, kept):
    line = Line(plan)
    line.now += 3 * DAY
    rolled = line.buckets("rollover")
    assert [one["total_utok"] // MILLION for one in rolled] == kept
    assert [(one["priority"], one["models"]) for one in rolled] == [(7, ["p/mini"])] * len(kept)


@pytest.mark.parametrize(("plan", "state"), [("plain", "cut"), ("endless", "warned")])
def test_a_plan_with_overage_goes_on_when_its_tokens_are_used_up(plan, state):
    line = Line(plan)
    line.use(100)
    shown = line.shown()
    assert (shown["state"], shown["rest_utok"]) == (state, 0)
    assert line.hold(max_tokens=5).granted_utok == (10 * MILLION if plan == "endless" else 0)


@pytest.mark.parametrize(
    ("plan", "told"), [("plain", [[], [50], [50, 80]]), ("special", [[10], [10], [10, 90]])]
)
def test_the_parts_of_an_allowance_that_are_told_are_those_of_the_plan(plan, told):
    found = []
    for tokens in (11, 55, 95):
        line = Line(plan)
        decisions = line.use(tokens, model="mini").decisions
        found.append([one.threshold_percent for one in decisions if one.threshold_percent])
    assert found == told


@pytest.mark.parametrize(("plan", "validity_ms"), [("plain", 60_000), ("special", 20_000)])
def test_a_hold_is_good_for_as_long_as_the_plan_says_and_closed_at_twice_that(plan, validity_ms):
    line = Line(plan)
    assert line.hold(model="mini", max_tokens=5).validity_ms == validity_ms
    (held,) = line.shown()["holds"]
    assert held == {
        "status": "open",
        "lease": False,
        "held_utok": 10 * MILLION,
        "used_utok": 0,
        "expires_at_ms": NOON + 2 * validity_ms,
    }
    line.now += 2 * validity_ms - 1
    assert line.shown()["held_utok"] == 10 * MILLION
    line.now += 1
    assert line.shown()["held_utok"] == 0


def test_an_account_goes_on_until_the_last_microtoken_is_used(plain):
    plain.order(kind="adjust", bucket=1, amount_utok=1 - 100 * MILLION)
    assert (plain.shown()["state"], plain.shown()["rest_utok"]) == ("open", 1)
    plain.order(kind="adjust", bucket=1, amount_utok=-1)
    assert (plain.shown()["state"], plain.shown()["why"]) == ("cut", "balance")


def test_what_is_held_is_not_told_as_used_and_keeps_an_account_from_being_cut(plain):
    plain.hold(max_tokens=25)
    assert plain.shown()["state"] == "open"
    (told,) = plain.use(50).decisions
    assert (told.threshold_percent, told.used, told.limit) == (50, 50 * MILLION, 100 * MILLION)
    assert (plain.shown()["rest_utok"], plain.shown()["state"]) == (0, "warned")
    plain.hold(seq=1, action="settle")
    assert plain.shown()["rest_utok"] == 50 * MILLION


def test_what_is_used_beyond_a_plan_that_goes_on_counts_from_the_cycle_on():
    line = Line("endless")
    last = line.use(130).decisions[-1]
    assert (last.used, last.limit) == (100 * MILLION, 100 * MILLION)
    assert last.overage_utok == 30 * MILLION
    line.now = NOVEMBER
    found = [line.use(tokens).decisions[-1] for tokens in (60, 50)]
    assert [one.used // MILLION for one in found] == [60, 100]
    assert [one.overage_utok // MILLION for one in found] == [0, 10]


@pytest.mark.parametrize(("after_ms", "held"), [(0, 3), (1, 6)])
def test_a_call_is_held_at_the_dearest_price_of_the_time_its_plan_looks_ahead(after_ms, held):
    said = json.loads(CATALOG.to_json())
    # It is 23:30, and the plan looks two minutes ahead: to the very moment the price goes up.
    for rate in said["rates"]:
        rate["hours"] = [{"from": "22:00", "to": "23:32", "multiply": "0.5"}]
    line = Line("plain", Catalog.model_validate(said))
    line.now += after_ms
    assert line.hold(prompt_tokens=2, max_tokens=2).granted_utok == held * MILLION


def test_a_cycle_is_shown_from_its_first_moment_to_its_last():
    line = Line("plain")
    line.now = NOVEMBER
    shown = line.shown()
    assert (shown["cycle_day"], shown["cycle_start_ms"]) == (1, NOVEMBER)
    assert shown["cycle_end_ms"] == NOVEMBER + 30 * DAY
    assert (shown["account"], shown["time_zone"]) == ("t/a", "Asia/Shanghai")
    assert (shown["allowance_utok"], shown["resets_at_ms"], shown["limits"]) == (
        100 * MILLION,
        0,
        [],
    )
    line.order(kind="suspend")
    shown = line.shown()
    assert [shown[name] for name in ("status", "state", "why")] == ["suspended", "cut", "suspended"]


def test_before_the_first_catalog_there_are_no_terms():
    book = CatalogBook()
    assert terms_at(book, "plain", NOON) is None
    book.add(CATALOG)
    assert terms_at(book, "plain", CATALOG.effective_ms - 1) is None
    assert terms_at(book, "plain", CATALOG.effective_ms).allowance_utok == 100 * MILLION
    assert terms_at(book, "gone", NOON) is None


def limited(limits, **plan):
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["limited"] |= {"limits": limits} | plan
    return Catalog.from_json(json.dumps(said))


def test_a_limit_of_the_cells_is_in_force_once():
    catalog = limited([{"requests": 3, "per": "minute"}, {"requests": 5, "per": "week"}])
    book = CatalogBook()
    book.add(catalog)
    terms = terms_at(book, "limited", NOON)
    assert [ceiling for _, ceiling in terms.ceilings] == [3]
    assert [spec.name for spec, _ in terms.limits] == ["subscriber_tokens", "week_requests"]


@pytest.mark.parametrize(("mode", "said"), [("prepaid", 0), ("strict", 0), ("postpaid", 1)])
def test_leases_that_no_call_has_are_named_as_not_enforced(mode, said):
    found = not_enforced(limited([], mode=mode, unreachable="leases"))
    assert len(found) == said


@pytest.mark.parametrize(("rolling", "opens"), [(False, True), (True, False)])
def test_a_rolling_limit_is_not_new_when_the_minute_is(rolling, opens):
    line = Line("limited", limited([{"requests": 2, "per": "minute", "rolling": rolling}]))
    line.now += 59_000
    for _ in range(2):
        line.use(1)
    assert line.hold(session="1", max_tokens=1).reason.name == "LIMIT_REACHED"
    line.now += 1000
    reason = line.hold(session="2", max_tokens=1).reason.name
    assert reason == ("NONE" if opens else "LIMIT_REACHED")
    line.now += 60_000
    assert line.hold(session="3", max_tokens=1).reason.name == "NONE"
