"""An account goes by the terms it took, whatever catalogs say meanwhile, until it takes others."""

from __future__ import annotations

import json

import pytest

from tests.orders import catalog_version, order
from tests.paper_line import Books as Readers
from tests.paper_line import Journal, PaperLine
from tests.strategies import DAY, HOUR, MINUTE, NOON
from tests.unit.test_offers_in_force import CATALOG, MILLION, NOVEMBER, Line
from tokenline.quota.balance import Balance
from tokenline.quota.kept_terms import MOST_KEPT, KeptTerms
from tokenline.quota.terms import NEVER_MS, HoldExpiry, LimitSpec, Mode, Per, Scope, Terms, Unit
from tokenline.rating.catalog import Catalog

DECEMBER = NOVEMBER + 30 * DAY


def version(number, effective_ms, plan="plain", **changed):
    """Return the catalog with another version of a plan, or without it for None."""
    said = json.loads(CATALOG.to_json()) | {"version": number, "effective_ms": effective_ms}
    if changed.pop("gone", False):
        del said["plans"][plan]
    else:
        said["plans"][plan] |= changed
    return Catalog.model_validate(said)


def published(line, catalog):
    line.offset += 1
    line._fold(lambda offset, now, **_: catalog_version(offset, now, catalog), {})


STOPPED = {"mode": "strict", "tokens": 300, "thresholds": [90]}


def test_what_a_version_changes_of_a_plan_is_in_force_with_the_next_cycle_alone():
    line = Line("plain")
    published(line, version(2, NOON + 20 * MINUTE, **STOPPED))
    line.now = NOON + 25 * MINUTE
    before = line.shown()
    assert (before["mode"], before["terms_version"], before["allowance_utok"]) == (
        "postpaid",
        1,
        100 * MILLION,
    )
    line.now = NOVEMBER
    after = line.shown()
    assert (after["mode"], after["terms_version"], after["allowance_utok"]) == (
        "strict",
        2,
        300 * MILLION,
    )


def test_gateways_are_told_the_terms_of_an_account_whenever_it_takes_others():
    line = Line("plain")
    published(line, version(2, NOON + 20 * MINUTE, **STOPPED))
    line.now = NOON + 25 * MINUTE
    assert line.use(1).decisions == []
    line.now = NOVEMBER
    (told,) = line.use(1).decisions
    assert (told.state.name, told.reason) == ("OPEN", "account_set")
    line.now += 1
    assert line.use(1).decisions == []


