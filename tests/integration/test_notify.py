"""Webhooks for real: Kafka, the notify worker as a process, and receivers that fail, dawdle and recover."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time

import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from charging_helpers import Line, account_name, command, usage
from notify_helpers import SECRET, Receiver, decision, line, publish, status, worker

from tokenline.landing.reconcile import reconcile
from tokenline.platform.prepare import prepare
from tokenline.platform.processes import free_port, wait_for
from tokenline.platform.worker_process import WorkerProcess, ask_health
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import client_options
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import ensure_topics

pytestmark = pytest.mark.usefixtures("secret")
ACCOUNTS = [f"a{number}" for number in range(12)]


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def in_turn(versions):
    return [decision(account, version) for version in versions for account in ACCOUNTS]


def expected(versions):
    return {(account, version) for version in versions for account in ACCOUNTS}


def in_order(told):
    return all(
        [version for name, version in told if name == account]
        == sorted(version for name, version in told if name == account)
        for account in ACCOUNTS
    )


async def letters(settings, count):
    """Return the first `count` dead letters."""
    codec = Codec(open_registry(settings))
    consumer = AIOKafkaConsumer(
        settings.topic("dead-letters"),
        **client_options(settings),
        auto_offset_reset="earliest",
    )
    found = []
    async with asyncio.timeout(40):
        await consumer.start()
        while len(found) < count:
            record = await consumer.getone()
            found.append(codec.decode(record.value)[1])
    await consumer.stop()
    return found


async def test_each_endpoint_hears_what_it_asked_for_once_and_in_order(settings, tmp_path):
    async with Receiver() as receiver:
        endpoints = {"all": "", "cuts": 'kinds = ["cut"]', "other": 'tenants = ["north"]'}
        line_settings = await line(settings, tmp_path, receiver, endpoints)
        await publish(settings, [decision("old", 1)])
        process = worker(line_settings, tmp_path)
        process.start()
        try:
            warned = decision(
                "a0", 1, state="warned", reason="threshold_reached", threshold_percent=80
            )
            said = [
                warned,
                decision("a0", 2),
                decision("a0", 2),
                decision("a0", 3, state="open", reason="account_set", threshold_percent=0),
                decision("a0", 4, state="open", reason="resumed", threshold_percent=0),
                decision("n0", 1, tenant_id="north"),
            ]
            await publish(settings, said)
            await receiver.until(
                lambda: len(receiver.taken["all"]) >= 4 and receiver.taken["other"]
            )
            # The second telling of version 2 by a charging worker that recovered.
            await publish(settings, [decision("a0", 2), decision("a0", 5)])
            await receiver.until(lambda: ("a0", 5) in receiver.told("cuts"))
            await receiver.until(lambda: ("a0", 5) in receiver.told("all"))
        finally:
            process.stop()
        assert process.process.returncode == 0
        of_a0 = [said for _, said in receiver.taken["all"] if said["data"]["account_id"] == "a0"]
        assert [(said["data"]["version"], said["type"]) for said in of_a0] == [
            (1, "account.threshold_reached"),
            (2, "account.cut"),
            (4, "account.resumed"),
            (5, "account.cut"),
        ], "doubles and announcements are not told, nor what was decided before the endpoint was"
        assert {(one["data"]["account_id"]) for _, one in receiver.taken["all"]} == {"a0", "n0"}
        assert sorted(receiver.told("cuts")) == [("a0", 2), ("a0", 5), ("n0", 1)]
        assert receiver.told("other") == [("n0", 1)]


async def test_a_slow_and_a_failing_endpoint_hold_back_nobody_and_lose_nothing(settings, tmp_path):
    mended = asyncio.Event()

    async def failing(*_):
        return web.Response(status=204 if mended.is_set() else 503)

    async def slow(*_):
        await mended.wait()
        return web.Response(status=204)

    async with Receiver() as receiver:
        receiver.rules = {"failing": failing, "slow": slow}
        line_settings = await line(
            settings, tmp_path, receiver, {"good": "", "failing": "", "slow": ""}
        )
        process = worker(line_settings, tmp_path)
        process.start()
        try:
            await publish(settings, in_turn(range(1, 9)))
            everything = expected(range(1, 9))
            await receiver.until(lambda: set(receiver.told("good")) == everything)
            assert receiver.taken["failing"] == receiver.taken["slow"] == []
            await receiver.until(lambda: len(receiver.calls["failing"]) > len(ACCOUNTS))
            assert ask_health(process.port, "/healthz")[0] == 200
            assert (
                'tokenline_webhooks_waiting{endpoint="slow"} 96.0'
                in ask_health(process.port, "/metrics")[1]
            )
            mended.set()
            for name in ("failing", "slow"):
                await receiver.until(lambda name=name: set(receiver.told(name)) == everything)
        finally:
            process.stop()
        assert all(in_order(receiver.told(name)) for name in ("good", "failing", "slow"))
        tried = [message for message, said in receiver.calls["failing"]]
        assert len(tried) > len(set(tried)) == len(everything), "an id is the same at each attempt"


@pytest.mark.parametrize("point", ["attempt:20", "told:30", "ack:2"])
async def test_kill_9_loses_nothing_and_each_is_told_under_one_id(settings, tmp_path, point):
    async with Receiver() as receiver:
        line_settings = await line(settings, tmp_path, receiver, {"crm": ""})
        dying = worker(line_settings, tmp_path, point=point)
        dying.start()
        for first in range(1, 9, 2):
            await publish(settings, in_turn(range(first, first + 2)))
        assert await asyncio.to_thread(
            wait_for, lambda: not dying.running, timeout_s=30, every_s=0.1
        )
        assert dying.process.returncode == -signal.SIGKILL
        assert set(receiver.told("crm")) < expected(range(1, 9)) or point.startswith("ack")
        process = worker(line_settings, tmp_path, number=1)
        process.start()
        try:
            await receiver.until(lambda: set(receiver.told("crm")) == expected(range(1, 9)))
        finally:
            process.stop()
        assert in_order(receiver.told("crm"))
        ids = {(said["data"]["account_id"], said["data"]["version"]): message
               for message, said in receiver.taken["crm"]}  # fmt: skip
        assert {message for message, _ in receiver.taken["crm"]} == set(ids.values())


async def test_workers_share_the_accounts_and_one_takes_over_when_another_is_killed(
    settings, tmp_path
):
    async with Receiver() as receiver:
        line_settings = await line(settings, tmp_path, receiver, {"crm": ""})
        first, second = (worker(line_settings, tmp_path, number=number) for number in (0, 1))
        await asyncio.to_thread(first.start)
        try:
            await publish(settings, in_turn([1, 2]))
            await receiver.until(lambda: receiver.taken["crm"])
            second.spawn()
            await publish(settings, in_turn([3, 4]))
            await asyncio.to_thread(second.await_ready)
            await publish(settings, in_turn([5, 6]))
            first.kill()
            await publish(settings, in_turn([7, 8]))
            await receiver.until(lambda: set(receiver.told("crm")) == expected(range(1, 9)))
        finally:
            first.kill()
            second.stop()
        assert in_order(receiver.told("crm"))


async def test_what_nobody_took_in_time_is_a_dead_letter_and_the_next_is_told(settings, tmp_path):
    async def refuses_version_1(_, said, __):
        return web.Response(status=500 if said["data"]["version"] == 1 else 200)

    async with Receiver() as receiver:
        receiver.rules = {"crm": refuses_version_1, "gone": status(410)}
        line_settings = await line(
            settings, tmp_path, receiver, {"crm": "", "gone": ""}, webhook_max_age_s=3
        )
        process = worker(line_settings, tmp_path)
        process.start()
        try:
            began_s = time.monotonic()
            await publish(settings, [decision("a", 1), decision("a", 2)])
            await receiver.until(lambda: receiver.told("crm") == [("a", 2)])
            assert time.monotonic() - began_s >= 3
            found = await letters(settings, 3)
            metrics = ask_health(process.port, "/metrics")[1]
        finally:
            process.stop()
    assert 'tokenline_webhook_endpoint_up{endpoint="gone"} 0.0' in metrics
    assert len(receiver.calls["gone"]) == 1, "410 is final"
    by_reason = {one["reason"]: one for one in found}
    missed = by_reason["webhook_undelivered"]
    assert (missed["source"], missed["account_id"]) == ("crm", "a")
    assert "HTTP 500" in missed["detail"]
    assert json.loads(base64.b64decode(missed["value_base64"]))["data"]["version"] == 1
    assert missed["event_id"] == receiver.calls["crm"][0][0]
    assert [one["source"] for one in found].count("gone") == 2
    names = {(one["topic"], one["partition"], one["offset"]) for one in found}
    assert len(names) == 3, "each letter has a name of its own"


async def test_retry_after_is_honoured(settings, tmp_path):
    times = []

    async def patient(*_):
        times.append(time.monotonic())
        first = len(times) == 1
        return web.Response(status=429 if first else 200, headers={"Retry-After": "2"})

    async with Receiver() as receiver:
        receiver.rules = {"crm": patient}
        line_settings = await line(settings, tmp_path, receiver, {"crm": ""})
        process = worker(line_settings, tmp_path)
        process.start()
        try:
            await publish(settings, [decision("a", 1)])
            await receiver.until(lambda: receiver.told("crm") == [("a", 1)])
        finally:
            process.stop()
    assert times[1] - times[0] >= 2


async def test_a_decision_that_cannot_be_read_is_passed_over_loudly_and_skips_nobody(
    settings, tmp_path
):
    """Whoever reaches the topic could end every notifier, at each start again."""
    async with Receiver() as receiver:
        line_settings = await line(settings, tmp_path, receiver, {"crm": ""})
        process = worker(line_settings, tmp_path)
        await asyncio.to_thread(process.start)
        try:
            async with AIOKafkaProducer(**client_options(settings)) as producer:
                topic = settings.topic("decisions")
                await producer.send_and_wait(topic, b"torn", key=b"default/a#1", partition=0)
            await publish(settings, [decision("a", 1)])
            await receiver.until(lambda: receiver.told("crm") == [("a", 1)])
            assert process.running
        finally:
            process.stop()
    assert process.process.returncode == 0
    assert "a record of the decisions is not ours" in process.log.read_text()


async def test_without_a_file_it_idles_and_says_so(settings, tmp_path):
    await ensure_topics(settings)
    process = worker(settings, tmp_path)
    process.start()
    try:
        assert ask_health(process.port, "/readyz")[0] == 200
    finally:
        process.stop()
    assert process.process.returncode == 0
    assert "no webhooks file is set" in process.log.read_text()


def test_a_wrong_file_is_refused_by_name(settings, tmp_path):
    file = tmp_path / "webhooks.toml"
    file.write_text('[[endpoints]]\nname = "crm"\nurl = "http://example.org/"\nsecret_env = ["X"]')
    process = worker(settings.model_copy(update={"webhooks_file": file}), tmp_path)
    process.spawn()
    assert process.process.wait(60) == 2
    assert "TOKENLINE_WEBHOOKS_FILE" in process.log.read_text()


async def test_from_usage_to_webhook_though_charging_dies_in_between(settings, tmp_path):
    account = account_name(0)
    async with Receiver() as receiver, Line(settings, tmp_path) as charging:
        line_settings = await line(settings, tmp_path, receiver, {"crm": ""})
        process = worker(line_settings, tmp_path)
        await asyncio.to_thread(process.start)
        try:
            await charging.apply(command(account, month_tokens=1000))
            dying = await charging.started()
            await charging.known(account)
            await charging.send([usage(account, input_tokens=600)])
            await receiver.until(lambda: receiver.taken["crm"])
            dying.kill()
            await charging.send([usage(account, input_tokens=400)])
            await charging.started()
            await receiver.until(lambda: len(set(receiver.told("crm"))) >= 3)
            await charging.apply(command(account, month_tokens=5000))
            await receiver.until(lambda: receiver.taken["crm"][-1][1]["type"] == "account.resumed")
        finally:
            process.stop()
        said = [(one["type"], one["data"]["threshold_percent"], one["data"]["used"])
                for _, one in receiver.taken["crm"]]  # fmt: skip
        assert said == [
            ("account.threshold_reached", 50, 600),
            ("account.threshold_reached", 80, 1000),
            ("account.cut", 100, 1000),
            ("account.resumed", 0, 1000),
        ]


async def test_a_dead_webhook_lands_as_a_letter_of_each_endpoint_and_is_no_usage(
    settings, tmp_path, database
):
    await asyncio.to_thread(prepare, settings, lambda _: None)
    async with Receiver() as receiver:
        receiver.rules = {"one": status(410), "two": status(410)}
        line_settings = await line(settings, tmp_path, receiver, {"one": "", "two": ""})
        landing = WorkerProcess("landing", settings, tmp_path / "landing.log", port=free_port())
        process = worker(line_settings, tmp_path)
        try:
            await asyncio.to_thread(process.start)
            await asyncio.to_thread(landing.start)
            await publish(settings, [decision("a", 1)])
            asked = "SELECT source, reason, account_id FROM v_dead_letters ORDER BY source"
            assert await asyncio.to_thread(
                wait_for,
                lambda: len(database.query(asked).result_rows) == 2,
                timeout_s=40,
                every_s=0.2,
            )
        finally:
            process.stop()
            landing.stop()
    rows = database.query(asked).result_rows
    assert rows == [("one", "webhook_gone", "a"), ("two", "webhook_gone", "a")]
    report = await asyncio.to_thread(reconcile, settings, 10)
    assert report.ok, report.to_json()
    assert report.totals["dead_letters"] == 0
