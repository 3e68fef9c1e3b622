"""The emitter on a real broker: acks, outages, crashes and refusals."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration import emitter_helpers
from tests.integration.emitter_helpers import last_totals, read_events, read_topic
from tokenline import Emitter, Settings, UsageEvent
from tokenline.errors import BrokerUnavailable, InvalidEvent, OutboxFull, SettingsError, Unavailable
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.topics import ensure_topics


def line_on(broker):
    return Settings(
        partitions=4,
        **broker.access(),
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
    )


@pytest.fixture
async def line(kafka):
    """Settings of a line of the test's own, topics made."""
    settings = line_on(kafka)
    await ensure_topics(settings)
    return settings


@pytest.fixture
async def private_line(private_kafka):
    settings = line_on(private_kafka)
    await ensure_topics(settings)
    return settings


@pytest.fixture
def emitter(line, tmp_path):
    return lambda settings=line, **options: Emitter(
        settings,
        **({"source": "s", "gateway_id": "gw-1", "outbox_dir": tmp_path / "box"} | options),
    )


@pytest.fixture
def private_emitter(private_line, tmp_path):
    base = {"source": "s", "gateway_id": "gw-1", "outbox_dir": tmp_path / "box"}
    return lambda **options: Emitter(private_line, **(base | options))


def event(account="a", **fields):
    return UsageEvent(account_id=account, provider="p", model="m", **fields)


async def test_emit_returns_when_the_broker_has_the_event(emitter, line):
    async with emitter(gateway_version="1.2") as sender:
        receipt = await sender.emit(event("acct-7", input_tokens=5, tags={"team": "x"}))
        epoch = sender.gateway_epoch

    (record,) = await read_topic(line, "usage")
    fields = emitter_helpers.CODEC.decode(record.value)[1]
    key = account_key("default", "acct-7")
    assert (record.key, record.partition) == (key, partition_of(key, line.partitions))
    assert receipt == (
        fields["event_id"],
        epoch,
        1,
        "acknowledged",
        record.partition,
        record.offset,
    )
    assert (fields["source"], fields["gateway_id"], fields["gateway_version"]) == (
        "s",
        "gw-1",
        "1.2",
    )
    assert (fields["gateway_epoch"], fields["gateway_seq"]) == (epoch, 1)
    assert (fields["input_tokens"], fields["tags"]) == (5, {"team": "x"})
    assert abs(fields["occurred_at"] - time.time() * 1000) < 60_000


async def test_receipts_name_partition_and_offset_of_each_event(emitter, line):
    async with emitter() as sender:
        futures = [sender.emit_nowait(event(f"a{at % 9}", attempt=at + 1)) for at in range(500)]
        assert await sender.flush(10_000)
        receipts = [future.result() for future in futures]

    there = {(r.partition, r.offset): r.value for r in await read_topic(line, "usage")}
    for receipt in receipts:
        fields = emitter_helpers.CODEC.decode(there[receipt.partition, receipt.offset])[1]
        assert (fields["event_id"], fields["gateway_seq"]) == (
            receipt.event_id,
            receipt.gateway_seq,
        )


async def test_events_of_one_account_keep_their_order(emitter, line):
    async with emitter() as sender:
        for at in range(3000):
            sender.emit_nowait(event(f"a{at % 3}"))
            if at % 100 == 0:
                await asyncio.sleep(0)
        assert await sender.flush(10_000)

    seqs = defaultdict(list)
    for fields in await read_events(line):
        seqs[fields["account_id"]].append(fields["gateway_seq"])
    assert sum(len(found) for found in seqs.values()) == 3000
    assert all(found == sorted(found) for found in seqs.values())


async def test_the_control_total_says_what_was_emitted(emitter, line):
    async with emitter() as sender:
        for _ in range(7):
            sender.emit_nowait(event())
        epoch = sender.gateway_epoch
    totals = await last_totals(line)

    total = totals[f"gw-1\0{epoch}"]
    assert (total["emitted"], total["acknowledged"], total["source"]) == (7, 7, "s")