@pytest.mark.parametrize("proration", ["prorate", "full"])
def test_a_version_may_bring_new_terms_to_running_accounts_at_once(proration):
    line = Line("plain")
    line.use(40)
    begins_ms = NOVEMBER + 10 * DAY + 3 * HOUR
    said = {"tokens": 300, "running_accounts": "now", "proration": proration}
    line.now = NOVEMBER + DAY
    published(line, version(2, begins_ms, **said))
    line.now = begins_ms - 1
    assert line.shown()["allowance_utok"] == 100 * MILLION
    line.now = begins_ms + 5 * HOUR
    shown = line.shown()
    assert shown["terms_version"] == 2
    # Ten days of a hundred are behind, twenty of three hundred ahead; granted whole it is 300 in all.
    totals = {"prorate": [10 * 100 // 30, 200], "full": [300]}[proration]
    whole = [one["total_utok"] for one in shown["buckets"] if one["source"] == "plan"]
    assert [one // MILLION for one in whole if one] == totals
    (entered, *_) = [one for one in line.entered if one.kind.name == "PLAN_CHANGE"]
    assert entered.at_ms == begins_ms


def test_a_version_that_says_the_same_of_a_plan_changes_nothing_of_its_accounts():
    line = Line("plain")
    line.now = NOVEMBER + DAY
    published(line, version(2, NOVEMBER + 2 * DAY, running_accounts="now"))
    line.now = NOVEMBER + 3 * DAY
    shown = line.shown()
    assert shown["terms_version"] == 2
    assert [one["total_utok"] for one in line.buckets("plan")] == [100 * MILLION]


def test_an_account_keeps_the_terms_of_a_plan_that_is_sold_no_more_cycle_after_cycle():
    line = Line("special")
    published(line, version(2, NOON + 20 * MINUTE, plan="special", gone=True))
    line.now = DECEMBER + 3 * DAY
    shown = line.shown()
    assert (shown["plan"], shown["mode"], shown["terms_version"]) == ("special", "prepaid", 1)
    assert [(one["source"], one["total_utok"] // MILLION) for one in line.buckets()] == [
        ("rollover", 30),
        ("plan", 100),
    ]
    refused = line.order(kind="open", account_id="b", plan="special").replies[0].answer
    assert refused.reason.name == "UNKNOWN_PLAN"


def test_a_call_is_held_by_the_terms_of_its_account_and_not_by_the_catalog_of_the_moment():
    line = Line("plain")
    line.now = NOVEMBER
    line.hold(max_tokens=1)
    published(
        line,
        version(2, NOVEMBER + 20 * MINUTE, hold_validity_s=7, used_up="overage", overage_nano=1),
    )
    line.now = NOVEMBER + HOUR
    assert line.hold(session="2", max_tokens=1).validity_ms == 60_000
    line.use(200)
    assert line.hold(session="3", max_tokens=1).granted_utok == 0


def test_a_version_that_is_gone_by_is_kept_as_long_as_an_account_has_to_go_by_it():
    line = Line("plain")
    published(line, version(2, NOVEMBER - MINUTE, tokens=200))
    # Nobody looked for two months, and versions came.
    for number in (3, 4):
        line.now = NOVEMBER + number * 5 * DAY
        published(line, version(number, line.now + HOUR, tokens=number * 100))
    line.now = DECEMBER + 15 * DAY
    line.shown()
    grants = [one.amount_utok // MILLION for one in line.entered if one.kind.name == "GRANT"]
    assert grants == [100, 200, 400]


def test_terms_outlive_the_worker_and_so_does_when_they_change():
    journal, books = Journal(), Readers()
    line = PaperLine(journal, books)
    line.command(
        [
            catalog_version(0, NOON, CATALOG),
            order(1, NOON, kind="open", plan="plain"),
            catalog_version(
                2, NOON, version(2, NOVEMBER + DAY, running_accounts="now", tokens=400)
            ),
        ]
    )
    line.rest()
    again = PaperLine(journal, books).state
    assert again.books.balances.matrix.tolist() == line.state.books.balances.matrix.tolist()
    assert again.books.terms(0) == line.state.books.terms(0)
    assert again.books.get(0, Balance.DUE_AT) == NOVEMBER
    assert again.books.dues.new_terms_at(0) == NOVEMBER + DAY


EVERYTHING = Terms(
    mode=Mode.STRICT,
    scope=Scope(models=("p/*",)),
    hold_expiry=HoldExpiry.RELEASE,
    limits=((LimitSpec(name="x", unit=Unit.UTOK, per=Per.WEEK, models=("p/m",)), 7),),
    least_call_utok=0,
    version=9,
)


def test_terms_are_kept_once_and_read_back_as_they_were():
    kept = KeptTerms()
    codes = [kept.code(one, list) for one in (Terms(), EVERYTHING, Terms())]
    assert codes == [1, 2, 1]
    again = KeptTerms()
    again.load(kept.to_json())
    assert (again[1], again[2], len(again)) == (Terms(), EVERYTHING, 2)
    assert again.code(Terms(version=3), list) == 3


def test_terms_that_no_account_goes_by_are_forgotten_and_their_numbers_never_given_again():
    kept = KeptTerms()
    for number in range(MOST_KEPT):
        kept.code(Terms(version=number), list)
    assert kept.code(Terms(version=-1), lambda: [5]) == MOST_KEPT + 1
    assert len(kept) == 2
    assert kept[5] == Terms(version=4)
    again = KeptTerms()
    again.load(kept.to_json())
    assert again.code(Terms(version=0), list) == MOST_KEPT + 2


def test_no_new_terms_are_due_where_no_catalog_brings_any():
    assert Line("plain").state.books.dues.new_terms_at(0) == NEVER_MS


def test_an_order_says_when_a_plan_is_in_force_and_what_is_pending_is_shown():
    line = Line("endless")
    published(line, version(2, NOON + 20 * MINUTE, plan="special", change="next_cycle"))
    line.now = NOON + 25 * MINUTE
    answer = line.order(kind="change_plan", plan="special").replies[0].answer
    assert answer.detail.startswith("special is in force from 2026-11-01 00:00:00 +0800")
    assert [line.shown()[name] for name in ("plan", "pending_plan")] == ["endless", "special"]
    line.now = NOVEMBER
    assert [line.shown()[name] for name in ("plan", "pending_plan")] == ["special", ""]
    line.order(kind="change_plan", plan="plain", when="next_cycle")
    assert line.shown()["pending_plan"] == "plain"
    at_once = line.order(kind="change_plan", plan="plain", when="now").replies[0].answer
    assert (at_once.detail, line.shown()["plan"]) == ("", "plain")


def test_a_change_of_plan_at_no_known_time_is_no_order():
    step = Line("plain").order(kind="change_plan", plan="special", when="tomorrow")
    assert [one.reason for one in step.refused] == ["bad_command"]
    assert "known: now, next_cycle" in step.refused[0].detail


def test_what_an_account_owes_of_days_to_come_is_shown():
    line = Line("plain")
    published(line, version(2, NOON + 20 * MINUTE, proration="prorate"))
    line.now = NOVEMBER
    line.use(100)
    line.order(kind="change_cycle", cycle_day=2)
    assert line.shown()["debt_utok"] == 100 * MILLION - 100 * MILLION // 30
