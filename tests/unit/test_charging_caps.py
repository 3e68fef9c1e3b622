"""An account caps its subscribers itself: the cap replaces the plan's, and outlives cycles and plans."""

from __future__ import annotations

import pytest

from tests.strategies import DAY, HOUR
from tests.unit.test_charging_limits import MILLION, Line, recovered, told
from tokenline.quota.limits import RETIRED, Limit


@pytest.fixture
def family():
    return Line("family")


@pytest.fixture
def loose():
    return Line("loose")


def cap(line, tokens, *names):
    fields = {"uncap": 1} if tokens is None else {"amount_utok": tokens * MILLION}
    return line.order(kind="cap", subscribers=list(names), **fields)


def answered(step):
    answer = step.replies[0].answer
    return answer.outcome.name, answer.reason.name


def holds(line, session, name="kid"):
    return line.hold(session=session, subscriber_id=name, max_tokens=100).granted_utok // MILLION


def test_a_cap_of_its_own_binds_one_subscriber_and_leaves_the_others_theirs(family):
    assert answered(cap(family, 7, "kid")) == ("DONE", "NONE")
    assert [holds(family, "k"), holds(family, "m", "mother")] == [7, 30]
    assert family.limit("subscriber_tokens", "kid") == (0, 7 * MILLION, 7 * MILLION)
    assert family.limit("subscriber_tokens", "mother") == (0, 30 * MILLION, 30 * MILLION)


def test_it_may_be_more_than_the_plan_gives_each(family):
    cap(family, 44, "dad", "son")
    assert [holds(family, "d", "dad"), holds(family, "s", "son")] == [44, 44]


def test_what_was_used_before_it_was_set_counts_and_so_it_does_when_it_is_taken_off(family):
    family.use(tokens=12)
    assert told(cap(family, 12, "kid"))[-1] == ("kid", "CUT", "subscriber_tokens")
    assert told(family.use(tokens=1)) == []
    assert told(cap(family, 14, "kid"))[-1] == ("kid", "OPEN", "")
    family.use(tokens=9)
    opened = cap(family, None, "kid")
    assert told(opened)[-1] == ("kid", "OPEN", "")
    assert family.limit("subscriber_tokens", "kid") == (22 * MILLION, 0, 30 * MILLION)
    assert told(family.use(tokens=8)) == [("kid", "CUT", "subscriber_tokens")]


def test_where_the_plan_caps_nobody_it_counts_from_the_order_on(loose):
    loose.use(tokens=12)
    cap(loose, 10, "kid")
    loose.use(tokens=20, subscriber="mother")
    loose.use(tokens=3, subscriber="")
    assert told(loose.use(tokens=9)) == []
    assert [one["subscriber"] for one in loose.shown()["limits"]] == ["kid"]
    assert told(loose.use(tokens=1)) == [("kid", "CUT", "subscriber_tokens")]
    assert told(cap(loose, None, "kid"))[-1] == ("kid", "OPEN", "")
    assert loose.shown()["limits"] == []
    assert holds(loose, "k") == 55


def test_a_cap_of_nothing_lets_a_subscriber_use_nothing(loose):
    assert told(cap(loose, 0, "kid"))[-1] == ("kid", "CUT", "subscriber_tokens")
    refused = loose.hold(session="1", subscriber_id="kid", max_tokens=1)
    assert (refused.reason.name, refused.limit_value, refused.resets_at_ms) == (
        "LIMIT_REACHED",
        0,
        0,
    )
    assert holds(loose, "2", "mother") == 100


def test_it_outlives_the_cycle_and_the_plan_and_counts_each_cycle_anew(family):
    cap(family, 7, "kid")
    family.use(tokens=7)
    family.now += HOUR
    assert ("kid", "OPEN", "") in told(family.use(tokens=1))
    assert family.limit("subscriber_tokens", "kid") == (MILLION, 0, 7 * MILLION)
    family.order(kind="change_plan", plan="loose")
    assert family.limit("subscriber_tokens", "kid") == (MILLION, 0, 7 * MILLION)
    family.order(kind="change_plan", plan="family")
    assert family.limit("subscriber_tokens", "kid") == (MILLION, 0, 7 * MILLION)
    # In a year in which nobody asks, it is not forgotten.
    family.now += 400 * DAY
    assert holds(family, "k") == 7


