"""Whoever reads catalogs leaves no consumer behind, and hears of each version."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError

from tests.unit.test_rating_book import catalog
from tokenline.errors import BrokerUnavailable, RegistryUnavailable
from tokenline.settings import Settings
from tokenline.wire import catalogs
from tokenline.wire.avro import Codec
from tokenline.wire.catalogs import Catalogs, read_catalogs
from tokenline.wire.registry import FileRegistry


class Topic:
    """Be a consumer whose topic is empty at first; `fails` when it is asked for its end."""

    def __init__(self, *, fails=False):
        self.fails = fails
        self.stopped = 0
        self.arrived = []
        self.asked, self.end = 0, 0

    async def end_offsets(self, partitions):
        if self.fails:
            raise KafkaConnectionError
        return dict.fromkeys(partitions, self.end)

    async def position(self, _):
        return self.asked

    def seek(self, _, offset):
        self.arrived = [record for record in self.arrived if record.offset >= offset]

    async def getmany(self, tp, **_):
        await asyncio.sleep(0)
        self.asked += 1
        return {tp: list(self.arrived)}

    async def stop(self):
        self.stopped += 1


@pytest.fixture
def topic(monkeypatch):
    found = Topic()

    async def start_reader(*_, **__):
        return found

    monkeypatch.setattr(catalogs, "start_reader", start_reader)
    return found


async def test_one_that_follows_for_no_turn_of_the_loop_stops_its_consumer(topic):
    async with Catalogs(Settings()):
        pass
    assert topic.stopped == 1


async def test_one_that_cannot_read_to_the_end_stops_its_consumer(topic):
    topic.fails = True
    with pytest.raises(BrokerUnavailable):
        await Catalogs(Settings()).__aenter__()
    assert topic.stopped == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_reading_once_stops_its_consumer(topic, fails):
    topic.fails = fails
    if fails:
        with pytest.raises(BrokerUnavailable):
            await read_catalogs(Settings())
    else:
        assert await read_catalogs(Settings()) == []
    assert topic.stopped == 1


async def test_a_version_is_told_of_although_the_record_after_it_cannot_be_read_yet(topic):
    registry, told = FileRegistry(), asyncio.Event()
    fields = {"version": 1, "effective_at": 0}
    frame = Codec(registry).encode("catalog_version", fields | {"catalog": catalog(1).to_json()})
    topic.arrived = [record(0, frame), record(1, frame[:1] + b"\0\0\1\0" + frame[5:])]

    class Away(FileRegistry):
        def name(self, schema_id):
            if schema_id == 256:
                raise RegistryUnavailable("away")
            return super().name(schema_id)

    async with Catalogs(Settings(), on_new=told.set, registry=Away()) as read:
        await asyncio.wait_for(told.wait(), 5)
        assert read.book.at(catalog(1).effective_ms).version == 1


async def test_a_record_of_another_kind_is_no_catalog_and_stops_nobody(topic):
    registry = FileRegistry()
    heartbeat = {"partition": 0, "epoch": 1, "as_of": 0, "next_offset": 0}
    frame = Codec(registry).encode("charging_heartbeat", heartbeat)
    topic.arrived = [record(0, frame)]
    async with Catalogs(Settings(), registry=registry) as read:
        for _ in range(20):
            await asyncio.sleep(0)
        assert topic.asked > 2
        assert not read._task.done()


async def test_a_record_that_is_no_catalog_is_left_out_of_those_that_are_shown(topic):
    """One ended `catalog show`, `diff` and `apply`."""
    registry = FileRegistry()
    codec = Codec(registry)
    beat = codec.encode(
        "charging_heartbeat", {"partition": 0, "epoch": 1, "as_of": 0, "next_offset": 0}
    )
    text = catalog(1).to_json()
    good = codec.encode("catalog_version", {"version": 1, "effective_at": 0, "catalog": text})
    topic.arrived = [record(at, one) for at, one in enumerate([beat, b"junk", b"", None, good])]
    topic.end = 5

    assert await read_catalogs(Settings()) == [text]


def record(offset, value):
    return SimpleNamespace(offset=offset, value=value)
