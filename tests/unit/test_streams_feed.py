"""Orders go first and together; what was fetched for a line that has ended is read again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from aiokafka import TopicPartition

from streams.feed import CommandFeed
from streams.inbox import INBOX_CHUNKS, Delivery, Inbox
from tokenline.settings import Settings


def delivery(stem, *offsets):
    return Delivery(stem, [SimpleNamespace(offset=offset) for offset in offsets], lambda: None)


async def test_orders_go_before_usage_that_waits_and_all_together():
    inbox = Inbox()
    await inbox.put(delivery("usage", 1))
    await inbox.put(delivery("commands", 5))
    await inbox.put(delivery("commands", 6, 7))

    orders = inbox.all_orders(await inbox.get())
    assert [record.offset for record in orders.records] == [5, 6, 7]
    assert (await inbox.get()).stem == "usage"
    assert inbox.empty()


async def test_orders_and_holds_go_by_turns_each_with_all_that_waits_of_its_topic():
    """A file of a hundred thousand accounts lets no call wait for its first grant."""
    inbox = Inbox()
    for stem, offset in (("commands", 1), ("holds", 7), ("commands", 2), ("holds", 8)):
        await inbox.put(delivery(stem, offset))
    taken = []
    for offset in (3, 4):
        taken.append(inbox.all_orders(await inbox.get()))
        await inbox.put(delivery("commands", offset))
    taken.append(inbox.all_orders(await inbox.get()))
    assert [(one.stem, [record.offset for record in one.records]) for one in taken] == [
        ("commands", [1, 2]),
        ("holds", [7, 8]),
        ("commands", [3, 4]),
    ]


async def test_who_brings_usage_to_a_full_inbox_waits_and_orders_still_come_in():
    inbox = Inbox()
    for offset in range(INBOX_CHUNKS):
        await inbox.put(delivery("usage", offset))
    late = asyncio.create_task(inbox.put(delivery("usage", 99)))
    await asyncio.sleep(0)
    assert inbox.full()
    assert not late.done()

    await inbox.put(delivery("commands", 1))
    assert (await inbox.get()).stem == "commands"
    assert [(await inbox.get()).records[0].offset for _ in range(INBOX_CHUNKS)] == [0, 1, 2, 3]
    await late
    assert (await inbox.get()).records[0].offset == 99


async def test_get_waits_for_what_comes():
    inbox = Inbox()
    waiting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    await inbox.put(delivery("usage", 3))
    assert (await asyncio.wait_for(waiting, 1)).records[0].offset == 3


async def test_a_partition_left_in_the_middle_of_a_delivery_is_read_again_by_its_next_line():
    """Else the next line would wait for commands that only its predecessor was given."""
    given, going_on = [], asyncio.Event()

    async def deliver(stem, partition, records):
        given.append((stem, partition, [record.offset for record in records]))
        await going_on.wait()

    feed, tp = CommandFeed(Settings(), deliver), TopicPartition("tokenline.holds", 0)
    begins = {"commands": 3, "holds": 10}
    feed.follow(0, begins)
    handing = asyncio.create_task(feed._hand_on(tp, delivery("holds", 10, 11).records))
    await asyncio.sleep(0)
    feed.leave(0)
    feed.follow(0, begins)
    going_on.set()
    await handing

    assert feed._read_to[tp].next_offset == 10
    await feed._hand_on(tp, delivery("holds", 10, 11).records)
    await feed._hand_on(tp, delivery("holds", 10, 11).records)
    assert given == [("holds", 0, [10, 11]), ("holds", 0, [10, 11])]
    assert feed._read_to[tp].next_offset == 12
    assert feed._read_to[TopicPartition("tokenline.commands", 0)].next_offset == 3


async def test_what_nobody_follows_is_dropped():
    feed = CommandFeed(Settings(), None)
    await feed._hand_on(TopicPartition("tokenline.commands", 3), delivery("commands", 1).records)
    assert feed._read_to == {}
