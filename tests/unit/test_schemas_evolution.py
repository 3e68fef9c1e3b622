"""The released schemas follow the rules of schemas/README.md; a breaking edit is refused."""

from __future__ import annotations

import copy
import io
import json
import re
from itertools import combinations

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.avro_strategies import records
from tokenline.wire.avro import parse
from tokenline.wire.evolution import problems, untold
from tokenline.wire.registry import FileRegistry

REGISTRY = FileRegistry()
NAMES = REGISTRY.names()
ALLOWED = {"string", "int", "long", "boolean", "enum", "map", "array", "record"}


def schema(name):
    return json.loads(REGISTRY.text(REGISTRY.newest_id(name)))


def edited(name, change):
    new = copy.deepcopy(schema(name))
    change({field["name"]: field for field in new["fields"]}, new)
    return problems(schema(name), new)


@pytest.mark.parametrize("name", NAMES)
def test_each_version_may_follow_every_older_one(name):
    versions = [json.loads(text) for _, text in REGISTRY.versions(name)]
    for old, new in combinations(versions, 2):
        assert problems(old, new) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_field_says_what_it_means_and_in_which_unit(name):
    assert untold(schema(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_only_types_that_the_columnar_decoder_takes_are_used(name):
    def kinds(kind):
        if isinstance(kind, str):
            return {kind}
        inner = [kinds(kind[key]) for key in ("items", "values") if key in kind]
        inner += [kinds(field["type"]) for field in kind.get("fields", ())]
        return kinds(kind["type"]).union(*inner)

    for field in schema(name)["fields"]:
        assert kinds(field["type"]) <= ALLOWED, field["name"]


@pytest.mark.parametrize("name", ["usage_event", "account_command"])
def test_records_that_strangers_write_have_no_32_bit_numbers(name):
    assert [field["name"] for field in schema(name)["fields"] if field["type"] == "int"] == []


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_newest_reads_records_of_every_older_version(name, data):
    newest = parse(REGISTRY.text(REGISTRY.newest_id(name)))
    for _, text in REGISTRY.versions(name):
        record = data.draw(records(json.loads(text)))
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parse(text), record)
        out.seek(0)
        read = fastavro.schemaless_reader(out, parse(text), newest)
        assert set(read) == {field["name"] for field in schema(name)["fields"]}


def test_ids_are_unique_and_each_names_a_file():
    ids = json.loads((REGISTRY.directory / "ids.json").read_text())
    files = {path.stem for path in REGISTRY.directory.glob("*.avsc")}
    assert sorted(ids.values()) == sorted(files)
    assert len(set(ids)) == len(ids)


def test_the_readme_names_every_record():
    text = (REGISTRY.directory / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(NAMES)


def test_adding_a_field_with_a_default_is_no_problem():
    new = {"name": "region", "type": "string", "default": "", "doc": "d", "unit": "name"}
    assert edited("usage_event", lambda _, record: record["fields"].append(new)) == []


def test_removing_a_field_with_a_default_is_no_problem():
    assert edited("usage_event", lambda _, record: record["fields"].pop(3)) == []


def test_adding_an_enum_symbol_at_the_end_is_no_problem_when_old_readers_have_a_default():
    def change(fields, _):
        fields["outcome"]["type"]["symbols"].append("moderated")

    assert edited("usage_event", change) == []


def _add_without_default(_, record):
    record["fields"].append({"name": "region", "type": "string"})


def _remove_without_default(_, record):
    record["fields"] = [field for field in record["fields"] if field["name"] != "model"]


def _rename(fields, _):
    fields["model"]["name"] = "model_name"


def _retype(fields, _):
    fields["output_tokens"]["type"] = "string"


def _promote(fields, _):
    fields["attempt"]["type"] = "double"


def _drop_logical_type(fields, _):
    del fields["occurred_at"]["type"]["logicalType"]


def _retype_map(fields, _):
    fields["tags"]["type"]["values"] = "long"


def _lose_default(fields, _):
    del fields["attempt"]["default"]


def _remove_symbol(fields, _):
    fields["outcome"]["type"]["symbols"].remove("cut_off")


def _reorder_symbols(fields, _):
    fields["outcome"]["type"]["symbols"].reverse()


def _rename_enum(fields, _):
    fields["outcome"]["type"]["name"] = "end_kind"


def _rename_record(_, record):
    record["name"] = "usage"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_add_without_default, "region was added without a default"),
        (_remove_without_default, "model was removed or renamed"),
        (_rename, "model was removed or renamed"),
        (_retype, "output_tokens changed its type: long to string"),
        (_promote, "attempt changed its type: long to double"),
        (_drop_logical_type, "occurred_at changed its logical type"),
        (_retype_map, "tags's values changed its type: string to long"),
        (_lose_default, "attempt lost its default"),
        (_remove_symbol, r"outcome lost the symbols \['cut_off'\]"),
        (_reorder_symbols, "outcome's symbols were put in another order"),
        (_rename_enum, "outcome's enum was renamed"),
        (_rename_record, "the record's name changed"),
    ],
)
def test_a_breaking_edit_is_refused_with_a_text_that_names_it(change, said):
    assert any(re.search(said, problem) for problem in edited("usage_event", change))


def test_a_new_symbol_is_refused_when_old_readers_have_no_default_for_it():
    def change(fields, _):
        fields["grain"]["type"]["symbols"].append("hour")

    assert "older readers have no default" in edited("account_window", change)[0]


def test_a_field_without_doc_or_unit_is_named():
    bare = {"name": "r", "doc": "d", "fields": [{"name": "x", "type": "long", "doc": "d"}]}
    assert untold(bare) == ["x has no unit"]
