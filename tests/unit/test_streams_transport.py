"""An agent of a worker that fails ends the worker: Faust would go on behind what it failed at."""

from __future__ import annotations

import asyncio

import pytest

from streams.topics import raw_topic
from streams.transport import LineApp
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
