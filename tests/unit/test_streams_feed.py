"""Orders go first and together; what was fetched for a line that has ended is read again."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

from streams.feed import LOOK_AGAIN_MS, POLL_MS, CommandFeed
from streams.inbox import INBOX_ORDERS, Delivery, Inbox
from tokenline.settings import Settings


def delivery(stem, *offsets):
    return Delivery(stem, [SimpleNamespace(offset=offset) for offset in offsets])


async def test_orders_go_before_usage_that_waits_and_all_together():
    inbox = Inbox()
    inbox.put(delivery("usage", 1))
    inbox.put(delivery("commands", 5))
    inbox.put(delivery("commands", 6, 7))

    orders = inbox.all_orders(await inbox.get())
    assert [record.offset for record in orders.records] == [5, 6, 7]
    assert (await inbox.get()).stem == "usage"
    assert inbox.empty()


async def test_usage_is_taken_when_its_line_begins_with_it():
    inbox, taken = Inbox(), []
    for number in (1, 2):
        inbox.put(Delivery("usage", [], taken=partial(taken.append, number)))
    assert taken == []
    await inbox.get()
    assert taken == [1]


async def test_get_waits_for_what_comes():
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.put(delivery("usage", 3))
    assert (await asyncio.wait_for(waiting, 1)).records[0].offset == 3


def a_feed(given, crowded=()):
    def deliver(partition, records):
        given.append((partition, [record.offset for record in records]))

    return CommandFeed(Settings(), deliver, lambda partition: partition in crowded)


async def test_what_was_fetched_twice_is_handed_on_once():
    given = []
    feed = a_feed(given)
    feed.follow(0, 10)
    for _ in range(2):
        feed._hand_on(0, delivery("commands", 10, 11).records)
    assert given == [(0, [10, 11])]
    assert feed._read_to[0].next_offset == 12


class Fetching:
    """Be a consumer that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    async def getmany(self, *partitions, timeout_ms):
        self.asked.append(([one.partition for one in partitions], timeout_ms))
        return dict.fromkeys(partitions, ())


async def test_orders_of_a_crowded_partition_hold_up_no_other():
    """The feed stood before a full inbox with the orders of all other partitions behind it."""
    crowded = {0}
    feed, consumer = a_feed([], crowded), Fetching()
    for partition in (0, 1):
        feed.follow(partition, 0)
    assert await feed._fetch(consumer) == [(1, ())]
    crowded.add(1)
    assert await feed._fetch(consumer) == []
    crowded.clear()
    assert await feed._fetch(consumer) == [(0, ()), (1, ())]
    assert consumer.asked == [([1], LOOK_AGAIN_MS), ([0, 1], POLL_MS)]


def test_an_inbox_with_many_orders_is_crowded_and_one_with_much_usage_is_not():
    inbox = Inbox()
    for _ in range(INBOX_ORDERS):
        assert not inbox.crowded
        inbox.put(delivery("usage", 1))
        inbox.put(delivery("commands", 1))
    assert inbox.crowded


async def test_what_nobody_follows_is_dropped():
    feed = a_feed([])
    feed._hand_on(3, delivery("commands", 1).records)
    assert feed._read_to == {}
