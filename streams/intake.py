"""Decode what a fetch brought, ten thousand records at a time; what cannot be read is refused, not raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, compress
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from tokenline.charging.step import Commanded, Refused, UsageChunk
from tokenline.errors import BadData, UnknownSchema
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import UNUSABLE, unusable_names
from tokenline.wire.topics import COMMANDS, HOLDS, tick_key

ORDERS = ("account_order", "hold_order")
# Who may write to a topic may write these: a gateway that asks for holds orders nothing.
BELONGS = {
    COMMANDS: ("account_command", "catalog_version", "account_order", "clock_tick"),
    HOLDS: ("hold_order",),
}

# Fields of a record, taken by C code: there are ten thousand in a chunk.
KEY, VALUE, OFFSET, TIMESTAMP = map(attrgetter, ("key", "value", "offset", "timestamp"))


# A step is one batch of the journal, which holds 16 MiB (`STATE_MAX_BYTES`): at most this much of raw
# records in base64, if all are refused, and the rows of `max_chunk_records` accounts.
RUN_MAX_BYTES = 4 << 20


def runs_of(
    records: Sequence[Any], max_records: int, max_bytes: int = RUN_MAX_BYTES
) -> Iterator[Sequence[Any]]:
    """Cut records into runs within both bounds, or of one larger record; nearly all fetches are one run."""
    if len(records) <= max_records and _bytes_of(records) <= max_bytes:
        if records:
            yield records
        return
    first, held = 0, 0
    for at, record in enumerate(records):
        size = _bytes_of((record,))
        if at - first >= max_records or (held and held + size > max_bytes):
            yield records[first:at]
            first, held = at, 0
        held += size
    yield records[first:]


def _bytes_of(records: Sequence[Any]) -> int:
    return sum(map(len, filter(None, chain(map(KEY, records), map(VALUE, records)))))


def decode_usage(columns: ColumnCodec, records: Sequence[Any]) -> UsageChunk:
    """Decode a run of usage records; what cannot be read is refused, not raised."""
    decoded = columns.decode("usage_event", list(map(VALUE, records)))
    kept = records if len(decoded.kept) == len(records) else [records[i] for i in decoded.kept]
    return UsageChunk(
        lo=records[0].offset,
        hi=records[-1].offset,
        batch=decoded.batch,
        keys=_texts(list(map(KEY, kept))),
        offsets=np.fromiter(map(OFFSET, kept), np.int64, len(kept)),
        appended_ms=np.fromiter(map(TIMESTAMP, kept), np.int64, len(kept)),
        refused=[
            _refused(records[bad.position], bad.reason, bad.detail) for bad in decoded.failures
        ],
    )


def decode_commands(
    columns: ColumnCodec, codec: Codec, records: Sequence[Any], stem: str = COMMANDS
) -> tuple[list[Commanded], list[Refused]]:
    """Decode a run of a topic of commands; many of `accounts apply` as columns, others one by one."""
    alike = [
        stem == COMMANDS and columns.is_newest("account_command", record.value)
        for record in records
    ]
    found = [
        *_as_columns(columns, list(compress(records, alike))),
        *(
            _one(codec, record, stem)
            for record, is_alike in zip(records, alike, strict=True)
            if not is_alike
        ),
    ]
    found = list(map(_with_usable_names, found))
    commands = [one for one in found if isinstance(one, Commanded)]
    refused = [one for one in found if isinstance(one, Refused)]
    return sorted(commands, key=attrgetter("offset")), refused


def _as_columns(columns: ColumnCodec, records: Sequence[Any]) -> list[Commanded | Refused]:
    if not records:
        return []
    decoded = columns.decode("account_command", [record.value for record in records])
    good = [
        Commanded(offset=records[i].offset, appended_ms=records[i].timestamp, fields=fields)
        for i, fields in zip(decoded.kept, _rows_of(decoded.batch), strict=True)
    ]
    bad = [_refused(records[one.position], one.reason, one.detail) for one in decoded.failures]
    return [*good, *bad]


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows with times as ms, as `Codec` does: a moment past the year 9999 is no datetime."""
    plain = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for column in batch.columns
    ]
    rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(
        plain, names=batch.schema.names
    ).to_pylist()
    return rows


def _one(codec: Codec, record: Any, stem: str) -> Commanded | Refused:
    try:
        name, fields = codec.decode(record.value)
    except UnknownSchema as error:
        return _refused(record, "unknown_schema", str(error))
    except BadData as error:
        return _refused(record, "undecodable", str(error))
    command = Commanded(
        offset=record.offset, appended_ms=record.timestamp, fields=fields, name=name
    )
    if name not in BELONGS[stem]:
        refused = _refused(record, "wrong_topic", f"a {name} does not belong on the {stem} topic")
        return replace(refused, command=command) if name in ORDERS else refused
    if name == "clock_tick" and record.key != tick_key(int(str(fields["partition"]))):
        return _refused(record, "key_mismatch", "the key of a tick names its partition")
    key = f"{fields.get('tenant_id')}/{fields.get('account_id')}"
    # On another partition an order would make its account a second time.
    if name in ORDERS and _text(record.key) != key:
        return replace(
            _refused(record, "key_mismatch", f"the key of this {name} is not {key}"),
            command=command,
        )
    return command


def _with_usable_names(found: Commanded | Refused) -> Commanded | Refused:
    """Return a command as it is, or refuse one with a name that cannot be the key of anything."""
    command = found if isinstance(found, Commanded) else found.command
    if command is None or not (unusable := unusable_names(command.fields)):
        return found
    return Refused(
        offset=command.offset,
        appended_ms=command.appended_ms,
        reason="bad_command",
        detail=UNUSABLE + ", ".join(unusable),
    )


def _refused(record: Any, reason: str, detail: str) -> Refused:
    return Refused(offset=record.offset, appended_ms=record.timestamp, reason=reason, detail=detail)


def _texts(keys: list[bytes | None]) -> list[str | None]:
    """Decode all keys at once; one by one only when one of them is no text."""
    try:
        return list(map(bytes.decode, keys))  # type: ignore[arg-type]  # None raises, and is looked at below
    except (TypeError, UnicodeDecodeError):
        return [_text(key) for key in keys]


def _text(key: bytes | None) -> str | None:
    try:
        return None if key is None else key.decode()
    except UnicodeDecodeError:
        return None
