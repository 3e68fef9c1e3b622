"""Ids and schemas come from the files, or from a Confluent-compatible server over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenline.clock import FrozenClock
from tokenline.errors import RegistryUnavailable, SettingsError, UnknownSchema
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import (
    ConfluentRegistry,
    FileRegistry,
    open_registry,
    schemas_dir,
    split_stem,
)

EVENT = {
    "source": "s",
    "event_id": "e",
    "account_id": "a",
    "gateway_id": "g",
    "provider": "p",
    "model": "m",
    "occurred_at": 1,
}


def test_the_files_give_ids_names_and_texts():
    registry = FileRegistry()
    newest = registry.newest_id("usage_event")

    assert registry.name(newest) == "usage_event"
    assert json.loads(registry.text(newest))["name"] == "usage_event"
    assert registry.directory == schemas_dir()
    assert isinstance(open_registry(Settings()), FileRegistry)


@pytest.mark.parametrize("call", ["text", "name"])
def test_an_unknown_id_is_said_so(call):
    with pytest.raises(UnknownSchema, match="schema id 4711"):
        getattr(FileRegistry(), call)(4711)


def test_the_highest_version_is_the_newest_whatever_its_id(tmp_path):
    text = json.dumps({"type": "record", "name": "x", "fields": []})
    for version in (1, 2, 10):
        (tmp_path / f"x.v{version}.avsc").write_text(text)
    (tmp_path / "ids.json").write_text('{"9": "x.v2", "3": "x.v10", "4": "x.v1"}')
    registry = FileRegistry(tmp_path)

    assert registry.newest_id("x") == 3
    assert [version for version, _ in registry.versions("x")] == [1, 2, 10]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"ids\.json"),
        ({"ids.json": "{"}, r"ids\.json"),
        ({"ids.json": '{"1": "x.v1"}'}, r"x\.v1\.avsc"),
        ({"ids.json": '{"1": "x.v1"}', "x.v1.avsc": "no json"}, r"x\.v1\.avsc"),
        ({"ids.json": '{"1": "x"}', "x.avsc": "{}"}, "is not <name>"),
    ],
)
def test_a_directory_at_fault_is_named(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=said):
        FileRegistry(tmp_path)


def test_stems_are_split_at_their_version():
    assert split_stem("usage_event.v12") == ("usage_event", 12)


class _Server(ThreadingHTTPServer):
    """Speak the two calls of the Confluent registry API that are used; count them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.subjects, self.schemas, self.calls, self.users = {}, {}, [], set()
        self.failing = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        subject = self.path.split("/")[2]
        self.server.subjects[subject] = body
        schema_id = 100 + len(self.server.schemas)
        self.server.schemas[schema_id] = body["schema"]
        self.answer(200, {"id": schema_id})

    def do_GET(self):
        schema_id = int(self.path.split("?")[0].rsplit("/", 1)[1])
        if schema_id in self.server.schemas:
            self.answer(200, {"schema": self.server.schemas[schema_id]})
        else:
            self.answer(404, {"error_code": 40403, "message": "Schema not found"})

    def answer(self, status, body):
        self.server.calls.append((self.command, self.path))
        if header := self.headers.get("Authorization"):
            self.server.users.add(base64.b64decode(header.split()[1]).decode())
        if self.server.failing:
            status, body = self.server.failing, {"error_code": 50001, "message": "no"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Keep the test output quiet."""


@pytest.fixture
def server():
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def settings(server):
    return Settings(
        schema_registry_url=server.url,
        schema_registry_username="u",
        schema_registry_password="p",
    )


def test_a_server_gets_our_newest_schemas_under_the_names_of_their_topics(server, settings):
    registry = open_registry(settings)
    assert isinstance(registry, ConfluentRegistry)
    codec = Codec(registry)
    frame = codec.encode("usage_event", EVENT)
    codec.encode("usage_event", EVENT)
    beat = {"partition": 0, "as_of": 1, "next_offset": 1, "epoch": 1}
    codec.encode("charging_heartbeat", beat)

    assert frame[:5] == b"\0\0\0\0\x64"
    assert list(server.subjects) == [
        "tokenline.usage-value",
        "tokenline.decisions-tokenline.charging_heartbeat",
    ]
    assert len(server.calls) == 2
    assert server.users == {"u:p"}


def test_another_process_reads_the_frames_by_asking_the_server_once(server, settings):
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    server.calls.clear()
    reader = Codec(ConfluentRegistry(settings))
    for _ in range(3):
        name, record = reader.decode(frame)

    assert (name, record["account_id"], record["outcome"]) == ("usage_event", "a", "completed")
    assert [command for command, _ in server.calls] == ["GET", "POST"]


def test_an_unknown_id_is_asked_for_once_in_a_while(server, settings):
    clock = FrozenClock()
    codec = Codec(ConfluentRegistry(settings, clock=clock))
    for _ in range(5):
        with pytest.raises(UnknownSchema, match="schema id 7"):
            codec.decode(b"\0\0\0\0\x07x")
    assert len(server.calls) == 1
    clock.advance_ms(31_000)
    with pytest.raises(UnknownSchema):
        codec.decode(b"\0\0\0\0\x07x")

    assert len(server.calls) == 2


def test_an_unknown_id_is_the_fault_of_its_row_only(server, settings):
    codec = ColumnCodec(ConfluentRegistry(settings))
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    decoded = codec.decode("usage_event", [b"\0\0\0\0\x07x", frame])

    assert decoded.kept.tolist() == [1]
    assert decoded.failures[0].reason == "unknown_schema"


def test_a_server_that_fails_is_no_verdict_on_the_bytes(server, settings):
    codec = ColumnCodec(ConfluentRegistry(settings))
    codec.decode("usage_event", [])
    server.failing = 403
    with pytest.raises(RegistryUnavailable):
        codec.decode("usage_event", [b"\0\0\0\0\x07x"])


def test_a_server_that_refuses_our_schema_stops_the_start(server, settings):
    server.failing = 409
    with pytest.raises(SettingsError, match=r"the registry refuses subject tokenline\.usage-value"):
        ConfluentRegistry(settings).newest_id("usage_event")


def test_a_server_that_is_away_is_named():
    away = Settings(schema_registry_url="http://127.0.0.1:1")
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:1 did not answer"):
        ConfluentRegistry(away).newest_id("usage_event")
