"""A transfer is parts on their way: each keeps what it was, arrives once, or comes back."""

from __future__ import annotations

import pytest

from streams.outputs import Outputs
from tests.laws.test_transfer_laws import DAY, MILLION, TwoPartitions
from tests.orders import CATALOG, catalog_version, order
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import NOON
from tokenline.charging.show import shown
from tokenline.charging.step import Sent, Step
from tokenline.charging.transfers import TAKEN_WITHIN_MS, _part_id
from tokenline.clock import SystemClock
from tokenline.errors import BadData
from tokenline.names import bad_names
from tokenline.quota.entries import NO_CAUSE, Cause, ChangeKind
from tokenline.quota.hold_rows import Outcome, Reason
from tokenline.quota.terms import Source
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.orders import Orders
from tokenline.wire.registry import FileRegistry


@pytest.fixture
def line():
    """Accounts a (with two transferable buckets), b and c; what leaves a waits to be delivered."""
    line = TwoPartitions()
    grants = [
        {"valid_to": line.now + DAY, "models": ["p/mini"], "subscribers": ["mother"]},
        {"priority": 7, "valid_from": line.now},
    ]
    for number, fields in enumerate(grants):
        line.ask(
            "a",
            kind="grant",
            amount_utok=10 * MILLION,
            transferable=1,
            command_id=f"g{number}",
            **fields,
        )
    return line


def give(line, tokens=15, to="b", command_id="t1", giver="a"):
    return line.ask(
        giver,
        kind="transfer",
        to_account=to,
        amount_utok=tokens * MILLION,
        command_id=command_id,
    )


def buckets(line, account, source="transfer"):
    place = 1 if account == "b" else 0
    state = line.states[place]
    found = shown(state, state.cells.slot(f"t/{account}"))["buckets"]
    return [one for one in found if one["source"] == source]


def facts(bucket):
    names = ("priority", "total_utok", "valid_to_ms", "models", "subscribers")
    return tuple(bucket[name] for name in names)


def test_each_bucket_that_gives_becomes_a_part_with_its_validity_scope_and_priority(line):
    answer = give(line)
    assert (answer.outcome, answer.amount_utok) == (Outcome.DONE, 15 * MILLION)
    line.quiesce()
    assert sorted(map(facts, buckets(line, "b"))) == [
        (7, 10 * MILLION, 0, [], []),
        (100, 5 * MILLION, line.now + DAY, ["p/mini"], ["mother"]),
    ]


def test_what_was_received_cannot_be_moved_on(line):
    give(line)
    line.quiesce()
    assert give(line, 1, to="c", giver="b").reason is Reason.BAD_AMOUNT


def test_more_than_is_transferable_is_refused_and_moves_nothing(line):
    assert give(line, 21).reason is Reason.BAD_AMOUNT
    assert (line.way, line.on_the_way()) == ([], 0)


@pytest.mark.parametrize("to", ["", "a"])
def test_a_transfer_to_nobody_or_to_oneself_is_refused(line, to):
    assert give(line, to=to).reason is Reason.BAD_RECEIVER
    assert line.way == []


def test_a_suspended_account_gives_nothing_but_receives(line):
    line.ask("a", kind="suspend", command_id="s1")
    line.ask("b", kind="suspend", command_id="s2")
    assert give(line).reason is Reason.SUSPENDED
    line.ask("a", kind="resume", command_id="s3")
    give(line, command_id="t2")
    line.quiesce()
    assert sum(one["total_utok"] for one in buckets(line, "b")) == 15 * MILLION


def test_the_same_order_again_is_answered_and_sends_nothing_more(line):
    first, sent = give(line), list(line.way)
    assert (give(line), line.way) == (first, sent)


def test_an_order_id_of_another_week_moves_anew_and_is_not_mistaken_for_the_old_one(line):
    give(line, 5, command_id="t1")
    line.now += 3_600_000
    line.quiesce()  # the receiver remembers for an hour longer than the giver
    line.now += 7 * DAY - 3_600_000 + 1
    line.ask("a", kind="grant", amount_utok=MILLION, command_id="any")  # lets go of old answers
    give(line, 5, command_id="t1")
    line.quiesce()
    assert line.on_the_way() == 0
    assert sum(one["total_utok"] for one in buckets(line, "b")) == 10 * MILLION


