"""Two decoders, one verdict: what workers decode in columns is what fastavro decodes one by one."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.avro_strategies import damaged, records
from tokenline.errors import BadData, UnknownSchema
from tokenline.wire import columns as columns_module
from tokenline.wire.avro import Codec, header_of
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

REGISTRY = FileRegistry()
NAMES = REGISTRY.names()
CODEC = Codec(REGISTRY)
COLUMNS = ColumnCodec(REGISTRY)
# What fastavro takes and the Avro specification does not; pyruhvro is the one that is right.
STRICTER = ("varint too long", "enum index", "enum variant")
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)


def schema(name):
    return json.loads(REGISTRY.text(REGISTRY.newest_id(name)))


def rows_of(batch):
    """The rows as plain values: times as int ms, maps as dicts, 32-bit numbers as they are."""
    plain = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for column in batch.columns
    ]
    rows = pa.RecordBatch.from_arrays(plain, names=batch.schema.names).to_pylist()
    maps = [field.name for field in batch.schema if pa.types.is_map(field.type)]
    return [row | {name: dict(row[name]) for name in maps} for row in rows]


def wrapped(name, record):
    """The record with 32-bit numbers wrapped, which is what the columnar decoder does to them."""
    ints = [field["name"] for field in schema(name)["fields"] if field["type"] == "int"]
    return record | {field: (record[field] + 2**31) % 2**32 - 2**31 for field in ints}


def usage(**fields):
    base = {
        "source": "gw",
        "event_id": "e1",
        "account_id": "a1",
        "gateway_id": "g1",
        "provider": "p",
        "model": "m",
        "occurred_at": 1_790_000_000_000,
    }
    return CODEC.encode("usage_event", base | fields)


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(data=st.data())
def test_both_read_the_same_values_from_any_record(name, data):
    drawn = data.draw(st.lists(records(schema(name)), min_size=1, max_size=4))
    frames = [CODEC.encode(name, record) for record in drawn]
    decoded = COLUMNS.decode(name, frames)

    assert decoded.failures == []
    assert rows_of(decoded.batch) == [CODEC.decode(frame)[1] for frame in frames] == drawn


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(data=st.data())
def test_columns_write_what_fastavro_writes(name, data):
    drawn = data.draw(st.lists(records(schema(name)), min_size=1, max_size=4))
    frames = [CODEC.encode(name, record) for record in drawn]
    again = COLUMNS.encode(name, COLUMNS.decode(name, frames).batch)

    assert [CODEC.decode(frame)[1] for frame in again] == drawn


@pytest.mark.parametrize("name", NAMES)
@MANY
@given(data=st.data())
def test_both_judge_damaged_bytes_alike(name, data):
    good = CODEC.encode(name, data.draw(records(schema(name))))
    frame = good[:5] + data.draw(damaged(good[5:]))
    decoded = COLUMNS.decode(name, [frame])
    try:
        expected = CODEC.decode(frame)[1]
    except BadData:
        assert [failure.reason for failure in decoded.failures] == ["undecodable"]
        return
    if decoded.failures:
        assert any(text in decoded.failures[0].detail for text in STRICTER), decoded.failures
        return
    assert rows_of(decoded.batch) == [wrapped(name, expected)]


@FEW
@given(data=st.data())
def test_bad_frames_are_found_among_good_ones_wherever_they_are(data):
    total = data.draw(st.integers(1, 40))
    bad = data.draw(st.sets(st.integers(0, total - 1)))
    junk = st.sampled_from(
        [None, b"", b"\0\0", b"\x01\0\0\0\x01x", b"\0\0\0\0\x01", usage()[:-9], b"\0\0\0\0\x09x"]
    )
    frames = [
        data.draw(junk) if at in bad else usage(event_id=f"e{at}", gateway_seq=at)
        for at in range(total)
    ]
    decoded = COLUMNS.decode("usage_event", frames)

    good = [at for at in range(total) if at not in bad]
    assert decoded.kept.tolist() == decoded.batch.column("gateway_seq").to_pylist() == good
    assert [failure.position for failure in decoded.failures] == sorted(bad)


@pytest.mark.parametrize(
    ("frame", "reason", "said"),
    [
        (None, "undecodable", "no value"),
        (b"\0\0\0", "undecodable", "too few"),
        (b"\x05\0\0\0\x01abc", "undecodable", "begins with byte 0, this with 5"),
        (b"\0\0\0\x27\x0fabc", "unknown_schema", "schema id 9999"),
        (b"\0\0\0\0\x08abc", "undecodable", "gateway_total, and only usage_event"),
        (usage()[:20], "undecodable", "not a usage_event"),
        (usage(provider="openai").replace(b"openai", b"op\xff\xfeai"), "undecodable", "utf-8"),
    ],
)
def test_each_kind_of_bad_frame_has_its_reason_in_words(frame, reason, said):
    (failure,) = COLUMNS.decode("usage_event", [usage(), frame, usage()]).failures

    assert (failure.position, failure.reason) == (1, reason)
    assert said in failure.detail


def test_text_split_between_two_bad_strings_is_still_found():
    """The bytes of all strings together are UTF-8 here; each string alone is not."""
    first = usage(model="aX").replace(b"aX", b"a\xc3")
    second = usage(model="Yb").replace(b"Yb", b"\xa9b")
    decoded = COLUMNS.decode("usage_event", [first, usage(), second])

    assert decoded.kept.tolist() == [1]


def test_bytes_after_the_datum_are_ignored_by_both():
    frame = usage() + b"more"

    assert COLUMNS.decode("usage_event", [frame]).kept.tolist() == [0]
    assert CODEC.decode(frame) == CODEC.decode(usage())


def test_no_frames_give_no_rows_with_all_columns():
    decoded = COLUMNS.decode("usage_event", [])

    assert decoded.batch.num_rows == 0
    assert decoded.batch.schema == COLUMNS.decode("usage_event", [usage()]).batch.schema
    assert COLUMNS.encode("usage_event", decoded.batch) == []


class _Panic(BaseException):
    """Stand in for pyo3's PanicException."""