async def test_a_restart_goes_on_in_the_same_life(emitter, line):
    epochs = set()
    for _ in range(3):
        async with emitter() as sender:
            await sender.emit(event())
            epochs.add(sender.gateway_epoch)
    (total,) = (await last_totals(line)).values()

    assert len(epochs) == 1
    assert sorted(fields["gateway_seq"] for fields in await read_events(line)) == [1, 2, 3]
    assert total["emitted"] == 3


async def test_what_charging_would_refuse_is_refused_here(emitter, line):
    now = int(time.time() * 1000)
    async with emitter() as sender:
        with pytest.raises(InvalidEvent, match="above 1000000000"):
            sender.emit_nowait(event(output_tokens=10**10))
        with pytest.raises(InvalidEvent, match="in the future"):
            await sender.emit(event(occurred_at=now + 3_600_000))
        with pytest.raises(InvalidEvent, match="in the past"):
            await sender.emit(event(occurred_at=now - 100 * 86_400_000))
        with pytest.raises(InvalidEvent, match="bytes, at most"):
            await sender.emit(event(tags={str(at): "词" * 1000 for at in range(60)}))
        assert (await sender.emit(event())).gateway_seq == 1


async def test_an_event_emitted_twice_keeps_its_identity(emitter, line):
    async with emitter() as sender:
        once = event(source="other")
        await sender.emit(once)
        await sender.emit(once)

    first, second = await read_events(line)
    assert (first["source"], first["event_id"]) == (second["source"], second["event_id"])
    assert first["source"] == "other"
    assert {first["gateway_seq"], second["gateway_seq"]} == {1, 2}


async def test_a_topic_with_another_partition_count_is_refused(emitter, line):
    wrong = line.model_copy(update={"partitions": 3})
    with pytest.raises(SettingsError, match="has 4 partitions and TOKENLINE_PARTITIONS says 3"):
        await emitter(wrong).start()


async def test_found_out_later_it_stops_a_spooling_emitter_with_the_same_text(emitter, line):
    wrong = line.model_copy(update={"partitions": 3})
    async with emitter(wrong, on_outage="spool") as sender:
        await until(lambda: sender._delivery.fatal is not None)
        with pytest.raises(SettingsError, match="would go to the wrong one"):
            sender.emit_nowait(event())
        with pytest.raises(SettingsError):
            await sender.flush()


async def test_two_emitters_on_one_outbox_are_refused(emitter, line):
    async with emitter():
        with pytest.raises(SettingsError, match="in use by process"):
            await emitter().start()


async def test_a_closed_emitter_says_so(emitter, line):
    async with emitter() as sender:
        pass
    with pytest.raises(Unavailable, match="not started or is closed"):
        sender.emit_nowait(event())


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "x" * 300, "a\nb"])
def test_a_gateway_id_that_cannot_be_a_directory_is_refused(name):
    with pytest.raises(InvalidEvent, match="gateway_id"):
        Emitter(Settings(), source="s", gateway_id=name)


async def test_a_producer_whose_sequence_is_broken_is_replaced(emitter, line):
    """The broker answers OutOfOrderSequenceNumber: all that is not acknowledged is sent again."""
    async with emitter() as sender:
        await sender.emit(event())
        producer = sender._delivery._producer
        numbers = producer._txn_manager._sequence_numbers
        for partition in list(numbers):
            numbers[partition] += 5
        futures = [sender.emit_nowait(event()) for _ in range(50)]
        assert await sender.flush(20_000)
        assert {future.result().status for future in futures} == {"acknowledged"}
        assert sender.stats.producers_started == 2

    seqs = [fields["gateway_seq"] for fields in await read_events(line)]
    assert set(seqs) == set(range(1, 52))


