"""After a long absence usage is taken up with the commands of its time, not after all of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from streams.catchup import Waiting, by_turns
from streams.line import PartitionLine
from streams.metrics import ChargingMetrics
from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, chunk_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.quota.buckets import Bucket
from tokenline.settings import Settings
from tokenline.wire.topics import COMMANDS, HOLDS, USAGE

MILLION = 1_000_000


def waiting(*minutes, batch=2):
    """Return what waits on a topic: records named by the minute at which they were appended."""
    records = [
        SimpleNamespace(timestamp=NOON + minute * MINUTE, minute=minute) for minute in minutes
    ]

    async def batches():
        for first in range(0, len(records), batch):
            yield records[first : first + batch]

    return Waiting(batches())


async def order_of(commands, usage, now):
    turns = by_turns({COMMANDS: commands}, usage, NOON + now * MINUTE, HOUR)
    return [(stem[0], one.minute) async for stem, records in turns for one in records]


async def test_commands_come_first_when_usage_is_little_behind():
    assert await order_of(waiting(1, 5, 25), waiting(0, 3), now=29) == [
        ("c", 1),
        ("c", 5),
        ("c", 25),
    ]


async def test_both_are_taken_by_turns_while_usage_is_far_behind():
    assert await order_of(waiting(1, 5, 80, 118), waiting(0, 9, 85, 119), now=120) == [
        ("c", 1), ("c", 5), ("u", 0), ("u", 9), ("c", 80), ("u", 85), ("c", 118),
    ]  # fmt: skip


async def test_nothing_is_lost_or_read_twice_where_the_brokers_clock_was_set_back():
    found = await order_of(waiting(50, 2, 50), waiting(50, 1, 49, 3, batch=4), now=500)
    assert sorted(found) == [("c", 2), ("c", 50), ("c", 50), *(("u", at) for at in (1, 3, 49, 50))]
    assert [minute for stem, minute in found if stem == "u"] == [50, 1, 49, 3]


async def test_orders_and_holds_that_waited_are_taken_by_the_time_of_their_append():
    """A grant that came before a hold pays for it, and a hold that came first does not wait for it."""
    orders = {COMMANDS: waiting(1, 4, 4, 9), HOLDS: waiting(2, 3, 4, 8, 10, batch=3)}
    turns = by_turns(orders, waiting(7), NOON + 20 * MINUTE, HOUR)
    assert [(stem[0], one.minute) async for stem, records in turns for one in records] == [
        ("c", 1), ("h", 2), ("h", 3), ("c", 4), ("c", 4), ("h", 4), ("h", 8), ("c", 9), ("h", 10),
    ]  # fmt: skip


@pytest.mark.parametrize("orders_at", [[], [5], [5, 120], [5, 80]])
async def test_usage_that_waited_for_hours_is_charged_once(orders_at):
    """A settled hold is charged when it expires and then forgotten: its usage must come before."""
    state = PartitionState(BOUNDS)
    size = 8 * MILLION
    held = {"lease": True, "first_utok": size, "reserved_utok": size, "wanted_utok": size}
    settled = {"seq": 1, "action": "settle", "reported_utok": size}
    holds = [hold_order(0, NOON + 1, **held), hold_order(1, NOON + MINUTE, **settled)]
    commands = [
        catalog_version(0, NOON, CATALOG),
        order(1, NOON, kind="open", plan="strict", cycle_day=15),
        *(
            order(2 + at, NOON + minute * MINUTE, command_id=str(at), kind="grant", amount_utok=1)
            for at, minute in enumerate(orders_at)
        ),
    ]
    event = record(0, NOON + 1, occurred_at=NOON, hold_id="s1", model="max", input_tokens=8)
    now_ms, linger_ms = NOON + 180 * MINUTE, state.books.linger_ms
    waits = {COMMANDS: whole(commands), HOLDS: whole(holds)}
    turns = by_turns(waits, whole([event]), now_ms, linger_ms)
    async for stem, records in turns:
        for one in (one.whole for one in records):
            if stem == USAGE:
                fold_usage(state, chunk_of([one]))
            else:
                fold_commands(state, [one], one.offset, stem)

    books = state.books
    paid = sum(books.buckets.get(one, Bucket.USED) for one in books.chain(0))
    assert paid + books.unpaid(np.array([0])).sum() == size


def whole(found):
    async def batches():
        yield [SimpleNamespace(timestamp=one.appended_ms, whole=one) for one in found]

    return Waiting(batches())


class SlowLine(PartitionLine):
    """Take up what waited, each usage record in half an hour, in which a record comes on each topic."""

    def __init__(self, behind_h):
        self.now_ms, self.folded = NOON, []
        worker = SimpleNamespace(
            settings=Settings(), journal=None, codec=None, columns=None, producer=None,
            bounds=BOUNDS, clock=self, metrics=ChargingMetrics(),
        )  # fmt: skip
        super().__init__(worker, 0)
        self.topics = {COMMANDS: [], HOLDS: [], USAGE: []}
        for _ in range(behind_h):
            self.come(HOUR)

    def wall_ms(self):
        return self.now_ms

    def monotonic_s(self):
        return self.now_ms / 1000

    def come(self, after_ms):
        self.now_ms += after_ms
        for stem, records in self.topics.items():
            records.append(SimpleNamespace(timestamp=self.now_ms, stem=stem, offset=len(records)))

    async def _waiting(self, stem):
        for one in self.topics[stem][self.state.next_offsets[stem] :]:
            yield [one]

    async def _fold(self, delivery):
        for one in delivery.records:
            self.state.next_offsets[delivery.stem] = one.offset + 1
            self.folded.append(one)
            if delivery.stem == USAGE and len(self.folded) < 20:
                self.come(HOUR // 2)


async def test_what_came_while_a_line_caught_up_is_taken_by_turns_too():
    """Else commands that came in the hours it took would be next, and usage of those hours after all."""
    line = SlowLine(behind_h=4)
    await line._catch_up()
    for stem in (COMMANDS, HOLDS, USAGE):
        line.folded += line.topics[stem][line.state.next_offsets[stem] :]
    newest, linger_ms = dict.fromkeys(line.topics, 0), line.state.books.linger_ms
    for one in line.folded:
        newest[one.stem] = one.timestamp
        behind = max(newest[COMMANDS], newest[HOLDS]) < one.timestamp + linger_ms
        assert one.stem != USAGE or behind
