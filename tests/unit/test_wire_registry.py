"""Ids and schemas come from the files, or from a Confluent-compatible server over HTTP."""

from __future__ import annotations

import json

import pytest

from tests.registry_stand import running
from tokenline.clock import FrozenClock
from tokenline.errors import RegistryUnavailable, SettingsError, UnknownSchema
from tokenline.settings import Settings
from tokenline.wire.avro import Codec, header_of
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry, open_registry, schemas_dir, split_stem
from tokenline.wire.registry_server import (
    ASKED_PER_S,
    AWAY_FOR_S,
    UNKNOWN_WHILE_AWAY_S,
    ConfluentRegistry,
    KnownSchemas,
    _client,
    known_only,
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


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def settings(server, tmp_path):
    return Settings(
        data_dir=tmp_path / "one",
        schema_registry_url=server.url,
        schema_registry_username="u",
        schema_registry_password="p",
    )


def elsewhere(settings, name="two"):
    """Return the settings of a process that has nothing kept."""
    return settings.model_copy(update={"data_dir": settings.data_dir.parent / name})


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
    reader = Codec(ConfluentRegistry(elsewhere(settings)))
    for _ in range(3):
        name, record = reader.decode(frame)

    assert (name, record["account_id"], record["outcome"]) == ("usage_event", "a", "completed")
    assert [command for command, _ in server.calls] == ["GET"]


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


def test_a_server_that_is_away_is_named(tmp_path):
    away = Settings(schema_registry_url="http://127.0.0.1:1", data_dir=tmp_path)
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:1 did not answer"):
        ConfluentRegistry(away).newest_id("usage_event")


def test_what_is_kept_does_while_the_server_is_away(settings):
    """A worker could not start, nor read what it had read for months."""
    with running() as server:
        at = settings.model_copy(update={"schema_registry_url": server.url})
        frame = Codec(ConfluentRegistry(at)).encode("usage_event", EVENT)
    again = ConfluentRegistry(at)
    again.ask()
    assert Codec(again).decode(frame)[1]["account_id"] == "a"
    assert Codec(again).encode("usage_event", EVENT)[:5] == frame[:5]
    with pytest.raises(RegistryUnavailable):
        again.newest_id("quota_decision")


def test_the_registered_id_is_asked_for_again_while_the_server_answers(server, settings):
    """A registry that was made again has given our schemas other ids."""
    assert ConfluentRegistry(settings).newest_id("usage_event") == 100
    server.schemas[100] = server.schemas[101] = "{}"
    assert ConfluentRegistry(settings).newest_id("usage_event") == 102


def test_a_kept_id_of_another_text_is_not_used(settings):
    with running() as server:
        at = settings.model_copy(update={"schema_registry_url": server.url})
        registry = ConfluentRegistry(at)
        registry._own_id("tokenline.usage-value", '{"name": "tokenline.usage_event", "fields": []}')
    with pytest.raises(RegistryUnavailable):
        ConfluentRegistry(at).newest_id("usage_event")


def test_what_another_server_said_is_not_used(server, settings):
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    with running() as other:
        at = settings.model_copy(update={"schema_registry_url": other.url})
        with pytest.raises(UnknownSchema):
            Codec(ConfluentRegistry(at)).decode(frame)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 1}', '{"url": "URL", "texts": 3}'])
def test_a_file_of_kept_schemas_that_is_damaged_is_as_none(server, settings, text):
    settings.data_dir.mkdir()
    (settings.data_dir / "registry.json").write_text(text.replace("URL", server.url))
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    assert Codec(ConfluentRegistry(settings)).decode(frame)[0] == "usage_event"


def test_a_folder_that_takes_no_file_costs_only_a_question(server, settings):
    settings.data_dir.write_text("a file")
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    assert Codec(ConfluentRegistry(settings)).decode(frame)[0] == "usage_event"
    assert [command for command, _ in server.calls] == ["POST", "GET"]