@pytest.mark.parametrize("giver_is", ["active", "suspend", "close"])
@pytest.mark.parametrize("why", ["unknown_account", "closed"])
def test_what_cannot_be_taken_comes_back_whatever_became_of_the_giver(line, why, giver_is):
    if why == "closed":
        line.ask("b", kind="close", command_id="x1")
    before = line.balance("a")
    give(line, to="b" if why == "closed" else "nobody")
    if giver_is != "active":
        line.ask("a", kind=giver_is, command_id="x2")
    answers = [line.deliver(one) for one in list(line.way)]
    assert {one.reason.name.lower() for one in answers} == {why}
    line.quiesce()
    assert (line.balance("a"), line.on_the_way()) == (before, 0)
    assert sorted(map(facts, buckets(line, "a"))) == [
        (7, 10 * MILLION, 0, [], []),
        (100, 5 * MILLION, line.now + DAY, ["p/mini"], ["mother"]),
    ]


def test_what_came_back_may_be_given_again(line):
    give(line, 20, to="nobody")
    line.quiesce()
    assert give(line, 20, command_id="t2").outcome is Outcome.DONE


def test_a_part_that_ends_on_the_way_comes_back_and_expires_where_it_came_from(line):
    give(line)
    late = next(one for one in line.way if one["models"])
    line.now += DAY
    assert line.deliver(late).reason is Reason.EXPIRED
    line.quiesce()
    assert line.on_the_way() == 0
    line.now += DAY
    line.ask("a", kind="show", command_id="s")
    assert buckets(line, "a") == []


def test_a_part_sent_back_stays_so_when_its_account_is_opened_before_it_comes_again(line):
    give(line, 5, to="nobody")
    part = line.way[0]
    line.deliver(part)
    line.ask("nobody", kind="open", plan="strict", command_id="o1")
    assert line.deliver(part).reason is Reason.UNKNOWN_ACCOUNT
    line.quiesce()
    assert line.on_the_way() == 0


@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_part_that_comes_when_nobody_can_remember_it_is_a_dead_letter(line, late_ms):
    give(line, 10)
    line.now += TAKEN_WITHIN_MS + late_ms
    answer, refused = line.deliver(line.way[0]), line.refused
    if late_ms:
        assert (answer, refused[0].reason) == (None, "bad_command")
        assert "look into the ledger" in refused[0].detail
        assert line.on_the_way() == 10 * MILLION
    else:
        assert (refused, line.on_the_way()) == ([], 0)


@pytest.mark.parametrize("after_ms", [6 * DAY, 6 * DAY + 1, 7 * DAY, 7 * DAY + 1, 8 * DAY])
def test_a_part_that_comes_again_is_never_taken_twice_however_late(line, after_ms):
    give(line, 10)
    (part,) = line.way
    line.deliver(part)
    line.now += after_ms
    line.ask("b", kind="grant", amount_utok=MILLION, command_id="any")  # lets go of old answers
    line.deliver(part)
    assert sum(one["total_utok"] for one in buckets(line, "b")) == 10 * MILLION
    # It is taken up to six days late, a day before its first coming is forgotten.
    assert bool(line.refused) == (after_ms > 7 * DAY)


def test_the_answer_to_a_part_says_which_bucket_it_became_and_what_there_is_now(line):
    before = line.balance("b")
    give(line, 10)
    line.now += 5000
    answer = line.deliver(line.way.pop())
    assert (answer.bucket, answer.amount_utok) == (2, 10 * MILLION)
    assert (answer.rest_utok, answer.at_ms) == (before + 10 * MILLION, line.now)
    assert [one["bucket"] for one in buckets(line, "b")] == [2]


def test_a_return_to_an_account_that_never_was_is_a_dead_letter_and_sends_nothing(line):
    give(line, 5, to="nobody")
    line.deliver(line.way.pop())
    answer = line.deliver({**line.way.pop(), "account_id": "nobody"})
    assert (answer, line.way, line.refused[0].reason) == (None, [], "bad_command")


def test_a_part_that_moves_nothing_is_a_dead_letter(line):
    give(line, 5)
    assert line.deliver({**line.way[0], "amount_utok": 0}) is None
    assert line.refused[0].reason == "bad_command"


