"""Measure one thing at a time on a running broker and warehouse."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from tokenline import metric_names as names
from tokenline.bench import load as loads
from tokenline.bench.latency import probe_name
from tokenline.clock import SystemClock
from tokenline.errors import PlatformError
from tokenline.landing.queries import sql
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess
from tokenline.settings import Settings
from tokenline.wire.acls import ensure_acls
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import account_key, client_options
from tokenline.wire.orders import Orders
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import CHARGED, COMMANDS, ensure_topics

CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Rate:
    """Hold work done and the seconds it took."""

    count: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Return work a second."""
        return self.count / self.seconds if self.seconds else 0.0


@contextmanager
def worker(role: str, settings: Settings, log: Path) -> Iterator[WorkerProcess]:
    """Run one worker process for a while."""
    process = WorkerProcess(role, settings, log, port=free_port())
    process.spawn()
    try:
        yield process
    finally:
        process.stop()


async def make_topics(settings: Settings) -> None:
    """Make a line's topics, and give its workers their rights."""
    await ensure_acls(settings)
    await ensure_topics(settings)


async def prepare(settings: Settings, accounts: int, log: Path, *, month_tokens: int = -1) -> None:
    """Make the topics, apply the accounts and charge the commands, so that a run begins with usage."""
    await make_topics(settings)
    codec = ColumnCodec(open_registry(settings))
    await loads.produce_accounts(settings, codec, accounts, month_tokens, CLOCK.wall_ms())
    with worker("charging", settings, log) as process:
        await until(process, lambda: metric(process, names.DECISIONS) >= accounts)


async def prepare_plans(settings: Settings, accounts: int, plan: str, log: Path) -> None:
    """Publish a catalog and open every account on a plan, so that a run begins with usage."""
    await make_topics(settings)
    catalog = loads.catalog()
    codec = Codec(open_registry(settings))
    with worker("charging", settings, log) as process:
        process.await_ready(60)
        async with Orders(settings) as orders:
            await orders.publish_catalog(catalog.version, catalog.effective_ms, catalog.to_json())
        await loads.produce_orders(settings, codec, accounts, plan, CLOCK.wall_ms())
        await until(process, lambda: metric(process, names.DECISIONS) >= accounts)


async def charging_rate(settings: Settings, events: int, log: Path) -> Rate:
    """Charge usage that waits on the topic; measured by the broker's clock on what charging published."""
    with worker("charging", settings, log) as process:
        await until(process, lambda: judged(process) >= events)
    return await published_rate(settings, events)


async def published_rate(settings: Settings, events: int) -> Rate:
    """Return charged offsets against the append times of the ranges that say so."""
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    codec = Codec(open_registry(settings))
    consumer.assign(
        [TopicPartition(settings.topic(CHARGED), number) for number in range(settings.partitions)]
    )
    moments: list[tuple[int, int]] = []
    while sum(count for _, count in moments) < events:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                _, fields = codec.decode(record.value)
                moments.append(
                    (
                        record.timestamp,
                        int(str(fields["hi_offset"])) - int(str(fields["lo_offset"])) + 1,
                    )
                )
    await consumer.stop()
    moments.sort()
    # The first range only starts the watch: its events were folded before it.
    return Rate(sum(count for _, count in moments[1:]), (moments[-1][0] - moments[0][0]) / 1000)


async def prepare_probes(settings: Settings, count: int, log: Path) -> None:
    """Apply `count` accounts that one event cuts off."""
    codec = ColumnCodec(open_registry(settings))
    probes = [probe_name(number) for number in range(count)]
    producer = AIOKafkaProducer(**client_options(settings), acks="all", max_batch_size=1 << 20)
    async with producer:
        frames = codec.encode("account_command", loads.commands(probes, 1, CLOCK.wall_ms()))
        await loads.append(
            producer, settings, COMMANDS, [account_key("default", name) for name in probes], frames
        )
    with worker("charging", settings, log) as process:
        await until(process, lambda: metric(process, names.DECISIONS) >= count)


async def landing_rate(settings: Settings, events: int, log: Path) -> Rate:
    """Land usage that is charged already; measured by the times of the seals."""
    with worker("landing", settings, log) as process:
        await until(process, lambda: sealed(settings) >= events)
    return sealing_rate(settings)


def sealed(settings: Settings) -> int:
    """Return the records sealed so far."""
    (records,) = _ask(settings, "SELECT sum(toInt128(hi - lo + 1)) FROM seals FINAL")
    return records


def sealing_rate(settings: Settings) -> Rate:
    """Return the records sealed after every partition had its first seal, and the time that took.

    What is in the first seals was begun before any clock of the seals runs.
    """
    began = "(SELECT max(first) FROM (SELECT min(landed_at) AS first FROM seals FINAL GROUP BY partition))"
    rows, span_ms = _ask(
        settings,
        f"SELECT sumIf(toInt128(hi - lo + 1), landed_at > {began}), "  # noqa: S608  no input of anybody's
        f"toUnixTimestamp64Milli(max(landed_at)) - toUnixTimestamp64Milli({began}) FROM seals FINAL",
    )
    return Rate(rows, max(span_ms, 0) / 1000)


def _ask(settings: Settings, query: str) -> list[int]:
    answer = json.loads(sql(settings, query, "json"))["data"][0]
    return [int(value or 0) for value in answer.values()]


def rival_rate(settings: Settings, name: str, argument: str) -> float:
    """Run a rival in a process of its own and return its events a second."""
    done = subprocess.run(
        [sys.executable, "-m", "tokenline.bench.rivals", name, argument],
        env={**os.environ, **settings.to_env()},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode:
        raise PlatformError(f"the {name} rival failed: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


def rss_bytes(process: WorkerProcess) -> int:
    """Return the resident memory of a worker."""
    return int(psutil.Process(process.pid).memory_info().rss)


def metric(process: WorkerProcess, name: str) -> float:
    """Return the sum of a metric over its labels; 0 while the worker does not answer yet."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{process.port}/metrics", timeout=5
        ) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    families = text_string_to_metric_families(text)
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == name
    )


def judged(process: WorkerProcess) -> float:
    """Return how many usage records a charging worker has judged."""
    return metric(process, names.EVENTS) + metric(process, names.DEAD_LETTERS)


async def until(process: WorkerProcess, done: object, timeout_s: float = 300) -> None:
    """Look every 0.2 s until `done()`.

    Raises:
        PlatformError: the worker ended, or it took too long.
    """
    assert callable(done)  # noqa: S101
    began = time.perf_counter()
    while not await asyncio.to_thread(done):
        if not process.running or time.perf_counter() - began > timeout_s:
            raise PlatformError(f"the {process.role} worker did not finish: see {process.log}")
        await asyncio.sleep(0.2)