def test_a_stream_of_random_ids_is_no_stream_of_requests(server, settings):
    clock = FrozenClock()
    codec = ColumnCodec(ConfluentRegistry(settings, clock=clock))
    decoded = codec.decode("usage_event", [header_of(number) + b"x" for number in range(500)])
    assert len(decoded.failures) == 500
    assert {one.reason for one in decoded.failures} == {"unknown_schema"}
    assert len(server.calls) == ASKED_PER_S
    clock.advance_ms(1000)
    codec.decode("usage_event", [header_of(900) + b"x"])
    assert len(server.calls) == ASKED_PER_S + 1


def test_a_server_that_does_not_answer_is_left_alone_for_a_while(tmp_path):
    clock, asked = FrozenClock(), []
    with running() as server:
        at = Settings(schema_registry_url=server.url, data_dir=tmp_path)
        registry = ConfluentRegistry(at, clock=clock)
        server.failing = 503
        for number in range(5):
            with pytest.raises(RegistryUnavailable):
                registry.text(number)
            asked.append(len(server.calls))
        assert asked == [1] * 5
        server.failing = 0
        clock.advance_ms(int(AWAY_FOR_S * 1000) + 1)
        with pytest.raises(UnknownSchema):
            registry.text(7)


def test_who_may_not_wait_asks_beside_and_reads_what_is_known(server, settings):
    frame = Codec(ConfluentRegistry(settings)).encode("usage_event", EVENT)
    registry = known_only(ConfluentRegistry(elsewhere(settings)))
    assert isinstance(registry, KnownSchemas)
    codec, columns = Codec(registry), ColumnCodec(registry)
    server.calls.clear()
    with pytest.raises(UnknownSchema, match="schema id 100 is not known yet"):
        codec.decode(frame)
    assert columns.decode("usage_event", [frame]).failures[0].reason == "unknown_schema"
    assert server.calls == []
    registry.look_up(registry.unmet([frame, None, b"\0", header_of(7) + b"x"]))
    assert codec.decode(frame)[0] == "usage_event"
    assert columns.decode("usage_event", [frame]).kept.tolist() == [0]
    with pytest.raises(UnknownSchema, match="schema id 7 is not in the registry"):
        codec.decode(header_of(7) + b"x")
    assert [command for command, _ in server.calls] == ["GET", "GET"]


def test_an_id_of_a_server_that_is_away_is_unknown_and_says_why(settings):
    registry = known_only(ConfluentRegistry(settings))
    registry._registry._client = _client(
        settings.model_copy(update={"schema_registry_url": "http://127.0.0.1:1"})
    )
    registry.look_up([7])
    with pytest.raises(UnknownSchema, match="did not answer"):
        registry.text(7)


def test_who_may_not_wait_asks_a_server_that_is_away_once_a_minute(settings):
    clock, asked = FrozenClock(), []

    class Away(ConfluentRegistry):
        def text(self, schema_id):
            asked.append(schema_id)
            raise RegistryUnavailable("away")

    registry = KnownSchemas(Away(settings), clock)
    for number in range(5):
        registry.look_up([number, number + 100])
    assert asked == [0]
    clock.advance_ms(int(UNKNOWN_WHILE_AWAY_S * 1000) + 1)
    registry.look_up([7])
    assert asked == [0, 7]


def test_a_server_that_answers_again_is_asked_at_once(tmp_path):
    """A worker that had waited for it then waited on, for the line's id."""
    with running() as server:
        registry = ConfluentRegistry(Settings(schema_registry_url=server.url, data_dir=tmp_path))
        server.failing = 503
        with pytest.raises(RegistryUnavailable):
            registry.text(7)
        server.failing = 0
        registry.newest_id("usage_event")
        with pytest.raises(UnknownSchema):
            registry.text(7)


def test_files_need_no_question():
    registry = FileRegistry()
    assert known_only(registry) is registry
    assert registry.unmet([header_of(9999)]) == set()
