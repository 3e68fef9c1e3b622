from __future__ import annotations

import datetime as dt
import gzip
import http.client
import subprocess
import sys
import threading
import time
import uuid
from decimal import Decimal

import clickhouse_connect
import numpy as np
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tokenline.errors import PortTaken
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.warehouse_process import EmbeddedWarehouse

NOW = dt.datetime(2026, 11, 22, 7, 0, 0, 123000)  # noqa: DTZ001  the client gives naive UTC
PROGRAM = (sys.executable, "-m", "tokenline.platform.warehouse")


@pytest.fixture
def table(database):
    database.command(
        "CREATE TABLE t (a UInt64, s String, k LowCardinality(String), at DateTime64(3, 'UTC'))"
        " ENGINE = MergeTree ORDER BY a"
    )
    return database


def events(count, first=0):
    return pa.table(
        {
            "a": np.arange(first, first + count, dtype=np.uint64),
            "s": pa.array([f"event-{number:030d}" for number in range(count)]),
            "k": pa.array([f"m{number % 8}" for number in range(count)]).dictionary_encode(),
            "at": pa.array(np.arange(count) + 1_790_000_000_000, pa.timestamp("ms", "UTC")),
        }
    )


def test_rows_come_back_as_they_went_in(table):
    rows = [(1, "plain", "k", NOW), (2, "tab\t'quote\\ 词元\x00", "k", NOW)]
    summary = table.insert("t", rows, column_names=["a", "s", "k", "at"])
    assert summary.written_rows == 2
    assert table.query("SELECT * FROM t ORDER BY a").result_rows == rows
    assert table.query("SELECT * FROM t LIMIT 0").column_names == ("a", "s", "k", "at")


def test_columns_come_back_as_they_went_in(table):
    assert table.insert_arrow("t", events(1000)).written_rows == 1000
    back = table.query_arrow("SELECT a, s FROM t ORDER BY a")
    assert back["a"].to_pylist() == list(range(1000))
    assert back["s"].to_pylist() == events(1000)["s"].to_pylist()
    assert table.query_arrow("SELECT a FROM t WHERE 0").schema.names == ["a"]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_every_way_to_pack_a_body_is_read(table, settings, compress):
    with clickhouse_connect.get_client(
        dsn=settings.clickhouse_url, database=settings.clickhouse_database, compress=compress
    ) as client:
        client.insert("t", [(1, "x" * 1000, "k", NOW)], column_names=["a", "s", "k", "at"])
        client.insert_arrow("t", events(10))
    assert table.command("SELECT count() FROM t") == 11


def test_raw_inserts_and_raw_queries(table):
    table.raw_insert("t", ["a", "s"], b"1,one\n2,two\n", fmt="CSV")
    packed = gzip.compress(b'{"a":3,"s":"three"}\n')
    table.raw_insert("t", ["a", "s"], packed, fmt="JSONEachRow", compression="gzip")
    assert table.raw_query("SELECT a, s FROM t ORDER BY a", fmt="CSV") == (
        b'1,"one"\n2,"two"\n3,"three"\n'
    )
    assert table.raw_query("SELECT a FROM t WHERE a = 3 FORMAT JSONEachRow") == b'{"a":3}\n'
    with table.raw_stream("SELECT a FROM t ORDER BY a", fmt="TSV") as stream:
        assert stream.read() == b"1\n2\n3\n"


def test_parameters_are_bound_by_the_engine(table):
    nasty = "it's; DROP TABLE t --\t\\"
    table.command(
        "INSERT INTO t (a, s) VALUES ({a:UInt64}, {s:String})", parameters={"a": 7, "s": nasty}
    )
    found = table.query(
        "SELECT s FROM t WHERE s = {s:String} AND a IN {all:Array(UInt64)}",
        parameters={"s": nasty, "all": [6, 7]},
    )
    assert found.result_rows == [(nasty,)]


def test_types_that_bills_need(database):
    query = "SELECT toDecimal128('1.000000000001', 12), {u:UUID}, [1, 2], map('a', 1), NULL"
    identity = uuid.uuid4()
    row = database.query(query, parameters={"u": identity}).result_rows[0]
    assert row == (Decimal("1.000000000001"), identity, [1, 2], {"a": 1}, None)


