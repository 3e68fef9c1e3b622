"""Ask a real warehouse as commands do."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import clickhouse_connect
import pytest

from tokenline.clock import FrozenClock
from tokenline.errors import BadData, SettingsError
from tokenline.landing import migrate
from tokenline.landing.queries import quota, sql
from tokenline.metering.calendar import spans_at
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
    views = ("usage", "windows", "decisions", "accounts", "dead_letters", "month_counters")
    for view in (*views, "balance_changes", "balances"):
        assert sql(line, f"SELECT count() FROM v_{view}", "csv").splitlines()[-1] == "0"


def test_a_table_that_is_not_there_is_a_clear_word(line):
    with pytest.raises(SettingsError, match="nosuch"):
        sql(line, "SELECT 1 FROM nosuch")


def test_an_account_nobody_applied_is_unknown_and_open(line):
    view = quota(line, "default", "nobody")

    assert (view.known, view.used, view.limit, view.state) == (False, 0, -1, "open")


def put(line, table, **fields):
    with clickhouse_connect.get_client(
        dsn=line.clickhouse_url, database=line.clickhouse_database
    ) as client:
        client.insert(table, [list(fields.values())], column_names=list(fields))


def test_a_month_begun_in_another_zone_is_still_the_accounts_month(line):
    """It was looked for at the new zone's first moment, and `used` was 0 for the rest of the month."""
    clock = FrozenClock()
    put(line, "accounts", tenant_id="t", account_id="moved", time_zone="UTC", month_tokens=80)
    month = spans_at("Asia/Shanghai", clock.wall_ms() // 60_000 * 60_000).month
    began = datetime.fromtimestamp(month[0] / 1000, UTC)
    put(
        line,
        "windows",
        tenant_id="t",
        account_id="moved",
        grain="month",
        window_start=began,
        total_tokens=70,
    )

    assert quota(line, "t", "moved", clock=clock).used == 70


@pytest.mark.parametrize(("state", "resets"), [("cut", "never"), ("warned", "with the month")])
def test_what_a_limit_of_zero_has_cut_never_resets(line, state, resets):
    clock = FrozenClock()
    put(line, "accounts", tenant_id="t", account_id=state, time_zone="UTC", month_tokens=0)
    put(line, "decisions", tenant_id="t", account_id=state, state=state, version=1)
    view = quota(line, "t", state, clock=clock)

    end_ms = spans_at("UTC", clock.wall_ms() // 60_000 * 60_000).month[1]
    assert (view.state, view.resets_at_ms) == (state, 0 if resets == "never" else end_ms)
