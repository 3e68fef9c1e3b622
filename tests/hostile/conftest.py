"""Let helpers of this folder be imported by their plain names, and tests of a module share one line."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import clickhouse_connect
import pytest

from tests.servers import line_on

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("stand")


@pytest.fixture(scope="module")
def line_settings(kafka, warehouse, tmp_path_factory):
    """Return a function that gives settings of a line of its own; its tables are dropped at the end."""
    made = []

    def line(**fields):
        mark = uuid.uuid4().hex[:10]
        own = line_on(
            kafka, tmp_path_factory.mktemp("data"),
            clickhouse_url=warehouse, topic_prefix=f"t{mark}.", clickhouse_database=f"t_{mark}",
            charging_health_port=0, landing_health_port=0,
            session_timeout_ms=2000, idle_flush_ms=200, landing_max_wait_ms=200, **fields,
        )  # fmt: skip
        made.append(own)
        return own

    yield line
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        for own in made:
            client.command(f"DROP DATABASE IF EXISTS {own.clickhouse_database} SYNC")
