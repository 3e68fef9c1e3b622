"""One line, one id: in Kafka, warehouse, journal and outbox; who brings two together is told at once."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.state import JournalLog
from tests.servers import give_rights
from tests.strategies import BOUNDS
from tokenline import Emitter, Gateway, Guard, UsageEvent
from tokenline.charging.journal import JournalWriter
from tokenline.charging.partition import PartitionState
from tokenline.clock import SystemClock
from tokenline.errors import BrokerUnavailable, ForeignLine, SettingsError
from tokenline.landing.line import archives, warehouse_line
from tokenline.landing.queries import Asker, foreign_totals, gateways
from tokenline.landing.reconcile import reconcile
from tokenline.platform.kafka_config import as_role
from tokenline.platform.prepare import begin_new_line, main, prepare
from tokenline.platform.processes import free_port, wait_for
from tokenline.platform.worker_process import WorkerProcess
from tokenline.settings import Settings
from tokenline.wire import guard as guard_module
from tokenline.wire.avro import Codec
from tokenline.wire.event_writer import EventWriter
from tokenline.wire.kafka import account_key, client_options
from tokenline.wire.line import KEY, go_on_from, make_line, read_line
from tokenline.wire.outbox import Outbox
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import ensure_topics

CODEC = Codec(open_registry(Settings()))
OTHER = "0123456789abcdef" * 2


def identity(line_id, supersedes=""):
    fields = {"line_id": line_id, "made_at": 0, "supersedes": supersedes}
    return CODEC.encode("line_identity", fields)


async def append(settings, stem, *records):
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for key, value in records:
            await producer.send_and_wait(settings.topic(stem), value, key=key, partition=0)


async def ends(settings, stem):
    async with AIOKafkaConsumer(**client_options(settings)) as consumer:
        tps = [TopicPartition(settings.topic(stem), at) for at in range(settings.partitions)]
        found = await consumer.end_offsets(tps)
        return [found[tp] for tp in tps]


def beside(settings):
    """Return settings of another line on the same servers, with rights of its own."""
    mark = uuid.uuid4().hex[:10]
    other = settings.model_copy(
        update={"topic_prefix": f"o{mark}.", "clickhouse_database": f"o_{mark}"}
    )
    give_rights(other)
    return other


def event(account="a"):
    return UsageEvent(account_id=account, provider="p", model="m")


# In Kafka


async def test_a_line_gets_its_id_with_its_topics_and_keeps_it(settings):
    with pytest.raises(BrokerUnavailable, match=r"holds no line .* `tokenline topics` makes one"):
        await read_line(settings)
    await ensure_topics(settings)
    line = await read_line(as_role(settings, "gateway"))
    assert len(line.line_id) == 32
    await ensure_topics(as_role(settings, "operator"))
    assert await make_line(settings) == line


async def test_processes_that_make_a_line_at_once_make_one(settings):
    await asyncio.gather(*(ensure_topics(settings) for _ in range(4)))
    found = await asyncio.gather(*(make_line(settings) for _ in range(4)))
    assert len({line.line_id for line in found}) == 1


async def test_no_later_record_makes_another_line_of_it(settings):
    await ensure_topics(settings)
    line = await read_line(settings)
    await append(
        settings,
        "line",
        *[(KEY, value) for value in (b"junk", b"\0\0\0\0\x18", None, identity(OTHER))],
        (KEY, identity(line.line_id, "x' OR 1=1")),
        (b"another", identity(OTHER)),
        (KEY, identity(OTHER, "f" * 32)),
    )
    assert await read_line(settings) == line
    assert (await go_on_from(settings, line, OTHER)).predecessors == {OTHER}
    assert (await read_line(settings)).line_id == line.line_id


# In the warehouse


async def test_a_warehouse_without_an_id_takes_on_the_line_it_meets(settings):
    line = await asyncio.to_thread(prepare, settings)
    assert warehouse_line(settings) == line.line_id == (await read_line(settings)).line_id
    assert await asyncio.to_thread(prepare, settings) == line


async def test_a_warehouse_of_another_line_is_refused_before_anything_is_written(
    settings, capsys, monkeypatch
):
    first = await asyncio.to_thread(prepare, settings)
    other = beside(settings).model_copy(
        update={"clickhouse_database": settings.clickhouse_database}
    )
    with pytest.raises(ForeignLine) as caught:
        await asyncio.to_thread(prepare, other)
    second = await read_line(other)
    for text in (first.line_id, second.line_id, settings.clickhouse_database, "--new-line"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ForeignLine, match=first.line_id):
        await asyncio.to_thread(reconcile, other, 0)
    monkeypatch.setattr("os.environ", {**other.to_env()})
    assert await asyncio.to_thread(main, []) == 2
    assert first.line_id in capsys.readouterr().err


async def test_landing_for_a_warehouse_of_another_line_ends_with_2_and_lands_nothing(
    settings, tmp_path
):
    first = await asyncio.to_thread(prepare, settings)
    other = beside(settings).model_copy(
        update={"clickhouse_database": settings.clickhouse_database}
    )
    await ensure_topics(other)
    await append(other, "control", (b"g/e", total("g", 5, "")))
    worker = WorkerProcess("landing", other, tmp_path / "landing.log", port=free_port())
    worker.spawn()
    assert wait_for(lambda: not worker.running, timeout_s=60)
    assert worker.process.returncode == 2
    log = worker.log.read_text()
    assert f"is of line {first.line_id}" in log
    assert "Traceback" not in log
    assert rows(settings, "SELECT count() FROM {db}.gateway_totals") == [(0,)]


async def test_a_warehouse_that_was_made_again_gets_all_that_kafka_still_has(settings, tmp_path):
    """Landing would go on where it stood for the old one, and the new one would lack all before."""
    await asyncio.to_thread(prepare, settings)
    await append(settings, "control", *((b"g/%d" % at, total("g", at, "")) for at in range(3)))
    worker = WorkerProcess("landing", settings, tmp_path / "landing.log", port=free_port())
    worker.start()
    assert wait_for(lambda: landed(settings) == 3, timeout_s=30)
    query(settings, "DROP DATABASE {db} SYNC")
    with pytest.raises(SettingsError, match="landing workers are at work for the old one"):
        await asyncio.to_thread(prepare, settings)
    worker.stop()
    line = await asyncio.to_thread(prepare, settings)
    worker.start()
    assert wait_for(lambda: landed(settings) == 3, timeout_s=30)
    worker.stop()
    assert warehouse_line(settings) == line.line_id


async def test_a_new_line_gets_a_database_beside_the_old_books(settings, database):
    first = await asyncio.to_thread(prepare, settings)
    again = beside(settings).model_copy(
        update={"clickhouse_database": settings.clickhouse_database}
    )
    said = []
    name = await asyncio.to_thread(begin_new_line, again, said.append)
    second = await read_line(again)
    assert (name, second.predecessors) == (
        f"{settings.clickhouse_database}_{second.line_id[:8]}",
        {first.line_id},
    )
    assert any(first.line_id in one and settings.clickhouse_database in one for one in said)
    again = again.model_copy(update={"clickhouse_database": name})
    try:
        await asyncio.to_thread(prepare, again)
        assert warehouse_line(settings) == first.line_id
        assert warehouse_line(again) == second.line_id
        found = await asyncio.to_thread(archives, again, second)
        assert [(one.database, one.line_id) for one in found] == [
            (settings.clickhouse_database, first.line_id)
        ]
        assert await asyncio.to_thread(begin_new_line, again, said.append) == name
        assert "nothing to begin" in said[-1]
    finally:
        database.command(f"DROP DATABASE IF EXISTS {name} SYNC")


def query(settings, text):
    import clickhouse_connect

    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        client.command(text.replace("{db}", settings.clickhouse_database))


def rows(settings, text):
    asker = Asker(settings)
    try:
        return asker.rows(text)
    finally:
        asker.close()


def landed(settings):
    return rows(settings, "SELECT count() FROM {db}.gateway_totals FINAL")[0][0]


# In the journal


async def test_charging_refuses_a_journal_of_another_line_and_writes_nothing_to_it(
    settings, tmp_path
):
    await ensure_topics(settings)
    line = await read_line(settings)
    state = PartitionState(BOUNDS, line_id=OTHER)
    step = state.begin_step(0)
    records = JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms).records(state, step, [])
    await append(settings, "state", *records)
    before = await ends(settings, "state")
    worker = WorkerProcess("charging", settings, tmp_path / "charging.log", port=free_port())
    worker.spawn()
    assert wait_for(lambda: not worker.running, timeout_s=60)
    assert worker.process.returncode == 2
    log = worker.log.read_text()
    assert f"is of line {OTHER}, and Kafka holds line {line.line_id}" in log
    assert (await ends(settings, "state"))[0] == before[0]


async def test_the_journal_says_whose_line_it_is(settings, tmp_path):
    await ensure_topics(settings)
    line = await read_line(settings)
    worker = WorkerProcess("charging", settings, tmp_path / "charging.log", port=free_port())
    worker.start()
    junk = [(b"k", b"junk")]
    await append(settings, "usage", *junk)
    try:
        assert wait_for(lambda: head_line(settings) == line.line_id, timeout_s=30)
    finally:
        worker.stop()


def head_line(settings):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _head_line(settings)).result()


async def _head_line(settings):
    from tokenline.charging.recover import Recovery

    state = PartitionState(BOUNDS)
    recovery = Recovery(state)
    await JournalLog(settings, None, 0).read(recovery.take)
    return recovery.finish().state.line_id


# In the outbox


def total(gateway, emitted, line_id):
    fields = {
        "gateway_id": gateway,
        "gateway_epoch": f"e{emitted}",
        "emitted": emitted,
        "acknowledged": emitted,
        "as_of": 0,
        "line_id": line_id,
    }
    return CODEC.encode("gateway_total", fields)


def emitter(settings, box, **options):
    return Emitter(settings, source="s", gateway_id="g", outbox_dir=box, **options)


async def served(settings, box, waiting=0):
    """Let an outbox serve a line, and leave events in it that wait."""
    async with emitter(settings, box) as sender:
        for _ in range(3):
            await sender.emit(event())
    outbox = Outbox(box, "g")
    life = {
        "source": "s",
        "gateway_id": "g",
        "gateway_version": "",
        "gateway_epoch": outbox.life.gateway_epoch,
    }
    writer = EventWriter(open_registry(settings), life)
    for _ in range(waiting):
        value = writer.write(event(), outbox.next_seq, SystemClock().wall_ms())
        outbox.append(account_key("default", "a"), value)
    outbox.close()


async def test_an_outbox_with_events_for_another_line_is_refused_by_name(settings, tmp_path):
    """It made that line's reconcile red for ever: its life counts what this line never gets."""
    other, box = beside(settings), tmp_path / "data" / "outbox" / "g"
    await asyncio.gather(ensure_topics(settings), ensure_topics(other))
    await served(settings, box, waiting=2)
    first, second = await read_line(settings), await read_line(other)
    with pytest.raises(ForeignLine) as caught:
        await emitter(other, box).start()
    for text in (str(box), "2 events", first.line_id, second.line_id, "move the directory away"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ForeignLine):
        async with Gateway(other, gateway_id="g"):
            pass
    async with emitter(other, box, on_outage="spool") as sender:
        with pytest.raises(ForeignLine):
            assert await sender.reach(20)
        with pytest.raises(ForeignLine):
            await sender.emit(event())
    assert sum(await ends(other, "usage")) == 0
    async with emitter(settings, box) as sender:
        assert await sender.flush(20_000)
    assert sum(await ends(settings, "usage")) == 5


