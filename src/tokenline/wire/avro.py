"""Turn one record into a Confluent frame and back, exactly; the only user of fastavro.

About 20 µs a record either way. Workers decode in bulk with `columns`; this is for gateways, single
records and second opinions. Timestamps stay int milliseconds: no time zones and no range of years.

Bytes after the datum are ignored, as Avro readers do; `columns` does the same, so both judge alike.
Two malformed encodings pass here and not there, because fastavro lets them through: numbers
longer than ten bytes and negative enum positions. What counts is what `columns` says.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
from typing import TYPE_CHECKING, Any

import fastavro

from tokenline.errors import BadData, Undecodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenline.wire.registry import Registry

MAGIC = 0
HEADER_BYTES = 5
_HEADER = struct.Struct(">bI")


class Codec:
    """Encode and decode single records; keep parsed schemas for ever (they never change)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writers: dict[str, tuple[bytes, Any]] = {}
        self._readers: dict[int, tuple[str, Any, Any]] = {}

    def warm(self, *names: str) -> None:
        """Load the writers' schemas now, so that no later call asks a registry server."""
        for name in names:
            self._open_writer(name)

    def encode(self, name: str, record: Mapping[str, object]) -> bytes:
        """Return the frame of `record` under the newest `name`; missing fields take defaults.

        Raises:
            BadData: the record does not fit the schema; the text names the field or value.
        """
        header, schema = self._writers.get(name) or self._open_writer(name)
        out = io.BytesIO()
        out.write(header)
        try:
            fastavro.schemaless_writer(out, schema, record)
        except (
            ValueError,
            TypeError,
            KeyError,
            OverflowError,
            AttributeError,
            struct.error,
        ) as error:
            raise BadData(f"this is not a {name}: {error}") from error
        return out.getvalue()

    async def meet(self, frames: Iterable[bytes | None]) -> None:
        """Let the registry be asked for the schemas of frames, beside the event loop, before they are decoded."""
        if unmet := self._registry.unmet(frames):
            await asyncio.to_thread(self._registry.look_up, unmet)

    def decode(self, frame: bytes) -> tuple[str, dict[str, object]]:
        """Return (name, record) with all fields of the newest schema.

        Raises:
            UnknownSchema: the registry does not know the id.
            Undecodable: not a frame, or not a datum of the schema it names.
            RegistryUnavailable: the registry did not answer, which says nothing of the bytes.
        """
        schema_id = frame_id(frame)
        name, writer, reader = self._readers.get(schema_id) or self._open_reader(schema_id)
        body = io.BytesIO(frame)
        body.seek(HEADER_BYTES)
        try:
            record = fastavro.schemaless_reader(body, writer, reader)
        except Exception as error:  # mutated bytes raise whatever the decoder trips over
            what = f"{type(error).__name__}: {error}"
            raise Undecodable(f"not a {name} (schema id {schema_id}): {what}") from error
        if not isinstance(record, dict):
            raise Undecodable(f"schema id {schema_id} is no record")
        return name, record

    def decode_as(self, name: str, frame: bytes) -> dict[str, object]:
        """Return the fields of a record that must be a `name`.

        Raises:
            BadData: it is none, or cannot be read.
        """
        found, record = self.decode(frame)
        if found != name:
            raise Undecodable(f"it is a {found}, and only a {name} belongs here")
        return record

    def _open_writer(self, name: str) -> tuple[bytes, Any]:
        schema_id = self._registry.newest_id(name)
        self._writers[name] = header_of(schema_id), parse(self._registry.text(schema_id))
        return self._writers[name]

    def _open_reader(self, schema_id: int) -> tuple[str, Any, Any]:
        name = self._registry.name(schema_id)
        text, newest = self._registry.text(schema_id), self._registry.newest_text(name)
        writer = parse(text)
        # The same schema twice would only cost resolution time.
        reader = None if same_schema(text, newest) else parse(newest)
        self._readers[schema_id] = name, writer, reader
        return self._readers[schema_id]


def header_of(schema_id: int) -> bytes:
    """Return the five bytes that open a frame of this schema."""
    return _HEADER.pack(MAGIC, schema_id)


def frame_id(frame: bytes | None) -> int:
    """Return the schema id a frame names.

    Raises:
        Undecodable: no bytes, too few bytes, or another magic byte.
    """
    if frame is None:
        raise Undecodable("the record has no value")
    if len(frame) < HEADER_BYTES:
        raise Undecodable(f"{len(frame)} bytes are too few for a frame of 5 bytes and a datum")
    magic, schema_id = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise Undecodable(f"a frame begins with byte 0, this with {magic & 0xFF}")
    return int(schema_id)


def parse(text: str) -> Any:  # noqa: ANN401  fastavro's parsed schema has no type of its own
    """Return fastavro's parsed schema, without logical types: a timestamp stays an int."""
    return fastavro.parse_schema(without_logical_types(json.loads(text)))


def same_schema(one: str, other: str) -> bool:
    """Say whether two texts are one schema; a registry may have written it with other white space."""
    return one == other or bool(json.loads(one) == json.loads(other))


def without_logical_types(schema: Any) -> Any:  # noqa: ANN401  Avro JSON is any JSON
    """Return the schema with every `logicalType` dropped; defaults and docs stay untouched."""
    if isinstance(schema, list):
        return [without_logical_types(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: value for key, value in schema.items() if key != "logicalType"}
    for key in ("type", "items", "values"):
        if key in plain:
            plain[key] = without_logical_types(plain[key])
    if "fields" in plain:
        plain["fields"] = [without_logical_types(field) for field in plain["fields"]]
    return plain
