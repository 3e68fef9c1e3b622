from __future__ import annotations

import numpy as np
import pytest

from tokenline.landing.batch import EARLY_WAIT_S, EPOCHS_AT_ONCE, ChargedRange, Filling
from tokenline.landing.verdicts import Verdicts
from tokenline.metering.spans import spans_of


def charged(lo, hi, late=(), deleted=(), **fields):
    verdicts = Verdicts(late=np.array(late, np.int64), deleted=spans_of(deleted))
    return ChargedRange(lo=lo, hi=hi, verdicts=verdicts, as_of_ms=hi, **fields)


def filling(next_lo=0, max_rows=10, max_wait_s=1.0, **fields):
    return Filling(next_lo=next_lo, max_rows=max_rows, max_wait_s=max_wait_s, **fields)


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
    assert taken.verdicts.late.tolist() == [2, 5]
    assert taken.acks == ["first", "second"]
    assert batch.take().rows == 0


def test_what_has_landed_is_dropped_when_it_comes_again():
    batch = filling(next_lo=10)
    batch.offer(charged(5, 9), 0)
    batch.offer(charged(10, 14, late=[12]), 0)
    taken = batch.take()

    assert (taken.lo, taken.hi, taken.verdicts.late.tolist()) == (10, 14, [12])
    assert batch.take_refused() == []


def test_acks_without_new_rows_are_due_at_once():
    batch = filling(next_lo=10)
    batch.offer(charged(5, 9), 0)
    batch.ack_after("again", 0)

    assert batch.wait_s(0) == 0
    taken = batch.take()
    assert (taken.rows, taken.acks) == (0, ["again"])


def refusals(batch):
    return [(one.lo, why) for one, why in batch.take_refused()]


def test_a_range_that_overlaps_what_has_landed_is_refused_and_those_behind_it_land():
    batch = filling(next_lo=10)
    batch.offer(charged(8, 14), 0)
    batch.offer(charged(10, 12), 0)

    assert refusals(batch) == [(8, "offsets below 10 have landed, with another range")]
    assert batch.take().hi == 12


@pytest.mark.parametrize("epoch", [4, 5 + EPOCHS_AT_ONCE + 1])
def test_a_range_whose_epoch_cannot_follow_is_refused_and_those_behind_it_land(epoch):
    batch = filling()
    batch.offer(charged(0, 3, epoch=5), 0)
    batch.offer(charged(4, 6, epoch=epoch), 0)
    batch.offer(charged(4, 7, epoch=6), 0)

    assert [lo for lo, _ in refusals(batch)] == [4]
    assert batch.take().hi == 7


def test_a_range_of_an_owner_before_that_comes_again_is_no_news():
    """Its successor tells again, word for word, what it may not have told."""
    batch = filling()
    batch.offer(charged(0, 3, epoch=6), 0)
    batch.offer(charged(0, 3, epoch=5), 0)

    assert refusals(batch) == []


#  next 10 |      [20 . 24]      comes too early, and waits
#          [10 . 19]             comes at last
def test_a_range_that_comes_too_early_waits_for_those_before_it():
    batch = filling(next_lo=10, max_rows=100)
    batch.offer(charged(20, 24), 0)
    batch.ack_after("early", 0)
    assert batch.give_up_waiting(EARLY_WAIT_S - 0.1) is None
    assert batch.wait_s(1.0) == pytest.approx(EARLY_WAIT_S - 1)
    batch.offer(charged(10, 19), 1.0)
    batch.ack_after("right", 1.0)
    taken = batch.take()

    assert (taken.lo, taken.hi, taken.acks) == (10, 24, ["early", "right"])
    assert taken.verdicts.without_record == 0


def test_a_forged_range_that_jumps_ahead_takes_nothing_from_those_it_jumped_over():
    batch = filling(next_lo=10, max_rows=100)
    batch.offer(charged(15, 17), 0)
    batch.offer(charged(10, 19), 0)
    batch.offer(charged(20, 24), 0)
    taken = batch.take()

    assert (taken.lo, taken.hi, taken.verdicts.without_record) == (10, 24, 0)


def test_a_forged_range_that_jumps_ahead_and_overlaps_what_follows_is_refused():
    batch = filling(next_lo=10, max_rows=100)
    batch.offer(charged(15, 22), 0)
    batch.offer(charged(10, 19), 0)

    assert refusals(batch) == [(15, "offsets below 20 have landed, with another range")]
    assert batch.take().hi == 19


def test_offsets_that_no_range_speaks_of_are_judged_by_nobody_and_landing_goes_on():
    """It ended the worker: `the next charged range starts at 20, but only offsets below 10 have landed`."""
    batch = filling(next_lo=10, max_rows=100)
    batch.offer(charged(20, 24, late=[21]), 0)
    batch.ack_after("early", 0)

    assert batch.wait_s(EARLY_WAIT_S) == 0
    assert batch.give_up_waiting(EARLY_WAIT_S) == (10, 19)
    taken = batch.take()
    assert (taken.lo, taken.hi, taken.acks) == (10, 24, ["early"])
    assert taken.verdicts.unjudged.tolist() == [[10, 19]]
    assert taken.verdicts.late.tolist() == [21]


def test_nothing_is_acknowledged_that_waits():
    batch = filling(next_lo=10, max_rows=100)
    batch.offer(charged(20, 24), 0)
    batch.ack_after("early", 0)

    assert batch.take().acks == []


def test_of_many_rows_that_come_too_early_none_waits_longer():
    """Landing may have days to catch up with: they would all be held in memory."""
    batch = filling(next_lo=10, max_rows=10)
    batch.offer(charged(20, 24), 0)
    assert batch.give_up_waiting(0.1) is None
    batch.offer(charged(25, 29), 0)

    assert batch.give_up_waiting(0.1) == (10, 19)
    assert batch.take().hi == 29


@pytest.mark.parametrize(("begin", "first", "unjudged"), [(7, 3, []), (3, 7, [[3, 6]])])
def test_where_nothing_is_sealed_the_first_range_or_the_begin_of_the_topic_is_the_beginning(
    begin, first, unjudged
):
    batch = filling(next_lo=begin, fresh=True)
    batch.offer(charged(first, 9), 0)
    batch.give_up_waiting(EARLY_WAIT_S)
    taken = batch.take()

    assert (taken.lo, taken.verdicts.unjudged.tolist()) == (3, unjudged)


def test_when_it_was_appended_is_known_of_all_that_was_deleted():
    batch = filling()
    batch.offer(charged(0, 3, deleted=[1, 2], deleted_since_ms=50, deleted_until_ms=70), 0)
    batch.offer(charged(4, 5), 0)
    batch.offer(charged(6, 9, deleted=[6, 6], deleted_since_ms=60, deleted_until_ms=90), 0)
    taken = batch.take()

    assert (taken.deleted_since_ms, taken.deleted_until_ms) == (50, 90)
    assert taken.verdicts.deleted.tolist() == [[1, 2], [6, 6]]
