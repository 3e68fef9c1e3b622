"""An agent of a worker that fails ends the worker: Faust would go on behind what it failed at."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.consumer.subscription_state import SubscriptionState

from streams.topics import raw_topic
from streams.transport import LineApp, MicroBatchConsumer
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
