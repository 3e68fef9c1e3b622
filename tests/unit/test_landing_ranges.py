"""A charged range that contradicts itself is a fault that is named; what is right is taken as it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tokenline.landing.ranges import Fault, ranges_of
from tokenline.landing.row import Verdict
from tokenline.landing.verdicts import joined
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

CODEC = ColumnCodec(FileRegistry())
SCHEMA = CODEC.empty("charged_range").schema
PLAIN = {"topic": "l.usage", "partition": 1, "lo_offset": 10, "hi_offset": 19, "as_of": 7}
LISTS = [field.name for field in SCHEMA if pa.types.is_list(field.type)]


def ranges(*said):
    blank = dict.fromkeys(SCHEMA.names, 0) | {key: [] for key in LISTS} | PLAIN
    batch = pa.RecordBatch.from_pylist([blank | one for one in said], schema=SCHEMA)
    return list(ranges_of(batch, [f"record {at}" for at in range(len(said))], "l.usage", 1))


def test_every_offset_of_a_range_has_one_verdict():
    said = {
        "late_offsets": [11], "duplicate_offsets": [12], "rejected_offsets": [13],
        "absent_offsets": [14, 15], "deleted_offsets": [16, 16, 18, 18],
        "deleted_since": 3, "deleted_until": 5, "epoch": 4,
    }  # fmt: skip
    (found,) = ranges(said)
    codes = found.verdicts.codes(np.arange(10, 20))

    assert codes.tolist() == [
        Verdict.COUNTED, Verdict.LATE, Verdict.DUPLICATE, Verdict.REJECTED, Verdict.ABSENT,
        Verdict.ABSENT, Verdict.DELETED, Verdict.COUNTED, Verdict.DELETED, Verdict.COUNTED,
    ]  # fmt: skip
    assert (found.deleted_since_ms, found.deleted_until_ms, found.epoch) == (3, 5, 4)
    assert found.verdicts.without_record == 4


def test_ranges_that_follow_each_other_are_one():
    found = ranges({"late_offsets": [10]}, {"lo_offset": 20, "hi_offset": 20, "late_offsets": [20]})
    verdicts = joined([one.verdicts for one in found])

    assert verdicts.codes(np.array([10, 19, 20])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"partition": 2}, "partition 1 of charged speaks of l.usage[2]"),
        ({"topic": "other"}, "partition 1 of charged speaks of other[1]"),
        ({"lo_offset": 20}, "a range from 20 to 19"),
        ({"lo_offset": -1}, "a range from -1 to 19"),
        ({"late_offsets": [9]}, "offsets outside of 10..19 are named"),
        ({"rejected_offsets": [2**62]}, "offsets outside of 10..19 are named"),
        ({"deleted_offsets": [12, 25]}, "offsets outside of 10..19 are named"),
        ({"absent_offsets": [13, 12]}, "offsets outside of 10..19 are named"),
        ({"absent_offsets": [13]}, "absent offsets are not pairs of first and last"),
        ({"late_offsets": [12, 12]}, "an offset is named twice"),
        ({"late_offsets": [12], "duplicate_offsets": [12]}, "an offset is named twice"),
        ({"late_offsets": [15], "deleted_offsets": [12, 18]}, "an offset is named twice"),
    ],
)
def test_a_range_that_contradicts_itself_is_named_with_its_record_and_those_around_it_are_taken(
    said, why
):
    """One ended landing: an index out of range, or a BrokenLog."""
    first, fault, last = ranges({}, said, {"hi_offset": 2**62})

    assert fault == Fault(record="record 1", reason="contradiction", detail=why)
    assert (first.hi, last.hi) == (19, 2**62)
