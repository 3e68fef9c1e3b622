"""A reader of the embedded warehouse reads the line's views and does nothing else, whatever it sends."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from contextlib import contextmanager

import clickhouse_connect
import pytest
from sql_list import HOSTILE, TABLES

from tokenline.landing import migrate
from tokenline.landing.connect import connect
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.reading import SYSTEM_TABLES, is_allowed, listed_functions
from tokenline.platform.warehouse_process import EmbeddedWarehouse
from tokenline.settings import Settings

ENDLESS = (
    "SELECT sum(a + b) FROM (SELECT arrayJoin(range(1000000)) AS a) AS x "
    "CROSS JOIN (SELECT arrayJoin(range(1000000)) AS b) AS y"
)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A warehouse of these tests' own, with the line's tables and views."""
    process = EmbeddedWarehouse(tmp_path_factory.mktemp("door") / "warehouse")
    process.start()
    migrate.apply(Settings(clickhouse_url=process.dsn()))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def stranger():
    """A listening socket, and the addresses of who called."""
    calls = []
    with socket.create_server((processes.LOOPBACK, 0)) as server:

        def listen():
            while True:
                try:
                    link, address = server.accept()
                except OSError:
                    return
                calls.append(address)
                link.close()

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], calls
        server.shutdown(socket.SHUT_RDWR)


def ask(process, statement, role=Role.READER, query=""):
    """Return status and text of what a client without manners sends."""
    link = http.client.HTTPConnection(processes.LOOPBACK, process.port, timeout=60)
    headers = {"X-ClickHouse-User": role, "X-ClickHouse-Key": process.password(role)}
    link.request("POST", f"/?{query}", body=statement.encode(), headers=headers)
    answer = link.getresponse()
    text = answer.read().decode(errors="replace")
    link.close()
    return answer.status, text


def names(process, query):
    with clickhouse_connect.get_client(dsn=process.dsn()) as client:
        return [tuple(row) for row in client.query(query).result_rows]


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *((Role.READER, one) for one in (*HOSTILE, *TABLES)),
        *((Role.AUDITOR, one) for one in HOSTILE),
    ],
)
def test_a_hostile_statement_is_refused_in_one_line_and_does_nothing(
    line, stranger, tmp_path, role, statement
):
    port, calls = stranger
    secret = uuid.uuid4().hex
    canary, out = tmp_path / "canary", tmp_path / "out"
    canary.write_text(secret)
    before = len(calls)
    status, text = ask(line, statement.format(canary=canary, out=out, port=port), role)
    assert status in {400, 403, 404}, text
    assert text.startswith("Code: ")
    assert text.count("\n") == 1
    assert secret not in text
    assert not out.exists()
    assert len(calls) == before


def test_what_was_refused_has_left_the_warehouse_as_it_was(line):
    settings = Settings(clickhouse_url=line.dsn())
    assert migrate.verify(settings) == []
    tables = {
        name
        for (name,) in names(line, "SELECT name FROM system.tables WHERE database = 'tokenline'")
    }
    assert not tables & {"x", "v_x", "d", "c"}
    assert names(line, "SELECT count() FROM tokenline.ledger") == [(0,)]


def test_no_table_function_of_the_engine_can_be_called(line):
    for (name,) in names(line, "SELECT name FROM system.table_functions"):
        for statement in (f"SELECT * FROM {name}()", f"SELECT 1 IN (SELECT 1 FROM {name}('x'))"):
            status, text = ask(line, statement)
            # `viewIfPermitted` has a grammar of its own.
            assert f"may not call {name}()" in text or "SYNTAX_ERROR" in text, (name, text)
            assert status in {400, 403}


def test_each_function_of_the_engine_is_on_the_list_or_refused(line):
    """By a call, by its name as an argument, and in APPLY; the engine's list is what counts."""
    known = [name for (name,) in names(line, "SELECT name FROM system.functions")]
    assert len(known) > 1500
    for name in known:
        if is_allowed(name):
            continue
        for statement in (
            f"SELECT `{name}`()",
            f"SELECT arrayMap(`{name}`, [1])",
            f"SELECT * APPLY(`{name}`)",
        ):
            status, text = ask(line, statement)
            assert status in {400, 403}, (name, text)
            assert "a query may not" in text or "SYNTAX_ERROR" in text, (name, text)


def test_the_list_names_functions_as_the_engine_does(line):
    known = {name for (name,) in names(line, "SELECT name FROM system.functions")}
    listed = set(listed_functions())
    # Grammar that looks like a call.
    assert listed - known == {"exists", "grouping", "lambda"}
    # No refused function is let in by the case of a letter.
    assert [
        name for name in known - listed if name.lower() in {one.lower() for one in listed}
    ] == []


def test_no_function_on_the_list_reads_a_file_or_calls_a_server(line, stranger, tmp_path):
    """Whatever its documentation says: each is given a path and an address, and what comes back is looked at."""
    port, calls = stranger
    secret = uuid.uuid4().hex
    (tmp_path / "canary").write_text(secret)
    path, address = f"'{tmp_path}/canary'", f"'http://127.0.0.1:{port}/'"
    before = len(calls)
    link = http.client.HTTPConnection(processes.LOOPBACK, line.port, timeout=60)
    headers = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": line.password(Role.READER)}
    answered = set()
    for name in listed_functions():
        for arguments in (path, f"{address}, {path}"):
            link.request("POST", "/", body=f"SELECT {name}({arguments})".encode(), headers=headers)
            answer = link.getresponse()
            text = answer.read()
            assert secret.encode() not in text, name
            answered |= {name} if answer.status == 200 else set()
    link.close()
    assert len(answered) > 300
    assert len(calls) == before


