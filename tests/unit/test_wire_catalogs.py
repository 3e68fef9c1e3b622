"""Whoever reads catalogs leaves no consumer behind."""

from __future__ import annotations

import pytest
from aiokafka.errors import KafkaConnectionError

from tokenline.errors import BrokerUnavailable
from tokenline.settings import Settings
from tokenline.wire import catalogs
from tokenline.wire.catalogs import Catalogs, read_catalogs


class EmptyTopic:
    """Be a consumer of a topic without records; `fails` when it is asked for its end."""

    def __init__(self, *, fails=False):
        self.fails = fails
        self.stopped = 0

    async def end_offsets(self, partitions):
        if self.fails:
            raise KafkaConnectionError
        return dict.fromkeys(partitions, 0)

    async def position(self, _):
        return 0

    async def stop(self):
        self.stopped += 1


@pytest.fixture
def topic(monkeypatch):
    found = EmptyTopic()

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
