"""What a batch becomes when it is decompressed is bounded, whatever its codec, its records and its damage."""

from __future__ import annotations

import os
import struct
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.record import default_records
from aiokafka.record._crecords import default_records as parser
from aiokafka.record.memory_records import MemoryRecords

from streams.inbox import INBOX_ORDER_BYTES, Delivery, Inbox
from streams.records import (
    POLL_MAX_BYTES,
    Taken,
    Unreadable,
    hand_over_raw_records,
    inflated_bytes_of,
    taken,
    unpacked,
)
from streams.room import RECORD_BYTES, RECORDS_MAX, Room
from tokenline.errors import Undecodable
from tokenline.landing.reader import UsageReader
from tokenline.settings import Settings
from tokenline.wire.inflate import DECODERS, INFLATED_MAX_BYTES
from tokenline.wire.inflate import RECORDS_MAX as IN_A_BATCH

CODECS = {
    "zstd_decode": codec.zstd_encode,
    "lz4_decode": codec.lz4_encode,
    "gzip_decode": codec.gzip_encode,
    "snappy_decode": codec.snappy_encode,
}
KINDS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
PLACE = TopicPartition("usage", 0)


@pytest.fixture(autouse=True, scope="module")
def bounded():
    hand_over_raw_records()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "data", [b"", b"x", b"abc" * 40_000, os.urandom(3 << 20), bytes(INFLATED_MAX_BYTES)]
)
def test_what_is_within_the_bound_comes_whole(name, data):
    assert DECODERS[name](CODECS[name](data)) == data


@pytest.mark.parametrize("name", CODECS)
def test_one_byte_more_is_refused(name):
    payload = CODECS[name](bytes(INFLATED_MAX_BYTES + 1))
    with pytest.raises(Undecodable, match=f"more than {INFLATED_MAX_BYTES} bytes"):
        DECODERS[name](payload)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("damage", [lambda it: it[:-3], lambda it: b"junk" + it[4:]])
def test_damage_is_undecodable_and_nothing_else(name, damage):
    payload = damage(CODECS[name](b"abc" * 1000))
    with pytest.raises(Undecodable):
        DECODERS[name](payload)


def test_snappy_is_read_with_and_without_its_blocks():
    assert DECODERS["snappy_decode"](codec.snappy_encode(b"abc", xerial_compatible=False)) == b"abc"
    torn = codec.snappy_encode(b"abc")[:16] + struct.pack("!I", 9)[:2]
    with pytest.raises(Undecodable, match="damaged"):
        DECODERS["snappy_decode"](torn)


def test_gzip_of_several_members_is_one_text():
    assert DECODERS["gzip_decode"](codec.gzip_encode(b"ab") + codec.gzip_encode(b"c")) == b"abc"


@pytest.mark.parametrize("module", [parser, default_records])
def test_the_parsers_of_this_process_use_the_bounded_decoders(module):
    assert {name: getattr(module, name) for name in DECODERS} == DECODERS


def batch(values, kind="zstd", at=0):
    """Return the bytes of a batch whose first offset is `at`."""
    builder = default_records.DefaultRecordBatchBuilder(2, KINDS[kind], False, -1, -1, -1, 1 << 30)
    for offset, value in enumerate(values):
        builder.append(offset, 0, None, value, [])
    return struct.pack("!q", at) + bytes(builder.build())[8:]


