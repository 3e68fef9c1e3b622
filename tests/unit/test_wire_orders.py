"""Each asker gets the answer to its own order, once; whoever waits learns what there is to learn."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.orders import CATALOG as SELLING
from tokenline.clock import SystemClock
from tokenline.errors import BadData, Unavailable
from tokenline.rating.succession import renewed
from tokenline.settings import Settings
from tokenline.wire import orders as orders_module
from tokenline.wire.orders import Orders
from tokenline.wire.topics import CATALOG, COMMANDS


class PaperLine:
    """Take what is sent and answer when told to: it is producer and consumer of an asker."""

    def __init__(self, partitions=2):
        self.settings = Settings(partitions=partitions)
        self.orders = Orders(self.settings)
        self.orders._producer = self.orders._consumer = self
        self.sent = []
        self._fetched = asyncio.Queue()
        self._waiters = []
        self.orders._task = asyncio.create_task(self.orders._follow())

    async def send(self, topic, value, *, partition, **_):
        stem = topic.removeprefix(self.settings.topic(""))
        self.sent.append((stem, partition, self.orders._codec.decode(value)[1]))
        for waiter in self._waiters:
            waiter.set()
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    async def until_sent(self, count):
        async with asyncio.timeout(5):
            while len(self.sent) < count:
                self._waiters.append(waiter := asyncio.Event())
                await waiter.wait()

    def answer(self, number, **fields):
        """Answer what was sent as the numberth, as a worker does."""
        asked = self.sent[number][2]
        names = ("tenant_id", "account_id", "reply_to", "command_id", "session")
        said = {name: asked.get(name, "") for name in names} | {"seq": asked.get("seq", 0)}
        plain = {"outcome": "done", "reason": "none", "as_of": 0, "cause_offset": number}
        self.give(self.orders._codec.encode("order_reply", said | plain | fields))

    def give(self, value):
        record = SimpleNamespace(offset=0, key=self.orders._name.encode(), value=value)
        self._fetched.put_nowait({0: [record]})

    async def getmany(self, **_):
        return await self._fetched.get()

    async def stop(self):
        """Be stopped."""


@pytest.fixture
async def line(monkeypatch):
    monkeypatch.setattr("tokenline.wire.orders.stop_producer", PaperLine.stop)
    line = PaperLine()
    yield line
    await line.orders._stop()


async def test_one_id_in_two_accounts_is_two_orders(line):
    """Ids are unique within an account: "2026-10" for each account of a batch is usual."""
    asks = [
        asyncio.create_task(line.orders.order(account, kind="grant", command_id="2026-10", **more))
        for account, more in (("a", {}), ("b", {}), ("a", {"tenant": "other"}))
    ]
    await line.until_sent(3)
    for number in (2, 0, 1):
        line.answer(number, amount_utok=number)
    assert [reply["amount_utok"] for reply in await asyncio.gather(*asks)] == [0, 1, 2]
    assert not line.orders._waiting


async def test_a_session_and_an_order_of_one_name_are_two_questions(line):
    order = asyncio.create_task(line.orders.order("a", kind="show", command_id="x"))
    await line.until_sent(1)
    hold = asyncio.create_task(line.orders.hold("a", "x", 0))
    await line.until_sent(2)
    line.answer(1)
    assert (await hold)["session"] == "x"
    line.answer(0)
    assert (await order)["command_id"] == "x"


async def test_who_asks_the_same_twice_at_once_is_answered_twice(line):
    asks = [asyncio.create_task(line.orders.hold("a", "s1", 7)) for _ in range(2)]
    await line.until_sent(2)
    line.answer(0, granted_utok=5)
    assert [reply["granted_utok"] for reply in await asyncio.gather(*asks)] == [5, 5]
    line.answer(1, granted_utok=5)
    assert not line.orders._waiting


async def test_one_of_two_who_gives_up_leaves_the_other_waiting(line):
    patient = asyncio.create_task(line.orders.hold("a", "s1", 7))
    with pytest.raises(Unavailable, match="no answer to s1"):
        await line.orders.hold("a", "s1", 7, timeout_s=0.01)
    line.answer(0)
    assert (await patient)["seq"] == 7


SOLD = SELLING.version, SELLING.effective_ms, SELLING.to_json()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Return the catalogs that were published before, oldest first."""
    found = []

    async def read(_):
        return found

    monkeypatch.setattr(orders_module, "read_catalogs", read)
    return found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"effective_ms": SELLING.effective_ms}, "is not 660 s ahead"),
        ({"effective_ms": 32_000_000_000_000 // 60_000 * 60_000}, "more than 400 days ahead"),
        ({"version": 2**31 - 1}, "more than 1000000 above 1"),
        ({"version": 1}, "version 1 is not greater than 1"),
    ],
)
async def test_a_catalog_is_checked_as_the_command_does(line, published, changes, why):
    """The library took what the command refuses, and nothing could be published after it."""
    published.append(SELLING.to_json())
    next_week_ms = SystemClock().wall_ms() // 60_000 * 60_000 + 7 * 86_400_000
    fields = {"version": 2, "effective_ms": next_week_ms} | changes
    late = renewed(SELLING, **fields)
    with pytest.raises(BadData, match=why):
        await line.orders.publish_catalog(late.version, late.effective_ms, late.to_json())
    with pytest.raises(BadData, match="the catalog is version"):
        await line.orders.publish_catalog(77, late.effective_ms, late.to_json())
    assert line.sent == []