def test_settings_last_for_one_request(table):
    table.insert_arrow("t", events(10))
    limited = table.query("SELECT a FROM t", settings={"limit": 3})
    assert len(limited.result_rows) == 3
    assert len(table.query("SELECT a FROM t").result_rows) == 10
    table.command("SET limit = 1")
    assert len(table.query("SELECT a FROM t").result_rows) == 10


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t (a) VALUES (1)",
        "INSERT INTO t SELECT * FROM t",
        "DROP TABLE t",
        "TRUNCATE TABLE t",
        "ALTER TABLE t DELETE WHERE 1",
        "OPTIMIZE TABLE t FINAL",
        "CREATE TABLE u (a UInt8) ENGINE = Memory",
        "SYSTEM STOP MERGES",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT * FROM file('/etc/hostname', 'LineAsString')",
        "/* SELECT */ RENAME TABLE t TO u",
    ],
)
def test_readonly_refuses_what_writes(table, statement):
    with pytest.raises(DatabaseError) as caught:
        table.command(statement, settings={"readonly": 1})
    assert caught.value.code == (497 if "file(" in statement else 164)


def test_readonly_reads_and_refuses_bulk_inserts(table, settings):
    table.insert_arrow("t", events(5))
    with clickhouse_connect.get_client(
        dsn=settings.clickhouse_url,
        database=settings.clickhouse_database,
        settings={"readonly": 1},
    ) as reader:
        assert reader.command("SELECT count() FROM t") == 5
        with pytest.raises(DatabaseError, match="READONLY"):
            reader.insert_arrow("t", events(5))
    assert table.command("SELECT count() FROM t") == 5


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT * FROM no_such_table", 60),
        ("SELEC 1", 62),
        ("SELECT 1; DROP TABLE t", 62),
        ("SELECT 1 INTO OUTFILE '/tmp/x'", 48),
        ("INSERT INTO t FROM INFILE '/etc/hostname' FORMAT CSV", 48),
        ("SELECT no_such_function(1)", 46),
    ],
)
def test_errors_carry_the_code_and_words_of_clickhouse(table, statement, code):
    with pytest.raises(DatabaseError, match="DB::Exception") as caught:
        table.command(statement)
    assert caught.value.code == code


def test_a_bad_block_leaves_nothing_behind(table):
    good = events(1000)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, good.schema) as writer:
        writer.write_table(good)
    cut = sink.getvalue().to_pybytes()[:-200]
    with pytest.raises(DatabaseError):
        table.raw_insert("t", ["a", "s", "k", "at"], cut, fmt="Arrow")
    assert table.command("SELECT count() FROM t") == 0


def test_a_request_cut_short_leaves_nothing_behind(table, warehouse_process, settings):
    link = http.client.HTTPConnection(processes.LOOPBACK, warehouse_process.port)
    link.putrequest("POST", f"/?database={settings.clickhouse_database}")
    link.putheader("Content-Length", "1000000")
    link.endheaders()
    link.send(b"INSERT INTO t (a, s) FORMAT CSV\n1,one\n2,two\n")
    link.close()
    time.sleep(0.2)
    assert table.command("SELECT count() FROM t") == 0


def test_a_long_read_holds_no_insert_up(table, settings):
    def read():
        with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as reader:
            reader.command("SELECT sleepEachRow(0.5) FROM numbers(4)")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    time.sleep(0.3)
    before = time.monotonic()
    table.insert_arrow("t", events(10))
    took = time.monotonic() - before
    for reader in readers:
        reader.join()
    assert took < 1


def test_inserts_of_many_threads_all_arrive(table, settings):
    def write(worker):
        with clickhouse_connect.get_client(
            dsn=settings.clickhouse_url, database=settings.clickhouse_database
        ) as client:
            for turn in range(5):
                client.insert_arrow("t", events(200, first=(worker * 5 + turn) * 200))

    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert table.query("SELECT count(), uniqExact(a) FROM t").result_rows == [(6000, 6000)]


