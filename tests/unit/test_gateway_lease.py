"""The bookkeeping of one lease: what it asks for, what an answer changes, what calls may still reserve."""

from __future__ import annotations

from math import inf

import pytest

from tokenline.gateway.lease import MOST_UTOK, Granted, Lease, Need

NEED = Need(full_utok=40, least_utok=15)


def granted(amount, reason="none", **fields):
    said = {"threshold_utok": 7, "validity_ms": 60_000, "final": False, "late": False}
    return Granted(reason=reason, granted_utok=amount, **said | {"rest_utok": 0} | fields)


@pytest.fixture
def lease():
    """One that was granted 100 at second 10; its calls used 20 and may yet use 30."""
    lease = Lease("s")
    lease.ask(10.0, NEED, 100)
    lease.take(granted(100))
    lease.reserve(50)
    lease.finish(20, 20)
    return lease


def asked(question):
    names = ("least", "reported", "reserved", "first", "keep", "wanted")
    return tuple(getattr(question, f"{name}_utok") for name in names)


def test_nothing_may_be_reserved_before_an_answer():
    lease = Lease("s")
    question = lease.ask(10.0, NEED, 100)
    assert (question.seq, question.action, question.asked_at_s) == (0, "hold", 10.0)
    assert asked(question) == (15, 0, 15, 40, 0, 100)
    assert (lease.room_at(10.0), lease.lapses_s) == (0, inf)


def test_there_is_room_for_what_was_granted_less_what_calls_used_and_may_use(lease):
    assert (lease.ceiling_utok, lease.spent_utok, lease.reserved_utok) == (100, 20, 30)
    assert lease.room_at(10.0) == 50
    assert lease.threshold_utok == 7


def test_a_lease_is_good_for_its_validity_from_the_asking_on_and_lapses_after_two(lease):
    assert [lease.room_at(now_s) for now_s in (69.9, 70.0)] == [50, 0]
    assert lease.lapses_s == 130.0


def test_a_call_that_used_more_than_it_reserved_leaves_no_room_and_none_below_zero(lease):
    lease.finish(30, 95)
    assert lease.room_at(10.0) == 0


def test_a_question_for_more_keeps_what_is_in_hand(lease):
    question = lease.ask(20.0, NEED, 200)
    assert (question.seq, question.action) == (1, "update")
    assert asked(question) == (15, 20, 45, 70, 80, 230)
    # Calls go on from what is in hand while it is out.
    assert lease.room_at(20.0) == 50


@pytest.mark.parametrize("more", [0, 1, 49])
def test_a_question_without_a_need_wants_no_less_than_it_keeps(lease, more):
    assert asked(lease.ask(20.0, None, more)) == (0, 20, 30, 30, 80, 80)


def test_nothing_is_reserved_of_what_a_question_gives_back(lease):
    question = lease.ask(20.0, None, 0, give_back=True)
    assert asked(question) == (0, 20, 30, 30, 30, 30)
    assert lease.room_at(20.0) == 0
    lease.take(granted(30))
    assert (lease.ceiling_utok, lease.room_at(20.0)) == (50, 0)


def test_what_a_call_leaves_while_a_question_gives_back_is_there_for_the_next(lease):
    lease.ask(20.0, None, 0, give_back=True)
    lease.finish(30, 10)
    assert lease.room_at(20.0) == 20
    lease.reserve(20)
    lease.take(granted(30))
    assert (lease.spent_utok + lease.reserved_utok, lease.ceiling_utok) == (50, 50)


def test_a_lease_that_was_refused_is_scarce_though_it_wanted_nothing_more(lease):
    lease.ask(20.0, None, 0, give_back=True)
    lease.take(granted(30, reason="suspended"))
    assert lease.scarce


def test_a_lease_that_is_not_good_any_more_keeps_only_what_calls_run_on(lease):
    assert asked(lease.ask(69.9, None, 9))[4] == 80
    lease.withdraw()
    assert asked(lease.ask(70.0, None, 9))[4] == 30


