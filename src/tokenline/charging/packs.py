"""Lay out what the journal's records hold; bytes are little-endian and carry a version."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenline.errors import BrokenLog
from tokenline.metering.tally import of_today
from tokenline.quota.buckets import Scopes
from tokenline.quota.cells import WIDTH
from tokenline.quota.limit_specs import Specs
from tokenline.rating.book import CatalogBook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenline.charging.partition import PartitionState
    from tokenline.quota.table import Table

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

FORMAT = 1
FORMAT_PACKED = 2  # of tables
FORMAT_OUT = 3  # of `out`
NEWEST_FORMAT = 16  # that a newer worker will ever write
# It finds what repeats megabytes apart, as scopes do that many decisions name; zlib looks back 32 KiB.
OUT_CODEC = pa.Codec("zstd", compression_level=3)
OUT_PLAIN_BYTES = 1 << 20
# Above what usage of fifteen thousand accounts without limits touches: that must cost nothing.
TABLE_PLAIN_BYTES = 4 << 20

Named = tuple[tuple[int, ...], tuple[int, ...]]
# The usual thresholds and a scope of everything are always there.
NOTHING_NAMED: Named = ((0, 1, 1, 0, 0), ())

_ROWS = struct.Struct("<BIIII")
_TABLE = struct.Struct("<BBII")
_MINUTE = struct.Struct("<Bq")
_SIZE = struct.Struct("<I")
_OUT_HEAD = struct.Struct("<BQI")
_OUT_SIZE = struct.Struct("<Q")
_OUT = struct.Struct("<BHi")


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one record to publish: topic stem, key, value (None is a tombstone)."""

    topic: str
    key: bytes
    value: bytes | None


def pack_rows(first_new: int, new_keys: Sequence[str], slots: Int64s, rows: Int64s) -> bytes:
    """Return account rows and the names of the slots from `first_new` on."""
    names = json.dumps(list(new_keys)).encode() if new_keys else b""
    head = _ROWS.pack(FORMAT, first_new, len(new_keys), len(slots), len(names))
    return b"".join(
        (head, names, slots.astype("<u4").tobytes(), np.ascontiguousarray(rows, "<i8").tobytes())
    )


def unpack_rows(value: bytes) -> tuple[int, list[str], Int64s, Int64s]:
    """Return what `pack_rows` was given."""
    version, first_new, new, count, names_bytes = _ROWS.unpack_from(value)
    _check_format("rows", version)
    at = _ROWS.size
    names = json.loads(value[at : at + names_bytes]) if new else []
    at += names_bytes
    slots = np.frombuffer(value, "<u4", count, at).astype(np.int64)
    rows = np.frombuffer(value, "<i8", -1, at + 4 * count)
    # As wide as the accounts of the worker that wrote them.
    rows = rows.reshape(count, -1) if count else rows.reshape(0, WIDTH)
    return first_new, names, slots, rows


def pack_table(number: int, table: Table, rows: Int64s) -> bytes:
    """Return rows of one table; several such may follow each other in a record.

    Many are compressed: a step is one batch of 16 MiB at most, and ten thousand events may each be
    another subscriber's, with a row of every limit. Such rows are nearly all zeros.
    """
    values = np.ascontiguousarray(table.matrix[rows], "<i8")
    body = b"".join((rows.astype("<u4").tobytes(), values.tobytes()))
    if len(body) <= TABLE_PLAIN_BYTES:
        return _TABLE.pack(FORMAT, number, table.width, len(rows)) + body
    body = zlib.compress(body, 1)
    head = _TABLE.pack(FORMAT_PACKED, number, table.width, len(rows))
    return b"".join((head, _SIZE.pack(len(body)), body))


def unpack_tables(value: bytes) -> Iterator[tuple[int, Int64s, Int64s]]:
    """Yield the number of each table, the rows' numbers and the rows."""
    at = 0
    while at < len(value):
        version, number, width, rows = _TABLE.unpack_from(value, at)
        _check_format("books", version, FORMAT_PACKED)
        at += _TABLE.size
        size = rows * (4 + 8 * width)
        if version == FORMAT_PACKED:
            (size,) = _SIZE.unpack_from(value, at)
            at += _SIZE.size
        body = value[at : at + size]
        body = zlib.decompress(body) if version == FORMAT_PACKED else body
        where = np.frombuffer(body, "<u4", rows).astype(np.int64)
        values = np.frombuffer(body, "<i8", rows * width, 4 * rows).reshape(rows, width)
        at += size
        yield number, where, values


def names_of(state: PartitionState) -> Named:
    """Return what differs when a plan, thresholds, a scope, a limit, terms or a catalog are new; none changes."""
    return state.books.names, tuple(one.version for one in state.catalogs.versions)


def pack_names(state: PartitionState) -> bytes:
    """Return plans, thresholds, scopes, limits, terms and catalogs as JSON."""
    books = state.books
    said = {
        "format": FORMAT,
        "plans": books.plans,
        "thresholds": books.thresholds,
        "limits": json.loads(books.limits.specs.to_json()),
        "terms": json.loads(books.kept_terms.to_json()),
        "catalogs": json.loads(state.catalogs.to_json()),
    }
    # They may be megabytes, of which a pack for one more member changes a line.
    scopes = books.scopes.to_json()
    return f'{json.dumps(said)[:-1]}, "scopes": {scopes}}}'.encode()


