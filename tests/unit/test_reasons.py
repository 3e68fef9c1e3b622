"""Why a call is refused is one of a closed list, and each reason says what a gateway does about it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

import tokenline
from tests.limits import LIMITS_CATALOG
from tests.strategies import NOON
from tokenline.charging.terms import _spec
from tokenline.errors import (
    AccountClosed,
    AccountSuspended,
    BrokerUnavailable,
    CallRefused,
    ChargingUnavailable,
    CutOff,
    InvalidEvent,
    InvalidSignature,
    OutboxFull,
    QuotaExceeded,
    SettingsError,
    StaleView,
    UnknownAccount,
    UnknownModel,
)
from tokenline.quota.decided import Rule
from tokenline.quota.hold_rows import Reason
from tokenline.rating.offers import PlanLimit
from tokenline.reasons import REASONS, Facts, http_status, refusal, unit_of

README = Path(__file__).parents[2] / "README.md"
# What a session is told about its own numbers: a lease takes another session, no call hears of it.
OF_SESSIONS = {"STALE_SEQ", "UNKNOWN_HOLD"}
OF_HOLDS = {
    *("UNKNOWN_ACCOUNT", "SUSPENDED", "CLOSED", "UNKNOWN_MODEL"),
    *("BALANCE_USED_UP", "BALANCE_HELD", "LIMIT_REACHED", "LIMIT_HELD"),
}


def said(word, **facts):
    return refusal(word, "a", Facts(**facts), NOON)


@pytest.mark.parametrize("reason", sorted(OF_HOLDS))
def test_whatever_a_hold_is_refused_for_is_in_the_list(reason):
    assert Reason[reason].name.lower() in REASONS
    assert not OF_SESSIONS & {name.upper() for name in REASONS}


@pytest.mark.parametrize("rule", [one for one in Rule if one])
def test_whatever_rule_cuts_is_in_the_list(rule):
    assert said(rule.name.lower(), limit=5).reason in REASONS
    assert said(rule.name.lower(), limit=5).reason != "refused"


def every_limit():
    units, pers = (
        ("tokens", "utok", "requests"),
        ("minute", "hour", "day", "week", "month", "cycle"),
    )
    for unit, per, rolling, of, group in product(
        units, pers, (False, True), ("account", "subscriber"), (None, "minis")
    ):
        if not rolling or per not in ("month", "cycle"):
            yield PlanLimit(**{unit: 5}, per=per, rolling=rolling, of=of, group=group)


@pytest.mark.parametrize("limit", list(every_limit()), ids=lambda one: " ".join(one.window))
def test_whatever_limit_a_plan_may_have_is_known_by_its_name(limit):
    """A gateway hears the unit; where an older worker does not say it, the name does."""
    spec = _spec(LIMITS_CATALOG, limit)
    for name in (spec.name, spec.group or spec.name):
        assert unit_of(name) == spec.unit.name.lower()
        found = said(name, used=5, limit=5)
        assert (found.reason, found.limit_name, found.unit) == (
            "limit_reached",
            name,
            unit_of(name),
        )


def test_the_cap_of_a_subscriber_is_in_utok_though_its_name_says_tokens():
    assert unit_of("subscriber_tokens") == "utok"


@pytest.mark.parametrize(
    ("word", "error", "status"),
    [
        ("balance", QuotaExceeded, 402),
        ("balance_used_up", QuotaExceeded, 402),
        ("balance_held", QuotaExceeded, 429),
        ("limit_held", QuotaExceeded, 429),
        ("minute_requests", QuotaExceeded, 429),
        ("day_utok:maxes", QuotaExceeded, 429),
        ("suspended", AccountSuspended, 403),
        ("closed", AccountClosed, 403),
        ("unknown_account", UnknownAccount, 403),
        ("unknown_model", UnknownModel, 404),
        ("wrong_partition", CallRefused, 500),
    ],
)
def test_each_reason_is_an_error_of_its_own_kind_with_a_status(word, error, status):
    found = said(word, subscriber="kid", used=7, limit=8)
    assert type(found) is error
    assert isinstance(found, CallRefused)
    assert (http_status(found), found.subscriber) == (status, "kid")
    # A call that runs is stopped for the same reason, by one kind of error.
    cut = refusal(word, "a", Facts(), NOON, CutOff)
    assert (type(cut), http_status(cut)) == (CutOff, status)
    assert not isinstance(cut, QuotaExceeded)


def test_what_comes_back_says_when_and_what_does_not_says_nothing():
    assert said("day_requests", limit=8, resets_at_ms=NOON + 5000).retry_after_ms == 5000
    assert said("balance_held").retry_after_ms == said("limit_held").retry_after_ms == 1000
    for word in ("balance", "suspended", "closed", "unknown_account", "unknown_model"):
        assert said(word).retry_after_ms == 0
    never = said("day_requests", used=0, limit=0)
    assert (never.reason, http_status(never), never.limit_name) == (
        "not_allowed",
        403,
        "day_requests",
    )


def test_what_no_reason_of_ours_is_keeps_its_word():
    found = said("wrong_partition")
    assert (found.reason, found.limit_name) == ("refused", "wrong_partition")
    assert "wrong_partition" in str(found)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ChargingUnavailable("away"), 503),
        (BrokerUnavailable("away"), 503),
        (OutboxFull("full"), 503),
        (StaleView("old"), 503),
        (InvalidEvent("wrong"), 400),
        (InvalidSignature("wrong"), 401),
        (SettingsError("wrong"), 500),
        (CallRefused("a", "nobody knows it"), 500),
        (KeyError("mine"), 500),
    ],
)
def test_any_other_error_has_a_status_too(error, status):
    assert tokenline.http_status(error) == status
    if status == 503 and not isinstance(error, StaleView):
        assert error.retry_after_ms == 1000


def test_a_refusal_reads_as_a_sentence_with_its_unit():
    found = said("limit_held", limit_name="day_requests", unit="requests", used=3, held=4, limit=7)
    assert str(found) == "a: limit_held (day_requests), 3 used and 4 held of 7 requests"
    assert str(said("balance", used=9, limit=8, top_up_utok=3)).endswith("would let it pass")


def test_the_table_of_readme_is_this_list():
    text = README.read_text()
    for reason, one in REASONS.items():
        again = "yes" if one.retryable else "no"
        name = f"| `{reason}` | `{one.error.__name__}` | {one.status} | {one.unit or '-'} "
        assert f"{name}| {one.helps} | {again} | {one.text} |" in text
    head = text.index("| reason | error | HTTP |")
    rows = text[head:].split("\n\n")[0].splitlines()
    assert len(rows) == len(REASONS) + 2
