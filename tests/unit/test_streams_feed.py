"""Orders go first and together; what was fetched for a line that has ended is read again."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

from aiokafka import TopicPartition

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


async def test_orders_and_holds_go_by_turns_each_with_all_that_waits_of_its_topic():
    """A file of a hundred thousand accounts lets no call wait for its first grant."""
    inbox = Inbox()
    for stem, offset in (("commands", 1), ("holds", 7), ("commands", 2), ("holds", 8)):
        inbox.put(delivery(stem, offset))
    taken = []
    for offset in (3, 4):
        taken.append(inbox.all_orders(await inbox.get()))
        inbox.put(delivery("commands", offset))
    taken.append(inbox.all_orders(await inbox.get()))
    assert [(one.stem, [record.offset for record in one.records]) for one in taken] == [
        ("commands", [1, 2]),
        ("holds", [7, 8]),
        ("commands", [3, 4]),
    ]


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


def place(stem, partition=0):
    return TopicPartition(f"tokenline.{stem}", partition)


def a_feed(given, crowded=()):
    def deliver(stem, partition, records):
        given.append((stem, partition, [record.offset for record in records]))

    return CommandFeed(Settings(), deliver, lambda *where: where in crowded)


async def test_what_was_fetched_twice_is_handed_on_once():
    given = []
    feed = a_feed(given)
    feed.follow(0, {"commands": 3, "holds": 10})
    for _ in range(2):
        feed._hand_on(place("holds"), delivery("holds", 10, 11).records)
    assert given == [("holds", 0, [10, 11])]
    assert feed._read_to[place("holds")].next_offset == 12
    assert feed._read_to[place("commands")].next_offset == 3


async def test_a_partition_that_is_followed_again_is_read_again_for_its_next_line():
    """Else the next line would wait for commands that only its predecessor was given."""
    given = []
    feed, begins = a_feed(given), {"commands": 3, "holds": 10}
    feed.follow(0, begins)
    feed._hand_on(place("holds"), delivery("holds", 10, 11).records)
    feed.leave(0)
    feed.follow(0, begins)
    feed._hand_on(place("holds"), delivery("holds", 10, 11).records)
    assert given == [("holds", 0, [10, 11]), ("holds", 0, [10, 11])]


class Fetching:
    """Be a consumer that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    async def getmany(self, *places, timeout_ms):
        self.asked.append((list(places), timeout_ms))
        return dict.fromkeys(places, ())


async def test_orders_of_a_crowded_partition_hold_up_no_other_nor_its_own_holds():
    """The feed stood before a full inbox with the orders of all other partitions behind it."""
    crowded = {(0, "commands")}
    feed, consumer = a_feed([], crowded), Fetching()
    for partition in (0, 1):
        feed.follow(partition, {"commands": 0, "holds": 0})
    commands, holds = [
        [place(stem, partition) for partition in (0, 1)] for stem in ("commands", "holds")
    ]
    roomy = [holds[0], commands[1], holds[1]]
    assert await feed._fetch(consumer) == [(tp, ()) for tp in roomy]
    crowded |= {(0, "holds"), (1, "commands"), (1, "holds")}
    assert await feed._fetch(consumer) == []
    crowded.clear()
    everywhere = [commands[0], *roomy]
    assert await feed._fetch(consumer) == [(tp, ()) for tp in everywhere]
    assert consumer.asked == [(roomy, LOOK_AGAIN_MS), (everywhere, POLL_MS)]


def test_an_inbox_with_many_orders_is_crowded_and_one_with_much_else_is_not():
    inbox = Inbox()
    for _ in range(INBOX_ORDERS):
        assert not inbox.crowded("commands")
        for stem in ("usage", "commands"):
            inbox.put(delivery(stem, 1))
    assert inbox.crowded("commands")
    assert not inbox.crowded("holds")


async def test_what_nobody_follows_is_dropped():
    feed = a_feed([])
    feed._hand_on(place("commands", 3), delivery("commands", 1).records)
    assert feed._read_to == {}
