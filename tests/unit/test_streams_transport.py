"""An agent of a worker that fails ends the worker: Faust would go on behind what it failed at."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.types.tuples import TP

from streams.line_app import LineApp
from streams.room import BATCHES_MAX, RECORDS_MAX, Room
from streams.topics import raw_topic
from streams.transport import LOOK_AGAIN_S, MicroBatchConsumer, PromptConsumerThread
from tokenline.settings import Settings


@pytest.fixture
def run():
    """Run an agent on a stream of nothing as Faust does; return what the worker ended of."""

    def runner(agent):
        ended = []
        app = LineApp("t", fatal=ended.append, broker="kafka://none", autodiscover=False)
        app.take_by(raw_topic(app, Settings(), "decisions"), "told", agent)
        return app.agents["told"].fun("stream"), ended

    return runner


async def test_an_agent_that_fails_ends_the_process(run):
    async def fail(stream):
        raise ValueError(stream)

    running, ended = run(fail)
    await running
    assert [repr(error) for error in ended] == ["ValueError('stream')"]


async def test_an_agent_that_is_stopped_ends_nothing(run):
    async def wait(_):
        await asyncio.Event().wait()

    running, ended = run(wait)
    task = asyncio.create_task(running)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    abandoned, also_ended = run(wait)
    abandoned.send(None)
    abandoned.close()
    assert (task.cancelled(), ended, also_ended) == (True, [], [])


class Full(MicroBatchConsumer):
    """Have enough in hand of every partition, or of none."""

    flow_active, should_stop = True, False

    def __init__(self, active):
        self.seen, self._active = SubscriptionState(), active
        self.seen._last_fetch_ended -= 1000
        self.app = SimpleNamespace(consumer_generation_id=1)
        self._generation, self._room = -1, Room()
        inner = SimpleNamespace(_subscription=self.seen)
        self._thread = SimpleNamespace(_ensure_consumer=lambda: inner)

    async def _wait_next_records(self, _):
        return {}, self._active


@pytest.mark.parametrize(("active", "stays"), [(set(), True), ({"usage/0"}, False)])
async def test_who_has_enough_in_hand_stays_in_the_group(active, stays):
    """A line that took long to catch up was put out of the group, and waited for it for ever."""
    consumer = Full(active)
    assert [one async for one in consumer.getmany(1.0)] == []
    assert (consumer.seen.fetcher_idle_time < 500) is stays


class Fetching(MicroBatchConsumer):
    """Own two partitions; note what is fetched for, and bring one record of each."""

    flow_active, should_stop = True, False

    def __init__(self):
        self.app = SimpleNamespace(consumer_generation_id=1)
        self._room, self._generation = Room(), -1
        self._active_partitions, self._buffered_partitions = {tp("usage", 0), tp("usage", 1)}, set()
        self._thread, self.stayed, self.asked, self.offset = self, 0, [], 0

    async def _wait_next_records(self, within_s):
        return await self._getmany(self._active_partitions, within_s), self._active_partitions

    async def getmany_of_thread(self, partitions, within_s):
        self.offset += 1
        self.asked.append(({one.partition for one in partitions}, within_s))
        record = SimpleNamespace(offset=self.offset, timestamp=0, timestamp_type=0)
        return {one: [record] for one in partitions}

    def _stay(self):
        self.stayed += 1

    async def fetch(self):
        """Return the messages of one fetch, by partition."""
        self._thread = SimpleNamespace(getmany=self.getmany_of_thread)
        return {place.partition: message async for place, message in self.getmany(1.0)}


def tp(topic, partition):
    return TP(topic, partition)


async def test_a_partition_that_takes_nothing_up_is_not_fetched_for_and_the_other_is():
    consumer = Fetching()
    for _ in range(BATCHES_MAX):
        consumer.taken((await consumer.fetch())[1])
    assert consumer.asked == [({0, 1}, 1.0)] * BATCHES_MAX
    consumer.taken((await consumer.fetch())[1])
    assert consumer.asked[-1] == ({1}, LOOK_AGAIN_S)


async def test_with_no_room_at_all_the_consumer_waits_stays_in_the_group_and_goes_on():
    consumer = Fetching()
    given = [await consumer.fetch() for _ in range(BATCHES_MAX)]
    waiting = asyncio.create_task(consumer.fetch())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    consumer.taken(given[0][0])
    assert (await waiting, consumer.stayed) == ({}, 1)
    assert list(await consumer.fetch()) == [0]


async def test_what_an_earlier_generation_was_given_takes_no_room_and_makes_none():
    consumer = Fetching()
    given = [await consumer.fetch() for _ in range(BATCHES_MAX)]
    consumer.app.consumer_generation_id = 2
    assert await asyncio.wait_for(consumer.fetch(), 5) == {}
    for _ in range(BATCHES_MAX):
        assert set(await consumer.fetch()) == {0, 1}
    consumer.taken(given[0][0])
    assert consumer._room.among(consumer._active_partitions) == set()


def test_many_records_in_hand_leave_each_partition_room_for_one_micro_batch():
    room, places = Room(), [tp("usage", 0), tp("usage", 1)]
    room.give(places[0], 10, RECORDS_MAX)
    assert room.among(places) == {places[1]}
    room.give(places[1], 10, 1)
    assert room.among(places) == set()
    room.take(places[0], 10)
    room.take(places[0], 10)
    assert room.among(places) == set(places)


class Seeking(PromptConsumerThread):
    """Be a consumer thread whose group deals out anew while it asks what is committed."""

    def __init__(self, before, after):
        self.ours, self.after, self.sought = before, after, {}

    def _ensure_consumer(self):
        return SimpleNamespace(
            assignment=lambda: self.ours, committed=self.committed, seek=self.sought.__setitem__
        )

    async def committed(self, place):
        await asyncio.sleep(0)
        self.ours = self.after
        return {0: 5, 1: 7}.get(place.partition)


@pytest.mark.parametrize(
    ("before", "after", "sought"),
    [((0, 1), (0, 1), {0: 5, 1: 7}), ((0, 1), (1,), {1: 7}), ((0,), (), {}), ((), (), {})],
)
async def test_a_seek_that_a_rebalance_overtakes_seeks_what_is_left(before, after, sought):
    """It raised "No current assignment for partition", and the fetcher died of it."""
    thread = Seeking([tp("usage", one) for one in before], [tp("usage", one) for one in after])
    expected = {tp("usage", one): offset for one, offset in sought.items()}
    assert await thread._seek_to_committed() == thread.sought == expected


async def test_a_partition_where_nothing_is_committed_stays_where_it_is():
    place = tp("usage", 9)
    thread = Seeking([place], [place])
    assert (await thread._seek_to_committed(), thread.sought) == ({place: None}, {})
