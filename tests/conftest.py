"""Share one real broker and one real warehouse among all tests that ask for them.

`settings` gives each test topics and a database of its own on them. Tests that kill or restart
a server take `private_kafka` or `private_warehouse`. Unit tests ask for none of these.
"""

from __future__ import annotations

import sys
import tempfile
import uuid
from pathlib import Path

import clickhouse_connect
import hypothesis
import pytest

from tests.servers import line_on
from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.warehouse_process import EmbeddedWarehouse

# A law holds or not; how long an example takes says only how busy the machine is.
hypothesis.settings.register_profile("laws", deadline=None)
hypothesis.settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def bytecode():
    """Let the processes of the line share what one of them compiled, where Python may not keep it.

    Containers set PYTHONDONTWRITEBYTECODE; then each worker compiles 1,200 modules, 3 s of a core.
    """
    if not sys.dont_write_bytecode:
        yield
        return
    with (
        tempfile.TemporaryDirectory(
            prefix="tokenline-bytecode-", ignore_cleanup_errors=True
        ) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", name)
        yield


@pytest.fixture(scope="session")
def servers_dir():
    with tempfile.TemporaryDirectory(prefix="tokenline-test-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def kafka(servers_dir):
    broker = EmbeddedKafka(servers_dir / "kafka")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def warehouse_process(servers_dir):
    process = EmbeddedWarehouse(servers_dir / "warehouse")
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def warehouse(warehouse_process):
    """The address of a running warehouse, with the credentials of who may write."""
    return warehouse_process.dsn()


@pytest.fixture
def private_kafka(tmp_path):
    """A broker of the test's own, started; the test may kill it."""
    broker = EmbeddedKafka(tmp_path / "kafka")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def private_warehouse(tmp_path):
    """A warehouse of the test's own, started; the test may kill it."""
    process = EmbeddedWarehouse(tmp_path / "warehouse")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def settings(kafka, warehouse, tmp_path):
    """Settings of a line of the test's own on the shared servers."""
    mark = uuid.uuid4().hex[:10]
    line = line_on(
        kafka,
        tmp_path / "data",
        partitions=4,
        clickhouse_url=warehouse,
        topic_prefix=f"t{mark}.",
        clickhouse_database=f"t_{mark}",
        charging_health_port=0,
        landing_health_port=0,
        session_timeout_ms=2000,
        idle_flush_ms=200,
    )
    yield line
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        client.command(f"DROP DATABASE IF EXISTS {line.clickhouse_database} SYNC")
