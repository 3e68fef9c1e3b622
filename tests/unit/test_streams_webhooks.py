"""One endpoint's deliveries: bounded, in order per account, acknowledged from the front."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

import streams.webhooks as module
from streams.webhooks import Deliveries, Job
from tokenline.clock import SystemClock
from tokenline.notify.endpoints import Endpoint
from tokenline.notify.notification import Kind, Notification
from tokenline.notify.signing import Secret
from tokenline.settings import Settings

SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


class Receiver:
    """Answer 500 for accounts that are stuck; note what was taken."""

    def __init__(self):
        self.stuck, self.taken, self.calls = set(), [], 0

    async def take(self, request):
        self.calls += 1
        said = await request.json()
        if said["account"] in self.stuck:
            return web.Response(status=500)
        self.taken.append((said["account"], said["number"]))
        return web.Response(status=200)


class Micro:
    def __init__(self, name, acked):
        self.name, self._acked = name, acked

    def ack(self):
        self._acked.append(self.name)


def job(account, number, partition=0):
    body = json.dumps({"account": account, "number": number}).encode()
    note = Notification(
        message_id=f"msg_{account}_{number}",
        kind=Kind.CUT,
        tenant_id="t",
        key=("t", account),
        body=body,
    )
    now_ms = SystemClock().wall_ms()
    return Job(notification=note, partition=partition, offset=number, appended_ms=now_ms, key=b"k")


@pytest.fixture
async def room():
    """A receiver, the deliveries to it, what was acknowledged, and what was buried."""
    receiver, acked, buried = Receiver(), [], []
    app = web.Application()
    app.router.add_post("/", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    endpoint = Endpoint(name="crm", url=f"http://127.0.0.1:{port}/", secret_env=("X",))
    settings = Settings(webhook_retry_first_ms=10, webhook_retry_max_ms=20)
    moved = asyncio.Event()

    async def bury(letter):
        buried.append(letter)

    def fatal(error):
        raise error

    deliveries = Deliveries(
        settings, endpoint, [SECRET], SystemClock(), bury, fatal, lambda _: moved.set()
    )

    async def until(done):
        async with asyncio.timeout(10):
            while not done():
                moved.clear()
                await moved.wait()

    receiver.until = until
    yield receiver, deliveries, acked, buried
    await deliveries.close()
    await runner.cleanup()


async def test_the_front_is_acknowledged_last_and_what_is_done_behind_it_is_kept_as_one(room):
    receiver, deliveries, acked, _ = room
    receiver.stuck = {"a"}
    await deliveries.offer(Micro("first", acked), 0, [job("a", 1), job("b", 1)])
    await deliveries.offer(Micro("other partition", acked), 1, [job("c", 1, 1)])
    for number in range(100):
        await deliveries.offer(Micro(f"empty {number}", acked), 0, [])
    await receiver.until(lambda: acked == ["other partition"])
    assert len(deliveries._batches[0]) == 2, "a hundred fetches without webhooks are one"
    receiver.stuck = set()
    await receiver.until(lambda: len(acked) == 2)
    assert acked == ["other partition", "empty 99"]
    assert (deliveries.waiting, deliveries._lanes) == (0, {})


async def test_an_account_waits_for_its_own_and_nobody_elses(room):
    receiver, deliveries, acked, _ = room
    receiver.stuck = {"a"}
    await deliveries.offer(Micro("x", acked), 0, [job(one, n) for n in (1, 2, 3) for one in "ab"])
    await receiver.until(lambda: len(receiver.taken) == 3)
    assert receiver.taken == [("b", 1), ("b", 2), ("b", 3)]
    receiver.stuck = set()
    await receiver.until(lambda: acked)
    assert receiver.taken[3:] == [("a", 1), ("a", 2), ("a", 3)]


async def test_a_full_endpoint_takes_no_more_until_something_was_told(room, monkeypatch):
    receiver, deliveries, acked, _ = room
    monkeypatch.setattr(module, "WAITING_MAX", 3)
    receiver.stuck = {"a"}
    jobs = [job("a", number) for number in range(5)]
    offered = asyncio.create_task(deliveries.offer(Micro("x", acked), 0, jobs))
    await receiver.until(lambda: receiver.calls >= 3)
    assert (deliveries.waiting, deliveries.full, offered.done()) == (3, True, False)
    receiver.stuck = set()
    await offered
    await receiver.until(lambda: acked == ["x"])
    assert receiver.taken == [("a", number) for number in range(5)]


async def test_what_is_dropped_while_it_is_offered_is_not_told(room, monkeypatch):
    receiver, deliveries, acked, _ = room
    monkeypatch.setattr(module, "WAITING_MAX", 1)
    receiver.stuck = {"a"}
    offered = asyncio.create_task(
        deliveries.offer(Micro("old", acked), 0, [job("a", 1), job("b", 1)])
    )
    await receiver.until(lambda: receiver.calls >= 1)
    await deliveries.drop()
    await offered
    receiver.stuck = set()
    await deliveries.offer(Micro("new", acked), 0, [job("a", 1), job("b", 1)])
    await receiver.until(lambda: acked)
    assert (acked, receiver.taken) == (["new"], [("a", 1), ("b", 1)])


async def test_what_was_told_is_not_told_again_to_one_process(room):
    receiver, deliveries, acked, _ = room
    await deliveries.offer(Micro("x", acked), 0, [job("a", 1), job("a", 1)])
    await receiver.until(lambda: acked == ["x"])
    await deliveries.offer(Micro("y", acked), 0, [job("a", 1), job("a", 2)])
    await receiver.until(lambda: acked == ["x", "y"])
    assert receiver.taken == [("a", 1), ("a", 2)]


async def test_a_letter_that_cannot_be_written_ends_the_process_and_acknowledges_nothing(room):
    receiver, deliveries, acked, _ = room
    ended = asyncio.get_running_loop().create_future()

    async def refuse(_):
        raise OSError("no broker")

    deliveries._bury, deliveries._fatal = refuse, ended.set_result
    deliveries.counts.gone = True
    await deliveries.offer(Micro("x", acked), 0, [job("a", 1)])
    assert isinstance(await asyncio.wait_for(ended, 10), OSError)
    assert (acked, receiver.calls) == ([], 0)