async def test_an_outbox_in_which_nothing_waits_begins_a_new_life_for_another_line(
    settings, tmp_path, caplog
):
    other, box = beside(settings), tmp_path / "box"
    await asyncio.gather(ensure_topics(settings), ensure_topics(other))
    await served(settings, box)
    async with emitter(other, box) as sender:
        receipt = await sender.emit(event())
    assert receipt.gateway_seq == 1
    (said,) = await totals(other)
    assert (said["emitted"], said["acknowledged"]) == (1, 1)
    assert said["line_id"] == (await read_line(other)).line_id
    assert said["gateway_epoch"] != (await totals(settings))[0]["gateway_epoch"]


async def test_what_waits_for_a_line_that_is_lost_is_sent_to_the_one_that_goes_on_from_it(
    settings, tmp_path
):
    other, box = beside(settings), tmp_path / "box"
    await asyncio.gather(ensure_topics(settings), ensure_topics(other))
    await served(settings, box, waiting=2)
    first, second = await read_line(settings), await read_line(other)
    await go_on_from(other, second, first.line_id)
    async with emitter(other, box) as sender:
        assert await sender.flush(20_000)
        receipt = await sender.emit(event())
    assert receipt.gateway_seq == 1
    assert sum(await ends(other, "usage")) == 3
    (said,) = await totals(other)
    assert (said["emitted"], said["acknowledged"]) == (1, 1)


