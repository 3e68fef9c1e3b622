"""Land charged usage for real: Kafka, the Faust worker, ClickHouse, a death at every step."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer

from tokenline.clock import SystemClock
from tokenline.landing import migrate
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.queries import Asker, landed_by_partition, quota
from tokenline.landing.reconcile import digest_faults
from tokenline.landing.seal import walk
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import client_options
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import ensure_topics, heartbeat_key

PARTITIONS = 2
RECORDS = 1500
RANGE = 100
NOON_MS = 1_790_000_000_000
DIED = 9


class Line:
    """Play gateways and charging: write usage, and say how each record was judged."""

    def __init__(self, settings):
        self.settings = settings
        registry = open_registry(settings)
        self.codec, self.columns = Codec(registry), ColumnCodec(registry)
        self.late = np.arange(40, RECORDS, 97)
        self.duplicate = np.arange(31, RECORDS, 53)
        self.rejected = np.arange(7, RECORDS, 211)
        # Of the late ones every second repeats a landed event that charging has forgotten.
        self.forgotten = self.late[1::2]

    def frames(self, partition):
        blank = self.columns.empty("usage_event").schema
        events = []
        for at in range(RECORDS):
            copied = at - 30 if at in self.duplicate or at in self.forgotten else at
            events.append(event(blank, partition, copied))
        frames = self.columns.encode(
            "usage_event", pa.RecordBatch.from_pylist(events, schema=blank)
        )
        for at in self.rejected:
            frames[at] = b"\x00 not avro"
        return frames

    async def publish(self):
        await ensure_topics(self.settings)
        async with AIOKafkaProducer(**client_options(self.settings), linger_ms=20) as producer:
            for partition in range(PARTITIONS):
                topic = self.settings.topic("usage")
                sent = [
                    await producer.send(topic, frame, partition=partition)
                    for frame in self.frames(partition)
                ]
                await asyncio.gather(*sent)
            for partition in range(PARTITIONS):
                for lo in range(0, RECORDS, RANGE):
                    await self.charge(producer, partition, lo, min(lo + RANGE, RECORDS) - 1)
                    if lo == 500:
                        # Charging died and published these again, with other bounds.
                        await self.charge(producer, partition, 300, 450)
                        await self.charge(producer, partition, 451, 599)

    async def charge(self, producer, partition, lo, hi):
        def within(offsets):
            return [int(at) for at in offsets if lo <= at <= hi]

        rejected = within(self.rejected)
        judged = {
            "topic": self.settings.topic("usage"),
            "partition": partition,
            "lo_offset": lo,
            "hi_offset": hi,
            "as_of": SystemClock().wall_ms(),  # no record is newer than its range
            "epoch": 1,
            "rejected_offsets": rejected,
            "late_offsets": [at for at in within(self.late) if at not in rejected],
            "duplicate_offsets": [
                at for at in within(self.duplicate) if at not in rejected and at not in self.late
            ],
        }
        value = self.codec.encode("charged_range", judged)
        await producer.send_and_wait(self.settings.topic("charged"), value, partition=partition)

    async def send(self, stem, name, key, to=0, **fields):
        async with AIOKafkaProducer(**client_options(self.settings)) as producer:
            value = self.codec.encode(name, fields) if name else None
            await producer.send_and_wait(self.settings.topic(stem), value, key=key, partition=to)

    @property
    def expected(self):
        """Rows of ledger, late ones among them, duplicates and rejected, of one partition."""
        rejected = set(self.rejected.tolist())
        late = set(self.late.tolist()) - rejected
        copies = set(self.duplicate.tolist()) - rejected - late
        forgotten = set(self.forgotten.tolist()) & late
        return (
            RECORDS - len(rejected) - len(copies) - len(forgotten),
            len(late - forgotten),
            len(copies) + len(forgotten),
            len(rejected),
        )


def event(blank, partition, at):
    zero = {field.name: _zero(field.type) for field in blank}
    return zero | {
        "tenant_id": "cm",
        "source": "gw",
        "event_id": f"p{partition}-{at}",
        "account_id": f"a{at % 50}",
        "gateway_id": "g1",
        "provider": "p",
        "model": "m",
        "occurred_at": NOON_MS + at,
        "input_tokens": at,
        "output_tokens": 7,
        "tags": [("k", str(at))] * (at % 3 == 0),
        "usage_source": "reported",
        "outcome": "completed",
    }


def _zero(kind):
    if pa.types.is_map(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


class Worker:
    """A landing worker in a process of its own, which may be told to die at a step."""

    def __init__(self, settings, die=""):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.log = settings.data_dir / f"landing-{time.monotonic_ns()}.log"
        env = os.environ | settings.to_env() | {"LANDING_DIE": die}
        self._out = self.log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdout=self._out, stderr=subprocess.STDOUT
        )

    def wait(self, timeout_s=60):
        code = self.process.wait(timeout_s)
        self._out.close()
        return code

    def stop(self):
        self.process.terminate()
        return self.wait(30)

    def kill(self):
        self.process.kill()
        self.wait()

    def text(self):
        return self.log.read_text(errors="replace")


@pytest.fixture
def line(settings):
    small = settings.model_copy(
        update={"partitions": PARTITIONS, "landing_max_rows": 250, "landing_max_wait_ms": 100}
    )
    migrate.apply(small)
    line = Line(small)
    asyncio.run(line.publish())
    return line


def landed(settings):
    """Offsets sealed of each partition, and the counts of the tables."""
    store, asker = ClickHouseStore(settings), Asker(settings)
    topic = settings.topic("usage")
    seals = store.seals(topic)
    walks = {at: walk([one for one in seals if one.partition == at]) for at in range(PARTITIONS)}
    tables = landed_by_partition(asker, topic)
    store.close()
    asker.close()
    return walks, tables


def until(claim, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := claim()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)
    return found


def all_sealed(settings):
    return sealed_to(settings, RECORDS)


def sealed_to(settings, end):
    walks, _ = landed(settings)
    return all(found.next_offset == end for found in walks.values())


def passed_over(settings):
    """Seals of a writer that had lost its partition."""
    store = ClickHouseStore(settings)
    seals = store.seals(settings.topic("usage"))
    store.close()
    walks, _ = landed(settings)
    return len(seals) - sum(len(found.kept) for found in walks.values())


def assert_whole(line):
    walks, tables = landed(line.settings)
    for partition in range(PARTITIONS):
        counts, late, copies, rejected = line.expected
        assert walks[partition].faults == []
        table = tables[partition]
        assert (table.ledger, table.late, table.duplicates) == (counts, late, copies)
        sealed = walks[partition].kept
        assert sum(seal.counted + seal.late for seal in sealed) == counts
        assert sum(seal.duplicate for seal in sealed) == copies
        assert sum(seal.rejected for seal in sealed) == rejected
        assert sum(seal.tokens for seal in sealed) == table.tokens
    assert list(digest_faults(line.settings)) == []
    asker = Asker(line.settings)
    assert asker.rows("SELECT count() - uniqExact(source, event_id) FROM {db}.v_usage") == [(0,)]
    asker.close()


def test_a_worker_killed_between_ledger_seal_and_ack_loses_and_doubles_nothing(line):
    for die in ("ledger:2", "seal:3", "ack:2"):
        worker = Worker(line.settings, die)
        assert worker.wait() == DIED, worker.text()
    worker = Worker(line.settings)
    try:
        until(lambda: all_sealed(line.settings))
    finally:
        worker.stop()

    assert_whole(line)
    walks, _ = landed(line.settings)
    assert len({seal.writer_epoch for seal in walks[0].kept + walks[1].kept}) > 1


def test_two_workers_one_of_them_frozen_past_its_session_land_everything_once(line):
    first = Worker(line.settings, "freeze:2")
    until(lambda: psutil.Process(first.process.pid).status() == psutil.STATUS_STOPPED)
    second = Worker(line.settings)
    try:
        until(lambda: all_sealed(line.settings))
        # The frozen one wakes and goes on where it stood, with partitions it no longer owns.
        first.process.send_signal(signal.SIGCONT)
        until(lambda: passed_over(line.settings))
    finally:
        second.stop()
        first.kill()

    assert_whole(line)


def test_landing_waits_for_a_warehouse_that_is_away_and_goes_on(line, private_warehouse):
    settings = line.settings.model_copy(update={"clickhouse_url": private_warehouse.dsn()})
    line.settings = settings
    migrate.apply(settings)
    private_warehouse.kill()
    worker = Worker(settings)
    try:
        until(lambda: "a server is away" in worker.text())
        private_warehouse.start()
        until(lambda: any(found.kept for found in landed(settings)[0].values()))
        private_warehouse.kill()
        time.sleep(1)
        private_warehouse.start()
        until(lambda: all_sealed(settings))
        assert worker.process.poll() is None
    finally:
        worker.stop()

    assert_whole(line)


def test_where_the_warehouse_lost_its_seals_landing_goes_on_and_the_new_ones_say_what_is_missing(
    line,
):
    """It ended the worker, and each that was started after it."""
    worker = Worker(line.settings)
    until(lambda: all_sealed(line.settings))
    worker.stop()
    asker = Asker(line.settings)
    asker._client.command(f"TRUNCATE TABLE {line.settings.clickhouse_database}.seals")
    asker.close()
    asyncio.run(_charge_more(line))
    worker = Worker(line.settings)
    try:
        until(lambda: sealed_to(line.settings, RECORDS + 1))
    finally:
        assert worker.stop() == 0
    walks, _ = landed(line.settings)

    assert "charged ranges are lost" in worker.text()
    for found in walks.values():
        assert found.faults == []
        assert sum(seal.unjudged for seal in found.kept) == RECORDS
        assert sum(seal.counted for seal in found.kept) == 1


async def _charge_more(line):
    async with AIOKafkaProducer(**client_options(line.settings)) as producer:
        frame = line.frames(0)[0]
        for partition in range(PARTITIONS):
            topic = line.settings.topic("usage")
            await producer.send_and_wait(topic, frame, partition=partition)
            await line.charge(producer, partition, RECORDS, RECORDS)


def test_every_other_topic_lands_in_its_table(line):
    settings = line.settings
    key, now_ms = b"cm/a0", int(time.time() * 1000)
    month = quota(settings, "cm", "a0").month_start_ms
    window = dict.fromkeys(line.columns.empty("account_window").schema.names, 0)
    window |= {
        "tenant_id": "cm",
        "account_id": "a0",
        "subscriber_id": "",
        "provider": "",
        "model": "",
    }
    decided = {
        "tenant_id": "cm",
        "account_id": "a0",
        "subscriber_id": "",
        "state": "cut",
        "rule": "month_tokens",
        "reason": "limit_reached",
        "threshold_percent": 100,
        "used": 90,
        "limit": 80,
        "window_start": month,
        "resets_at": now_ms + 3_600_000,
        "version": 4,
        "epoch": 2,
        "as_of": now_ms,
        "cause_topic": "u",
        "cause_partition": 0,
        "cause_offset": 3,
    }
    command = {
        "tenant_id": "cm",
        "account_id": "a0",
        "command_id": "c1",
        "time_zone": "UTC",
        "issued_at": now_ms,
    }

    changed = {"tenant_id": "cm", "account_id": "a0", "bucket": 1, "at": now_ms, "partition": 0}

    async def publish():
        for version, total in ((30, 90), (20, 50)):
            rows = window | {
                "grain": "month",
                "window_start": month,
                "total_tokens": total,
                "version": version,
            }
            await line.send("windows", "account_window", key, **rows)
        for amount in (30, 20):
            usage = {"entry": "usage/1", "kind": "usage", "version": amount}
            await line.send(
                "balances", "balance_change", key, **changed | usage, amount_utok=-amount
            )
        grant = {"entry": "1", "kind": "grant", "version": 1, "amount_utok": 90}
        await line.send("balances", "balance_change", key, **changed | grant)
        await line.send("balances", "balance_change", key, **changed | grant)
        await line.send("decisions", "quota_decision", key + b"#2", **decided)
        await line.send("decisions", None, key + b"#1")
        beat = {"partition": 0, "as_of": now_ms, "next_offset": 1, "epoch": 2}
        await line.send("decisions", "charging_heartbeat", heartbeat_key(0, 2), **beat)
        for tokens, plan in ((70, "old"), (80, "home")):
            await line.send(
                "commands", "account_command", key, **command, plan=plan, month_tokens=tokens
            )
        letter = {"topic": "u", "partition": 0, "offset": 9, "reason": "undecodable", "detail": "d"}
        letter |= {"appended_at": now_ms, "key_base64": "", "value_base64": "AAE="}
        await line.send("dead-letters", "dead_letter", b"", **letter)
        await line.send("dead-letters", "dead_letter", b"", **letter)
        total = {
            "gateway_id": "g",
            "gateway_epoch": "e",
            "source": "gw",
            "acknowledged": 5,
            "as_of": now_ms,
        }
        await line.send("control", "gateway_total", b"g/e", **total, emitted=5)
        await line.send("control", "gateway_total", b"g/e", **total, emitted=6)

    asyncio.run(publish())
    worker = Worker(settings)
    asker = Asker(settings)
    try:
        until(lambda: asker.rows("SELECT max(emitted) FROM {db}.gateway_totals") == [(6,)])
        until(
            lambda: (
                quota(settings, "cm", "a0").used == 90 and quota(settings, "cm", "a0").limit == 80
            )
        )
        until(lambda: asker.rows("SELECT count() FROM {db}.v_dead_letters") == [(1,)])
        until(lambda: asker.rows("SELECT count() FROM {db}.v_decisions") == [(1,)])
        balance = "SELECT granted_utok, used_utok, balance_utok FROM {db}.v_balances"
        until(lambda: asker.rows(balance) == [(90, 30, 60)])
    finally:
        worker.stop()
    view = quota(settings, "cm", "a0")

    assert (view.known, view.plan, view.state, view.reason) == (
        True,
        "home",
        "cut",
        "limit_reached",
    )
    assert asker.rows("SELECT emitted FROM {db}.gateway_totals FINAL") == [(6,)]
    assert not quota(settings, "cm", "nobody").known
    asker.close()


def _main():
    """Be the landing worker, with a death or a long sleep at one step."""
    from streams import landing
    from tokenline.platform.worker import run

    wanted, _, count = os.environ["LANDING_DIE"].partition(":")
    seen = 0

    def step(name):
        nonlocal seen
        if name != ("ledger" if wanted == "freeze" else wanted):
            return
        seen += 1
        if seen == int(count):
            if wanted == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(DIED)

    landing.register = partial(landing.register, step=step)
    run("landing", Settings.from_env())


if __name__ == "__main__":
    _main()
