"""Flows of one worker take turns; records do not know their place, their micro-batch does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tokenline.clock import FrozenClock
from tokenline.errors import BrokenLog
from tokenline.landing import flow as flows
from tokenline.landing.flow import LANDS_AT_ONCE, Tools, UsageFlow
from tokenline.landing.memory import MemoryStore
from tokenline.landing.progress import LandingProgress
from tokenline.landing.reader import Run
from tokenline.landing.topics import TopicLander
from tokenline.settings import Settings
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

PARTITIONS = 4
RECORDS = 20
# Enums: no text will do.
WORDS = {"usage_source": "reported", "outcome": "completed", "grain": "minute"}


@dataclass
class Record:
    value: bytes | None
    offset: int = 0
    timestamp: int = 0
    key: bytes = b""


@dataclass
class MicroBatch:
    value: list[Record]
    topic: str = "t"
    partition: int = 0
    acked: list[int] = field(default_factory=list)

    def ack(self):
        self.acked.append(self.partition)


@pytest.fixture
def codec():
    return ColumnCodec(FileRegistry())


def zero_rows(codec, name, rows, **fields: Any):
    schema = codec.empty(name).schema
    zero = {one.name: _zero(one.type) for one in schema} | fields
    zero |= {one: word for one, word in WORDS.items() if one in zero}
    made = [zero | ({"event_id": f"e{at}"} if "event_id" in zero else {}) for at in range(rows)]
    return codec.encode(name, pa.RecordBatch.from_pylist(made, schema=schema))


def _zero(kind):
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


class CrowdedStore(MemoryStore):
    """Note how many inserts are under way, and hold each one up until it is told."""

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.go = asyncio.Event()
        self.crowded = asyncio.Event()
        self.now = self.most = 0

    def insert(self, table, rows):
        asyncio.run_coroutine_threadsafe(self._stand(), self.loop).result()
        super().insert(table, rows)

    async def _stand(self):
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == LANDS_AT_ONCE:
            self.crowded.set()
        await self.go.wait()
        self.now -= 1


class PaperReader:
    """Be the usage topic: the same records in every partition."""

    values: list[bytes]

    def __init__(self, *_):
        pass

    async def start(self):
        return 0

    async def read(self, lo, hi):
        offsets = np.arange(lo, hi + 1, dtype=np.int64)
        return Run(offsets=offsets, appended_ms=offsets, values=self.values[lo : hi + 1])

    def lag(self):
        return 0

    async def stop(self):
        pass


async def test_only_so_many_batches_are_landed_at_once_and_all_are(codec, monkeypatch):
    monkeypatch.setattr(flows, "UsageReader", PaperReader)
    PaperReader.values = zero_rows(codec, "usage_event", RECORDS)
    settings = Settings(landing_max_rows=RECORDS)
    store, failed = CrowdedStore(asyncio.get_running_loop()), []
    tools = Tools(
        settings=settings, store=store, codec=codec, clock=FrozenClock(),
        progress=LandingProgress(), fatal=failed.append, step=lambda _: None,
    )  # fmt: skip
    place = {"topic": settings.topic("usage"), "lo_offset": 0, "hi_offset": RECORDS - 1}
    events = [
        MicroBatch(
            [Record(frame) for frame in zero_rows(codec, "charged_range", 1, partition=at, **place)]
        )
        for at in range(PARTITIONS)
    ]
    running = [UsageFlow(tools, at, 1) for at in range(PARTITIONS)]
    for one, event in zip(running, events, strict=True):
        await one.offer(event)
    async with asyncio.timeout(10):
        await store.crowded.wait()
        await asyncio.sleep(0.1)
        assert (store.now, [event.acked for event in events]) == (LANDS_AT_ONCE, [[]] * PARTITIONS)
        store.go.set()
        while not all(event.acked for event in events):
            assert failed == []
            await asyncio.sleep(0.01)
    await asyncio.gather(*(one.stop() for one in running))

    assert store.most == LANDS_AT_ONCE
    assert [store.newest_seal(place["topic"], at).hi for at in range(PARTITIONS)] == (
        [RECORDS - 1] * PARTITIONS
    )


def test_a_record_of_ours_that_is_broken_is_named_by_its_micro_batch(codec):
    good = zero_rows(codec, "account_window", 2)
    lander = TopicLander(MemoryStore(), codec, LandingProgress())
    events = [
        MicroBatch([Record(good[0], 7), Record(good[1], 8)], "t.windows", 1),
        MicroBatch([Record(good[0], 3), Record(b"\x00bad", 5)], "t.windows", 2),
    ]

    with pytest.raises(BrokenLog, match=r"t\.windows\[2\] offset 5 is not a account_window"):
        lander.windows(events)


def test_commands_get_the_place_of_their_micro_batch(codec):
    store = MemoryStore()
    frames = zero_rows(codec, "account_command", 1, account_id="a")
    lander = TopicLander(store, codec, LandingProgress())
    landed = lander.accounts(
        [MicroBatch([Record(frames[0], at, 9)], "t.commands", at) for at in (1, 2)]
    )

    assert landed == 2
    assert [(row["topic"], row["partition"], row["offset"]) for row in store.rows("accounts")] == [
        ("t.commands", 1, 1),
        ("t.commands", 2, 2),
    ]
