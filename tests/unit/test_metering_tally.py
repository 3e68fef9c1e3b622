"""A tally is a sum: of any parts, in any order, with the version of the newest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tests.strategies import HOUR, MINUTE, NOON, batch_of, event, numbers_of
from tokenline.metering import tally as tally_module
from tokenline.metering.tally import KEY, Tally, lines_of


def lines(events, slots, first_offset=0):
    batch = batch_of(events)
    offsets = np.arange(first_offset, first_offset + len(events))
    return lines_of(batch, numbers_of(batch, slots, offsets))


def rows_of(*parts):
    tally = Tally(NOON)
    for part in parts:
        tally.add(part)
    return tally.rows().sort(KEY).to_dicts()


MINUTE_AT = NOON // MINUTE * MINUTE
EVENTS = [
    event(input_tokens=1, output_tokens=100),
    event(input_tokens=2, occurred_at=NOON + 59_999 - NOON % MINUTE),
    event(input_tokens=4, occurred_at=MINUTE_AT + MINUTE),
    event(input_tokens=8, model="m2"),
    event(input_tokens=16, subscriber_id=""),
    event(input_tokens=32, provider="q"),
]
SLOTS = [0, 0, 0, 0, 0, 1]


def test_each_window_has_its_row():
    found = {
        (r["slot"], r["subscriber_id"], r["provider"], r["model"], r["window_start"]): (
            r["events"],
            r["total_tokens"],
            r["input_tokens"],
            r["output_tokens"],
            r["version"],
        )
        for r in rows_of(lines(EVENTS, SLOTS))
    }
    assert found == {
        (0, "s", "p", "m", MINUTE_AT): (2, 103, 3, 100, 1),
        (0, "s", "p", "m", MINUTE_AT + MINUTE): (1, 4, 4, 0, 2),
        (0, "s", "p", "m2", MINUTE_AT): (1, 8, 8, 0, 3),
        (0, "", "p", "m", MINUTE_AT): (1, 16, 16, 0, 4),
        (1, "s", "q", "m", MINUTE_AT): (1, 32, 32, 0, 5),
    }


def test_any_parts_in_any_order_give_the_same_rows(monkeypatch):
    monkeypatch.setattr(tally_module, "MERGE_ROWS", 3)
    parts = [lines(EVENTS[i : i + 2], SLOTS[i : i + 2], i) for i in (0, 2, 4)]
    whole = rows_of(lines(EVENTS, SLOTS))

    assert rows_of(*parts) == whole
    assert rows_of(*reversed(parts)) == whole


def test_asking_for_rows_between_parts_changes_nothing():
    tally = Tally(NOON)
    for i in range(6):
        tally.add(lines(EVENTS[i : i + 1], SLOTS[i : i + 1], i))
        tally.rows()
    assert tally.rows().sort(KEY).to_dicts() == rows_of(lines(EVENTS, SLOTS))


def test_a_tally_of_nothing_has_no_rows():
    assert Tally(NOON).rows().is_empty()
    assert not Tally(NOON).dirty


def test_sums_are_whole_numbers_beyond_what_a_float_holds():
    big = 2**53
    parts = [lines([event(input_tokens=count)], [0]) for count in (big, 1)]
    (row,) = rows_of(*parts)
    assert (row["input_tokens"], row["total_tokens"]) == (big + 1, big + 1)


def test_usage_reported_later_is_in_the_same_window_of_another_segment():
    first, second = Tally(MINUTE_AT), Tally(MINUTE_AT + HOUR)
    first.add(lines([event(input_tokens=1)], [0]))
    second.add(lines([event(input_tokens=2)], [0], 9))
    (one,), (other,) = first.rows().to_dicts(), second.rows().to_dicts()

    assert one["window_start"] == other["window_start"] == MINUTE_AT
    assert (one["total_tokens"], other["total_tokens"]) == (1, 2)
    assert (one["version"], other["version"]) == (0, 9)


def test_lines_of_a_journal_that_names_other_columns_as_nullable_are_summed_with_ours():
    ours = lines(EVENTS, SLOTS)
    theirs = pa.RecordBatch.from_arrays(ours.columns, names=ours.schema.names)
    strict = pa.schema([field.with_nullable(False) for field in ours.schema])
    mine = pa.RecordBatch.from_arrays(ours.columns, schema=strict)

    assert rows_of(theirs, mine) == rows_of(mine, theirs) == rows_of(ours, ours)
