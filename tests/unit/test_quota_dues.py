"""What is due is found whatever was noted, without a look at all rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenline.quota.dues import BLOCK_ROWS, Dues
from tokenline.quota.terms import NEVER_MS


def dues_of(values):
    looked = []

    def due_of(first, end):
        looked.append(first)
        return values[first:end]

    return Dues(due_of), looked


@given(
    st.lists(
        st.tuples(st.integers(0, 3 * BLOCK_ROWS), st.integers(0, 50), st.integers(0, 50)),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_due_rows_are_found_the_lowest_first_however_often_they_changed(steps, most):
    values = np.full(3 * BLOCK_ROWS + 1, NEVER_MS)
    dues, _ = dues_of(values)
    for row, due_ms, now_ms in steps:
        values[row] = due_ms
        dues.note(row, due_ms)
        wanted = np.flatnonzero(values <= now_ms).tolist()
        assert dues.due(now_ms, most) == wanted[:most]
        assert dues.first_ms <= values.min()
    again, _ = dues_of(values)
    again.note_everything(len(values))
    assert again.first_ms == values.min()


def test_only_blocks_in_which_something_may_be_due_are_looked_at():
    values = np.full(1000 * BLOCK_ROWS, NEVER_MS)
    dues, looked = dues_of(values)
    for row in (5 * BLOCK_ROWS, 700 * BLOCK_ROWS):
        values[row] = 7
        dues.note(row, 7)
    assert dues.due(6, 10) == []
    assert dues.due(7, 10) == [5 * BLOCK_ROWS, 700 * BLOCK_ROWS]
    assert looked == [5 * BLOCK_ROWS, 700 * BLOCK_ROWS]
    values[:] = NEVER_MS
    assert dues.due(7, 10) == []
    assert dues.first_ms == NEVER_MS


def test_any_row_may_be_due_when_that_is_said_of_all():
    values = np.full(3 * BLOCK_ROWS, NEVER_MS)
    dues, _ = dues_of(values)
    dues.note_everything(len(values))
    values[2 * BLOCK_ROWS + 1] = 9
    assert dues.due(9, 5) == []
    dues.note_everywhere(9)
    assert dues.due(8, 5) == []
    assert dues.due(9, 5) == [2 * BLOCK_ROWS + 1]
    assert dues.first_ms == 9
