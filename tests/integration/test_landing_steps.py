"""Kill the lander, or the warehouse under it, at exact points; carry on with other bounds."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid

import numpy as np
import pyarrow as pa
import pytest

from tokenline.clock import FrozenClock
from tokenline.errors import WarehouseUnavailable
from tokenline.landing import migrate
from tokenline.landing.batch import Batch
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.lander import Lander
from tokenline.landing.progress import LandingProgress
from tokenline.landing.quarantine import Quarantine
from tokenline.landing.reader import Run
from tokenline.landing.seal import digest_of, walk
from tokenline.landing.verdicts import Verdicts
from tokenline.settings import Settings
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

TOPIC = "t.usage"
RECORDS = 1000
NOON_MS = 1_790_000_000_000
MONTH_MS = 31 * 86_400_000


class Killed(BaseException):
    """Stand for kill -9: nothing of ours catches it."""


class Usage:
    """Be what Kafka holds of one partition: events over two months, a few copies or late."""

    def __init__(self):
        self.codec = ColumnCodec(FileRegistry())
        blank = self.codec.empty("usage_event").schema
        events = [_event(blank, at) for at in range(RECORDS)]
        self.values = self.codec.encode(
            "usage_event", pa.RecordBatch.from_pylist(events, schema=blank)
        )
        self.late, self.duplicate = np.arange(50, RECORDS, 100), np.arange(70, RECORDS, 100)

    def batch(self, lo, hi):
        late, duplicate = (
            offsets[(offsets >= lo) & (offsets <= hi)] for offsets in (self.late, self.duplicate)
        )
        verdicts = Verdicts(late=late, duplicate=duplicate)
        return Batch(lo=lo, hi=hi, verdicts=verdicts, as_of_ms=NOON_MS, acks=[])

    def run(self, lo, hi):
        offsets = np.arange(lo, hi + 1, dtype=np.int64)
        return Run(offsets=offsets, appended_ms=offsets + NOON_MS, values=self.values[lo : hi + 1])


def _event(blank, at):
    zero = {field.name: _zero(field.type) for field in blank}
    # Offsets 170, 270, … repeat an event and are judged so; 150, 350, … are late and repeat one
    # that charging has forgotten.
    shown = at - 100 if at % 100 == 70 and at > 100 else at
    shown = at - 3 if at % 200 == 150 else shown
    return zero | {
        "tenant_id": "cm", "source": "gw", "event_id": f"e{shown}", "account_id": f"a{shown % 7}",
        "occurred_at": NOON_MS - (shown % 2) * MONTH_MS + shown, "input_tokens": shown,
        "usage_source": "reported", "outcome": "completed",
    }  # fmt: skip


def _zero(kind):
    if pa.types.is_map(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


@pytest.fixture(scope="module")
def usage():
    return Usage()


def fresh(url):
    settings = Settings(clickhouse_url=url, clickhouse_database=f"s_{uuid.uuid4().hex[:10]}")
    migrate.apply(settings)
    return ClickHouseStore(settings)


def lander(store, usage, generation, step=lambda _name: None):
    return Lander(
        store,
        usage.codec,
        Quarantine(store, LandingProgress()),
        topic=TOPIC,
        partition=0,
        generation=generation,
        clock=FrozenClock(),
        step=step,
    )


def land_all(one, usage, size):
    last = one.resume()
    lo = 0 if last is None else last.hi + 1
    while lo < RECORDS:
        hi = min(lo + size, RECORDS) - 1
        one.land(usage.batch(lo, hi), usage.run(lo, hi))
        lo = hi + 1


def assert_whole(store):
    found = walk(store.seals(TOPIC))
    rows = store.ledger_between(TOPIC, 0, 0, RECORDS)

    assert found.faults == []
    assert found.next_offset == RECORDS
    # 10 copies that charging named, 5 late ones that only the ledger knew.
    assert rows.num_rows == RECORDS - 15
    assert sum(seal.counted + seal.late for seal in found.kept) == RECORDS - 15
    assert sum(seal.duplicate for seal in found.kept) == 15
    assert sum(seal.tokens for seal in found.kept) == sum(rows.column("total_tokens").to_pylist())
    for seal in found.kept:
        assert digest_of(store.ledger_between(TOPIC, 0, seal.lo, seal.hi)) == seal.digest


@pytest.mark.parametrize("point", ["read", "ledger", "duplicates", "seal"])
def test_killed_between_any_two_steps_and_resumed_with_other_bounds(warehouse, usage, point):
    store = fresh(warehouse)
    for generation, size in enumerate((130, 70, 210), start=1):
        left = 2

        def step(name):
            nonlocal left
            left -= name == point
            if left == 0:
                raise Killed

        with pytest.raises(Killed):
            land_all(lander(store, usage, generation, step), usage, size)
    land_all(lander(store, usage, 9), usage, 333)

    assert_whole(store)


def test_a_writer_that_wakes_after_its_successor_changes_nothing(warehouse, usage):
    store = fresh(warehouse)
    lost, owner = lander(store, usage, 1), lander(store, usage, 2)
    lost.resume()
    lost.land(usage.batch(0, 99), usage.run(0, 99))
    land_all(owner, usage, 150)
    lost.land(usage.batch(100, 299), usage.run(100, 299))
    lost.land(usage.batch(300, 499), usage.run(300, 499))

    assert_whole(store)
    assert len(store.seals(TOPIC)) > len(walk(store.seals(TOPIC)).kept)


def test_a_row_changed_in_the_warehouse_breaks_its_seal_and_only_that(warehouse, usage):
    store = fresh(warehouse)
    land_all(lander(store, usage, 1), usage, 100)
    store._client().command(
        f"ALTER TABLE {store._database}.ledger "
        "UPDATE total_tokens = total_tokens + 1 WHERE offset = 333",
        settings={"mutations_sync": 1},
    )
    broken = [
        seal.lo
        for seal in walk(store.seals(TOPIC)).kept
        if digest_of(store.ledger_between(TOPIC, 0, seal.lo, seal.hi)) != seal.digest
    ]

    assert broken == [300]


def test_a_deleted_seal_is_found(warehouse, usage):
    store = fresh(warehouse)
    land_all(lander(store, usage, 1), usage, 100)
    store._client().command(
        f"DELETE FROM {store._database}.seals WHERE lo = 400", settings={"mutations_sync": 1}
    )

    assert walk(store.seals(TOPIC)).faults == [
        f"{TOPIC}[0]: no seal starts at 400, the next one starts at 500"
    ]


# (after this step, at this rename): the two months of the ledger, the duplicates, the seal
RENAMES = [("read", 1), ("read", 2), ("ledger", 1), ("duplicates", 1)]


def test_the_warehouse_dies_between_the_files_of_a_part_and_the_part(private_warehouse, usage):
    """Hit the window in which a dedup log would lose rows: files written, rename not done."""
    store = fresh(private_warehouse.dsn())
    killer = Killer(private_warehouse)
    for generation, (after, count) in enumerate(RENAMES, start=1):
        killer.arm(after, count)
        one = lander(store, usage, generation, killer.step)
        last = one.resume()
        lo = 0 if last is None else last.hi + 1
        hi = min(lo + 150, RECORDS) - 1
        while True:
            try:
                one.look(lo)
                one.land(usage.batch(lo, hi), usage.run(lo, hi))
                break
            except WarehouseUnavailable:
                killer.mend()
        killer.disarm()
    land_all(lander(store, usage, 99), usage, 400)

    assert_whole(store)
    assert killer.deaths == len(RENAMES)


class Killer:
    """Kill the warehouse at its n-th rename after a step; without strace, right after it."""

    def __init__(self, warehouse):
        self._warehouse = warehouse
        self._armed = ("", 0)
        self._strace = None
        self.deaths = 0

    def arm(self, after, count):
        self._armed = (after, count)

    def step(self, name):
        after, count = self._armed
        if name != after:
            return
        self._armed = ("", 0)
        if shutil.which("strace") is None:
            self._warehouse.kill()
            return
        calls = "rename,renameat,renameat2"
        self._strace = subprocess.Popen(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}",
             "-e", f"inject={calls}:signal=SIGKILL:when={count}", "-p", str(self._warehouse.pid)],
        )  # fmt: skip
        time.sleep(0.7)  # until it holds every thread

    def mend(self):
        """Wait for the death and start the warehouse again."""
        self._warehouse.process.wait(10)
        self.deaths += 1
        self._warehouse.start()

    def disarm(self):
        if self._strace is not None:
            self._strace.terminate()
            self._strace.wait()
            self._strace = None
