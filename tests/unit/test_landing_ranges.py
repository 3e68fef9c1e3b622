"""A charged range that contradicts itself is a fault that is named; what is right is taken as it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tokenline.landing.charges import joined_charges
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


def test_each_event_gets_the_charge_that_charging_said_whatever_lies_between():
    said = {
        "late_offsets": [11, 15], "duplicate_offsets": [12], "rejected_offsets": [13],
        "correction_offsets": [15, 17], "absent_offsets": [18, 18], "deleted_offsets": [],
        # Of 10, 11, 14, 16, 19.
        "charges_utok": [5, 7, 0, 9, 4], "catalog_versions": [1, 2, 3, 3],
        "paid_buckets": [2, -9, -10, -2, -9], "splits": [11, 1, 3, 11, 0, 4, 19, 2, 1, 19, -1, 3],
    }  # fmt: skip
    (found,) = ranges(said)
    offsets = np.array([10, 11, 14, 15, 16, 17, 19])  # the record of a duplicate is not asked for
    charges = joined_charges([found.charges], offsets)

    assert found.verdicts.codes(offsets).tolist() == [0, 1, 0, 2, 0, 2, 0]
    assert charges.utok.tolist() == [5, 7, 0, 0, 9, 0, 4]
    assert charges.versions.tolist() == [1, 1, 3, 0, 3, 0, 3]
    assert [one.to_pylist() for one in charges.paid(offsets)] == [
        [[2], [1, 0], [], [], [-2], [], [2, -1]],
        [[5], [3, 4], [], [], [9], [], [1, 3]],
    ]
    assert charges.parts_of(1, 11) == [(1, 3), (0, 4)]
    assert joined_charges([], offsets).utok.tolist() == [0] * 7


def test_charging_and_landing_agree_on_who_paid_each_event():
    """What the fold said of each event is what a row of the ledger will say."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        offsets = np.sort(rng.choice(40, 25, replace=False)) + 10
        kinds = rng.integers(0, 4, 25)  # charged, duplicate, rejected, correction
        charged = offsets[kinds == 0]
        utok = rng.integers(0, 3, len(charged))
        buckets = np.where(utok == 0, -10, rng.choice([-9, -1, 3], len(charged)))
        splits = [
            (at, n, 1)
            for at, u, b in zip(charged, utok, buckets, strict=True)
            if b == -9
            for n in range(u)
        ]
        columns = {
            "charges_utok": utok, "paid_buckets": buckets, "splits": np.ravel(splits).astype(int),
            "catalog_versions": [4, len(charged)] if len(charged) else [],
        } if utok.any() else {}  # fmt: skip
        said = {
            f"{name}_offsets": offsets[kinds == n].tolist()
            for n, name in ((1, "duplicate"), (2, "rejected"), (3, "correction"))
        }
        said |= {"absent_offsets": np.repeat(np.setdiff1d(np.arange(10, 50), offsets), 2).tolist()}
        said |= {name: list(map(int, values)) for name, values in columns.items()}
        (found,) = ranges(said | {"hi_offset": 49})
        there = rng.choice(charged, len(charged) // 2, replace=False) if len(charged) else charged
        there = np.sort(there)
        got = joined_charges([found.charges], there)
        at = np.searchsorted(charged, there)
        assert got.utok.tolist() == utok[at].tolist()
        parts = [got.parts_of(n, int(offset)) for n, offset in enumerate(there)]
        assert [sum(amount for _, amount in one) for one in parts] == utok[at].tolist()


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
        ({"charges_utok": [1]}, "charges of 1 events and payers of 0, not 10"),
        (
            {"charges_utok": [1] * 10, "paid_buckets": [1] * 9},
            "charges of 10 events and payers of 9, not 10",
        ),
        ({"catalog_versions": [1, 9]}, "catalog versions of other than 10 events"),
        ({"catalog_versions": [1]}, "splits are no triples, or catalog versions no pairs"),
        ({"splits": [1, 2]}, "splits are no triples, or catalog versions no pairs"),
        ({"charges_utok": [-1] * 10, "paid_buckets": [1] * 10}, "a charge below zero"),
        (
            {"charges_utok": [1] * 10, "paid_buckets": [-10] * 10},
            "a charge that nobody paid, or a payer of nothing",
        ),
        (
            {"charges_utok": [0] * 10, "paid_buckets": [1] * 10},
            "a charge that nobody paid, or a payer of nothing",
        ),
        (
            {"charges_utok": [1] * 10, "paid_buckets": [-9] * 10},
            "parts of other events than those that several buckets paid",
        ),
        ({"splits": [12, 1, 1]}, "parts of other events than those that several buckets paid"),
        (
            {"charges_utok": [3, *[1] * 9], "paid_buckets": [-9, *[1] * 9], "splits": [10, 1, 2]},
            "parts that do not add up",
        ),
        (
            {"charges_utok": [3, *[1] * 9], "paid_buckets": [-9, *[1] * 9], "splits": [11, 1, 3]},
            "parts that do not add up",
        ),
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
