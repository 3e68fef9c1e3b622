"""Turn many frames into Arrow columns at once, and columns into frames; workers only.

pyruhvro (Rust) does the work: about 1 µs a usage event. It is used with three cares, each shown by
a test: it lets strings through that are not UTF-8 (checked here), it gives up on a whole batch for
one bad datum (halved until the bad ones are found), and it may panic (any BaseException but a stop
is a failure). Bytes after a datum are ignored, as in `avro`. A 32-bit int that overflows wraps in
pyruhvro, so no schema that strangers write has one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from tokenline.errors import BadData, RegistryUnavailable, Undecodable, UnknownSchema
from tokenline.wire.avro import HEADER_BYTES, Codec, frame_id, header_of, same_schema
from tokenline.wire.flat import FlatCodec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenline.wire.registry import Registry

Reason = Literal["undecodable", "unknown_schema"]
_STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Name one frame that could not be decoded, with the reason of its dead letter."""

    position: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Hold the columns of the good frames; row i came from `frames[kept[i]]`, kept ascends."""

    batch: pa.RecordBatch
    kept: npt.NDArray[np.int64]
    failures: list[Failure]


@dataclass(frozen=True, slots=True)
class _Target:
    """Hold what the newest schema of one name wants to see."""

    text: str
    schema: pa.Schema
    fields: list[dict[str, Any]]


class ColumnCodec:
    """Decode and encode batches of one record name; keep schemas for ever (they never change)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._codec = Codec(registry)
        self._targets: dict[str, _Target] = {}
        # By id and name; whether an id is of the newest schema of the name.
        self._newest: dict[tuple[int, str], bool] = {}
        self._headers: dict[str, bytes] = {}
        self._flat: dict[str, FlatCodec] = {}

    def decode(self, name: str, frames: Sequence[bytes | None]) -> Decoded:
        """Return all columns of the newest schema of `name`; timestamps are timestamp[ms].

        Frames of older ids are read with their own schema and filled with the newest defaults.
        Bad frames never raise: each becomes a `Failure`.

        Raises:
            RegistryUnavailable: the registry did not answer; nothing was judged, try again.
        """
        target = self._target(name)
        good = self._decode_uniform(name, target, frames)
        if good is not None:
            return Decoded(batch=good, kept=np.arange(len(frames), dtype=np.int64), failures=[])
        return self._decode_mixed(name, target, frames)

    def encode(self, name: str, batch: pa.RecordBatch) -> list[bytes]:
        """Return one frame a row under the newest `name`; columns go by name, all must be there.

        Raises:
            BadData: a column is missing or of another type.
        """
        target = self._target(name)
        if batch.num_rows == 0:
            return []
        ordered = self.ordered(name, batch)
        try:
            chunks = pyruhvro.serialize_record_batch(ordered, target.text, 1)
        except BaseException as error:
            raise _bad_data(BadData, error) from error
        header = self._header(name)
        return [header + datum for chunk in chunks for datum in chunk.to_pylist()]

    def ordered(self, name: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the columns of the newest `name`, in its order and types; as it is when it is so.

        Slices of what was ordered are encoded at a third of the cost: a cast looks at all columns.

        Raises:
            BadData: a column is missing or of another type.
        """
        target = self._target(name).schema
        if batch.schema.equals(target):
            return batch
        given = set(batch.schema.names)
        if missing := [field.name for field in target if field.name not in given]:
            raise BadData(f"a batch of {name} lacks the columns {missing}")
        try:
            return batch.select(target.names).cast(target)
        except pa.ArrowException as error:
            raise BadData(f"{type(error).__name__}: {error}") from error

    def encode_flat(self, name: str, record: Mapping[str, object]) -> bytes:
        """Return the frame of one record of `name` whose arrays are long: see `flat`."""
        if name not in self._flat:
            self._flat[name] = FlatCodec(self._registry, name)
        return self._flat[name].encode(record)

    def is_newest(self, name: str, frame: bytes | None) -> bool:
        """Say whether a frame is of the newest schema of `name`, without decoding it."""
        try:
            return frame is not None and self._is_newest(name, frame_id(frame))
        except (BadData, RegistryUnavailable):
            return False

    def empty(self, name: str) -> pa.RecordBatch:
        """Return no rows with all columns of the newest schema."""
        return pa.RecordBatch.from_pylist([], schema=self._target(name).schema)

    def _target(self, name: str) -> _Target:
        if name not in self._targets:
            text = self._registry.newest_text(name)
            fields = json.loads(text)["fields"]
            self._targets[name] = _Target(text, arrow_schema(text), fields)
        return self._targets[name]

    def _header(self, name: str) -> bytes:
        """Return what opens a frame that we write; asks the registry for the id, once."""
        if name not in self._headers:
            self._headers[name] = header_of(self._registry.newest_id(name))
        return self._headers[name]

    def _is_newest(self, name: str, schema_id: int) -> bool:
        found = self._newest.get((schema_id, name))
        if found is None:
            text = self._registry.text(schema_id)
            found = self._newest[schema_id, name] = self._registry.name(
                schema_id
            ) == name and same_schema(text, self._target(name).text)
        return found

    def _decode_uniform(
        self, name: str, target: _Target, frames: Sequence[bytes | None]
    ) -> pa.RecordBatch | None:
        """Return the batch when every frame is of the newest schema and good, else None."""
        if not frames or not all(frames) or len({frame[:HEADER_BYTES] for frame in frames}) > 1:  # type: ignore[index]  # all are bytes
            return None
        if not self.is_newest(name, frames[0]):
            return None
        datums = [frame[HEADER_BYTES:] for frame in frames]  # type: ignore[index]  # the same
        try:
            return decode_datums(datums, target.text)
        except Undecodable:
            return None

    def _decode_mixed(self, name: str, target: _Target, frames: Sequence[bytes | None]) -> Decoded:
        groups, failures = self._by_schema(name, frames)
        batches: list[pa.RecordBatch] = []
        kept: list[int] = []
        for schema_id, members in groups.items():
            positions, datums = zip(*members, strict=True)
            for run in good_runs(datums, self._registry.text(schema_id)):
                if isinstance(run, _Bad):
                    detail = self._explain(schema_id, datums[run.at], run.refusal)
                    failures.append(_failure(positions[run.at], "undecodable", detail))
                else:
                    batches.append(conform(run.batch, target))
                    kept.extend(positions[run.at : run.at + run.batch.num_rows])
        failures.sort(key=lambda failure: failure.position)
        return _in_order(batches, kept, failures, target)

    def _by_schema(
        self, name: str, frames: Sequence[bytes | None]
    ) -> tuple[dict[int, list[tuple[int, bytes]]], list[Failure]]:
        groups: dict[int, list[tuple[int, bytes]]] = {}
        failures: list[Failure] = []
        for position, frame in enumerate(frames):
            try:
                schema_id = frame_id(frame)
                if schema_id not in groups:
                    self._check_name(name, schema_id)
            except UnknownSchema as error:
                failures.append(_failure(position, "unknown_schema", error))
            except Undecodable as error:
                failures.append(_failure(position, "undecodable", error))
            else:
                groups.setdefault(schema_id, []).append((position, (frame or b"")[HEADER_BYTES:]))
        return groups, failures

    def _check_name(self, name: str, schema_id: int) -> None:
        found = self._registry.name(schema_id)
        if found != name:
            raise Undecodable(f"schema id {schema_id} is {found}, and only {name} belongs here")

    def _explain(self, schema_id: int, datum: bytes, refusal: str) -> str:
        """Ask fastavro for a text a person can use; the verdict stays pyruhvro's."""
        try:
            self._codec.decode(header_of(schema_id) + datum)
        except BadData as error:
            return str(error)
        return f"malformed Avro (schema id {schema_id}): {refusal}"


def decode_datums(datums: Sequence[bytes], text: str) -> pa.RecordBatch:
    """Return the columns of all datums.

    Raises:
        Undecodable: at least one is bad; which one is not said.
    """
    try:
        batch = pyruhvro.deserialize_array(list(datums), text)
        # pyruhvro copies string bytes unchecked; everything behind Arrow takes UTF-8 for granted.
        batch.validate(full=True)
    except BaseException as error:
        raise _bad_data(Undecodable, error) from error
    return batch


@dataclass(frozen=True, slots=True)
class _Good:
    at: int
    batch: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class _Bad:
    at: int
    refusal: str


def good_runs(datums: Sequence[bytes], text: str, at: int = 0) -> Iterator[_Good | _Bad]:
    """Yield the good runs and the single bad datums in order, halving what is refused.

    k bad datums among n cost about k log n decodes of shrinking halves.
    """
    try:
        yield _Good(at, decode_datums(datums, text))
    except Undecodable as error:
        if len(datums) == 1:
            yield _Bad(at, str(error))
            return
        middle = len(datums) // 2
        yield from good_runs(datums[:middle], text, at)
        yield from good_runs(datums[middle:], text, at + middle)


def arrow_schema(text: str) -> pa.Schema:
    """Return the Arrow schema in which records of this Avro schema are decoded."""
    return pyruhvro.deserialize_array([], text).schema


def conform(batch: pa.RecordBatch, target: _Target) -> pa.RecordBatch:
    """Return the batch with the columns of the newest schema: promoted, or filled with defaults."""
    if batch.schema.equals(target.schema):
        return batch
    columns = [
        _promoted(batch.column(field["name"]), arrow, field)
        if field["name"] in batch.schema.names
        else _default(field, arrow, batch.num_rows)
        for arrow, field in zip(target.schema, target.fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=target.schema)


def _promoted(column: pa.Array, arrow: pa.Field, field: dict[str, Any]) -> pa.Array:
    kind = field["type"]
    if isinstance(kind, dict) and kind.get("type") == "enum":
        # A symbol the reader does not have becomes the enum's default, as Avro says.
        known = pc.is_in(column, pa.array(kind["symbols"]))
        if not pc.all(known).as_py():
            column = pc.if_else(known, column, pa.scalar(kind["default"]))
    return column if column.type.equals(arrow.type) else column.cast(arrow.type)


def _default(field: dict[str, Any], arrow: pa.Field, rows: int) -> pa.Array:
    value = field["default"]
    if isinstance(value, dict):
        value = list(value.items())
    if pa.types.is_timestamp(arrow.type):
        return pa.array([value] * rows, pa.int64()).cast(arrow.type)
    return pa.array([value] * rows, arrow.type)


def _failure(position: int, reason: Reason, detail: object) -> Failure:
    return Failure(position=position, reason=reason, detail=str(detail))


def _in_order(
    batches: list[pa.RecordBatch], kept: list[int], failures: list[Failure], target: _Target
) -> Decoded:
    if not batches:
        empty = pa.RecordBatch.from_pylist([], schema=target.schema)
        return Decoded(batch=empty, kept=np.empty(0, np.int64), failures=failures)
    batch = pa.concat_batches(batches) if len(batches) > 1 else batches[0]
    positions = np.asarray(kept, dtype=np.int64)
    order = np.argsort(positions, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        batch, positions = batch.take(pa.array(order)), positions[order]
    return Decoded(batch=batch, kept=positions, failures=failures)


_BadKind = TypeVar("_BadKind", bound=BadData)


def _bad_data(kind: type[_BadKind], error: BaseException) -> _BadKind:
    """Return the data fault behind what pyruhvro raised; let a stop of the process pass.

    A panic in Rust is a `BaseException` of pyo3, so `except Exception` would miss it.
    """
    if isinstance(error, _STOPS):
        raise error
    return kind(f"{type(error).__name__}: {error}")
