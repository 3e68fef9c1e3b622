"""Stand a whole line up, and write to its topics as a foreign producer does: with librdkafka."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass, field

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tokenline.event import UsageEvent
from tokenline.landing import migrate
from tokenline.landing.queries import Asker
from tokenline.landing.reconcile import reconcile
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess, ask_health
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key, librdkafka_options, partition_of
from tokenline.wire.registry import FileRegistry
from tokenline.wire.topics import ensure_topics

CODEC = Codec(FileRegistry())
WAIT_S = 60
ROLES = ("charging", "landing")
NO_LIMITS = {
    f"{name}_{unit}": -1
    for name, unit in itertools.product(("minute", "hour", "day"), ("tokens", "requests"))
}


def now_ms():
    return time.time_ns() // 1_000_000


def event(account, tenant="default", **fields):
    """Return the frame of one usage event."""
    said = {"source": "gw", "provider": "p", "model": "m", "occurred_at": now_ms()} | fields
    said.setdefault("input_tokens", 10)
    stamp = {"gateway_id": "foreign", "gateway_version": "", "gateway_epoch": "", "gateway_seq": 0}
    record = UsageEvent(account_id=account, tenant_id=tenant, **said).record()
    return CODEC.encode("usage_event", record | stamp)


def account_command(account, tenant="default", **fields):
    """Return the frame of a command that sets an account without limits."""
    said = NO_LIMITS | {
        "tenant_id": tenant, "account_id": account, "command_id": uuid.uuid4().hex,
        "plan": "test", "time_zone": "UTC", "month_tokens": -1, "issued_at": now_ms(),
    }  # fmt: skip
    return CODEC.encode("account_command", said | fields)


@dataclass
class Stand:
    """Own a line's topics, tables and workers; `account` is one of partition 0, `accounts` one of each."""

    settings: object
    log_dir: object
    workers: dict = field(default_factory=dict)

    def __enter__(self):
        asyncio.run(ensure_topics(self.settings))
        migrate.apply(self.settings)
        self._asker = Asker(self.settings)
        self.admin = AdminClient(self._client())
        self.accounts = [self._account_of(at) for at in range(self.settings.partitions)]
        self.account = self.accounts[0]
        return self

    def __exit__(self, *error):
        for worker in self.workers.values():
            worker.kill()
            if error[0] is not None:
                print(f"--- {worker.log}\n{worker.log.read_text()[-6000:]}")
        self._asker.close()

    def _account_of(self, partition):
        names = (f"acct-{number}" for number in itertools.count())
        return next(name for name in names if self.home(name) == partition)

    def home(self, account):
        return partition_of(account_key("default", account), self.settings.partitions)

    def topic(self, stem):
        return self.settings.topic(stem)

    def producer(self, **options):
        """Return a producer of librdkafka."""
        return Producer(self._client() | options)

    def _client(self):
        own = librdkafka_options(self.settings)
        del own["partitioner"]  # a foreign producer has its own default
        # Its own words are of no use: a broker that ends with the tests is no news.
        return own | {"log_level": 0}

    def consumer(self, **options):
        """Return a consumer that sees what is not committed, as the workers do."""
        own = {"group.id": uuid.uuid4().hex, "isolation.level": "read_uncommitted"}
        return Consumer(self._client() | own | options)

    def put(self, stem, records, partition=0, producer=None):
        """Append (key, value) records to a partition and return when all are there."""
        producer = producer or self.producer()
        for key, value in records:
            producer.produce(self.topic(stem), value, key, partition=partition)
        assert producer.flush(30) == 0

    def apply(self, *accounts):
        for one in accounts or (self.account,):
            record = account_key("default", one), account_command(one)
            self.put("commands", [record], self.home(one))

    def use(self, count=3, account=None, **fields):
        """Append so many events of one account, where they belong, each a batch of its own."""
        account = account or self.account
        key, producer = account_key("default", account), self.producer()
        for _ in range(count):
            self.put("usage", [(key, event(account, **fields))], self.home(account), producer)

    def in_transaction(self, records, *, end, stem="usage", partition=0, name=""):
        """Write records in a transaction and `end` it: commit, abort, or leave (then the producer)."""
        producer = self.producer(**{"transactional.id": name or uuid.uuid4().hex})
        producer.init_transactions(30)
        producer.begin_transaction()
        self.put(stem, records, partition, producer)
        if end == "commit":
            producer.commit_transaction(30)
        elif end == "abort":
            producer.abort_transaction(30)
        return producer

    def bounds(self, stem, partition=0):
        """Return first and next offset of a partition."""
        consumer = self.consumer()
        place = TopicPartition(self.topic(stem), partition)
        low, high = consumer.get_watermark_offsets(place, timeout=20)
        consumer.close()
        return low, high

    def delete_to(self, stem, offset, partition=0):
        """Delete all records of a partition below an offset."""
        place = TopicPartition(self.topic(stem), partition, offset)
        for done in self.admin.delete_records([place]).values():
            done.result(30)

    def worker(self, role, log):
        return WorkerProcess(role, self.settings, log, port=free_port())

    def start(self, *roles):
        for role in roles or ROLES:
            log = self.log_dir / f"{role}-{uuid.uuid4().hex[:6]}.log"
            self.workers[role] = self.worker(role, log)
            self.workers[role].start(60)

    def stop(self, *roles):
        """End workers cleanly; each must end well."""
        for role in roles or ROLES:
            worker = self.workers.pop(role)
            worker.stop(20)
            assert worker.process.returncode == 0, worker.log.read_text()[-3000:]

    def restart(self):
        self.stop()
        self.start()

    def metrics(self, role="charging"):
        return ask_health(self.workers[role].port, "/metrics")[1]

    def all_charged(self, partition=0):
        """Return when all that Kafka has of a partition is charged and told."""
        end = self.bounds("usage", partition)[1]
        line = f'next_offset{{partition="{partition}",topic="usage"}} {end}.0'
        self.until(lambda: line in self.metrics(), what=f"charged to {end}")

    def text(self, role):
        """Return what a worker that runs has logged."""
        return self.workers[role].log.read_text()

    def ask(self, query):
        return [tuple(row) for row in self._asker.rows(query)]

    def until(self, claim, within_s=WAIT_S, what=""):
        """Return what `claim()` returns once that is true; no worker may end meanwhile."""
        deadline = time.monotonic() + within_s
        while not (found := claim()):
            for role, worker in self.workers.items():
                assert worker.running, f"{role} ended: {worker.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            time.sleep(0.1)
        return found

    def sealed_to(self, partition=0):
        """Return the first offset of usage that is not sealed."""
        rows = self.ask(
            f"SELECT max(hi) + 1 FROM {{db}}.seals FINAL WHERE partition = {partition} "
            "AND topic LIKE '%usage' HAVING count() > 0"
        )
        return int(rows[0][0]) if rows else 0

    def all_sealed(self, partition=0, within_s=WAIT_S):
        """Return when all that Kafka has of a partition is sealed."""
        end = self.bounds("usage", partition)[1]
        self.until(lambda: self.sealed_to(partition) >= end, within_s, f"sealed to {end}")
        assert self.sealed_to(partition) == end

    def seals(self, *names, partition=0):
        """Return the sums of these columns over all seals of a partition."""
        sums = ", ".join(f"sum({name})" for name in names)
        query = f"SELECT {sums} FROM {{db}}.seals FINAL WHERE partition = {partition}"
        return tuple(map(int, self.ask(query)[0]))

    def letters(self, where="1"):
        """Return how many dead letters there are of each reason."""
        rows = self.ask(
            f"SELECT reason, count() FROM {{db}}.v_dead_letters WHERE {where} GROUP BY reason"
        )
        return {reason: int(count) for reason, count in rows}

    def reconcile(self, wait_s=30, **accepted):
        return reconcile(self.settings, wait_s, **accepted)