async def test_who_runs_on_while_kafka_is_made_again_notices(private_kafka, tmp_path, monkeypatch):
    """A guard would ignore all that the new line says; an emitter would count on for the old one."""
    settings = Settings(**private_kafka.access(), data_dir=tmp_path / "data", partitions=1)
    await ensure_topics(settings)
    before = (await read_line(settings)).line_id
    async with Guard(settings) as guard, emitter(settings, tmp_path / "box") as sender:
        for _ in range(3):
            await sender.emit(event())
        await asyncio.to_thread(private_kafka.stop)
        for name in ("log", "formatted", "users.sha256"):
            gone = private_kafka.data_dir / name
            await asyncio.to_thread(shutil.rmtree if gone.is_dir() else Path.unlink, gone)
        await asyncio.to_thread(private_kafka.start)
        await ensure_topics(settings)
        now = (await read_line(settings)).line_id
        assert now != before

        # No worker speaks here: that it is silent is what makes a guard connect again.
        monkeypatch.setattr(guard_module, "SILENCE_S", 1.0)
        both = f"is of line {before}, and Kafka holds line {now}"
        assert await asyncio.to_thread(
            wait_for, lambda: both in guard.stats.last_error, timeout_s=60
        )
        assert guard.check("a").allowed is False
        with pytest.raises(ForeignLine, match=both):
            await emits_until_refused(sender)
    assert [one for one in await totals(settings) if one["line_id"] == now] == []


