from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenline.platform import dialect


@pytest.mark.parametrize(
    ("sql", "clause", "form", "data"),
    [
        (b"INSERT INTO t (a) ", b"FORMAT Native\n", "Native", b"\x01\x02"),
        (b"insert into t ", b"format CSV ", "CSV", b"1,2\n"),
        (b"INSERT INTO `format` (`values`) ", b"FORMAT CSV\n", "CSV", b"1"),
        (b"INSERT INTO t (format, values) ", b"FORMAT TSV\n", "TSV", b""),
        (b"INSERT INTO t SETTINGS a='FORMAT x' ", b"FORMAT CSV\n", "CSV", b";"),
        (b"/* FORMAT */ INSERT INTO t -- FORMAT\n ", b"FORMAT CSV\n", "CSV", b"x"),
    ],
)
def test_an_inserts_data_begins_behind_its_format(sql, clause, form, data):
    statement = dialect.split(sql + clause + data)
    assert (statement.sql, statement.format, bytes(statement.data)) == (sql, form, data)


def test_data_sent_apart_is_the_data():
    statement = dialect.split(b"INSERT INTO t FORMAT CSV", b"1;2")
    assert (statement.sql, statement.data) == (b"INSERT INTO t ", b"1;2")
    statement = dialect.split(b"INSERT INTO t VALUES", b"(1)")
    assert (statement.sql, statement.format, statement.data) == (
        b"INSERT INTO t ",
        "Values",
        b"(1)",
    )


@pytest.mark.parametrize(
    "text",
    [b"INSERT INTO t VALUES (1, ';')", b"INSERT INTO t SELECT 1", b"INSERT INTO t (a) SELECT 1"],
)
def test_an_insert_that_is_all_sql_stays_whole(text):
    statement = dialect.split(text)
    assert (statement.sql, statement.data) == (text, None)


@given(st.binary(max_size=200))
def test_any_data_is_passed_on_unread(data):
    statement = dialect.split(b"INSERT INTO t FORMAT RowBinary\n" + data)
    assert bytes(statement.data) == data


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (b"SELECT 1", None),
        (b"SELECT 1 FORMAT Native", "Native"),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1;", "CSV"),
        (b"SELECT format FROM t", None),
        (b"SELECT 'FORMAT CSV'", None),
    ],
)
def test_the_format_of_an_answer(text, form):
    assert dialect.split(text).format == form


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 1; DROP TABLE t",
        b"INSERT INTO t VALUES (1); DROP TABLE t",
        b"INSERT INTO t SELECT 1; DROP TABLE t",
        b"SELECT $$'$$; SYSTEM STOP MERGES -- '",
        b"SELECT 1 INTO OUTFILE 'x'",
        b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        b"",
        b" -- nothing",
    ],
)
def test_what_no_server_would_take_is_refused(text):
    with pytest.raises(dialect.RefusedStatementError):
        dialect.split(text)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        (b"SELECT 1;", True),
        (b"(SELECT 1) UNION ALL (SELECT 2)", True),
        (b"WITH 1 AS x SELECT x", True),
        (b"-- DROP\nDESCRIBE TABLE t", True),
        (b"DROP TABLE t", False),
        (b"/* SELECT */ SYSTEM FLUSH LOGS", False),
        (b"INSERT INTO t SELECT 1", False),
    ],
)
def test_what_reads_is_known_by_its_first_word(text, reads):
    assert dialect.split(text).reads is reads


def test_an_insert_is_none_of_who_only_reads():
    with pytest.raises(dialect.RefusedStatementError, match="READONLY"):
        dialect.require_no_insert(dialect.split(b"INSERT INTO t FORMAT CSV\n1"))