def test_a_reader_sees_views_of_the_line_and_no_other_table(line):
    every = names(line, "SELECT database, name, engine FROM system.tables")
    assert len(every) > 100
    opened = set()
    for database, name, _ in every:
        status, _text = ask(line, f"SELECT 1 FROM `{database}`.`{name}` LIMIT 1")
        opened |= {(database, name)} if status == 200 else set()
    views = {(database, name) for database, name, engine in every if engine == "View"}
    own = {one for one in views if one[0] == "tokenline"}
    assert own <= opened
    assert opened - own == SYSTEM_TABLES


def test_what_people_ask_is_answered(line):
    settings = Settings(clickhouse_url=line.dsn(Role.READER))
    client = connect(settings, database="tokenline")
    for query in (
        "SELECT account_id, sum(total_tokens) FROM v_windows GROUP BY account_id",
        "-- a remark\nSELECT toStartOfHour(at) AS h, sumIf(amount_utok, kind = 'x') FROM v_balance_changes GROUP BY h",
        "WITH x AS (SELECT * FROM v_usage) SELECT count(), uniqExact(event_id), quantiles(0.5)(total_tokens) FROM x",
        "SELECT row_number() OVER (PARTITION BY tenant_id ORDER BY total_tokens) AS r FROM v_usage QUALIFY r <= 3",
        "SELECT arrayMap(x -> upper(x), ['a']), map('a', 1)['a'], (1, 2).1, CAST(1 AS Decimal(10, 2)), 1::UInt8",
        "SELECT * EXCEPT (tags) FROM v_usage AS u LEFT JOIN v_accounts AS a USING (tenant_id, account_id)",
        "SELECT 1 AS merge, 2 AS view UNION ALL SELECT 3, 4 ORDER BY 1",
        "SELECT CASE 1 WHEN 2 THEN 3 END, CASE WHEN 1 > 0 THEN 'a' ELSE 'b' END",
        "SELECT date '2026-01-01', extract(year FROM now()), INTERVAL 1 DAY",
        "SHOW TABLES",
        "DESCRIBE v_usage",
        "SELECT name FROM system.columns WHERE table = 'v_usage'",
    ):
        assert client.raw_query(query, fmt="CSVWithNames"), query
    client.close()


def test_a_parameter_is_bound_and_is_no_way_around(line):
    said = ask(line, "SELECT {x:String}", query="param_x=file('a')")
    assert said == (200, "file('a')\n".replace("'", "\\'"))


def test_a_reader_can_lower_a_limit_and_not_raise_it(line):
    before = time.monotonic()
    status, text = ask(line, ENDLESS, query="max_execution_time=1")
    assert (status, "TIMEOUT_EXCEEDED" in text) == (500, True)
    assert time.monotonic() - before < 5
    for asked in ("max_execution_time=0", "max_execution_time=100000", "max_execution_time=-1"):
        status, text = ask(
            line, "SELECT value FROM system.settings WHERE name = 'max_execution_time'", query=asked
        )
        assert (status, text) == (200, "30\n")
    status, text = ask(line, "SELECT 1", query="max_memory_usage_for_user=1")
    assert (status, "may not change the setting" in text) == (403, True)


def test_too_large_an_answer_is_an_error_and_no_flood(line):
    status, text = ask(line, "SELECT arrayJoin(range(100000000)) AS x ORDER BY x")
    assert status == 500
    assert "MEMORY_LIMIT_EXCEEDED" in text or "TOO_MANY_ROWS" in text


@contextmanager
def abandoned(process, count):
    """Send endless queries and hang up."""
    links = []
    for _ in range(count):
        link = http.client.HTTPConnection(processes.LOOPBACK, process.port)
        headers = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": process.password(Role.READER)}
        link.request("POST", "/", body=ENDLESS.encode(), headers=headers)
        links.append(link)
    yield
    for link in links:
        link.close()


def running(process):
    found = names(
        process, "SELECT count() FROM system.processes WHERE query LIKE '%CROSS JOIN%arrayJoin%'"
    )
    return found[0][0] - 1  # the question itself


def test_queries_that_nobody_waits_for_are_ended(line):
    with abandoned(line, 8):
        assert processes.wait_for(lambda: running(line) == 4, timeout_s=10)
    before = time.monotonic()
    assert ask(line, "SELECT 1") == (200, "1\n")
    assert time.monotonic() - before < 5
    assert processes.wait_for(lambda: running(line) == 0, timeout_s=5)


def test_endless_readers_hold_up_no_other_role(line):
    with abandoned(line, 8):
        assert processes.wait_for(lambda: running(line) == 4, timeout_s=10)
        before = time.monotonic()
        assert ask(line, "SELECT 1", Role.AUDITOR) == (200, "1\n")
        assert ask(line, "SELECT 1", Role.WRITER) == (200, "1\n")
        assert time.monotonic() - before < 10


def test_the_writer_reaches_nothing_outside_either(line, stranger, tmp_path):
    port, calls = stranger
    before = len(calls)
    for statement in (
        f"INSERT INTO FUNCTION file('{tmp_path}/out', 'CSV', 'a String') SELECT 'x'",
        f"SELECT * FROM url('http://127.0.0.1:{port}/', 'LineAsString')",
        f"CREATE TABLE tokenline.u (a String) ENGINE = URL('http://127.0.0.1:{port}/', CSV)",
        f"SELECT * FROM remote('127.0.0.1:{port}', system.one)",
        "CREATE USER x",
        "SYSTEM SHUTDOWN",
    ):
        status, text = ask(line, statement, Role.WRITER)
        assert (status, "ACCESS_DENIED" in text) == (403, True), text
    assert len(calls) == before
    assert list(tmp_path.iterdir()) == []
