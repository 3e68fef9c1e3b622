"""Workers that begin while a server is away wait for it, say so once, and come up when it is back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenline.landing import migrate
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.kafka_config import ADMIN, SERVER, access_fields
from tokenline.platform.prepare import prepare
from tokenline.platform.secrets import make_secrets
from tokenline.platform.warehouse_process import EmbeddedWarehouse
from tokenline.platform.worker_process import WorkerProcess, ask_health
from tokenline.settings import Settings
from tokenline.wire.registry import FileRegistry
from tokenline.wire.rights import ROLES

WEBHOOKS = """[[endpoints]]
name = "crm"
url = "http://127.0.0.1:9/hooks"
secret_env = ["CRM_HOOK_SECRET"]
"""


@pytest.fixture
def servers(tmp_path):
    """A broker and a warehouse that are not started; both keep their ports."""
    kafka = EmbeddedKafka(tmp_path / "kafka", processes.free_port(), secrets_dir=tmp_path / "data")
    warehouse = EmbeddedWarehouse(tmp_path / "warehouse", secrets_dir=tmp_path / "data")
    yield kafka, warehouse
    warehouse.stop()
    kafka.stop()


@pytest.fixture
def away(servers, tmp_path, monkeypatch):
    """Settings of a line whose servers are not there."""
    monkeypatch.setenv("CRM_HOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    (tmp_path / "webhooks.toml").write_text(WEBHOOKS)
    kafka, warehouse = servers
    passwords = make_secrets(tmp_path / "data", SERVER, (ADMIN, *ROLES))
    return Settings(
        **access_fields(ADMIN, passwords),
        kafka_bootstrap=f"127.0.0.1:{kafka._asked_port}",
        clickhouse_url=warehouse.url,
        clickhouse_username=Role.WRITER,
        clickhouse_password=warehouse.password(Role.WRITER),
        session_timeout_ms=2000,
        webhooks_file=tmp_path / "webhooks.toml",
        data_dir=tmp_path / "data",
    )


@pytest.fixture
def started(tmp_path):
    """Start workers; end them after the test."""
    workers = []

    def start(settings, *roles):
        made = {
            role: WorkerProcess(
                role, settings, tmp_path / f"{role}.log", port=processes.free_port()
            )
            for role in roles
        }
        workers.extend(made.values())
        for worker in made.values():
            worker.spawn()
        return made

    yield start
    for worker in workers:
        worker.kill()


def await_why(worker, words, within_s=40):
    """Return when a worker says that it is not ready for this reason, and is healthy.

    Raises:
        AssertionError: it does not, in time; the text says what it said last.
    """
    said = {}

    def says():
        status, text = ask_health(worker.port, "/readyz")
        said.update(json.loads(text) if text else {})
        return status == 503 and all(word in said["why"] for word in words)

    assert processes.wait_for(says, timeout_s=within_s), (words, said, worker.log.read_text())
    assert ask_health(worker.port, "/healthz")[0] == 200


def lines_with(worker, words):
    return [line for line in worker.log.read_text().splitlines() if words in line]


def test_workers_that_begin_before_their_servers_wait_for_each_and_come_up(servers, away, started):
    kafka, warehouse = servers
    workers = started(away, "charging", "landing", "notify")
    for worker in workers.values():
        await_why(worker, ["waits for Kafka at 127.0.0.1", "Connect"])
    time.sleep(3)  # long enough for several attempts
    for worker in workers.values():
        assert len(lines_with(worker, "a server is away")) == 1
        assert "Traceback" not in worker.log.read_text()

    kafka.start()
    for worker in workers.values():
        await_why(worker, ["there is no topic tokenline.", "tokenline topics"])
    warehouse.start()
    prepare(away, lambda _: None, rights=True)
    for worker in workers.values():
        worker.await_ready(40)
        assert lines_with(worker, "the server is there")
        worker.stop()
        assert worker.process.returncode == 0


def test_landing_waits_for_the_warehouse_and_for_its_tables(servers, away, started):
    kafka, warehouse = servers
    kafka.start()
    warehouse.start()
    prepare(away, lambda _: None, rights=True)
    warehouse.stop()
    (worker,) = started(away, "landing").values()
    await_why(worker, ["waits for the warehouse at http://127.0.0.1"])
    bare = EmbeddedWarehouse(
        warehouse.data_dir.with_name("bare"), warehouse.port, secrets_dir=away.data_dir
    )
    bare.start()
    try:
        await_why(worker, ["tokenline migrate apply"])
        migrate.apply(away)
        worker.await_ready(40)
    finally:
        bare.stop()


def test_who_is_asked_to_stop_while_it_waits_ends_with_0(away, started):
    workers = started(away, "charging", "landing", "notify")
    for worker in workers.values():
        await_why(worker, ["waits for Kafka"])
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(8) == 0, worker.log.read_text()


def test_a_host_name_that_does_not_exist_is_one_line_and_tried_again(away, started):
    nowhere = away.model_copy(update={"kafka_bootstrap": "kafka.invalid:9092"})
    (worker,) = started(nowhere, "charging").values()
    await_why(worker, ["waits for Kafka at kafka.invalid:9092", "not known"])
    time.sleep(3)  # long enough for several attempts
    assert worker.running
    (line,) = lines_with(worker, "kafka.invalid")
    assert "a server is away" in line
    assert "Traceback" not in worker.log.read_text()


def test_an_address_without_a_port_ends_a_worker_with_a_line_that_names_the_variable(away):
    wrong = away.model_copy(update={"kafka_bootstrap": "kafka"})
    environment = WorkerProcess("charging", wrong, away.data_dir, port=processes.free_port())
    ended = subprocess.run(
        [sys.executable, "-m", "tokenline.platform.worker", "charging"],
        env=environment._environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "TOKENLINE_KAFKA_BOOTSTRAP: 'kafka' is not host:port" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


class Registry(BaseHTTPRequestHandler):
    """Issue ids, as a schema registry does; below 100 are those with which the line was made."""

    texts: list[str]

    def do_POST(self):
        self.texts.append(
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
        )
        self._answer({"id": 100 + len(self.texts)})

    def do_GET(self):
        number = self.path.split("?")[0].rsplit("/", 1)[1]
        self._answer({"schema": self._text(int(number))} if number.isdigit() else [])

    def _text(self, number):
        return self.texts[number - 101] if number > 100 else FileRegistry().text(number)

    def _answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_workers_wait_for_the_schema_registry(servers, away, started):
    for server in servers:
        server.start()
    prepare(away, lambda _: None, rights=True)
    port = processes.free_port()
    registered = away.model_copy(update={"schema_registry_url": f"http://127.0.0.1:{port}"})
    workers = started(registered, "charging", "landing", "notify")
    for worker in workers.values():
        await_why(worker, ["waits for the schema registry", f"127.0.0.1:{port}"])
    Registry.texts = []
    with ThreadingHTTPServer(("127.0.0.1", port), Registry) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for worker in workers.values():
            worker.await_ready(40)
        server.shutdown()
