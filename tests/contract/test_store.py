"""Hold the memory store and ClickHouse to one contract: `tokenline.landing.store.Store`."""

from __future__ import annotations

import uuid
from dataclasses import replace

import clickhouse_connect
import numpy as np
import pyarrow as pa
import pytest

from tokenline.errors import BadData, SettingsError, WarehouseUnavailable
from tokenline.landing import migrate
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.memory import MemoryStore
from tokenline.landing.progress import LandingProgress
from tokenline.landing.quarantine import Held, Quarantine
from tokenline.landing.ranges import Fault
from tokenline.landing.row import (
    LEDGER_SCHEMA,
    Events,
    duplicate_rows,
    identities_at,
    ledger_rows,
)
from tokenline.landing.seal import CLASSES, GENESIS, Seal, chain_of, digest_of, walk
from tokenline.settings import Settings

TOPIC = "t.usage"
DAY_MS = 86_400_000
NOON_MS = 1_790_000_000_000


@pytest.fixture(scope="module")
def warehouse_settings(warehouse):
    line = Settings(clickhouse_url=warehouse, clickhouse_database=f"c_{uuid.uuid4().hex[:10]}")
    migrate.apply(line)
    yield line
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        client.command(f"DROP DATABASE IF EXISTS {line.clickhouse_database} SYNC")


@pytest.fixture(params=["memory", "clickhouse"])
def store(request):
    """A store; tests keep apart by a topic of their own."""
    if request.param == "memory":
        yield MemoryStore()
        return
    store = ClickHouseStore(request.getfixturevalue("warehouse_settings"))
    yield store
    store.close()


@pytest.fixture
def topic():
    return f"u{uuid.uuid4().hex[:8]}"


def event(event_id, **fields):
    zero = {field.name: _zero(field.type) for field in LEDGER_SCHEMA}
    fixed = {
        "source": "gw",
        "account_id": "a1",
        "occurred_at": NOON_MS,
        "started_at": NOON_MS - 900,
    }
    return zero | fixed | {"event_id": event_id} | fields


def _zero(kind):
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


def events_of(rows, topic, lo=0, *, late=(), repeats=()):
    # A tenant for each test: the key of an event does not name its topic.
    batch = pa.RecordBatch.from_pylist(
        [row | {"tenant_id": topic + row["tenant_id"]} for row in rows], schema=LEDGER_SCHEMA
    )
    offsets = np.arange(lo, lo + len(rows), dtype=np.int64)
    return Events(
        topic=topic,
        partition=3,
        batch=batch,
        offsets=offsets,
        appended_ms=offsets + NOON_MS,
        late=np.isin(offsets, late),
        repeats=np.isin(offsets, repeats),
    )


def asked_of(events):
    return identities_at(events, np.flatnonzero(events.late & ~events.repeats))


def seal_of(topic, lo, hi, prev=GENESIS, epoch=1, **fields):
    blank = Seal(
        topic=topic,
        partition=3,
        lo=lo,
        hi=hi,
        counted=hi - lo + 1,
        late=0,
        duplicate=0,
        rejected=0,
        absent=0,
        tokens=5,
        digest="ab" * 32,
        prev=prev,
        writer_epoch=epoch,
        as_of_ms=NOON_MS,
        landed_at_ms=NOON_MS + 1,
    )
    seal = replace(blank, **fields)
    return replace(seal, chain=chain_of(seal))


def test_what_was_inserted_comes_back_to_the_last_bit(store, topic):
    rows = [
        event(
            "e1",
            account_id="账户/1",
            input_tokens=2**53 + 1,
            tags=[("b", "2"), ("a", "é'\\\n\t")],
            other_units=[("audio_ms", 7)],
        ),
        event(
            "e'2",
            account_id="",
            gateway_seq=2**63 - 1,
            attempt=-1,
            started_at=0,
            subscriber_id="\x00nul",
        ),
        event("e3", occurred_at=NOON_MS - 40 * DAY_MS, output_tokens=2**62),
    ]
    table = ledger_rows(events_of(rows, topic, late=[2]))
    store.insert("ledger", table)

    back = store.ledger_between(topic, 3, 0, 10)

    assert digest_of(table) == digest_of(back)
    assert back.column("total_tokens").to_pylist() == [2**53 + 1, 0, 2**62]
    assert back.column("event_id").to_pylist() == ["e1", "e'2", "e3"]
    assert back.column("late").to_pylist() == [0, 0, 1]


