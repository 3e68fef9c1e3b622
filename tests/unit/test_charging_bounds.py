"""Whatever somebody asks for, what follows from it fits a record, a reply and a cell."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.paper_line import Books as PaperBooks
from tests.paper_line import Journal, PaperLine, facts
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, chunk_of, record
from tokenline.charging import show
from tokenline.charging.commands import LIMIT_FIELDS, fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.step import Commanded
from tokenline.errors import Declined
from tokenline.quota import buckets, orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import BOUNDLESS, MOST_UTOK
from tokenline.quota.buckets import Bucket, Buckets, Scopes, bucket_values
from tokenline.quota.terms import LAST_DATE_MS, Grant, Scope, Source
from tokenline.rating.catalog import Catalog

MILLION = 1_000_000


@pytest.fixture
def state():
    """A partition with account `t/a`."""
    state = PartitionState(BOUNDS)
    opening = [catalog_version(0, NOON, CATALOG), order(1, NOON, kind="open", plan="strict")]
    fold_commands(state, opening, 1)
    return state


def ask(state, offset, **fields):
    step = fold_commands(state, [order(offset, NOON, command_id=str(offset), **fields)], offset)
    return step, [one.answer for one in step.replies]


def test_returned_transfers_are_taken_beyond_any_sum_and_new_ones_are_not(state):
    books = state.books
    part = Grant(amount_utok=MOST_UTOK, source=Source.TRANSFER)
    with pytest.raises(Declined):
        orders.transfer_in(books, 0, part, NOON)
    for _ in range(12):
        orders.transfer_return(books, 0, part, NOON)
    assert books.get(books.row(0), Balance.LEFT) == np.iinfo(np.int64).max // 2


def test_a_hold_on_more_than_a_cell_takes_is_answered_with_as_much_as_one_does(state):
    part = Grant(amount_utok=MOST_UTOK, source=Source.TRANSFER)
    for _ in range(12):
        orders.transfer_return(state.books, 0, part, NOON)
    step = fold_commands(state, [hold_order(2, NOON, max_tokens=1)], 2)
    answer = step.replies[0].answer
    assert (answer.reason.name, answer.granted_utok, answer.rest_utok) == (
        "NONE",
        2 * MILLION,
        BOUNDLESS,
    )


@pytest.mark.parametrize("field", ["valid_from", "valid_to"])
def test_a_grant_at_a_moment_without_a_date_is_refused(state, field):
    moment = {field: NOON * 1000}
    assert NOON * 1000 > LAST_DATE_MS
    _, (answer,) = ask(state, 2, kind="grant", amount_utok=5, **moment)
    assert answer.reason.name == "BAD_AMOUNT"


def test_a_grant_names_no_more_than_the_journal_should_carry_for_ever(state):
    step, _ = ask(state, 2, kind="grant", amount_utok=5, models=["p/" + "m" * 200] * 80)
    assert [one.reason for one in step.refused] == ["bad_command"]
    step, _ = ask(state, 3, kind="grant", amount_utok=5, subscribers=["s"] * 1001)
    assert [one.reason for one in step.refused] == ["bad_command"]


def test_a_scope_more_than_the_journal_holds_is_declined_and_known_ones_are_not(state, monkeypatch):
    _, (first,) = ask(state, 2, kind="grant", amount_utok=5, subscribers=["kid"])
    monkeypatch.setattr(buckets, "SCOPES_MAX_BYTES", 20)
    _, (second,) = ask(state, 3, kind="grant", amount_utok=5, subscribers=["mother"])
    _, (third,) = ask(state, 4, kind="grant", amount_utok=5, subscribers=["kid"])
    reasons = [answer.reason.name for answer in (first, second, third)]
    assert reasons == ["NONE", "TOO_MANY_SCOPES", "NONE"]


def keep(scopes, held, scope):
    granted = Grant(amount_utok=5, source=Source.PACK)
    held.add(bucket_values(0, 1, granted, scopes.code(scope), NOON)[column] for column in Bucket)


def test_scopes_count_what_they_take_when_they_come_back_from_the_journal(monkeypatch):
    kid, mother = (Scope(subscribers=(name,)) for name in ("kid", "mother"))
    scopes, held = Scopes(), Buckets()
    keep(scopes, held, kid)
    again = Scopes.from_json(scopes.to_json())
    monkeypatch.setattr(buckets, "SCOPES_MAX_BYTES", 20)
    assert (again.has_room(kid, held), again.has_room(mother, held)) == (True, False)


def test_scopes_take_what_the_journal_writes_whatever_their_letters(monkeypatch):
    monkeypatch.setattr(buckets, "SCOPES_MAX_BYTES", 10_000)
    scopes, held = Scopes(), Buckets()
    for name in ("\N{GRINNING FACE}" * 100 + str(n) for n in range(100)):
        if scopes.has_room(Scope(subscribers=(name,)), held):
            keep(scopes, held, Scope(subscribers=(name,)))
    assert 8_000 < len(scopes.to_json()) < 10_200


def test_scopes_that_no_bucket_has_any_more_make_room_for_others(monkeypatch):
    monkeypatch.setattr(buckets, "SCOPES_MAX_BYTES", 100)
    journal, books = Journal(), PaperBooks()
    line = PaperLine(journal, books)
    line.command([catalog_version(0, NOON, CATALOG), order(1, NOON, kind="open", plan="strict")])
    for day in range(30):
        now_ms = NOON + day * DAY
        said = {"valid_to": now_ms + HOUR, "subscribers": [f"member {day}"]}
        line.command([order(2 + day, now_ms, kind="grant", amount_utok=5, **said)])
        assert facts(PaperLine(_copy(journal), PaperBooks()).state) == facts(line.state)
    line.rest()
    assert {said["reason"] for said in books.replies.values()} == {0}
    chain = line.state.books.chain(0)
    covered = [
        line.state.books.scopes.scopes[line.state.books.buckets.get(one, Bucket.SCOPE)]
        for one in chain
    ]
    assert Scope(subscribers=("member 29",)) in covered
    assert len(line.state.books.scopes.scopes) < 8


def _copy(journal):
    copy = Journal()
    copy.records = list(journal.records)
    return copy


def test_an_account_with_more_rows_than_a_reply_carries_is_shown_in_part(state, monkeypatch):
    for offset in range(2, 32):
        ask(state, offset, kind="grant", amount_utok=5)
    monkeypatch.setattr(show, "TEXT_MAX_CHARS", 5500)
    _, (answer,) = ask(state, 40, kind="show")
    said = json.loads(answer.detail)
    assert len(answer.detail) <= 5500
    assert "not_shown" in said, len(answer.detail)
    assert (len(said["buckets"]), said["not_shown"]["buckets"]) == (20, 11)
    assert said["rest_utok"] == 10 * MILLION + 30 * 5


def test_an_account_of_a_usual_size_is_shown_whole(state):
    _, (answer,) = ask(state, 2, kind="show")
    assert "not_shown" not in json.loads(answer.detail)


@pytest.mark.parametrize("column", ["subscriber_id", "model", "event_id"])
def test_usage_with_a_name_too_long_for_any_key_is_a_dead_letter(state, column):
    said = {"model": "max", column: "é" * 3000}
    step = fold_usage(state, chunk_of([record(0, NOON, **said), record(1, NOON, model="max")]))
    assert [(one.offset, one.reason) for one in step.refused] == [(0, "bad_name")]
    assert step.refused[0].detail == f"{column} has 6000 bytes, and a name has 256 at most"
    assert step.counted == 1


def test_a_cycle_of_some_hours_shares_a_day(state):
    midnight = NOON + HOUR // 2
    said = dict.fromkeys(LIMIT_FIELDS, -1) | {"tenant_id": "t", "account_id": "a"}
    moves = [
        Commanded(offset=offset, appended_ms=midnight, fields=said | {"time_zone": zone})
        for offset, zone in ((2, "UTC"), (4, "Asia/Shanghai"))
    ]
    day = order(3, midnight, kind="change_cycle", cycle_day=1)
    plan = order(5, midnight, kind="change_plan", plan="limited")
    step = fold_commands(state, [moves[0], day, moves[1], plan], 5)
    row = state.books.row(0)
    ends = [state.books.get(row, one) for one in (Balance.CYCLE_START, Balance.CYCLE_END)]
    assert ends == [midnight, midnight + 8 * HOUR]
    assert [one.answer.reason.name for one in step.replies] == ["NONE", "NONE"]
    assert state.books.get(row, Balance.LEFT) == 310 * MILLION // 30


def test_a_cycle_begins_with_few_looks_at_all_holds_however_many_packs_are_used_up(
    state, monkeypatch
):
    books, looks = state.books, []
    ends_ms = books.get(books.row(0), Balance.CYCLE_END)
    for offset in range(2, 42):
        ask(state, offset, kind="grant", amount_utok=5, priority=1)
    fold_usage(state, chunk_of([record(0, NOON, model="max", input_tokens=200)]))
    assert len(books.chain(0)) == 41
    of_owner = books.holds.of_owner
    monkeypatch.setattr(books.holds, "of_owner", lambda owner: looks.append(1) or of_owner(owner))
    orders.bring_up_to(books, 0, ends_ms)
    assert (len(books.chain(0)), len(looks) < 5) == (2, True)


def test_a_strict_call_costs_no_more_than_it_holds_though_its_plan_is_sold_no_more(state):
    # It is 23:30; seven minutes later an answer costs five times as much.
    cheap = {"from": "22:00", "to": "23:37", "multiply": "0.2"}
    said = CATALOG.model_dump(mode="json") | {"version": 2}
    del said["plans"]["strict"]
    said["rates"][0] |= {"hours": [cheap]}
    newer = Catalog.model_validate(said)
    asked = fold_commands(
        state, [catalog_version(2, NOON, newer), hold_order(3, NOON, max_tokens=100)], 3
    )
    use = {"occurred_at": (later := NOON + 8 * MINUTE), "input_tokens": 0, "hold_id": "s1"}
    said = use | {"model": "max", "output_tokens": asked.replies[1].answer.max_tokens}
    assert fold_usage(state, chunk_of([record(0, later, **said)])).counted == 1
    assert state.books.unpaid(np.array([state.books.row(0)])).tolist() == [0]


@pytest.mark.parametrize("tokens", [310, 10**12])
def test_a_cycle_cut_short_and_drawn_out_again_gives_one_allowance(tokens):
    # The first of November, Shanghai; a month of thirty days.
    said = CATALOG.model_dump(mode="json")
    for plan in ("strict", "household"):
        said["plans"][plan]["tokens"] = tokens
    state, now_ms = PartitionState(BOUNDS), NOON + 12 * HOUR
    asked = [
        catalog_version(0, now_ms, Catalog.model_validate(said)),
        order(1, now_ms, kind="open", plan="strict"),
        order(2, now_ms, kind="change_cycle", cycle_day=2),
        order(3, now_ms, kind="change_plan", plan="household"),
        order(4, now_ms, kind="change_cycle", cycle_day=1),
    ]
    step = fold_commands(state, asked, 4)
    assert {one.answer.reason.name for one in step.replies} == {"NONE"}
    assert 0.9 < state.books.get(0, Balance.LEFT) / (tokens * MILLION) < 1.1
