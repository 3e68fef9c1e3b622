"""Decode what a fetch brought, ten thousand records at a time; what cannot be used is refused, not raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from streams.records import ODD, Damaged, OfTransaction, Unreadable
from streams.stretch import KEY, OFFSET, TIMESTAMP, VALUE, Stretch
from tokenline.charging.step import Commanded, Refused, UsageChunk
from tokenline.errors import BadData, UnknownSchema
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.topics import COMMANDS, HOLDS, tick_key

ORDERS = ("account_order", "hold_order", "usage_order")
# Who may write to a topic may write these: a gateway that asks for holds orders nothing.
BELONGS = {
    COMMANDS: ("account_command", "catalog_version", "account_order", "usage_order", "clock_tick"),
    HOLDS: ("hold_order",),
}

OF_TRANSACTION = (
    "it came in a transaction, which this topic does not take, committed or not: nobody waits for what "
    "becomes of one, and one that is aborted would be charged; send it without a transactional.id "
    "(enable.idempotence may stay on)"
)


def decode_usage(columns: ColumnCodec, stretch: Stretch) -> UsageChunk:
    """Decode a stretch of usage; what cannot be used is refused, not raised."""
    records = stretch.records
    odd: list[Refused] = []
    if not stretch.plain:
        odd = [_refused_odd(one) for one in records if type(one) in (OfTransaction, Unreadable)]
        records = [one for one in records if type(one) not in ODD]
    decoded = columns.decode("usage_event", list(map(VALUE, records)))
    kept = records if len(decoded.kept) == len(records) else [records[i] for i in decoded.kept]
    absent, deleted = stretch.gaps()
    return UsageChunk(
        lo=stretch.lo,
        hi=stretch.hi,
        batch=decoded.batch,
        keys=_texts(list(map(KEY, kept))),
        offsets=np.fromiter(map(OFFSET, kept), np.int64, len(kept)),
        appended_ms=np.fromiter(map(TIMESTAMP, kept), np.int64, len(kept)),
        refused=[
            *(_refused(records[bad.position], bad.reason, bad.detail) for bad in decoded.failures),
            *odd,
        ],
        absent=absent,
        deleted=deleted,
        deleted_until_ms=stretch.deleted_until_ms,
    )


def decode_commands(
    columns: ColumnCodec, codec: Codec, records: Sequence[Any], stem: str = COMMANDS
) -> tuple[list[Commanded], list[Refused]]:
    """Decode a run of a topic of commands; many of `accounts apply` as columns, others one by one."""
    alike = [
        stem == COMMANDS
        and columns.is_newest("account_command", record.value)
        and type(record) is not OfTransaction
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
    commands = [one for one in found if isinstance(one, Commanded)]
    refused = [one for one in found if isinstance(one, Refused)]
    return sorted(commands, key=attrgetter("offset")), refused


def _as_columns(columns: ColumnCodec, records: Sequence[Any]) -> list[Commanded | Refused]:
    if not records:
        return []
    decoded = columns.decode("account_command", [record.value for record in records])
    good = [
        _with_its_key(
            records[i],
            Commanded(offset=records[i].offset, appended_ms=records[i].timestamp, fields=fields),
        )
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
    if type(record) is Damaged:
        detail = f"a batch of offsets {record.first} to {record.offset} has a wrong checksum"
        return _refused(record, "undecodable", detail)
    if type(record) is Unreadable:
        return _refused_odd(record)
    found = _decoded(codec, record, stem)
    if type(record) is OfTransaction:
        # Whoever asked gets an answer, if it can be read who did.
        refused = _refused_odd(record)
        return replace(refused, command=found if isinstance(found, Commanded) else None)
    return _with_its_key(record, found) if isinstance(found, Commanded) else found


def _decoded(codec: Codec, record: Any, stem: str) -> Commanded | Refused:
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
    return command


def _with_its_key(record: Any, command: Commanded) -> Commanded | Refused:
    """Return a command as it is, or refuse one whose key is not its account's, or its tick's partition's.

    In which partition a key may stand is judged where the command is folded.
    """
    fields, name = command.fields, command.name
    if name == "clock_tick" and record.key != tick_key(int(str(fields["partition"]))):
        return _refused(record, "key_mismatch", "the key of a tick names its partition")
    if "account_id" not in fields:
        return command
    key = f"{fields.get('tenant_id')}/{fields.get('account_id')}"
    if _text(record.key) == key:
        return command
    refused = _refused(record, "key_mismatch", f"the key of this {name} is not {key}")
    return replace(refused, command=command)


def _refused_odd(record: OfTransaction | Unreadable) -> Refused:
    if isinstance(record, OfTransaction):
        return _refused(record, "transactional_record", OF_TRANSACTION)
    what = f"the records of offsets {record.first} to {record.offset} cannot be read: {record.why}"
    return _refused(record, "unreadable_batch", what)


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
