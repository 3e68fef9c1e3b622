"""What people are shown of an account: all of it, or as much as a reply carries and how much that leaves out."""

from __future__ import annotations

import json

import pytest

from tests.limits import LIMITS_CATALOG
from tests.orders import catalog_version, hold_order, order
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.show import TEXT_MAX_CHARS, shown_text
from tokenline.rating.catalog import Catalog

MILLION = 1_000_000


class Line:
    """A partition with account `t/a`, on a plan or on none; offsets count themselves."""

    def __init__(self, plan=""):
        self.state, self.offset, self.now = PartitionState(BOUNDS), 0, NOON
        self.fold(catalog_version, catalog=LIMITS_CATALOG)
        if plan:
            self.fold(order, kind="open", plan=plan)

    def fold(self, make, catalog=None, **fields):
        self.offset += 1
        made = make(self.offset, self.now, catalog) if catalog else None
        made = made or make(self.offset, self.now, **fields)
        return fold_commands(self.state, [made], self.offset)

    def use(self, subscribers, tokens=1, model="max"):
        records = []
        for name in subscribers:
            self.offset += 1
            said = {"input_tokens": tokens, "model": model, "occurred_at": self.now}
            said |= {"subscriber_id": name, "event_id": f"e{self.offset}"}
            records.append(record(self.offset, self.now, **said))
        fold_usage(self.state, chunk_of(records))

    def shown(self):
        return json.loads(self.fold(order, kind="show").replies[0].answer.detail)

    def limits(self):
        """Return used, held, ceiling and end of each limit, by its name and subscriber."""
        names = ("used", "held", "ceiling", "resets_at_ms")
        return {
            (one["limit"], one["subscriber"]): tuple(one[name] for name in names)
            for one in self.shown()["limits"]
        }


@pytest.mark.parametrize(("members", "left_out"), [(1999, {}), (2000, {"limits": 1})])
def test_as_many_members_are_shown_as_a_reply_carries_and_the_others_are_counted(members, left_out):
    line = Line("family")
    line.use([f"m{number}" for number in range(members)])
    shown = line.shown()
    assert shown.get("not_shown", {}) == left_out
    assert len(shown["limits"]) == 2000
    assert (shown["account"], len(shown["buckets"])) == ("t/a", 2)


def test_members_with_long_names_are_shown_as_far_as_a_reply_carries():
    line = Line("family")
    line.use([f"{number}".rjust(256, "m") for number in range(2100)])
    text = shown_text(line.state, 0)
    shown = json.loads(text)
    assert len(text) <= TEXT_MAX_CHARS
    assert (len(shown["limits"]), shown["not_shown"]) == (200, {"limits": 1901})


def test_an_account_that_was_never_opened_is_shown_by_its_limits_alone():
    line = Line()
    line.fold(command, minute_requests=1, day_tokens=100, account_id="a")
    line.use([""], tokens=3)
    shown = line.shown()
    assert (shown["account"], shown["state"], shown["why"]) == ("t/a", "cut", "minute_requests")
    assert shown["resets_at_ms"] == NOON + MINUTE
    assert not {"plan", "buckets", "holds", "status"} & shown.keys()
    # The day in Shanghai ends half an hour after NOON.
    assert line.limits() == {
        ("minute_requests", ""): (1, 0, 1, NOON + MINUTE),
        ("day_tokens", ""): (3, 0, 100, NOON + HOUR // 2),
    }


def test_a_limit_of_nothing_is_shown_to_end_never():
    line = Line()
    line.fold(command, minute_requests=0, account_id="a")
    assert line.limits() == {("minute_requests", ""): (0, 0, 0, 0)}


def test_limits_are_shown_with_what_is_used_and_held_of_them_and_when_they_begin_anew():
    line = Line("limited")
    asked = {"subscriber_id": "kid", "model": "mini", "max_tokens": 4}
    line.fold(hold_order, **asked)
    line.use(["kid"], tokens=5)
    found = line.limits()
    rolling = "subscriber_rolling_hour_utok"
    assert found["hour_utok:minis", ""] == (0, MILLION, 20 * MILLION, NOON + HOUR // 2)
    assert found["subscriber_tokens", "kid"][:3] == (5 * MILLION, MILLION, 60 * MILLION)
    # Of whom used nothing yet there is a ceiling; and one that has a name says whose it is.
    assert found["subscriber_tokens", "*"] == (0, 0, 60 * MILLION, 0)
    # A window that rolls lets go of a slice at a time: unless it is full it ends at no moment.
    assert found[rolling, "kid"] == (5 * MILLION, MILLION, 25 * MILLION, 0)
    line.use(["kid"], tokens=20)
    used, _, _, ends_ms = line.limits()[rolling, "kid"]
    assert used == 25 * MILLION
    # It rolls by five minutes.
    assert ends_ms == NOON + HOUR + 5 * MINUTE


def test_what_a_limit_counted_in_a_window_that_is_over_is_not_shown():
    line = Line("limited")
    line.use(["mum"], tokens=10, model="mini")
    assert line.limits()["hour_utok:minis", ""][0] == MILLION
    line.now += HOUR
    assert line.limits()["hour_utok:minis", ""][0] == 0


def test_what_a_rate_counted_in_a_minute_that_is_over_is_not_shown():
    line = Line()
    line.fold(command, minute_requests=9, account_id="a")
    line.use([""])
    assert line.limits()["minute_requests", ""][:1] == (1,)
    line.now += MINUTE
    assert line.limits()["minute_requests", ""] == (0, 0, 9, NOON + 2 * MINUTE)


def test_what_is_held_is_shown_of_the_bucket_and_of_the_session():
    line = Line("loose")
    line.fold(hold_order, max_tokens=10, lease=True, wanted_utok=20 * MILLION)
    line.use(["kid"], tokens=7)
    shown = line.shown()
    assert [(one["used_utok"], one["held_utok"]) for one in shown["buckets"]] == [
        (7 * MILLION, 20 * MILLION)
    ]
    assert (shown["held_utok"], shown["rest_utok"]) == (20 * MILLION, 73 * MILLION)
    assert [(one["lease"], one["held_utok"]) for one in shown["holds"]] == [(True, 20 * MILLION)]
    line.fold(hold_order, seq=1, action="settle")
    assert line.shown()["holds"] == []


def test_an_account_that_a_limit_cuts_is_shown_with_its_name_until_its_plan_has_none():
    line = Line("limited")
    line.use([""], tokens=50)
    assert [line.shown()[name] for name in ("state", "why")] == ["cut", "limit: week_utok"]
    line.fold(order, kind="change_plan", plan="loose", when="now")
    # Of what both plans grant whole half is used.
    assert [line.shown()[name] for name in ("state", "why")] == ["warned", "balance"]
    # Nor is anything of it left where the plan that has none comes with a cycle.
    later = Line("limited")
    later.use([""], tokens=50)
    text = LIMITS_CATALOG.to_json().replace('"version":1', '"version":2', 1)
    said = json.loads(text)
    said["plans"]["limited"]["limits"] = []
    later.fold(catalog_version, Catalog.from_json(json.dumps(said)))
    assert later.shown()["why"] == "limit: week_utok"
    later.now += HOUR
    assert [later.shown()[name] for name in ("state", "why")] == ["open", ""]
