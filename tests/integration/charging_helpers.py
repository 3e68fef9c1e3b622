"""Load the line, follow all that charging publishes, and say whether it is exact.

The oracle shares no code with charging: it judges the usage topic in plain Python and compares
integers. Run as a program, this file is a charging worker that ends itself at a named point.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import sys
import time
import uuid
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tokenline.event import TOKEN_KINDS, UsageEvent
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.registry import FileRegistry
from tokenline.wire.topics import ensure_topics

CODEC = Codec(FileRegistry())
FOLLOWED = ("usage", "charged", "windows", "decisions", "dead-letters", "commands")
ZONE = "Asia/Shanghai"
HORIZON_MS, FUTURE_MS = 3_600_000, 300_000
SETTLE_S = 30
LIMITS = ("month", "minute", "hour", "day")
THIS = str(Path(__file__).resolve())


def usage(account, *, gateway="gw-1", seq=0, tenant="default", **fields):
    """Return one usage event as the emitter would write it."""
    now = time.time_ns() // 1_000_000
    fields = {"source": "gw", "provider": "p", "model": "m", "occurred_at": now} | fields
    event = UsageEvent(account_id=account, tenant_id=tenant, **fields)
    stamp = {"gateway_id": gateway, "gateway_version": "1", "gateway_epoch": "e1", "gateway_seq": seq}
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


@dataclass
class Books:
    """Hold everything the topics say, decoded."""

    usage: dict = field(default_factory=dict)  # (partition, offset) -> record
    decoded: dict = field(default_factory=dict)  # (partition, offset) -> event or None
    charged: list = field(default_factory=list)
    windows: list = field(default_factory=list)
    decisions: list = field(default_factory=list)
    heartbeats: list = field(default_factory=list)
    dead: list = field(default_factory=list)
    applied: list = field(default_factory=list)
    moments: dict = field(default_factory=dict)  # id(decision) -> append time


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
            books.usage[at], books.decoded[at] = record, _event(record)
            return
        if record.value is None:
            return
        name, fields = CODEC.decode(record.value)
        if name == "charging_heartbeat":
            books.heartbeats.append(fields)
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

    async def settled(self, within_s=SETTLE_S):
        """Return when all usage is charged and flushed; then all books must agree.

        Raises:
            AssertionError: they do not; the text says where.
        """
        await self.until(
            lambda: not uncharged(self.books, self.settings.partitions),
            within_s,
            "all usage charged",
        )
        deadline = time.monotonic() + within_s
        while True:
            try:
                check(self.books)
            except Unflushed:
                assert time.monotonic() < deadline, differences(self.books)
                await asyncio.sleep(0.1)
                await self.follow()
            else:
                return

    async def charging(self, within_s=15.0):
        """Send one event an account of every partition; return the seconds until all are charged."""
        began = time.monotonic()
        await self.follow()
        ends = {tp: end for tp, end in (await self._ends("usage")).items()}
        await self.until(
            lambda: all(_charged_to(self.books, tp.partition) >= end for tp, end in ends.items()),
            within_s,
            "charging works on",
        )
        return time.monotonic() - began

    async def _ends(self, stem):
        return await self._follower.end_offsets(
            [tp for tp in self._tps if tp.topic == self.settings.topic(stem)]
        )


class Unflushed(AssertionError):
    """The judgement is right, totals are not published yet (or wrong)."""


def key_of(record):
    """Return the Kafka key of an event or a command."""
    return account_key(record["tenant_id"], record["account_id"])


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


# The oracle


def _event(record):
    try:
        name, fields = CODEC.decode(record.value)
    except Exception:  # noqa: BLE001  whatever cannot be read is one thing here
        return None
    return fields if name == "usage_event" else None


def _charged_to(books, partition):
    ranges = [r for r in books.charged if r["partition"] == partition]
    return max((r["hi_offset"] + 1 for r in ranges), default=0)


def uncharged(books, partitions):
    """Return the usage offsets no charged range covers."""
    covered = {number: set() for number in range(partitions)}
    for r in books.charged:
        covered[r["partition"]].update(range(r["lo_offset"], r["hi_offset"] + 1))
    return [at for at in books.usage if at[1] not in covered[at[0]]]


def verdicts(books):
    """Return what charging said of each offset; published twice, it must have said the same."""
    found = {}
    for r in books.charged:
        special = {
            offset: name
            for name in ("late", "duplicate", "rejected")
            for offset in r[f"{name}_offsets"]
        }
        for offset in range(r["lo_offset"], r["hi_offset"] + 1):
            at, verdict = (r["partition"], offset), special.get(offset, "counted")
            assert found.setdefault(at, verdict) == verdict, f"{at}: {found[at]}, then {verdict}"
    return found


def expected(books, said):
    """Judge every usage record as charging must; accounts become known when charging first knew."""
    seen, found = set(), {}
    for at in sorted(books.usage):
        record, event = books.usage[at], books.decoded[at]
        found[at] = _judge(record, event, seen, said.get(at))
    return found


def _judge(record, event, seen, said):
    if event is None or record.key != key_of(event):
        return "rejected"
    age = record.timestamp - event["occurred_at"]
    if age < -FUTURE_MS or any(event[kind] < 0 for kind in TOKEN_KINDS):
        return "rejected"
    if event["account_id"].startswith("unknown") and said == "rejected":
        return "rejected"  # when an account becomes known is charging's to say
    if age > HORIZON_MS:
        return "late"
    name = event["tenant_id"], event["source"], event["event_id"]
    if name in seen:
        return "duplicate"
    seen.add(name)
    return "counted"


def newest(rows, key, content):
    """Return the row of the highest version for each key; equal versions must say the same."""
    found = {}
    for row in rows:
        held = found.get(key(row))
        if held is not None and held["version"] == row["version"]:
            same = content(held) == content(row)
            assert same, f"{key(row)} version {row['version']}: {content(held)} and {content(row)}"
        if held is None or row["version"] > held["version"]:
            found[key(row)] = row
    return found


def _window_key(row):
    names = ("tenant_id", "account_id", "subscriber_id", "provider", "model", "window_start")
    return tuple(row[name] for name in names)


def _sums(row):
    return Counter({name: row[name] for name in ("events", "total_tokens", *TOKEN_KINDS)})


def window_totals(books):
    """Return the minute windows as a reader of v_windows sees them."""
    rows = [row for row in books.windows if row["grain"] == "minute"]
    segments = newest(rows, lambda row: (*_window_key(row), row["segment_start"]), _sums)
    totals = defaultdict(Counter)
    for key, row in segments.items():
        totals[key[:-1]].update(_sums(row))
    return {key: +total for key, total in totals.items()}


def month_totals(books):
    """Return (events, tokens) of each account and month."""
    rows = [row for row in books.windows if row["grain"] == "month"]

    def key(row):
        return row["tenant_id"], row["account_id"], row["window_start"]

    def content(row):
        return row["events"], row["total_tokens"]

    return {at: content(row) for at, row in newest(rows, key, content).items()}


def counted_events(books, said):
    """Return the events that count."""
    return [books.decoded[at] for at, verdict in said.items() if verdict == "counted"]


def expected_windows(events):
    """Return what the minute windows must be."""
    totals = defaultdict(Counter)
    for event in events:
        key = _window_key(event | {"window_start": event["occurred_at"] // 60_000 * 60_000})
        kinds = {kind: event[kind] for kind in TOKEN_KINDS}
        totals[key].update(kinds | {"events": 1, "total_tokens": sum(kinds.values())})
    return {key: +total for key, total in totals.items()}


def expected_months(events):
    """Return what the month counters must be."""
    totals = defaultdict(lambda: (0, 0))
    for event in events:
        key = event["tenant_id"], event["account_id"], month_start(event["occurred_at"])
        number, tokens = totals[key]
        totals[key] = number + 1, tokens + sum(event[kind] for kind in TOKEN_KINDS)
    return dict(totals)


def month_start(moment_ms):
    """Return the first moment of a month in the zone of all test accounts."""
    local = datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(ZONE))
    first = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(first.timestamp() * 1000)


def differences(books):
    """Return for each place where totals differ: key, expected, found; at most ten."""
    events = counted_events(books, verdicts(books))
    found = []
    for want, have in (
        (expected_windows(events), window_totals(books)),
        (expected_months(events), month_totals(books)),
    ):
        keys = sorted(want.keys() | have.keys())
        found += [(key, want.get(key), have.get(key)) for key in keys if want.get(key) != have.get(key)]
    return found[:10]


def check(books):
    """Compare everything with everything, in integers.

    Raises:
        Unflushed: only totals differ.
        AssertionError: charging judged wrongly or contradicted itself.
    """
    said = verdicts(books)
    assert said.keys() == books.usage.keys()
    wanted = expected(books, said)
    wrong = [(at, wanted[at], said[at]) for at in said if wanted[at] != said[at]]
    assert not wrong, f"{len(wrong)} judged wrongly, as {wrong[:5]}"
    check_dead(books, said)
    check_decisions(books)
    if found := differences(books):
        raise Unflushed(found)


def check_dead(books, said):
    """Every rejected record is in the dead letters with its own bytes, and nothing else is."""
    letters = [letter for letter in books.dead if letter["topic"].endswith(".usage")]
    rejected = {at for at, verdict in said.items() if verdict == "rejected"}
    assert {(letter["partition"], letter["offset"]) for letter in letters} == rejected
    for letter in letters:
        record = books.usage[letter["partition"], letter["offset"]]
        assert base64.b64decode(letter["value_base64"]) == (record.value or b"")
        assert base64.b64decode(letter["key_base64"]) == (record.key or b"")


def check_decisions(books):
    """Versions have no gaps, each says one thing, and each threshold of a month is told once."""
    by_account = defaultdict(dict)
    for row in books.decisions:
        content = {name: value for name, value in row.items() if name != "epoch"}
        held = by_account[row["tenant_id"], row["account_id"]].setdefault(row["version"], content)
        assert held == content, f"version {row['version']} was {held}, then {content}"
    for account, rows in by_account.items():
        assert sorted(rows) == list(range(1, len(rows) + 1)), f"{account}: {sorted(rows)}"
        told = Counter(row["threshold_percent"] for row in rows.values())
        repeated = {percent: times for percent, times in told.items() if percent and times > 1}
        assert not repeated, f"{account} was told thresholds again: {repeated}"


def last_decisions(books):
    """Return the decision in force for each account."""
    found = {}
    for row in sorted(books.decisions, key=lambda row: row["version"]):
        found[row["account_id"]] = row
    return found


# Load


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
    await line.until(lambda: last_decisions(line.books).keys() >= set(names), what="accounts known")
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
