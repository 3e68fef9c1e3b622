"""Give integration tests a client of the shared warehouse; the servers are in tests/conftest.py."""

from __future__ import annotations

import clickhouse_connect
import pytest

# What fails in a helper is to say what differed, as in a test.
pytest.register_assert_rewrite("charging_oracle", "charging_helpers")


@pytest.fixture
def database(settings):
    """A client bound to a fresh database of the test's own."""
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        client.command(f"CREATE DATABASE {settings.clickhouse_database} ENGINE = Atomic")
    with clickhouse_connect.get_client(
        dsn=settings.clickhouse_url, database=settings.clickhouse_database
    ) as client:
        yield client
