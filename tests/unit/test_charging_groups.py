"""A limit of a group of models cuts its account, or its subscriber, for those models alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from streams.outputs import Outputs
from tests.limits import LIMITS_CATALOG
from tests.orders import catalog_version
from tests.strategies import DAY, HOUR, MINUTE
from tests.unit.test_charging_limits import MILLION, Line, recovered
from tokenline.charging.commands import fold_commands
from tokenline.charging.terms import not_enforced
from tokenline.quota.decided import Rule
from tokenline.quota.terms import LimitSpec, Per, Unit
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import decision_key

MINI = {"model": "mini", "subscriber": ""}


def line_of(*limits, mode="postpaid", **plan):
    said = json.loads(LIMITS_CATALOG.to_json())
    said["groups"]["all"] = ["p/*"]
    said["plans"]["limited"] |= {"mode": mode, "limits": list(limits)} | plan
    catalog = Catalog.from_json(json.dumps(said))
    assert not_enforced(catalog) == []
    return Line("limited", catalog)


def told(step):
    return [
        (one.subscriber, one.group, one.state.name, one.reason)
        for one in step.decisions
        if one.group
    ]


HOURLY = {"requests": 3, "per": "hour", "group": "minis"}
CUT = ("", "hour_requests:minis", "CUT", "limit_reached")
OPEN = ("", "hour_requests:minis", "OPEN", "resumed")


@pytest.mark.parametrize("mode", ["postpaid", "prepaid", "strict"])
def test_it_is_cut_when_the_limit_is_reached_and_nothing_else_is(mode):
    line = line_of(HOURLY, mode=mode)
    for _ in range(2):
        assert told(line.use(**MINI)) == []
    line.use(model="max", subscriber="")
    step = line.use(**MINI)
    assert told(step) == [CUT]
    (decided,) = (one for one in step.decisions if one.group)
    assert (decided.models, decided.rule, decided.limit_name) == (
        ("p/mini",),
        Rule.LIMIT,
        "hour_requests:minis",
    )
    assert (decided.used, decided.limit) == (3, 3)
    assert decided.resets_at_ms == decided.window_start_ms + HOUR
    assert line.shown()["state"] == "open"
    # It was told.
    assert told(line.use(**MINI)) == []


def test_the_first_use_of_the_next_window_tells_that_it_is_over():
    line = line_of(HOURLY)
    for _ in range(3):
        line.use(**MINI)
    line.now += HOUR
    assert told(line.use(**MINI)) == [OPEN]


def test_of_each_subscriber_the_one_that_reached_it_is_cut_alone():
    line = line_of({"requests": 1, "per": "day", "of": "subscriber", "group": "minis"})
    group = "subscriber_day_requests:minis"
    assert told(line.use("kid", model="mini")) == [("kid", group, "CUT", "limit_reached")]
    assert told(line.use("", model="mini")) == []
    assert told(line.use("mum", model="mini")) == [("mum", group, "CUT", "limit_reached")]
    cut = [one["subscriber"] for one in line.shown()["limits"] if one["limit"] == group]
    assert cut == ["*", "kid", "mum"]


def test_one_that_names_a_subscriber_and_one_of_each_are_two_decisions():
    each = {"requests": 2, "per": "day", "of": "subscriber", "group": "minis"}
    line = line_of(each, each | {"requests": 1, "subscriber": "kid"})
    group = "subscriber_day_requests:minis"
    named = "subscriber_day_requests@kid:minis"
    assert told(line.use("kid", model="mini")) == [("kid", named, "CUT", "limit_reached")]
    assert told(line.use("kid", model="mini")) == [("kid", group, "CUT", "limit_reached")]


def test_no_group_is_called_what_the_limit_of_one_subscriber_is_told_by():
    """One decision would take the other's place, in every guard and on the topic."""
    each = LimitSpec(name="a:minis@kid", unit=Unit.UTOK, per=Per.DAY, each=True, models=("p/max",))
    named = replace(each, name="a:minis", subscriber="kid", models=("p/mini",))
    assert (each.group, named.group) == ("a:minis@kid", "a@kid:minis")
    assert replace(named, models=()).group == ""


def test_every_limit_of_a_group_is_told_by_itself():
    line = line_of(HOURLY, {"tokens": 30, "per": "day", "group": "all"})
    assert told(line.use(tokens=30, **MINI)) == [("", "day_tokens:all", "CUT", "limit_reached")]
    line.use(**MINI)
    assert told(line.use(**MINI)) == [CUT]


def test_a_limit_of_nothing_cuts_from_the_start_and_another_plan_ends_it():
    line = line_of(HOURLY | {"requests": 0})
    back = line.order(kind="change_plan", plan="family", when="now")
    assert told(back) == [OPEN]
    again = line.order(kind="change_plan", plan="limited", when="now")
    assert told(again) == [CUT]
    assert [one.resets_at_ms for one in again.decisions if one.group] == [0]


def test_what_is_given_back_to_it_opens_it_again():
    limit = {"utok": 10 * MILLION, "per": "week", "group": "all"}
    line = line_of(limit, mode="prepaid", hold_expiry="charge_granted")
    group = "week_utok:all"
    line.hold(session="1", max_tokens=5)
    line.now += 2 * MINUTE
    # The hold that nobody settled was charged whole; then its gateway says that it used nothing.
    assert told(line.order(kind="show")) == [("", group, "CUT", "limit_reached")]
    late = line.ask(session="1", seq=1, action="settle")
    assert told(late) == [("", group, "OPEN", "resumed")]


def test_a_group_that_gets_other_models_is_told_anew():
    line = line_of(HOURLY | {"requests": 0})
    catalog = json.loads(line.state.catalogs.versions[-1].to_json())
    catalog["groups"]["minis"], catalog["version"] = ["p/max"], 2
    newer = catalog_version(line._next(), line.now, Catalog.from_json(json.dumps(catalog)))
    fold_commands(line.state, [newer], newer.offset)
    step = line.order(kind="change_plan", plan="limited", when="now")
    assert [one.models for one in step.decisions if one.group] == [("p/max",)]
    assert told(step) == [CUT]


def test_what_was_told_is_known_after_a_restart():
    line = line_of(HOURLY)
    for _ in range(3):
        line.use(**MINI)
    line.state.books = recovered(line.state)
    assert told(line.use(**MINI)) == []
    line.now += DAY
    assert told(line.use(**MINI)) == [OPEN]


def test_it_has_a_key_of_its_own_and_the_next_owner_takes_the_old_one_away():
    line, settings = line_of(HOURLY), Settings()
    registry = open_registry(settings)
    codec = Codec(registry)
    outputs = Outputs(settings, codec, ColumnCodec(registry), None, 0)
    line.state.epoch = 4
    for _ in range(3):
        step = line.use(**MINI)
    said = outputs.messages(line.state, step, [])[0]
    _, fields = codec.decode(said.value)
    assert said.key == decision_key("t", "a", 4, "", "hour_requests:minis")
    assert (fields["model_group"], fields["models"]) == ("hour_requests:minis", ["p/mini"])
    assert (fields["state"], fields["subscriber_id"]) == ("cut", "")
    line.state.epoch = 7
    line.now += HOUR
    step = line.use(**MINI)
    keys = [one.key for one in outputs.messages(line.state, step, []) if one.topic == "decisions"]
    assert decision_key("t", "a", 7, "", "hour_requests:minis") in keys
    assert decision_key("t", "a", 4, "", "hour_requests:minis") in keys