def test_a_time_no_clock_ever_showed_comes_back_too(store, topic):
    table = ledger_rows(
        events_of([event("e1", started_at=2**62), event("e2", started_at=-(2**62))], topic)
    )
    store.insert("ledger", table)

    assert digest_of(table) == digest_of(store.ledger_between(topic, 3, 0, 1))


def test_rows_inserted_twice_are_there_once(store, topic):
    table = ledger_rows(events_of([event(f"e{i}") for i in range(5)], topic))
    store.insert("ledger", table)
    store.insert("ledger", table.slice(1, 3))

    assert store.ledger_between(topic, 3, 0, 9).num_rows == 5
    assert store.landed_offsets(topic, 3, 2).tolist() == [2, 3, 4]


def test_two_records_of_one_event_are_two_rows_and_one_record_is_one(store, topic):
    """What charging counted twice must be seen; late copies are found before they come here."""
    early = ledger_rows(events_of([event("same")], topic, lo=7))
    late = ledger_rows(events_of([event("same", occurred_at=NOON_MS + DAY_MS)], topic, lo=90))
    for rows in (late, early, late):
        store.insert("ledger", rows)

    assert store.ledger_between(topic, 3, 0, 100).column("offset").to_pylist() == [7, 90]


def test_earlier_copies_are_found_by_identity_below_the_offset_only(store, topic):
    store.insert("ledger", ledger_rows(events_of([event("o'ne"), event("two")], topic, lo=10)))
    again = [event("o'ne", occurred_at=NOON_MS - 9), event("two"), event("new")]
    again += [event("two", source="other"), event("two", account_id="other")]
    events = events_of(again, topic, lo=11, late=[11, 12, 13, 14, 15])

    assert store.earlier_copies(topic, 3, asked_of(events)) == {0, 1}
    assert store.earlier_copies(topic, 4, asked_of(events)) == set()


def test_an_earlier_event_of_another_tenant_is_no_copy(store, topic):
    store.insert("ledger", ledger_rows(events_of([event("one", tenant_id="x")], topic, lo=10)))
    again = [event("one", tenant_id="y"), event("one", tenant_id="x")]
    events = events_of(again, topic, lo=11, late=[11, 12])

    assert store.earlier_copies(topic, 3, asked_of(events)) == {1}


def test_many_late_events_with_long_names_are_looked_up(store, topic):
    """All of them stand in one query, which had the server's bound of 256 KiB."""
    rows = [event(f"{number:0>90}", account_id=f"{number:0>90}") for number in range(2500)]
    store.insert("ledger", ledger_rows(events_of(rows[:1300], topic)))
    late = events_of(rows, topic, lo=5000, late=range(5000, 7500))

    assert store.earlier_copies(topic, 3, asked_of(late)) == set(range(1300))


def test_an_event_is_no_copy_of_itself(store, topic):
    events = events_of([event("one")], topic, lo=10, late=[10])
    store.insert("ledger", ledger_rows(events))

    assert store.earlier_copies(topic, 3, asked_of(events)) == set()


def test_the_newest_seal_is_that_of_the_highest_epoch(store, topic):
    first = seal_of(topic, 0, 9, epoch=5)
    zombie = seal_of(topic, 10, 99, prev=first.chain, epoch=5)
    owner = seal_of(topic, 10, 19, prev=first.chain, epoch=6)
    for seal in (first, owner, zombie, owner):
        store.put_seal(seal)

    assert store.newest_seal(topic, 3) == owner
    assert store.newest_seal(topic, 4) is None
    found = walk(store.seals(topic))
    assert [first, owner] == found.kept
    assert found.faults == []


def test_a_seal_comes_back_with_all_that_became_of_its_offsets(store, topic):
    classes = dict(zip(CLASSES, range(1, len(CLASSES) + 1), strict=True))
    times = {"deleted_since_ms": NOON_MS - DAY_MS, "deleted_until_ms": NOON_MS - 5}
    seal = seal_of(topic, 5, 4 + sum(classes.values()), **classes, **times)
    store.put_seal(seal)

    assert store.newest_seal(topic, 3) == seal
    assert walk(store.seals(topic)).faults == []


def test_a_record_put_aside_twice_is_there_once_with_its_bytes(store, topic):
    progress = LandingProgress()
    record = Held(offset=7, timestamp=NOON_MS, value=b"\x00\xff", key=None)
    fault = Fault(record=record, reason="undecodable", detail="junk")
    for _ in range(2):
        Quarantine(store, progress).put(topic, 2, [fault])

    assert put_aside(store, topic) == [(2, 7, "undecodable", "AP8=", "")]
    assert progress.quarantined == {topic: 2}


