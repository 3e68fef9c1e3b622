"""Run and load the line, and follow all that charging publishes; `charging_oracle` judges it.

Run as a program, this file is a charging worker that ends itself at a named point.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from charging_oracle import (
    CODEC,
    ZONE,
    Books,
    Unflushed,
    charged_to,
    check,
    event_of,
    key_of,
    last_decisions,
)

from tests.servers import line_on
from tokenline.event import UsageEvent
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess
from tokenline.wire.kafka import client_options, partition_of
from tokenline.wire.topics import ensure_topics

FOLLOWED = ("usage", "charged", "windows", "decisions", "dead-letters", "commands")
SETTLE_S = 30
LIMITS = ("month", "minute", "hour", "day")
THIS = str(Path(__file__).resolve())


def line_settings(kafka, tmp_path, **fields):
    """Return settings of a line of the test's own on the shared broker; charging needs no warehouse."""
    return line_on(
        kafka,
        tmp_path / "data",
        topic_prefix=f"{tmp_path.name}.",
        charging_health_port=0,
        session_timeout_ms=2000,
        idle_flush_ms=200,
        **fields,
    )


def usage(account, *, gateway="gw-1", seq=0, tenant="default", **fields):
    """Return one usage event as the emitter would write it."""
    now = time.time_ns() // 1_000_000
    fields = {"source": "gw", "provider": "p", "model": "m", "occurred_at": now} | fields
    event = UsageEvent(account_id=account, tenant_id=tenant, **fields)
    stamp = {
        "gateway_id": gateway,
        "gateway_version": "1",
        "gateway_epoch": "e1",
        "gateway_seq": seq,
    }
    return event.record() | stamp


def command(account, *, month_tokens=-1, zone=ZONE, tenant="default", **limits):
    """Return one account command; limits not named are none."""
    none = {f"{name}_{unit}": -1 for name in LIMITS[1:] for unit in ("tokens", "requests")}
    return none | {
        "tenant_id": tenant,
        "account_id": account,
        "command_id": uuid.uuid4().hex,
        "plan": "test",
        "time_zone": zone,
        "month_tokens": month_tokens,
        "issued_at": time.time_ns() // 1_000_000,
        **limits,
    }


class Line:
    """Own the workers, the producer and the books of one test."""

    def __init__(self, settings, log_dir):
        self.settings = settings
        self.log_dir = Path(log_dir)
        self.books = Books()
        self.workers = []
        self._stack = AsyncExitStack()

    async def __aenter__(self):
        await ensure_topics(self.settings)
        options = client_options(self.settings)
        self.producer = AIOKafkaProducer(
            **options, acks="all", enable_idempotence=True, linger_ms=2
        )
        self._follower = AIOKafkaConsumer(**options, enable_auto_commit=False)
        await self._stack.enter_async_context(self.producer)
        await self._stack.enter_async_context(self._follower)
        self._tps = [
            TopicPartition(self.settings.topic(stem), number)
            for stem in FOLLOWED
            for number in range(self.settings.partitions)
        ]
        self._follower.assign(self._tps)
        await self._follower.seek_to_beginning(*self._tps)
        return self

    async def __aexit__(self, *error):
        for worker in self.workers:
            worker.kill()
        await self._stack.aclose()
        if error[0] is not None:
            for worker in self.workers:
                print(f"--- {worker.log}\n{worker.log.read_text()[-4000:]}")

    def worker(self, *, settings=None, point=""):
        """Return a worker that is not started; `point` makes it end itself there."""
        log = self.log_dir / f"charging-{len(self.workers)}.log"
        program = (sys.executable, THIS, point) if point else None
        extra = {"program": program} if program else {}
        found = WorkerProcess("charging", settings or self.settings, log, port=free_port(), **extra)
        self.workers.append(found)
        return found

    async def started(self, **options):
        """Start a worker and return it when it is ready."""
        worker = self.worker(**options)
        worker.spawn()
        await ready(worker)
        return worker

    async def send(self, events, key=None):
        """Append usage events in order and return when all are acknowledged."""
        await self.send_raw([(key or key_of(event), frame(event)) for event in events])

    async def send_raw(self, records, stem="usage"):
        """Append (key, value) records, each to the partition of its key."""
        topic, count = self.settings.topic(stem), self.settings.partitions
        sent = [
            await self.producer.send(topic, value, key=key, partition=partition_of(key, count))
            for key, value in records
        ]
        await asyncio.gather(*sent)

    async def apply(self, *commands):
        """Append account commands."""
        frames = [(key_of(each), CODEC.encode("account_command", each)) for each in commands]
        await self.send_raw(frames, "commands")

    async def follow(self):
        """Read every topic to its present end."""
        ends = await self._follower.end_offsets(self._tps)
        while any([await self._follower.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await self._follower.getmany(timeout_ms=200)).items():
                stem = tp.topic.removeprefix(self.settings.topic_prefix)
                for record in records:
                    self._take(stem, record)

    def _take(self, stem, record):
        books = self.books
        if stem == "usage":
            at = record.partition, record.offset
            books.usage[at], books.decoded[at] = record, event_of(record)
            return
        if record.value is None:
            return
        name, fields = CODEC.decode(record.value)
        if name == "charging_heartbeat":
            books.heartbeats.append(fields)
            books.moments[id(fields)] = record.timestamp
            return
        place = {
            "charged": books.charged,
            "windows": books.windows,
            "decisions": books.decisions,
            "dead-letters": books.dead,
            "commands": books.applied,
        }
        place[stem].append(fields)
        books.moments[id(fields)] = record.timestamp

    async def until(self, condition, within_s=SETTLE_S, what=""):
        """Follow until `condition()` is true.

        Raises:
            AssertionError: it was not, in time.
        """
        deadline = time.monotonic() + within_s
        while True:
            await self.follow()
            if condition():
                return
            assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}"
            await asyncio.sleep(0.05)

    async def settled(self, within_s=2 * SETTLE_S):
        """Return when all usage is charged and all of it told; then all books must agree.

        Raises:
            AssertionError: they do not; the text says where.
        """
        deadline = time.monotonic() + within_s
        while True:
            await self.follow()
            try:
                return check(self.books)
            except Unflushed:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def known(self, *accounts):
        """Return when charging knows these accounts: it reads usage and commands side by side."""
        await self.until(
            lambda: last_decisions(self.books).keys() >= set(accounts), what="accounts known"
        )

    async def charging(self, within_s=15.0):
        """Send one event an account of every partition; return the seconds until all are charged."""
        began = time.monotonic()
        await self.follow()
        ends = await self._ends("usage")
        await self.until(
            lambda: all(charged_to(self.books, tp.partition) >= end for tp, end in ends.items()),
            within_s,
            "charging works on",
        )
        return time.monotonic() - began

    async def _ends(self, stem):
        return await self._follower.end_offsets(
            [tp for tp in self._tps if tp.topic == self.settings.topic(stem)]
        )