async def emits_until_refused(sender):
    async with asyncio.timeout(60):
        while True:
            with suppress(BrokerUnavailable):
                await sender.emit(event(), deadline_ms=500)


async def totals(settings):
    async with AIOKafkaConsumer(**client_options(settings)) as consumer:
        tp = TopicPartition(settings.topic("control"), 0)
        consumer.assign([tp])
        await consumer.seek_to_beginning()
        end = (await consumer.end_offsets([tp]))[tp]
        found = {}
        while await consumer.position(tp) < end:
            for record in (await consumer.getmany(tp, timeout_ms=500)).get(tp, []):
                found[record.key] = CODEC.decode(record.value)[1]
    return list(found.values())


async def test_totals_that_count_for_another_line_are_named_and_left_out(settings, tmp_path):
    line = await asyncio.to_thread(prepare, settings)
    for number, of in ((1, ""), (2, line.line_id), (3, OTHER)):
        await append(settings, "control", (b"g/%d" % number, total("g", number, of)))
    worker = WorkerProcess("landing", settings, tmp_path / "landing.log", port=free_port())
    worker.start()
    assert wait_for(lambda: landed(settings) == 3, timeout_s=30)
    worker.stop()
    asker = Asker(settings)
    stated = {one.gateway_epoch for one in gateways(asker, settings.topic("usage"), line.line_id)}
    assert stated == {"e1", "e2"}
    (named,) = foreign_totals(asker, line.line_id)
    assert "g/e3 counts 3 events" in named
    assert OTHER in named
    asker.close()
    report = await asyncio.to_thread(reconcile, settings, 0)
    assert (report.line_id, report.foreign) == (line.line_id, [named])
    assert {one.where for one in report.differences if one.kind == "gateway"} == {"g/e1", "g/e2"}