async def test_an_event_larger_than_the_broker_takes_is_set_aside_and_the_rest_goes_on(
    emitter, kafka, tmp_path
):
    line = line_on(kafka)
    admin = AIOKafkaAdminClient(**client_options(line))
    await admin.start()
    limit = {"max.message.bytes": "3000"}
    usage = NewTopic(line.topic("usage"), line.partitions, 1, topic_configs=limit)
    await admin.create_topics([usage])
    await admin.close()
    await ensure_topics(line)
    async with emitter(line) as sender:
        small = [sender.emit_nowait(event()) for _ in range(5)]
        noise = {f"k{at}": random.Random(at).randbytes(300).hex() for at in range(10)}
        large = sender.emit_nowait(event(tags=noise))
        small += [sender.emit_nowait(event()) for _ in range(5)]
        assert await sender.flush(30_000)
        with pytest.raises(InvalidEvent, match="refuses the event as too large"):
            large.result()
        assert {future.result().status for future in small} == {"acknowledged"}
        assert sender.stats.refused == 1

    assert len(list((tmp_path / "box").glob("refused-*.avro"))) == 1
    (total,) = (await last_totals(line)).values()
    assert (total["emitted"], total["acknowledged"]) == (11, 10)


async def test_killed_at_random_moments_nothing_that_was_accepted_is_lost(emitter, line, tmp_path):
    """kill -9 in the middle of emitting, again and again: every seq is on the topic at the end."""
    accepted = tmp_path / "accepted"
    draw = random.Random(7)
    for _ in range(6):
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            emitter_helpers.__file__,
            *(str(tmp_path / "box"), str(accepted)),
            env=os.environ | line.to_env(),
        )
        before = accepted.stat().st_size if accepted.exists() else 0
        await until(lambda b=before: accepted.exists() and accepted.stat().st_size > b)
        await asyncio.sleep(draw.uniform(0.0, 0.8))
        child.kill()
        await child.wait()
    async with emitter() as sender:
        assert await sender.flush(30_000)
        emitted = sender.stats.emitted

    events = await read_events(line)
    by_seq = defaultdict(set)
    for fields in events:
        by_seq[fields["gateway_seq"]].add(fields["event_id"])
    promised = set(accepted.read_text().split())
    assert promised <= {fields["event_id"] for fields in events}
    assert set(by_seq) == set(range(1, emitted + 1))
    assert all(len(ids) == 1 for ids in by_seq.values())
    assert len({fields["gateway_epoch"] for fields in events}) == 1
    (total,) = (await last_totals(line)).values()
    assert total["emitted"] == total["acknowledged"] == emitted >= len(promised) > 1000


async def test_acks_that_a_crash_kept_from_the_disk_mean_a_resend_with_the_same_identity(
    emitter, line, monkeypatch
):
    """Crash point 5: the broker has the events, the outbox does not know it yet."""
    crashed = emitter()
    await crashed.start()
    monkeypatch.setattr(crashed._outbox, "flush_acks", lambda: None)
    for number in range(10):
        await crashed.emit(event(f"a{number}"))
    await crashed.close()
    async with emitter() as sender:
        assert await sender.flush(10_000)

    events = await read_events(line)
    names = ("source", "event_id", "gateway_epoch", "gateway_seq", "account_id", "occurred_at")
    assert len(events) == 20
    assert len({tuple(fields[name] for name in names) for fields in events}) == 10


async def test_what_a_damaged_outbox_lost_is_told_of_in_the_control_total(emitter, line, tmp_path):
    spooling = emitter(
        line.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"}), on_outage="spool", close_ms=10
    )
    async with spooling as sender:
        for number in range(10):
            sender.emit_nowait(event(f"a{number}"))
    (segment,) = (tmp_path / "box").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"default/a4") + 60] ^= 1
    segment.write_bytes(data)
    async with emitter() as sender:
        assert await sender.flush(10_000)
        assert (sender.stats.emitted, sender.stats.lost) == (10, 1)
        assert (await sender.emit(event("last"))).gateway_seq == 11

    found = {fields["gateway_seq"]: fields["account_id"] for fields in await read_events(line)}
    assert found.keys() == {*range(1, 12)} - {5}
    (total,) = (await last_totals(line)).values()
    assert (total["emitted"], total["acknowledged"], total["lost"]) == (11, 10, 1)


