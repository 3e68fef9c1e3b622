"""Ask a real warehouse as commands do."""

from __future__ import annotations

import json
import uuid

import clickhouse_connect
import pytest

from tokenline.errors import BadData, SettingsError
from tokenline.landing import migrate
from tokenline.landing.queries import quota, sql
from tokenline.settings import Settings


@pytest.fixture(scope="module")
def line(warehouse):
    settings = Settings(clickhouse_url=warehouse, clickhouse_database=f"q_{uuid.uuid4().hex[:10]}")
    migrate.apply(settings)
    yield settings
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        client.command(f"DROP DATABASE {settings.clickhouse_database} SYNC")


def test_an_answer_comes_as_table_json_or_csv(line):
    query = "SELECT 'cm' AS tenant, toUInt64(18446744073709551615) AS tokens"

    assert "18446744073709551615" in sql(line, query, "table")
    assert json.loads(sql(line, query, "json"))["data"][0]["tokens"] in (2**64 - 1, str(2**64 - 1))
    assert sql(line, query, "csv").splitlines() == [
        '"tenant","tokens"',
        '"cm",18446744073709551615',
    ]


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE ledger",
        "INSERT INTO seals (topic) VALUES ('x')",
        "ALTER TABLE ledger DELETE WHERE 1",
    ],
)
@pytest.mark.parametrize("fmt", ["table", "csv"])
def test_nothing_can_be_written(line, query, fmt):
    with pytest.raises(BadData):
        sql(line, query, fmt)
    assert migrate.verify(line) == []


def test_every_view_answers_on_an_empty_line(line):
    for view in ("usage", "windows", "decisions", "accounts", "dead_letters", "month_counters"):
        assert sql(line, f"SELECT count() FROM v_{view}", "csv").splitlines()[-1] == "0"


def test_a_table_that_is_not_there_is_a_clear_word(line):
    with pytest.raises(SettingsError, match="nosuch"):
        sql(line, "SELECT 1 FROM nosuch")


def test_an_account_nobody_applied_is_unknown_and_open(line):
    view = quota(line, "default", "nobody")

    assert (view.known, view.used, view.limit, view.state) == (False, 0, -1, "open")