def frame(event):
    """Return the wire form of an event."""
    return CODEC.encode("usage_event", event)


async def ready(worker, within_s=30):
    """Return when a started worker is ready."""
    await asyncio.to_thread(worker.await_ready, within_s)


async def ended(worker, within_s=20):
    """Return the exit code of a worker that ends by itself."""
    deadline = time.monotonic() + within_s
    while worker.running:
        assert time.monotonic() < deadline, f"still running: {worker.log.read_text()[-3000:]}"
        await asyncio.sleep(0.05)
    return worker.process.returncode


@dataclass
class Load:
    """Send events until told to stop: among them re-sent ones and rubbish."""

    line: Line
    accounts: int = 40
    pause_s: float = 0.02
    burst: int = 25
    seed: int = 7
    gateway: str = "gw-1"
    sent: int = 0
    _stop: bool = False

    async def __aenter__(self):
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error):
        self._stop = True
        await self._task

    async def _run(self):
        rng, recent = random.Random(self.seed), []
        while not self._stop:
            events = [self._draw(rng, recent) for _ in range(self.burst)]
            recent = [*recent, *events][-500:]
            records = [(key_of(event), frame(event)) for event in events]
            if rng.random() < 0.3:
                records.append((records[0][0], rng.choice(RUBBISH)))
            await self.line.send_raw(records)
            self.sent += len(records)
            await asyncio.sleep(self.pause_s)

    def _draw(self, rng, recent):
        if recent and rng.random() < 0.1:
            return rng.choice(recent) | {"gateway_id": f"{self.gateway}-again"}
        account = account_name(int(self.accounts ** rng.random()) - 1)
        tokens = {"input_tokens": rng.randrange(1, 2000), "output_tokens": rng.randrange(1, 500)}
        names = {"subscriber_id": f"u{rng.randrange(3)}", "model": f"m{rng.randrange(3)}"}
        return usage(account, gateway=self.gateway, seq=self.sent, **tokens, **names)


def account_name(number):
    """Return the name of a test account."""
    return f"acct-{number:04d}"


RUBBISH = (
    b"",
    b"\0",
    b"not avro at all",
    b"\0\0\0\xff\xff" + b"x" * 20,
    frame(usage("acct-0000", input_tokens=1))[:-9],
)


async def prepared(line, accounts=40, month_tokens=-1):
    """Apply the accounts of a load and return a worker that knows them all."""
    names = [account_name(number) for number in range(accounts)]
    await line.apply(*(command(name, month_tokens=month_tokens) for name in names))
    worker = await line.started()
    await line.known(*names)
    return worker


def main():
    """Be a charging worker that ends itself, as kill -9 would, at the point named first.

    `point@FILE` gets everything loaded and waits for FILE before it becomes a worker.
    """
    import charging_points

    import streams.charging  # noqa: F401  loading takes seconds
    from tokenline.platform import worker

    point, _, gate = sys.argv[1].partition("@")
    charging_points.arm(point)
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    os._exit(worker.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
