"""Runs of offsets say what sets of offsets would, and are as large as what they name."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenline.metering.spans import NO_SPANS, clipped, gaps, size_of, span, spans_of, within

OFFSETS = st.sets(st.integers(0, 40), max_size=20)


def named(spans):
    return {offset for first, last in spans.tolist() for offset in range(first, last + 1)}


@given(OFFSETS, st.integers(0, 40), st.integers(0, 40))
def test_gaps_are_the_offsets_that_are_not_there(offsets, one, other):
    lo, hi = min(one, other), max(one, other)
    there = np.array(sorted(at for at in offsets if lo <= at <= hi), np.int64)
    found = gaps(there, lo, hi)

    assert named(found) == set(range(lo, hi + 1)) - set(there.tolist())
    assert size_of(found) == len(named(found))
    assert (found[1:, 0] > found[:-1, 1] + 1).all()


@given(OFFSETS, st.integers(0, 40), st.integers(0, 40))
def test_what_is_clipped_is_what_lies_within(offsets, one, other):
    spans = gaps(np.array(sorted(offsets), np.int64), 0, 40)
    lo, hi = min(one, other), max(one, other)

    assert named(clipped(spans, lo, hi)) == named(spans) & set(range(lo, hi + 1))


@given(OFFSETS)
def test_each_offset_knows_whether_a_run_has_it(offsets):
    spans = gaps(np.array(sorted(offsets), np.int64), 0, 40)
    asked = np.arange(41)

    assert set(asked[within(spans, asked)].tolist()) == named(spans)


def test_a_gap_of_a_topics_whole_life_costs_no_memory():
    found = gaps(np.array([10**15], np.int64), 0, 10**15 + 5)

    assert found.tolist() == [[0, 10**15 - 1], [10**15 + 1, 10**15 + 5]]
    assert size_of(spans_of(found.ravel().tolist())) == 10**15 + 5
    assert len(span(5, 4)) == len(NO_SPANS) == 0