def test_a_panic_of_the_rust_decoder_is_a_failure_of_its_row(monkeypatch):
    real = columns_module.pyruhvro.deserialize_array
    marked = usage(event_id="boom")

    class Trapped:
        serialize_record_batch = columns_module.pyruhvro.serialize_record_batch

        @staticmethod
        def deserialize_array(datums, text):
            if marked[5:] in datums:
                raise _Panic("index out of bounds")
            return real(datums, text)

    monkeypatch.setattr(columns_module, "pyruhvro", Trapped)
    decoded = ColumnCodec(REGISTRY).decode("usage_event", [usage(), marked, usage()])

    assert decoded.kept.tolist() == [0, 2]
    assert "_Panic: index out of bounds" in decoded.failures[0].detail


def test_a_stop_of_the_process_is_no_failure_of_a_row(monkeypatch):
    class Stopped:
        @staticmethod
        def deserialize_array(*_):
            raise KeyboardInterrupt

    codec = ColumnCodec(REGISTRY)
    codec.decode("usage_event", [usage()])
    monkeypatch.setattr(columns_module, "pyruhvro", Stopped)
    with pytest.raises(KeyboardInterrupt):
        codec.decode("usage_event", [usage()])


def test_a_batch_with_a_column_missing_is_refused_by_name():
    batch = COLUMNS.decode("gateway_total", []).batch
    one = pa.RecordBatch.from_pylist(
        [{"gateway_id": "g"}], schema=pa.schema([batch.schema.field(0)])
    )
    with pytest.raises(BadData, match="lacks the columns"):
        COLUMNS.encode("gateway_total", one)


def test_encoding_takes_columns_in_any_order():
    batch = COLUMNS.decode("usage_event", [usage()]).batch
    turned = batch.select(batch.schema.names[::-1])

    assert COLUMNS.encode("usage_event", turned) == [usage()]


@pytest.fixture
def evolved(tmp_path):
    """A registry with a second version of a small record."""
    old = {
        "type": "record",
        "name": "thing",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "gone", "type": "long", "default": 0},
            {"name": "kind", "type": {"type": "enum", "name": "k", "symbols": ["a", "b", "c"]}},
        ],
    }
    new = {
        "type": "record",
        "name": "thing",
        "fields": [
            {
                "name": "at",
                "type": {"type": "long", "logicalType": "timestamp-millis"},
                "default": 7,
            },
            {"name": "id", "type": "string"},
            {
                "name": "kind",
                "type": {"type": "enum", "name": "k", "symbols": ["a", "b"], "default": "b"},
            },
            {"name": "tags", "type": {"type": "map", "values": "string"}, "default": {}},
            {"name": "sizes", "type": {"type": "array", "items": "long"}, "default": [1, 2]},
            {"name": "word", "type": "string", "default": "x"},
        ],
    }
    (tmp_path / "thing.v1.avsc").write_text(json.dumps(old))
    (tmp_path / "ids.json").write_text('{"1": "thing.v1"}')
    writer = Codec(FileRegistry(tmp_path))
    olds = [writer.encode("thing", {"id": f"o{at}", "kind": kind}) for at, kind in enumerate("abc")]
    (tmp_path / "thing.v2.avsc").write_text(json.dumps(new))
    (tmp_path / "ids.json").write_text('{"1": "thing.v1", "2": "thing.v2"}')
    return FileRegistry(tmp_path), olds


def test_frames_of_an_older_id_get_the_newest_columns_and_defaults(evolved):
    registry, olds = evolved
    news = [Codec(registry).encode("thing", {"id": "n", "kind": "a", "at": 9})]
    frames = [olds[0], news[0], olds[1], None, olds[2]]
    decoded = ColumnCodec(registry).decode("thing", frames)

    rows = rows_of(decoded.batch)
    assert decoded.kept.tolist() == [0, 1, 2, 4]
    assert rows == [Codec(registry).decode(frames[at])[1] for at in decoded.kept.tolist()]
    assert [row["at"] for row in rows] == [7, 9, 7, 7]
    assert [row["kind"] for row in rows] == ["a", "a", "b", "b"]
    assert rows[0] == {"at": 7, "id": "o0", "kind": "a", "tags": {}, "sizes": [1, 2], "word": "x"}


def test_the_codec_names_what_does_not_fit():
    with pytest.raises(BadData, match="usage_event"):
        CODEC.encode("usage_event", {"source": 5})
    with pytest.raises(BadData, match="usage_event"):
        CODEC.encode("usage_event", CODEC.decode(usage())[1] | {"outcome": "fine"})
    with pytest.raises(UnknownSchema, match="no schema is named nothing"):
        CODEC.encode("nothing", {})
    with pytest.raises(UnknownSchema):
        CODEC.decode(header_of(4242) + b"x")
