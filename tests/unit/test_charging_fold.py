"""A chunk is judged by its own times, cut at minutes, and refused records are not remembered."""

from __future__ import annotations

import pytest

from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, Record, chunk_of, command, event, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.quota.cells import Cell
from tokenline.quota.decided import State


def state_of(*commands):
    state = PartitionState(BOUNDS)
    fold_commands(state, commands or [command()], 0)
    return state


def judged(state, *records):
    said = fold_usage(state, chunk_of(list(records))).judged
    return (said.late, said.duplicate, said.rejected)


def test_all_kinds_of_judgement_in_one_chunk():
    records = [
        record(10),
        record(11, event_id="late", occurred_at=NOON - HOUR - 1),
        record(12),
        Record(13, NOON, "t/a", None),
        record(14, event_id="e2", account_id="nobody"),
        record(15, event_id="e3", input_tokens=-1),
        record(16, event_id="e4"),
    ]
    state = state_of()
    step = fold_usage(state, chunk_of(records))

    assert (step.judged.late, step.judged.duplicate, step.judged.rejected) == (
        [11],
        [12],
        [13, 14, 15],
    )
    assert (step.counted, step.tokens) == (2, 20)
    assert sorted((one.offset, one.reason) for one in step.refused) == [
        (13, "undecodable"),
        (14, "unknown_account"),
        (15, "negative_count"),
    ]
    assert state.next_offsets["usage"] == 17


def test_a_dead_letter_says_whose_it_was():
    step = fold_usage(state_of(), chunk_of([record(3, account_id="nobody", gateway_seq=42)]))
    assert step.refused[0].identity == {
        "tenant_id": "t",
        "account_id": "nobody",
        "source": "gateway",
        "event_id": "e1",
        "gateway_id": "g1",
        "gateway_epoch": "1",
        "gateway_seq": 42,
    }


def test_an_event_refused_for_its_account_counts_when_sent_again_after_it_was_applied():
    state = PartitionState(BOUNDS)
    assert judged(state, record(0)) == ([], [], [0])
    fold_commands(state, [command()], 0)
    assert judged(state, record(1)) == ([], [], [])


def test_a_late_event_is_not_remembered_and_an_event_on_time_is():
    state = state_of()
    assert judged(state, record(0, occurred_at=NOON - HOUR - 1)) == ([0], [], [])
    assert judged(state, record(1)) == ([], [], [])
    assert judged(state, record(2)) == ([], [2], [])


def test_the_same_id_from_another_source_or_tenant_is_another_event():
    state = state_of(command(), command(1, tenant_id="u"))
    found = judged(state, record(0), record(1, source="other"), record(2, tenant_id="u"))
    assert found == ([], [], [])


def test_a_chunk_of_nothing_readable_moves_the_offset():
    state = state_of()
    step = fold_usage(state, chunk_of([Record(5, NOON, None, None)]))
    assert (state.next_offsets["usage"], step.judged.rejected, step.decisions) == (6, [5], [])


#   offset  0    1    2 | 3    4 | 5
#   minute  0    0    0 | 1    1 | 3
def test_a_chunk_is_cut_where_the_minute_of_append_changes():
    minutes = [0, 0, 0, 1, 1, 3]
    records = [
        Record(i, NOON + minute * MINUTE, "t/a", None if i in {1, 3} else event(event_id=f"e{i}"))
        for i, minute in enumerate(minutes)
    ]
    parts = list(by_minute(chunk_of(records)))

    assert [(part.lo, part.hi) for part in parts] == [(0, 2), (3, 4), (5, 5)]
    assert [part.offsets.tolist() for part in parts] == [[0, 2], [4], [5]]
    assert [[bad.offset for bad in part.refused] for part in parts] == [[1], [3], []]
    assert [part.keys for part in parts] == [["t/a"] * 2, ["t/a"], ["t/a"]]


def test_a_chunk_of_one_minute_is_not_copied():
    chunk = chunk_of([record(0), record(1, NOON + 1)])
    assert list(by_minute(chunk)) == [chunk]


def test_a_broker_clock_that_goes_back_does_not_reopen_a_minute():
    state = state_of()
    fold_usage(state, chunk_of([record(0, NOON + 5 * MINUTE, occurred_at=NOON)]))
    step = fold_usage(state, chunk_of([record(1, NOON, event_id="e2")]))
    assert step.minute_ms == state.minute_ms
    assert step.flush is None
    assert state.totals.counted == 2


def test_the_last_command_of_an_account_wins():
    state = state_of()
    commands = [command(1, month_tokens=5), command(2, month_tokens=7)]
    step = fold_commands(state, commands, 2)
    assert int(state.cells.matrix[0, Cell.MONTH_TOKENS_LIMIT]) == 7
    assert [one.limit for one in step.decisions] == [7]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time_zone": "Mars/Olympus"}, "IANA"),
        ({"month_tokens": -2}, "month_tokens is -2"),
        ({"account_id": ""}, "names no"),
        ({"tenant_id": ""}, "names no"),
        ({"tenant_id": "t/x"}, "slash"),
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(fields, words):
    state = state_of(command(month_tokens=5))
    before = state.cells.matrix.copy().tolist()
    step = fold_commands(state, [command(1, **fields)], 1)

    reason = "bad_name" if words == "slash" else "bad_command"
    assert [(one.offset, one.reason) for one in step.refused] == [(1, reason)]
    assert words in step.refused[0].detail
    assert (state.cells.matrix.tolist(), len(state.cells)) == (before, 1)
    assert (state.next_offsets["commands"], step.new_keys, step.decisions) == (2, [], [])


def test_a_bad_command_among_good_ones_harms_none_of_them():
    state = PartitionState(BOUNDS)
    good, bad, other = command(0), command(1, month_tokens=-9), command(2, account_id="b")
    step = fold_commands(state, [good, bad, other], 2)
    assert step.new_keys == ["t/a", "t/b"]
    assert [one.slot for one in step.decisions] == [0, 1]


def test_lowering_a_limit_by_command_cuts_at_once():
    state = state_of(command(month_tokens=100))
    fold_usage(state, chunk_of([record(0, input_tokens=60)]))
    step = fold_commands(state, [command(1, NOON, month_tokens=50)], 1)
    assert step.decisions[-1].state is State.CUT
    assert step.decisions[-1].used == 60


def test_a_minute_closes_with_a_flush_even_when_nothing_changed_since_the_last():
    """Only a closing flush lets recovery forget the minute."""
    state = state_of()
    fold_usage(state, chunk_of([record(0)]))
    assert len(state.flush().windows) == 1
    assert state.flush() is None
    step = fold_usage(state, chunk_of([record(1, NOON + MINUTE, event_id="e2")]))
    assert step.flush.segment_start_ms == NOON // MINUTE * MINUTE


def test_what_was_published_while_idle_is_right_after_a_crash():
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    line.command([command()])
    line.charge([record(0)])
    line.rest()
    line.charge([record(1, event_id="e2")])
    PaperLine(journal, books).rest()
    assert sum(books.month_totals().values(), ()) == (2, 20)
    assert sum(books.window_totals().values(), ()) == (2, 20)