def test_windows_keep_the_highest_version(store, topic):
    del topic
    account = uuid.uuid4().hex
    for version, total in ((10, 100), (30, 300), (20, 200)):
        store.insert("windows", window_rows(account, version, total))

    assert newest_window_total(store, account) == 300


def test_an_entry_of_a_balance_keeps_its_highest_version(store, topic):
    """Usage of a minute is told again, larger, until the minute is over; a replay tells an older sum."""
    del topic
    account = uuid.uuid4().hex
    for used in (10, 30, 20):
        store.insert("balance_changes", entry_rows(account, used))
    store.insert("balance_changes", entry_rows(account, 1, entry="7"))

    assert balance(store, account) == -31


def test_duplicates_are_kept_by_record(store, topic):
    rows = duplicate_rows(events_of([event("e1"), event("e1"), event("e2")], topic, repeats=[1, 2]))
    store.insert("duplicates", rows)
    store.insert("duplicates", rows)

    assert count_duplicates(store, topic) == 2


def test_rows_without_a_key_are_bad_data(store):
    with pytest.raises(BadData):
        store.insert("ledger", pa.table({"tenant_id": pa.array(["cm"]), "nonsense": pa.array([1])}))


def test_no_rows_are_no_insert(store, topic):
    store.insert("ledger", ledger_rows(events_of([], topic)))

    assert store.landed_offsets(topic, 3, 0).tolist() == []
    assert store.ledger_between(topic, 3, 0, 5).num_rows == 0


def test_a_warehouse_that_is_away_is_unavailable():
    store = ClickHouseStore(Settings(clickhouse_url="http://127.0.0.1:9"))

    with pytest.raises(WarehouseUnavailable):
        store.newest_seal("t", 0)


def test_a_warehouse_without_tables_is_a_setting_to_mend(warehouse):
    store = ClickHouseStore(
        Settings(clickhouse_url=warehouse, clickhouse_database="nobody_made_this")
    )

    with pytest.raises(SettingsError, match="migrate apply"):
        store.newest_seal("t", 0)


def window_rows(account, version, total):
    times = pa.array([NOON_MS], pa.int64()).cast(pa.timestamp("ms"))
    zero = {
        name: [0]
        for name in ("events", *(name for name in LEDGER_SCHEMA.names if name.endswith("_tokens")))
    }
    row = {
        "tenant_id": ["cm"],
        "account_id": [account],
        "subscriber_id": [""],
        "provider": ["p"],
        "model": ["m"],
    }
    row |= (
        {"grain": ["minute"], "partition": [3], "cause": [""]}
        | zero
        | {"total_tokens": [total], "version": [version]}
    )
    return pa.table(row).append_column("window_start", times).append_column("segment_start", times)


def entry_rows(account, used, entry="usage/0"):
    row = {
        "tenant_id": ["cm"],
        "account_id": [account],
        "bucket": [1],
        "entry": [entry],
        "kind": ["usage"],
        "amount_utok": [-used],
        "version": [used],
        "partition": [3],
    }
    times = pa.array([NOON_MS], pa.int64()).cast(pa.timestamp("ms"))
    return pa.table(row).append_column("at", times)


def balance(store, account):
    if isinstance(store, MemoryStore):
        rows = [row for row in store.rows("balance_changes") if row["account_id"] == account]
        return sum(row["amount_utok"] for row in rows)
    query = "SELECT balance_utok FROM {db}.v_balances WHERE account_id = '{account}'"
    return _one(store, query, account=account)


def put_aside(store, topic):
    if isinstance(store, MemoryStore):
        names = ("partition", "offset", "reason", "value_base64", "key_base64")
        rows = [row for row in store.rows("quarantine") if row["topic"] == topic]
        return [tuple(row[name] for name in names) for row in rows]
    query = (
        f"SELECT partition, offset, reason, value_base64, key_base64 "
        f"FROM {store._database}.v_quarantine WHERE topic = '{topic}'"
    )
    return list(map(tuple, store._query(query, {})))


def newest_window_total(store, account):
    if isinstance(store, MemoryStore):
        return next(
            row["total_tokens"] for row in store.rows("windows") if row["account_id"] == account
        )
    query = "SELECT total_tokens FROM {db}.v_windows WHERE account_id = '{account}'"
    return _one(store, query, account=account)


def count_duplicates(store, topic):
    if isinstance(store, MemoryStore):
        return sum(row["topic"] == topic for row in store.rows("duplicates"))
    return _one(
        store, "SELECT count() FROM {db}.duplicates FINAL WHERE topic = '{topic}'", topic=topic
    )


def _one(store, query, **names):
    return store._query(query.format(db=store._database, **names), {})[0][0]
