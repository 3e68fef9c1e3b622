"""Every offset of a stretch is a record, absent, or deleted; however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streams.intake import decode_commands, decode_usage
from streams.records import (
    Damaged,
    OfTransaction,
    Unreadable,
    hand_over_raw_records,
    unpacked,
)
from streams.stretch import Stretch, parts_of
from tests.strategies import BOUNDS, NOON
from tests.strategies import event as event_of
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.metering.spans import size_of
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry

REGISTRY = open_registry(Settings())
CODEC, COLUMNS = Codec(REGISTRY), ColumnCodec(REGISTRY)
PLAIN = CODEC.encode("usage_event", event_of(account_id="nobody"))


class Raw:
    """Be a record as the parser yields it."""

    def __init__(self, offset, value=PLAIN, key=b"t/nobody", timestamp=NOON):
        self.offset, self.value, self.key, self.timestamp = offset, value, key, timestamp


def named(spans):
    return {offset for first, last in spans.tolist() for offset in range(first, last + 1)}


KINDS = st.sampled_from(
    ["plain", "plain", "transaction", "damaged", "none", "none", "junk", "unreadable"]
)


@st.composite
def stretches(draw):
    """Draw a stretch that begins at 5, and what each offset is."""
    kinds = draw(st.lists(KINDS, min_size=1, max_size=25))
    deleted_to = draw(st.integers(0, 35))
    records = []
    for offset, kind in enumerate(kinds, start=5):
        at = NOON + 40_000 * (offset - 5)
        if kind in ("plain", "junk"):
            value = PLAIN if kind == "plain" else b"junk"
            records.append(Raw(offset, value, timestamp=at))
        elif kind == "transaction":
            records.append(OfTransaction(offset, at, b"t/nobody", PLAIN))
        elif kind == "damaged":
            records.append(Damaged(offset, offset, at))
        elif kind == "unreadable":
            records.append(Unreadable(offset, offset, at, "too large"))
    hi = 4 + len(kinds)
    stretch = Stretch(lo=5, hi=hi, records=records, deleted_to=deleted_to, deleted_until_ms=7)
    return kinds, stretch


@given(stretches(), st.integers(1, 6))
def test_every_offset_is_judged_once_however_a_stretch_is_cut(drawn, most):
    kinds, stretch = drawn
    state = PartitionState(BOUNDS)
    state.next_offsets["usage"] = 5
    front = next((at for at, kind in enumerate(kinds) if kind != "none"), len(kinds))
    said, due = {}, 5
    for part in parts_of(stretch, most):
        for chunk in by_minute(decode_usage(COLUMNS, part)):
            judged = fold_usage(state, chunk).judged
            assert judged.lo == due
            due = judged.hi + 1
            lists = {
                "rejected": judged.rejected,
                "absent": named(np.reshape(judged.absent, (-1, 2))),
                "deleted": named(np.reshape(judged.deleted, (-1, 2))),
            }
            for name, offsets in lists.items():
                assert said.keys().isdisjoint(offsets)
                said |= dict.fromkeys(offsets, name)

    assert due == stretch.hi + 1
    for at, kind in enumerate(kinds):
        gone = kind == "damaged" or (at < front and 5 + at < stretch.deleted_to)
        expected = "deleted" if gone else "absent" if kind == "none" else "rejected"
        assert said[5 + at] == expected, (at, kind)
    assert state.totals.deleted == list(said.values()).count("deleted")


def test_a_stretch_without_gaps_costs_nothing():
    absent, deleted = Stretch(lo=0, hi=3, records=[Raw(at) for at in range(4)]).gaps()
    assert size_of(absent) == size_of(deleted) == 0


def test_what_was_deleted_was_appended_after_what_was_charged_before_it():
    state = PartitionState(BOUNDS)
    fold_usage(state, decode_usage(COLUMNS, Stretch(lo=0, hi=0, records=[Raw(0)])))
    later = Raw(9, timestamp=NOON + 3_600_000)
    gone = Stretch(lo=1, hi=9, records=[later], deleted_to=7, deleted_until_ms=later.timestamp)
    judged = fold_usage(state, decode_usage(COLUMNS, gone)).judged

    assert (judged.deleted, judged.absent) == ([1, 6], [7, 8])
    assert judged.deleted_since_ms == NOON // 60_000 * 60_000
    assert judged.deleted_until_ms == later.timestamp


def test_where_nothing_is_left_time_stands_still():
    state = PartitionState(BOUNDS)
    fold_usage(state, decode_usage(COLUMNS, Stretch(lo=0, hi=0, records=[Raw(0)])))
    step = fold_usage(state, decode_usage(COLUMNS, Stretch(lo=1, hi=5, records=[])))

    assert (step.judged.absent, step.judged.rejected) == ([1, 5], [])
    assert step.as_of_ms == state.minute_ms == NOON // 60_000 * 60_000
    assert state.next_offsets["usage"] == 6


def batch_of(first, values, *, transactional=False, compression=0):
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=transactional,
        producer_id=7, producer_epoch=0, base_sequence=0, batch_size=1 << 20,
    )  # fmt: skip
    for at, value in enumerate(values):
        builder.append(at, NOON, b"k", value, [])
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")
    return bytes(raw)


def read(data, at=0):
    tp = TopicPartition("usage", 0)
    hand_over_raw_records()
    fetched = PartitionRecords(tp, MemoryRecords(data), [], at, None, None, True, 0)
    return list(unpacked(fetched)), fetched.next_fetch_offset


def test_a_record_of_a_transaction_is_marked_and_others_are_as_they_were():
    """The client reads what is not committed; nothing told it apart."""
    data = batch_of(0, [b"a", b"b"]) + batch_of(2, [b"c"], transactional=True)
    found, position = read(data + batch_of(5, [b"d"]))

    assert [one.value for one in found] == [b"a", b"b", b"c", b"d"]
    assert [type(one) is OfTransaction for one in found] == [False, False, True, False]
    assert [one.offset for one in found] == [0, 1, 2, 5]
    assert position == 6
    assert [one.offset for one in read(data, at=1)[0]] == [1, 2]


def test_a_damaged_batch_is_one_record_that_stands_for_all_of_its_offsets():
    """It ended the fetch, again and again: nothing behind it was ever read."""
    broken = bytearray(batch_of(2, [b"x" * 50, b"y"]))
    broken[-10] ^= 1
    found, position = read(batch_of(0, [b"a", b"b"]) + bytes(broken) + batch_of(4, [b"d"]))

    assert found[2] == Damaged(2, 3, NOON)
    assert [one.offset for one in found] == [0, 1, 3, 4]
    assert position == 5


ORDER = {
    "tenant_id": "t", "account_id": "a", "command_id": "c", "kind": "open", "plan": "p",
    "reply_to": "me", "issued_at": 0,
}  # fmt: skip
LIMITS = {"tenant_id": "t", "account_id": "a", "command_id": "c", "issued_at": 0}


@pytest.mark.parametrize(("name", "said"), [("account_order", ORDER), ("account_command", LIMITS)])
def test_a_command_of_a_transaction_is_refused_and_who_asked_can_be_told(name, said):
    record = OfTransaction(3, NOON, b"t/a", CODEC.encode(name, said))
    commands, (refused,) = decode_commands(COLUMNS, CODEC, [record])

    assert (commands, refused.reason, refused.offset) == ([], "transactional_record", 3)
    assert "transactional.id" in refused.detail
    assert refused.command.fields["account_id"] == "a"


@pytest.mark.parametrize("value", [b"junk", None])
def test_a_command_of_a_transaction_that_nobody_can_read_is_refused_for_the_transaction(value):
    _, (refused,) = decode_commands(COLUMNS, CODEC, [OfTransaction(3, NOON, b"t/a", value)])
    assert (refused.reason, refused.command) == ("transactional_record", None)


def test_usage_of_a_transaction_is_refused_and_what_lies_behind_it_is_not():
    records = [OfTransaction(at, NOON, b"t/nobody", PLAIN) for at in range(3)]
    chunk = decode_usage(COLUMNS, Stretch(lo=0, hi=3, records=[*records, Raw(3)]))

    assert [one.reason for one in chunk.refused] == ["transactional_record"] * 3
    assert chunk.offsets.tolist() == [3]


@pytest.mark.parametrize("name", ["account_command", "account_order"])
@pytest.mark.parametrize("key", [None, b"", b"t/b", b"\xff"])
def test_a_command_whose_key_is_not_its_accounts_is_refused(name, key):
    """`account_command` was taken with any key, and applied."""
    record = Raw(3, CODEC.encode(name, LIMITS if name == "account_command" else ORDER), key)
    commands, (refused,) = decode_commands(COLUMNS, CODEC, [record])

    assert (commands, refused.reason) == ([], "key_mismatch")
    assert refused.command.fields["account_id"] == "a"


def test_of_a_batch_that_is_unreadable_the_last_offset_is_refused_and_the_others_are_absent():
    records = [Raw(0), Unreadable(1, 4, NOON, "too large"), Raw(5)]
    chunk = decode_usage(COLUMNS, Stretch(lo=0, hi=5, records=records))
    (refused,) = chunk.refused
    assert (refused.offset, refused.reason) == (4, "unreadable_batch")
    assert refused.detail == "the records of offsets 1 to 4 cannot be read: too large"
    assert chunk.absent.tolist() == [[1, 3]]
    assert chunk.offsets.tolist() == [0, 5]


def test_an_order_in_a_batch_that_is_unreadable_is_a_dead_letter():
    commands, refused = decode_commands(COLUMNS, CODEC, [Unreadable(1, 4, NOON, "too large")])
    assert (commands, [one.reason for one in refused]) == ([], ["unreadable_batch"])
