"""A usage event is checked when it is made, and says which field is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from dataclasses import FrozenInstanceError

import pytest

import tokenline
from tokenline import TOKEN_KINDS, UsageEvent
from tokenline.errors import InvalidEvent
from tokenline.event import MAP_MAX_ENTRIES, new_event_id
from tokenline.names import NAME_MAX_BYTES
from tokenline.wire.registry import FileRegistry

REGISTRY = FileRegistry()
SCHEMA = json.loads(REGISTRY.text(REGISTRY.newest_id("usage_event")))
FIELDS = {field["name"]: field for field in SCHEMA["fields"]}


def event(**fields):
    return UsageEvent(**({"account_id": "a", "provider": "p", "model": "m"} | fields))


def test_an_account_a_provider_and_a_model_are_enough():
    made = event(input_tokens=3, output_tokens=4)

    assert (made.tenant_id, made.attempt, made.outcome) == ("default", 1, "completed")
    assert (made.total_tokens, made.usage_source) == (7, "reported")


def test_its_fields_are_the_schemas_without_the_emitters_own():
    own = {"gateway_id", "gateway_version", "gateway_epoch", "gateway_seq"}

    assert set(UsageEvent.__slots__) == set(FIELDS) - own
    assert tuple(name for name in FIELDS if name.endswith("_tokens")) == TOKEN_KINDS


def test_its_defaults_are_the_schemas():
    record = event().record()
    differing = {
        name
        for name, field in FIELDS.items()
        if "default" in field and name in record and record[name] != field["default"]
    }

    assert differing == set()


@pytest.mark.parametrize("name", ["usage_source", "outcome"])
def test_its_words_are_the_schemas_symbols(name):
    for symbol in FIELDS[name]["type"]["symbols"]:
        assert getattr(event(**{name: symbol}), name) == symbol


def test_event_ids_are_version_7_uuids_in_the_order_of_time():
    ids = [new_event_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert {uuid.UUID(text).version for text in ids} == {7}
    assert {uuid.UUID(text).variant for text in ids} == {uuid.RFC_4122}
    assert [text[:13] for text in ids] == sorted(text[:13] for text in ids)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input_tokens": -1}, "input_tokens must not be negative"),
        ({"image_output_tokens": 1.0}, r"image_output_tokens must be a whole number \(int\)"),
        ({"output_tokens": True}, "output_tokens must be a whole number"),
        ({"output_tokens": 2**63}, "output_tokens does not fit 63 bits"),
        ({"occurred_at": "now"}, "occurred_at must be a whole number"),
        ({"attempt": 0}, "attempt must be 1 to"),
        ({"account_id": ""}, "account_id is empty"),
        ({"model": ""}, "model is empty"),
        ({"event_id": ""}, "event_id is empty"),
        ({"account_id": "a" * (NAME_MAX_BYTES + 1)}, "account_id has 257 bytes"),
        ({"account_id": "词" * 86}, "account_id has 258 bytes"),
        ({"account_id": 7}, "account_id must be text"),
        ({"request_id": "a\nb"}, r"request_id has U\+000A, a control character"),
        ({"subscriber_id": "\ud800"}, r"subscriber_id has U\+D800, half a character"),
        ({"tenant_id": "a/b"}, "tenant_id has a slash"),
        ({"provider": "a/b"}, "provider has a slash"),
        ({"tenant_id": "~x"}, "tenant_id begins with ~"),
        ({"model": "*"}, "model is *"),
        ({"outcome": "fine"}, "outcome must be one of completed, client_abort"),
        ({"usage_source": "guessed"}, "usage_source must be one of reported"),
        ({"other_units": {"audio_ms": -1}}, r"other_units\['audio_ms'\] must not be negative"),
        ({"other_units": {"audio_ms": 0.5}}, r"other_units\['audio_ms'\] must be a whole number"),
        ({"other_units": {"": 1}}, "a key of other_units is empty"),
        ({"tags": {"team": 5}}, r"tags\['team'\] must be text"),
        ({"tags": {"team": "x" * 2000}}, r"tags\['team'\] has 2000 characters"),
        ({"tags": {"team": "\ud800"}}, r"tags\['team'\] has half a character"),
        ({"tags": {str(at): "" for at in range(MAP_MAX_ENTRIES + 1)}}, "tags has 65 entries"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields, said):
    with pytest.raises(InvalidEvent, match=said):
        event(**fields)


def test_an_account_may_have_a_slash_and_other_scripts():
    assert event(account_id="sh/138-词元").account_id == "sh/138-词元"


def test_a_tag_may_have_lines():
    assert event(tags={"note": "a\nb"}).tags == {"note": "a\nb"}


def test_an_event_does_not_change():
    with pytest.raises(FrozenInstanceError):
        event().model = "other"


def test_the_event_module_loads_neither_kafka_nor_avro():
    code = "import sys, tokenline.event; print({'aiokafka', 'fastavro'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "set()"


def test_the_package_gives_its_public_names_on_first_use():
    for name in tokenline.__all__:
        assert getattr(tokenline, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        tokenline.Nothing  # noqa: B018  the access is the test