async def test_a_partition_that_answers_twice_is_not_two_partitions(line):
    publishing = asyncio.create_task(line.orders.publish_catalog(*SOLD, timeout_s=0.2))
    await line.until_sent(2)
    line.answer(0)
    line.answer(0)
    with pytest.raises(Unavailable, match="1 of 2 partitions have taken the catalog"):
        await publishing
    assert [stem for stem, _, _ in line.sent] == [COMMANDS, COMMANDS]
    assert not line.orders._waiting


async def test_a_catalog_that_all_partitions_took_is_published(line):
    publishing = asyncio.create_task(line.orders.publish_catalog(*SOLD))
    await line.until_sent(2)
    line.answer(1)
    line.answer(0)
    assert len(await publishing) == 2
    assert [(stem, partition) for stem, partition, _ in line.sent] == [
        (COMMANDS, 0),
        (COMMANDS, 1),
        (CATALOG, 0),
    ]


async def test_a_catalog_that_one_partition_refuses_is_not_published(line):
    publishing = asyncio.create_task(line.orders.publish_catalog(*SOLD))
    await line.until_sent(2)
    line.answer(0)
    line.answer(1, outcome="refused", reason="bad_catalog", detail="too old")
    with pytest.raises(BadData, match="too old"):
        await publishing
    assert len(line.sent) == 2


async def test_who_still_waits_at_the_end_is_told_so(line):
    ask = asyncio.create_task(line.orders.order("a", kind="show", timeout_s=60))
    await line.until_sent(1)
    await line.orders._stop()
    with pytest.raises(Unavailable, match="stopped before the answer came"):
        async with asyncio.timeout(5):
            await ask


@pytest.mark.parametrize("value", [None, b"", b"\0\0\0\x7f\x7fzz", "account_order"])
async def test_a_reply_that_cannot_be_read_ends_no_asking(line, value):
    ask = asyncio.create_task(line.orders.order("a", kind="show", timeout_s=5))
    await line.until_sent(1)
    if isinstance(value, str):
        value = line.orders._codec.encode(value, line.sent[0][2])
    line.give(value)
    line.answer(0)
    assert (await ask)["outcome"] == "done"


@pytest.mark.parametrize("where", ["account", "tenant", "command_id"])
async def test_a_name_that_no_worker_takes_is_not_sent(line, where):
    names = {"account": "a"} | {where: "n" * 257}
    with pytest.raises(BadData, match="has 257 bytes, and a name has 256 at most"):
        await line.orders.order(names.pop("account"), kind="show", **names)
    assert line.sent == []