def burst(sender, count):
    for _ in range(count):
        sender.emit_nowait(event(tags={"n": "x" * 900}))


async def test_room_in_bytes_comes_back_with_the_acks(emitter, line):
    async with emitter(outbox_max_bytes=60_000) as sender:
        receipts = [
            await asyncio.wait_for(sender.emit(event(tags={"n": "x" * 900}), deadline_ms=5000), 10)
            for _ in range(30)
        ]
        with pytest.raises(OutboxFull, match="of 60000 bytes"):
            burst(sender, 60)
        receipts.append(await sender.emit(event(), deadline_ms=5000))

    assert {receipt.status for receipt in receipts} == {"acknowledged"}


async def until(done, within_s=20):
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)


async def test_without_a_broker_the_start_fails_in_time_or_spools(
    private_kafka, private_line, private_emitter
):
    private_kafka.kill()
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="no broker at"):
        await private_emitter(deadline_ms=500).start()
    assert time.monotonic() - begun < 3

    begun = time.monotonic()
    spooling = private_emitter(on_outage="spool", deadline_ms=300, close_ms=300)
    async with spooling as sender:
        assert time.monotonic() - begun < 1
        begun = time.monotonic()
        receipts = [await sender.emit(event()) for _ in range(3)]
        assert time.monotonic() - begun < 3
        late = sender.emit_nowait(event())
    assert [receipt.status for receipt in receipts] == ["spooled"] * 3
    assert [receipt.gateway_seq for receipt in receipts] == [1, 2, 3]
    assert late.result().status == "spooled"

    await asyncio.to_thread(private_kafka.start)
    async with private_emitter() as sender:
        assert await sender.flush(15_000)
    seqs = [fields["gateway_seq"] for fields in await read_events(private_line)]
    assert set(seqs) == {1, 2, 3, 4}


async def test_an_outage_under_load_raises_in_time_and_loses_nothing(
    private_kafka, private_line, private_emitter
):
    async with private_emitter(outbox_max_events=400) as sender:
        futures = [sender.emit_nowait(event(f"a{at}")) for at in range(200)]
        private_kafka.kill()
        begun = time.monotonic()
        kept = event("kept")
        with pytest.raises(
            BrokerUnavailable, match="it is in the outbox and will be sent"
        ) as raised:
            await sender.emit(kept, deadline_ms=400)
        assert raised.value.event_id == kept.event_id
        assert time.monotonic() - begun < 1.5

        futures += [sender.emit_nowait(event()) for _ in range(400 - sender.stats.waiting)]
        with pytest.raises(OutboxFull, match="holds 400 unacknowledged"):
            sender.emit_nowait(event())
        with pytest.raises(OutboxFull):
            await sender.emit(event(), deadline_ms=200)

        await asyncio.to_thread(private_kafka.start)
        waited = await sender.emit(event("waits for room"), deadline_ms=30_000)
        assert waited.status == "acknowledged"
        assert await sender.flush(30_000)
        assert {future.result().status for future in futures} == {"acknowledged"}
        emitted = sender.stats.emitted

    events = await read_events(private_line)
    assert {fields["gateway_seq"] for fields in events} == set(range(1, emitted + 1))
    assert kept.event_id in {fields["event_id"] for fields in events}


async def test_a_cancelled_emit_is_still_sent(emitter, line):
    async with emitter() as sender:
        task = asyncio.create_task(sender.emit(event()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await sender.flush(5000)

    assert len(await read_events(line)) == 1


def test_the_helper_is_where_the_crash_test_looks_for_it():
    assert Path(emitter_helpers.__file__).name == "emitter_helpers.py"
