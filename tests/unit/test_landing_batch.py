from __future__ import annotations

import numpy as np
import pytest

from tokenline.errors import BrokenLog
from tokenline.landing.batch import ChargedRange, Filling
from tokenline.landing.row import Verdict, codes_of

NONE = np.zeros(0, np.int64)


def charged(lo, hi, late=()):
    codes = codes_of(lo, hi, np.array(late, np.int64), NONE, NONE)
    return ChargedRange(lo=lo, hi=hi, codes=codes, as_of_ms=hi)


def filling(next_lo=0, max_rows=10, max_wait_s=1.0):
    return Filling(next_lo=next_lo, max_rows=max_rows, max_wait_s=max_wait_s)


def test_nothing_waits_for_nothing():
    assert filling().wait_s(5.0) is None


def test_a_small_batch_waits_its_time_and_a_full_one_does_not():
    batch = filling()
    batch.offer(charged(0, 3), 100.0)

    assert batch.wait_s(100.25) == pytest.approx(0.75)
    assert batch.wait_s(101.5) == 0
    batch.offer(charged(4, 9), 100.5)
    assert batch.full
    assert batch.wait_s(100.5) == 0


def test_taken_ranges_join_and_carry_their_acks():
    batch = filling()
    batch.offer(charged(0, 3, late=[2]), 0)
    batch.ack_after("first", 0)
    batch.offer(charged(4, 5, late=[5]), 0)
    batch.ack_after("second", 0)
    taken = batch.take()

    assert (taken.lo, taken.hi, taken.rows, taken.as_of_ms) == (0, 5, 6, 5)
    assert np.flatnonzero(taken.codes == Verdict.LATE).tolist() == [2, 5]
    assert taken.acks == ["first", "second"]
    assert batch.take().rows == 0


#  landed ......|
#  again    [8 ... 14]      cut at 10
#  older  [5 . 9]           dropped
def test_what_has_landed_is_cut_off_a_range_that_comes_again():
    batch = filling(next_lo=10)
    batch.offer(charged(5, 9), 0)
    batch.offer(charged(8, 14, late=[9, 12]), 0)
    taken = batch.take()

    assert (taken.lo, taken.hi) == (10, 14)
    assert np.flatnonzero(taken.codes == Verdict.LATE).tolist() == [2]


def test_acks_without_new_rows_are_due_at_once():
    batch = filling(next_lo=10)
    batch.offer(charged(5, 9), 0)
    batch.ack_after("again", 0)

    assert batch.wait_s(0) == 0
    taken = batch.take()
    assert (taken.rows, taken.acks) == (0, ["again"])


def test_a_hole_before_a_range_is_an_error_not_a_jump():
    with pytest.raises(BrokenLog, match="starts at 12, but only offsets below 10"):
        filling(next_lo=10).offer(charged(12, 14), 0)