@pytest.mark.parametrize("kind", ["transfer_in", "transfer_return"])
async def test_nobody_but_charging_can_ask_for_a_credit(kind):
    with pytest.raises(BadData, match="charging itself"):
        await Orders.order(object.__new__(Orders), "a", kind=kind)


def entries(line, act, place):
    """Return what was entered in one partition while `act` was done."""
    found, take = [], line.states[place].books.take

    def note():
        taken = take()
        found.extend(taken[0])
        return taken

    line.states[place].books.take = note
    act()
    return [(one.kind.name, Source(one.source).name, one.cause) for one in found]


def test_entries_name_the_order_the_other_account_and_the_entry_they_answer(line):
    given = entries(line, lambda: give(line, 10), 0)
    assert given == [("TRANSFER_OUT", "TOP_UP", Cause("t1", "b"))]
    number = line.way[0]["from_entry"]
    assert entries(line, line.quiesce, 1) == [("TRANSFER_IN", "TRANSFER", Cause("t1", "a", number))]


def test_what_comes_back_names_who_could_not_take_it(line):
    give(line, 10, to="nobody")
    number = line.way[0]["from_entry"]
    assert entries(line, line.quiesce, 0) == [
        ("TRANSFER_RETURN", "TRANSFER", Cause("t1", "nobody", number))
    ]


def test_what_time_caused_names_no_order(line):
    line.now += 2 * DAY
    found = entries(line, lambda: give(line, 10), 0)
    *due, asked = found
    assert {cause for _, _, cause in due} == {NO_CAUSE}
    # The day after NOON a month begins: its grant is the plan's, not the order's.
    assert {("EXPIRY", "TOP_UP"), ("GRANT", "PLAN")} <= {one[:2] for one in due}
    assert asked == ("TRANSFER_OUT", "TOP_UP", Cause("t1", "b"))


def test_a_successor_knows_which_parts_came_and_sends_the_same_again():
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    part = {"kind": "transfer_in", "command_id": "p1", "from_account": "g", "from_entry": 3}
    part |= {"account_id": "b", "amount_utok": MILLION, "valid_to": NOON + DAY}
    line.command([catalog_version(0, NOON, CATALOG), order(1, NOON, **part)])
    sent = dict(books.sent)
    assert [one["kind"] for one in sent.values()] == ["transfer_return"]

    heir = PaperLine(journal, books)
    opened = order(2, NOON, kind="open", plan="strict", account_id="b")
    heir.command([opened, order(3, NOON, **part)])
    assert books.sent == sent
    assert [one["outcome"] for _, one in sorted(books.replies.items())] == [
        Outcome.DONE,  # the catalog
        Outcome.REFUSED,
        Outcome.DONE,  # the opening
        Outcome.REFUSED,
    ]
    assert "TRANSFER_IN" not in {ChangeKind(one["kind"]).name for one in books.changes.values()}


def test_what_is_sent_is_stamped_by_the_worker_however_long_its_order_waited(line):
    give(line, 5)
    began_ms = SystemClock().wall_ms()
    registry = FileRegistry()
    outputs = Outputs(Settings(), Codec(registry), ColumnCodec(registry), None, 0)
    state, (part,) = line.states[0], line.way
    step = Step(seq=1, minute_ms=NOON, sent=[Sent({**part, "issued_at": 1})])
    (message,) = outputs.messages(state, step, [])
    name, fields = Codec(registry).decode(message.value)
    assert (message.topic, message.key, name) == ("commands", b"t/b", "account_order")
    assert began_ms <= fields.pop("issued_at") <= SystemClock().wall_ms()
    wanted = {key: value for key, value in part.items() if key != "issued_at"}
    assert {key: fields[key] for key in wanted} == wanted


def test_a_part_of_an_account_with_a_long_name_has_an_id_that_is_a_name_too():
    names = {_part_id("transfer_in", "t", "中" * 200 + "a" * 800, entry) for entry in (1, 2)}
    assert len(names) == 2
    assert not list(bad_names({"command_id": max(names, key=len)}))
    assert _part_id("transfer_in", "t", "中文", 1) == '["transfer_in", "t", "中文", 1]'


def test_an_id_is_whole_as_long_as_a_name_may_be():
    lengths = {}
    for count in range(200, 260):
        said = _part_id("transfer_in", "t", "a" * count, 1)
        assert len(said) <= 256
        lengths[count] = len(said) if said.startswith("[") else 0
    assert max(lengths.values()) == 256