def unpack_names(value: bytes, state: PartitionState) -> None:
    """Put back into `state` what `pack_names` took from it."""
    said = json.loads(value)
    _check_format("names", said["format"])
    state.books.plans[:] = said["plans"]
    state.books.thresholds[:] = [tuple(percents) for percents in said["thresholds"]]
    state.books.scopes = Scopes.from_json(json.dumps(said["scopes"]))
    state.books.kept_terms.load(json.dumps(said["terms"]))
    state.books.limits.specs = Specs.from_json(json.dumps(said["limits"]))
    state.catalogs = CatalogBook.from_json(json.dumps(said["catalogs"]))


def pack_burns(minute_ms: int, burns: Int64s) -> bytes:
    """Return what usage of an append minute took from buckets."""
    return _MINUTE.pack(FORMAT, minute_ms) + np.ascontiguousarray(burns, "<i8").tobytes()


def unpack_burns(value: bytes) -> tuple[int, Int64s]:
    """Return what `pack_burns` was given."""
    version, minute_ms = _MINUTE.unpack_from(value)
    _check_format("burns", version)
    return minute_ms, np.frombuffer(value, "<i8", offset=_MINUTE.size).reshape(-1, 3)


def pack_seen(minute_ms: int, names: UInt64s) -> bytes:
    """Return the names counted in an append minute."""
    return _MINUTE.pack(FORMAT, minute_ms) + np.ascontiguousarray(names, "<u8").tobytes()


def unpack_seen(value: bytes) -> tuple[int, UInt64s]:
    """Return what `pack_seen` was given."""
    version, minute_ms = _MINUTE.unpack_from(value)
    _check_format("names", version)
    names = np.frombuffer(value, "<u8", offset=_MINUTE.size)
    return minute_ms, names.reshape(-1, 2).astype(np.uint64)


def pack_part(minute_ms: int, lines: pa.RecordBatch) -> bytes:
    """Return counted lines of an append minute, as Arrow IPC."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, lines.schema) as writer:
        writer.write_batch(lines)
    return b"".join((_MINUTE.pack(FORMAT, minute_ms), sink.getvalue()))


def unpack_part(value: bytes) -> tuple[int, pa.RecordBatch]:
    """Return what `pack_part` was given."""
    version, minute_ms = _MINUTE.unpack_from(value)
    _check_format("lines", version)
    lines = pa.ipc.open_stream(pa.py_buffer(value)[_MINUTE.size :]).read_next_batch()
    return minute_ms, of_today(lines)


def pack_out(seq: int, messages: Sequence[Message]) -> bytes:
    """Return the messages a step publishes after its ack; many are compressed.

    A step is one batch of 16 MiB at most, and one step may cut off ten thousand accounts: such
    messages are nearly all the same, and each may name what can be paid in 64 KiB.
    """
    parts = []
    for message in messages:
        topic = message.topic.encode()
        size = -1 if message.value is None else len(message.value)
        parts += [
            _OUT.pack(len(topic), len(message.key), size),
            topic,
            message.key,
            message.value or b"",
        ]
    body = b"".join(parts)
    if len(body) <= OUT_PLAIN_BYTES:
        return _OUT_HEAD.pack(FORMAT, seq, len(messages)) + body
    head = _OUT_HEAD.pack(FORMAT_OUT, seq, len(messages)) + _OUT_SIZE.pack(len(body))
    return head + bytes(OUT_CODEC.compress(body, asbytes=True))


def out_seq(value: bytes) -> int:
    """Return the step whose messages `unpack_out` would return."""
    return int(_OUT_HEAD.unpack_from(value)[1])


def unpack_out(value: bytes) -> tuple[int, list[Message]]:
    """Return what `pack_out` was given."""
    version, seq, count = _OUT_HEAD.unpack_from(value)
    _check_format("messages", version, FORMAT_OUT)
    value = value[_OUT_HEAD.size :]
    if version == FORMAT_OUT:
        (size,) = _OUT_SIZE.unpack_from(value)
        value = bytes(OUT_CODEC.decompress(value[_OUT_SIZE.size :], size, asbytes=True))
    at, messages = 0, []
    for _ in range(count):
        topic_bytes, key_bytes, size = _OUT.unpack_from(value, at)
        at += _OUT.size
        topic, at = value[at : at + topic_bytes].decode(), at + topic_bytes
        key, at = value[at : at + key_bytes], at + key_bytes
        body, at = (None, at) if size < 0 else (value[at : at + size], at + size)
        messages.append(Message(topic, key, body))
    return seq, messages


def _check_format(what: str, version: int, *also: int) -> None:
    """Check the version that a record begins with.

    Raises:
        BrokenLog: it is of a newer worker.
        ValueError: it is of none of ours.
    """
    if not 0 < version <= NEWEST_FORMAT:
        raise ValueError(f"{what} do not begin with {version}")
    if version not in (FORMAT, *also):
        raise BrokenLog(
            f"the journal holds {what} of format {version}; this worker does not read it"
        )