def test_what_is_held_against_it_is_let_go_of_after_it_was_taken_off(loose):
    cap(loose, 10, "kid")
    assert holds(loose, "k") == 10
    cap(loose, None, "kid")
    (row,) = loose.state.books.limits.of_owner(0)
    assert loose.state.books.limits.get(row, Limit.CEILING) == RETIRED
    assert holds(loose, "k2") == 90
    for session in ("k", "k2"):
        loose.hold(session=session, seq=1, action="settle")
    assert loose.state.books.limits.get(row, Limit.HELD) == 0
    loose.now += 31 * DAY
    loose.order(kind="suspend")
    assert loose.state.books.limits.of_owner(0) == []


def test_it_reads_back_from_the_journal(family):
    cap(family, 7, "kid", "son")
    family.use(tokens=2)
    back = recovered(family.state)
    assert [back.limits.has_cap(0, name) for name in ("kid", "son", "mother")] == [
        True,
        True,
        False,
    ]
    for mine, theirs in zip(back.tables, family.state.books.tables, strict=True):
        assert mine.matrix.tobytes() == theirs.matrix.tobytes()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"subscribers": ["kid"], "amount_utok": -1}, "BAD_AMOUNT"),
        ({"subscribers": ["kid"], "uncap": 1}, "UNKNOWN_CAP"),
        ({"subscribers": ["mother", "kid"], "uncap": 1}, "UNKNOWN_CAP"),
    ],
)
def test_what_is_no_cap_is_refused_and_changes_nobodys(family, fields, reason):
    cap(family, 5, "mother")
    assert answered(family.order(kind="cap", **fields)) == ("REFUSED", reason)
    assert family.limit("subscriber_tokens", "mother") == (0, 0, 5 * MILLION)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "a cap names the subscribers it is for"),
        (["kid", ""], "one of subscribers is empty"),
    ],
)
def test_a_cap_for_nobody_is_no_order(family, names, why):
    step = family.order(kind="cap", subscribers=names, amount_utok=1)
    assert [one.detail for one in step.refused] == [why]
    assert not step.decisions


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("\U0001f600" * 65, "has 260 bytes, and a name has 256 at most"),
        ("kid\0day_utok:minis", "has U+0000, a control character"),
    ],
)
def test_a_name_that_can_be_part_of_no_key_is_never_capped(family, name, why):
    """Its decision would have a key that no record holds, or that of another's."""
    step = family.order(kind="cap", subscribers=["son", name], amount_utok=0)
    assert [one.detail for one in step.refused] == [f"one of subscribers {why}"]
    assert not step.decisions
    assert not family.state.books.limits.has_cap(0, "son")


def test_a_long_name_is_capped_as_it_is_charged(family):
    name = "\U0001f600" * 64
    assert told(cap(family, 0, name))[-1] == (name, "CUT", "subscriber_tokens")


def test_caps_that_are_taken_off_together_are_let_go_of_by_holds_once(loose, monkeypatch):
    names = [f"s{number}" for number in range(20)]
    cap(loose, 5, *names)
    assert [holds(loose, name, name) for name in names[:3]] == [5, 5, 5]
    loose.hold(session="s0", seq=1, action="settle")
    looks, of_owner = [], loose.state.books.holds.of_owner
    monkeypatch.setattr(
        loose.state.books.holds, "of_owner", lambda owner: looks.append(owner) or of_owner(owner)
    )
    assert answered(cap(loose, None, *names)) == ("DONE", "NONE")
    assert len(looks) == 1
    limits = loose.state.books.limits.of_owner(0)
    assert len(limits) == 2
    kept = [limit for hold in of_owner(0) for limit in hold.limits]
    assert sorted(kept) == limits


def test_a_pool_and_its_caps_bind_together(family):
    cap(family, 90, "kid")
    family.order(kind="grant", amount_utok=5 * MILLION)
    assert [holds(family, name, name) for name in ("kid", "mother")] == [90, 15]
