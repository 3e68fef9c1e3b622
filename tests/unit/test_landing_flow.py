"""Flows of one worker take turns; records do not know their place, their micro-batch does."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streams.records import OfTransaction
from tests.paper_teller import PaperTeller
from tokenline.clock import FrozenClock, SystemClock
from tokenline.landing import flow as flows
from tokenline.landing.flow import GATHER_MAX_BYTES, TableFlow, UsageFlow
from tokenline.landing.memory import MemoryStore
from tokenline.landing.progress import LandingProgress
from tokenline.landing.reader import Bounds, Run
from tokenline.landing.rules import RULES
from tokenline.landing.tools import LANDS_AT_ONCE, Tools
from tokenline.landing.topics import TopicLander
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry, schemas_dir

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

    def taken(self):
        self.begun = True


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
        return Bounds(0, RECORDS)

    async def has(self, offset):
        return offset < RECORDS

    async def read(self, lo, hi, _unused=()):
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
        teller=PaperTeller(),
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
        one.offer(event)
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


# Topic, table, record, and how its lander is called.
TABLES = (
    ("windows", "windows", "account_window", "windows"),
    ("balances", "balance_changes", "balance_change", "balances"),
    ("decisions", "decisions", "quota_decision", "decisions"),
    ("dead-letters", "dead_letters", "dead_letter", "dead_letters"),
    ("control", "gateway_totals", "gateway_total", "gateway_totals"),
)
# An account of partition 2 of 4.
HOME = {"tenant_id": "t", "account_id": "a1", "partition": 2, "cause_partition": 2}


def frame_of(codec, name, **fields):
    schema = codec.empty(name).schema
    given = {one: value for one, value in (HOME | fields).items() if one in schema.names}
    return zero_rows(
        codec, name, 1, **({"state": "cut"} if "state" in schema.names else {}), **given
    )[0]


def quarantined(store):
    rows = store.rows("quarantine")
    return [(row["topic"], row["partition"], row["offset"], row["reason"]) for row in rows]


@pytest.mark.parametrize(("stem", "table", "name", "method"), TABLES)
def test_a_record_that_is_not_ours_is_put_aside_and_those_around_it_land(
    codec, stem, table, name, method
):
    """One ended landing, at every start."""
    store, progress = MemoryStore(), LandingProgress()
    lander = TopicLander(store, codec, progress, PARTITIONS)
    good, other = frame_of(codec, name), zero_rows(codec, "usage_event", 1)[0]
    records = [good, b"junk", b"", other, b"\0\0\0\xff\xff1", good[:-3], good]
    records = [Record(value, offset, 9) for offset, value in enumerate(records)]
    landed = getattr(lander, method)([MicroBatch(records, f"l.{stem}", 2)])

    assert landed == 2
    assert len(store.rows(table)) == 1
    reasons = ["undecodable", "undecodable", "undecodable", "unknown_schema", "undecodable"]
    assert quarantined(store) == [
        (f"l.{stem}", 2, offset, reason) for offset, reason in enumerate(reasons, start=1)
    ]
    assert progress.quarantined == {f"l.{stem}": 5}
    assert base64.b64decode(store.rows("quarantine")[0]["value_base64"]) == b"junk"


@pytest.mark.parametrize(
    ("method", "name", "fields", "why"),
    [
        ("windows", "account_window", {"partition": 1}, "not the partition it stands in"),
        ("windows", "account_window", {"account_id": "a0"}, "its account belongs elsewhere"),
        ("windows", "account_window", {"events": -1}, "events is below zero"),
        ("windows", "account_window", {"window_start": -1}, "no moment"),
        ("balances", "balance_change", {"version": -1}, "version is below zero"),
        ("balances", "balance_change", {"account_id": "a0"}, "its account belongs elsewhere"),
        ("balances", "balance_change", {"at": 2**62}, "no moment"),
        ("decisions", "quota_decision", {"epoch": -1}, "epoch is below zero"),
        ("decisions", "quota_decision", {"cause_partition": 3}, "not the partition it stands in"),
        ("decisions", "quota_decision", {"account_id": "x" * 10_000}, "belongs elsewhere"),
        ("dead_letters", "dead_letter", {"offset": -1}, "offset is below zero"),
        ("gateway_totals", "gateway_total", {"emitted": -7}, "emitted is below zero"),
    ],
)
def test_what_no_worker_of_ours_would_write_is_put_aside(codec, method, name, fields, why):
    """ClickHouse takes -1 for 2^64 - 1, and an account of two partitions has two owners."""
    store = MemoryStore()
    lander = TopicLander(store, codec, LandingProgress(), PARTITIONS)
    frames = [frame_of(codec, name), frame_of(codec, name, **fields)]
    records = [Record(frame, offset) for offset, frame in enumerate(frames)]

    assert getattr(lander, method)([MicroBatch(records, "l.x", 2)]) == 1
    assert quarantined(store) == [("l.x", 2, 1, "misplaced")]
    assert why in store.rows("quarantine")[0]["detail"]


def test_amounts_that_may_be_below_zero_are_not_put_aside(codec):
    store = MemoryStore()
    lander = TopicLander(store, codec, LandingProgress(), PARTITIONS)
    frame = frame_of(codec, "balance_change", amount_utok=-5, bucket=-1)

    assert lander.balances([MicroBatch([Record(frame)], "l.balances", 2)]) == 1
    assert quarantined(store) == []


def test_commands_get_the_place_of_their_micro_batch(codec):
    store = MemoryStore()
    lander = TopicLander(store, codec, LandingProgress(), PARTITIONS)
    # Of partitions 2 and 3.
    named = {2: "a1", 3: "a0"}
    landed = lander.accounts([commands(codec, at, name) for at, name in named.items()])

    assert landed == 2
    assert [(row["topic"], row["partition"], row["offset"]) for row in store.rows("accounts")] == [
        ("t.commands", 2, 2),
        ("t.commands", 3, 3),
    ]


class Told:
    """Be a micro-batch of heartbeats and decisions; note what becomes of it."""

    def __init__(self, *values):
        self.value, self.said = values, []

    def taken(self):
        self.said.append("taken")

    def ack(self):
        self.said.append("acked")


async def test_what_lands_nowhere_is_done_at_once_unless_something_waits_before_it():
    """A line at rest showed a lag of 1 or 2: heartbeats waited for company that never came."""
    inserted, written = [], asyncio.Event()
    tools = SimpleNamespace(
        settings=Settings(landing_max_wait_ms=300),
        clock=SystemClock(),
        progress=LandingProgress(),
        fatal=pytest.fail,
    )

    def insert(events):
        inserted.append(list(events))
        loop.call_soon_threadsafe(written.set)
        return len(events)

    loop = asyncio.get_running_loop()
    flow = TableFlow(tools, "decisions", insert, lambda record: record.value != b"heartbeat")
    beat, cut = (SimpleNamespace(value=value) for value in (b"heartbeat", b"cut"))
    first, decision, behind = Told(beat), Told(beat, cut), Told(beat)
    flow.offer(first)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert first.said == ["taken", "acked"]
    flow.offer(decision)
    flow.offer(behind)
    await asyncio.sleep(0.05)
    assert (decision.said, behind.said) == (["taken"], ["taken"])
    await asyncio.wait_for(written.wait(), 5)
    await asyncio.sleep(0.05)
    assert (inserted, behind.said) == ([[decision, behind]], ["taken", "acked"])
    await flow.stop()


async def test_an_insert_of_large_rows_waits_for_no_more_of_them():
    """200 dead letters of 1.4 MB were one insert."""
    tools = SimpleNamespace(
        settings=Settings(landing_max_wait_ms=60_000),
        clock=SystemClock(),
        progress=LandingProgress(),
        fatal=pytest.fail,
    )
    inserted, twice, loop = [], asyncio.Event(), asyncio.get_running_loop()

    def insert(events):
        inserted.append(len(events))
        if len(inserted) == 2:
            loop.call_soon_threadsafe(twice.set)
        return 0

    flow = TableFlow(tools, "dead_letters", insert)
    large = SimpleNamespace(value=bytes(GATHER_MAX_BYTES // 2))
    for _ in range(5):
        flow.offer(Told(large))
    await asyncio.wait_for(twice.wait(), 10)
    assert inserted == [2, 2]
    await flow.stop()


def test_a_decision_with_each_default_of_its_schema_lands(codec):
    """-1 stands for "what is usual" in some fields; a rule took it for a number below zero."""
    decision = {"tenant_id": "t", "account_id": "a", "rule": "balance", "reason": "account_set"}
    numbers = (
        "threshold_percent",
        "used",
        "limit",
        "window_start",
        "resets_at",
        "version",
        "epoch",
    )
    decision |= dict.fromkeys((*numbers, "as_of", "cause_partition", "cause_offset"), 0)
    decision |= {"state": "open", "cause_topic": "commands", "covers": []}
    record = Record(Codec(FileRegistry()).encode("quota_decision", decision))
    store = MemoryStore()
    lander = TopicLander(store, codec, LandingProgress(), 1)
    assert lander.decisions([MicroBatch([record])]) == 1
    assert len(store.rows("decisions")) == 1


def commands(codec, partition, account, key=None, **fields):
    (frame,) = zero_rows(codec, "account_command", 1, tenant_id="t", account_id=account, **fields)
    key = f"t/{account}".encode() if key is None else key
    return MicroBatch([Record(frame, partition, 9, key)], "t.commands", partition)


def test_a_command_that_charging_refuses_sets_no_account(codec):
    """`quota` showed an account that the partition which owns it had never heard of."""
    store = MemoryStore()
    lander = TopicLander(store, codec, LandingProgress(), PARTITIONS)
    in_transaction = commands(codec, 2, "a1")
    (record,) = in_transaction.value
    in_transaction.value = [OfTransaction(record.offset, 9, record.key, record.value)]
    refused = [
        commands(codec, 1, "a1"),
        commands(codec, 2, "a1", key=b"t/a0"),
        commands(codec, 2, "a1", key=b""),
        commands(codec, 3, "b\u200b"),
        in_transaction,
    ]

    assert lander.accounts(refused) == 0
    assert lander.accounts([*refused, commands(codec, 2, "a1")]) == 1
    assert [row["account_id"] for row in store.rows("accounts")] == ["a1"]


@pytest.mark.parametrize("table", RULES)
def test_every_unsigned_column_of_a_table_is_guarded(codec, table):
    """A column that is added later is not forgotten; those that landing fills itself are not of a record."""
    ddl = "\n".join(
        path.read_text() for path in sorted((schemas_dir() / "clickhouse").glob("*.sql"))
    )
    (made,) = re.findall(
        rf"CREATE TABLE IF NOT EXISTS {{database}}\.{table}{{.*?\n\)", ddl, re.DOTALL
    )
    made += "\n".join(re.findall(rf"ALTER TABLE {{database}}\.{table}{{.*", ddl))
    unsigned = set(re.findall(r"(\w+) UInt\d+", made))
    names = {one: name for _, one, name, _ in TABLES}
    assert unsigned & set(codec.empty(names[table]).schema.names) == RULES[table].unsigned
