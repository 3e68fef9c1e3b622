"""The top-up that a refusal names is the smallest after which the same call passes, by the engine's own books."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.gateway_stand import Clock
from tests.strategies import NOON
from tests.unit.test_charging_limits import MILLION
from tests.unit.test_quota_crumbs import line_of
from tokenline.charging.terms import decision_terms
from tokenline.errors import QuotaExceeded
from tokenline.gateway.admission import Asked
from tokenline.gateway.desk import Desk
from tokenline.gateway.lease import NO_ANSWER, Granted, Key, Lease, Need
from tokenline.gateway.prices import Prices
from tokenline.gateway.said import refusal_of
from tokenline.quota.crumbs import crumb_utok, least_top_up
from tokenline.rating.book import CatalogBook
from tokenline.wire.plan_terms import plan_terms
from tokenline.wire.view import Verdict

KEY = Key("t", "a", "kid", "p", "max")
amounts = st.one_of(st.integers(1, 3000), st.integers(1, 300_000), st.integers(10**6, 10**7))
accounts = st.fixed_dictionaries(
    {
        "tokens": amounts,
        "left": st.one_of(st.integers(0, 3), st.integers(0, 400), st.integers(0, 10**6)),
        "least": st.one_of(st.none(), st.integers(0, 500)),
        "prompt": st.one_of(st.integers(0, 3), st.integers(0, 2000)),
    }
)


def used_line(account):
    """Return a line whose account has so much left, and what was told of it last."""
    least = {} if account["least"] is None else {"least_call_tokens": account["least"]}
    line = line_of(account["tokens"], **least)
    step = line.use(tokens=account["tokens"] - account["left"])
    return line, step


def asks(line, account, top_up_utok=0, **fields):
    if top_up_utok:
        line.order(kind="grant", amount_utok=top_up_utok)
    return line.hold(session="1", prompt_tokens=account["prompt"], max_tokens=10, **fields)


def of_small(account):
    assume(account["left"] <= account["tokens"])
    return account


@settings(max_examples=60, deadline=None)
@given(accounts.map(dict))
def test_what_the_line_names_is_the_smallest_top_up_after_which_the_call_passes(account):
    of_small(account)
    line, _ = used_line(account)
    refused = asks(line, account)
    if refused.reason.name != "BALANCE_USED_UP":
        assert refused.top_up_utok == 0
        return
    assert refused.top_up_utok > 0
    assert asks(used_line(account)[0], account, refused.top_up_utok).reason.name == "NONE"
    if refused.top_up_utok > 1:
        before = asks(used_line(account)[0], account, refused.top_up_utok - 1)
        assert before.reason.name == "BALANCE_USED_UP"


@settings(max_examples=50, deadline=None)
@given(accounts.map(dict))
def test_what_a_gateway_works_out_from_a_decision_is_what_the_line_would_say(account):
    """It was up to 97 tokens too high: a thousandth of a small balance is less than 100 tokens."""
    of_small(account)
    line, step = used_line(account)
    decided = step.decisions[-1] if step.decisions else None
    assume(decided is not None and decided.state.name == "CUT")
    book = CatalogBook()
    book.add(line.state.catalogs.at(NOON))
    verdict = Verdict(
        *(False, "cut", "limit_reached", "balance", decided.used, decided.limit),
        *(0, 0, 0, False),
        plan_terms({"plan": "loose"} | decision_terms(line.state, 0)),
        "utok",
    )
    asked = Asked(KEY, account["prompt"], 10, 1.0)
    error = refusal_of(asked, verdict, Prices(book), NOON)
    assert isinstance(error, QuotaExceeded)
    assert error.top_up_utok == asks(line, account).top_up_utok


@settings(max_examples=50, deadline=None)
@given(accounts.map(dict), st.integers(0, 1000), st.integers(0, 300))
def test_who_needs_more_than_the_smallest_in_line_hears_what_he_needs(account, more, in_hand):
    of_small(account)
    line, _ = used_line(account)
    need = Need(full_utok=10**12, least_utok=(account["prompt"] + 2 + more) * MILLION)
    refused = asks(line, account)
    assume(refused.reason.name == "BALANCE_USED_UP")
    desk = desk_of(refused, in_hand)
    error = desk._refusal(need, "balance_used_up", granted(refused))
    other = dict(account, prompt=account["prompt"] + more)
    wanted = asks(used_line(account)[0], other).top_up_utok
    room = in_hand * MILLION
    assert error.top_up_utok == max(1, refused.top_up_utok, wanted - room)


def desk_of(refused, in_hand):
    """Return a desk that has units in hand, after a refusal."""
    desk = object.__new__(Desk)
    desk._key, desk._clock = KEY, Clock()
    desk._rest_utok = refused.rest_utok
    desk.lease = Lease("s", ceiling_utok=in_hand * MILLION, good_until_s=float(2**62))
    return desk


def granted(answer):
    return Granted(
        reason="balance_used_up",
        granted_utok=0,
        threshold_utok=0,
        validity_ms=0,
        final=False,
        late=False,
        rest_utok=answer.rest_utok,
        top_up_utok=answer.top_up_utok,
    )


@given(st.one_of(st.none(), st.integers(0, 10**9)), st.integers(0, 10**18), st.integers(0, 10**9))
def test_a_top_up_past_a_crumb_is_the_smallest(said, total, left):
    more = least_top_up(said, total, left)
    assert left + more > crumb_utok(said, total + more)
    assert not more or left + more - 1 <= crumb_utok(said, total + more - 1)


def test_a_balance_that_others_hold_names_no_top_up_and_is_tried_again_soon():
    """It was 402 with a top-up of 11 tokens, of a balance that came back in a second."""
    desk = desk_of(SimpleNamespace(rest_utok=0), 0)
    error = desk._refusal(Need(11 * MILLION, 11 * MILLION), "balance_held", NO_ANSWER)
    assert (error.reason, error.top_up_utok, error.retry_after_ms) == ("balance_held", 0, 1000)