def test_a_hundred_thousand_rows_take_less_than_half_a_second(table):
    batch = events(100_000)
    table.insert_arrow("t", batch)
    times = []
    for _ in range(3):
        before = time.monotonic()
        table.insert_arrow("t", batch)
        times.append(time.monotonic() - before)
    assert min(times) < 0.5


def asked(process, method, path, headers, body=None):
    link = http.client.HTTPConnection(processes.LOOPBACK, process.port)
    link.request(method, path, body=body, headers=headers)
    answer = link.getresponse()
    code, text = answer.getheader("X-ClickHouse-Exception-Code"), answer.read().decode()
    link.close()
    return answer.status, code, text


def key(process, role=Role.WRITER):
    return {"X-ClickHouse-User": role, "X-ClickHouse-Key": process.password(role)}


@pytest.mark.parametrize(
    "mark",
    [
        {"Origin": "http://example.org"},
        {"Origin": "null"},
        {"Host": "example.org"},
        {"Host": "127.0.0.1.example.org:18123"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_web_pages_are_kept_out_even_with_the_password(warehouse_process, mark):
    headers = key(warehouse_process) | mark
    for method, path, body in (("GET", "/?query=SELECT+1", None), ("POST", "/", b"SELECT 1")):
        assert asked(warehouse_process, method, path, headers, body)[:2] == (403, "497")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic d3JpdGVyOg=="},
        {"Authorization": "Basic !"},
        {"Authorization": "Bearer x"},
        {"X-ClickHouse-User": "writer", "X-ClickHouse-Key": "wrong"},
        {"X-ClickHouse-User": "default", "X-ClickHouse-Key": ""},
    ],
)
def test_who_has_no_password_is_told_nothing(warehouse_process, headers):
    for method, path, body in (("GET", "/?query=SELECT+1", None), ("POST", "/", b"SELECT 1")):
        status, code, text = asked(warehouse_process, method, path, headers, body)
        assert (status, code) == (403, "516")
        assert "status --secrets" in text


def test_a_password_in_the_address_is_none(warehouse_process):
    query = f"/?query=SELECT+1&user=writer&password={warehouse_process.password(Role.WRITER)}"
    assert asked(warehouse_process, "GET", query, {})[:2] == (403, "516")


def test_a_get_request_cannot_write(warehouse_process):
    headers = key(warehouse_process)
    for what in ("CREATE+DATABASE+by_get", "SYSTEM+STOP+MERGES"):
        assert asked(warehouse_process, "GET", f"/?query={what}", headers)[1] == "164"


def test_acknowledged_rows_survive_kill_and_stop(private_warehouse):
    process = private_warehouse

    def count():
        with clickhouse_connect.get_client(dsn=process.dsn()) as client:
            return client.command("SELECT count() FROM m.t")

    with clickhouse_connect.get_client(dsn=process.dsn()) as client:
        client.command("CREATE DATABASE m ENGINE = Atomic")
        client.command("CREATE TABLE m.t (a UInt64) ENGINE = MergeTree ORDER BY a")
        client.insert_arrow("m.t", events(1000).select(["a"]))
    process.kill()
    process.start()
    assert count() == 1000
    before = time.monotonic()
    process.stop()
    assert time.monotonic() - before < 5
    process.start()
    assert count() == 1000


def test_a_second_process_on_the_same_data_is_told_who_holds_it(warehouse_process):
    place = str(warehouse_process.data_dir / "chdb")
    second = subprocess.run(
        [
            *(*PROGRAM, "--data", place, "--port", str(processes.free_port())),
            *("--secrets", str(warehouse_process.data_dir)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert second.returncode == 1
    assert second.stderr.strip() == (
        f"warehouse: the warehouse at {place} is in use by process {warehouse_process.pid};"
        " stop it first"
    )


def test_a_taken_port_is_named_with_its_variable(warehouse_process, tmp_path):
    with pytest.raises(PortTaken, match="TOKENLINE_CLICKHOUSE_URL"):
        EmbeddedWarehouse(tmp_path, warehouse_process.port).start()


def test_it_refuses_to_listen_anywhere_but_on_loopback(tmp_path):
    refused = subprocess.run(
        [
            *(*PROGRAM, "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "1"),  # noqa: S104
            *("--secrets", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert refused.returncode == 1
    assert "not loopback" in refused.stderr