def fetched(data, due=0):
    """Return a partition's fetch of these bytes."""
    found = SimpleNamespace(
        _records=MemoryRecords(data),
        _check_crcs=True,
        next_fetch_offset=due,
        _tp=PLACE,
        room_bytes=1 << 40,
    )
    return found, unpacked(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_becomes_too_large_is_one_unreadable_record(kind):
    bomb = batch([bytes(4 << 20)] * 5, kind, at=3)
    found, records = fetched(batch([b"a"] * 3) + bomb + batch([b"z"], at=8), due=1)

    first, second, odd, last = records
    assert (first.offset, second.offset, last.offset, last.value) == (1, 2, 8, b"z")
    assert isinstance(odd, Unreadable)
    assert (odd.first, odd.offset, odd.value) == (3, 7, None)
    assert "more than" in odd.why
    assert found.next_fetch_offset == 9


def test_an_unreadable_batch_that_is_asked_for_from_its_middle_stands_for_the_rest():
    found, records = fetched(batch([bytes(4 << 20)] * 5, at=3), due=6)
    (odd,) = records
    assert (odd.first, odd.offset, found.next_fetch_offset) == (6, 7, 8)


def test_a_batch_of_too_many_records_is_not_opened():
    _, records = fetched(batch([b""] * (IN_A_BATCH + 1)))
    (odd,) = records
    assert f"{IN_A_BATCH} is the most" in odd.why


def result(*batches):
    """Return a fetch of these batches as aiokafka's consumer holds it."""
    state = SimpleNamespace(paused=False, position=0)
    state.consumed_to = lambda at: setattr(state, "position", at)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    records = fetcher.PartitionRecords(
        PLACE, MemoryRecords(b"".join(batches)), None, 0, None, None, True, 0
    )
    return fetcher.FetchResult(PLACE, assignment=assignment, partition_records=records, backoff=0)


def test_a_poll_takes_no_more_than_its_bytes_and_the_next_one_goes_on():
    """A fetch of some kB held 200 MiB, and all of it was opened at once."""
    size = POLL_MAX_BYTES // 4
    one = result(*(batch([bytes(size)] * 3, at=3 * number) for number in range(4)))
    polls = []
    while one.has_more():
        polls.append(one.getall(10_000))
    assert [[record.offset for record in poll] for poll in polls] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert [inflated_bytes_of(poll) // size for poll in polls] == [6, 6]


def test_a_poll_takes_no_more_than_its_records():
    one = result(batch([b"ab"] * 5))
    assert [len(taken(one, 3)), len(taken(one, 3)), one.has_more()] == [3, 2, False]


def of_bytes(size):
    found = Taken()
    found.inflated_bytes = size
    return found


def test_large_records_take_the_room_of_many():
    room, places = Room(), [TopicPartition("usage", at) for at in (0, 1)]
    room.give(places[0], 10, 1, RECORDS_MAX * RECORD_BYTES)
    assert room.among(places) == {places[1]}
    room.take(places[0], 10)
    room.give(places[0], 11, 1, RECORDS_MAX * RECORD_BYTES - RECORD_BYTES)
    assert room.among(places) == set(places)


async def test_large_orders_crowd_an_inbox_until_they_are_taken():
    inbox = Inbox()
    inbox.put(Delivery("commands", of_bytes(INBOX_ORDER_BYTES - 1)))
    assert not inbox.crowded("commands")
    inbox.put(Delivery("commands", of_bytes(1)))
    assert (inbox.crowded("commands"), inbox.crowded("holds")) == (True, False)
    inbox.all_orders(await inbox.get())
    assert not inbox.crowded("commands")


async def test_landing_opens_what_a_range_needs_and_keeps_what_the_ledger_takes(monkeypatch):
    batches = [
        batch([b"a", b"b"]), batch([bytes(4 << 20)] * 5, at=2), batch([b"c", b"d"], at=7),
        batch([b"e"], at=9),
    ]  # fmt: skip
    reader = UsageReader(Settings(), "usage", 0)
    parsed = MemoryRecords(b"".join(batches))
    reader._closed.extend(parsed.next_batch() for _ in batches)
    reader._ready_lo = 0

    run = await reader.read(0, 7, unused=[1, 6])
    assert (run.offsets.tolist(), run.values) == ([0, 1, 7], [b"a", None, b"c"])
    assert len(reader._closed) == 1
    run = await reader.read(8, 9)
    assert (run.offsets.tolist(), run.values) == ([8, 9], [b"d", b"e"])