def test_a_question_that_could_not_be_put_changes_nothing(lease):
    lease.ask(20.0, None, 0, give_back=True)
    lease.withdraw()
    assert (lease.question, lease.room_at(20.0), lease.ceiling_utok) == (None, 50, 100)
    assert lease.ask(20.0, None, 0).seq == 2


def test_what_calls_used_while_a_question_was_out_counts_against_the_answer(lease):
    lease.ask(20.0, NEED, 200)
    lease.finish(30, 25)
    lease.take(granted(210))
    assert (lease.ceiling_utok, lease.room_at(20.0)) == (230, 230 - 45)
    assert lease.good_until_s == 80.0


def test_no_amount_on_the_wire_is_more_than_any_account_has(lease):
    lease.reserve(MOST_UTOK)
    question = lease.ask(20.0, Need(2 * MOST_UTOK, 2 * MOST_UTOK), 2 * MOST_UTOK)
    assert (question.reserved_utok, question.first_utok) == (MOST_UTOK, MOST_UTOK)


@pytest.mark.parametrize(
    ("answer", "scarce"),
    [
        (granted(200), False),
        (granted(120, final=True), True),
        (granted(80, reason="balance_held"), True),
        (granted(80, reason="limit_reached"), True),
    ],
)
def test_a_lease_is_scarce_when_it_was_granted_less_than_it_wanted(lease, answer, scarce):
    lease.ask(20.0, NEED, 200)
    lease.take(answer)
    assert (lease.scarce, lease.over) == (scarce, False)


def test_a_lease_that_wants_more_than_there_can_be_is_scarce_whatever_it_is_granted(lease):
    lease.ask(20.0, None, MOST_UTOK)
    lease.take(granted(MOST_UTOK))
    assert lease.scarce


@pytest.mark.parametrize("final", [True, False])
def test_who_only_gave_back_knows_no_more_than_before(lease, final):
    lease.scarce = not final
    lease.ask(20.0, None, 0, give_back=True)
    lease.take(granted(30, final=final))
    assert lease.scarce is not final


def test_a_refusal_leaves_what_calls_run_on_and_renews_only_what_it_says(lease):
    lease.ask(20.0, NEED, 200)
    lease.take(granted(80, reason="unknown_model", validity_ms=0))
    assert (lease.ceiling_utok, lease.good_until_s, lease.question) == (100, 70.0, None)
    assert lease.room_at(20.0) == 50


@pytest.mark.parametrize(
    "answer",
    [
        granted(0, reason="unknown_hold", late=True),
        granted(30, late=True),
        granted(80, reason="stale_seq"),
    ],
)
def test_a_lease_that_the_line_has_closed_is_over(lease, answer):
    lease.ask(20.0, NEED, 200)
    lease.take(answer)
    assert (lease.over, lease.room_at(20.0)) == (True, 0)
    assert lease.spent_utok == 20


@pytest.mark.parametrize(
    ("grant", "spent", "reserved", "over"),
    [(0, 0, 0, True), (1, 0, 0, False), (0, 1, 0, False), (0, 0, 1, False)],
)
def test_a_session_that_was_refused_and_never_used_is_over(grant, spent, reserved, over):
    lease = Lease("s", spent_utok=spent, reserved_utok=reserved)
    lease.ask(10.0, NEED, 100)
    lease.take(granted(grant, reason="balance_used_up"))
    assert lease.over is over


def test_a_session_that_was_granted_nothing_and_not_refused_goes_on():
    lease = Lease("s")
    lease.ask(10.0, None, 0)
    lease.take(granted(0))
    assert not lease.over


def test_a_lease_that_is_settled_reports_what_was_used_and_serves_nobody(lease):
    lease.finish(30, 10)
    question = lease.settle(30.0)
    assert (question.seq, question.action, question.asked_at_s) == (1, "settle", 30.0)
    assert asked(question) == (0, 30, 0, 0, 0, 0)
    assert (lease.over, lease.room_at(30.0), lease.question) == (True, 0, question)
    lease.withdraw()
    assert lease.settle(31.0).seq == 2
