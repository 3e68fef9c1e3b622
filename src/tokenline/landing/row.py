"""Turn decoded usage and charging's verdicts into the rows of the ledger and of the duplicates.

Pure Arrow: no clock, no Kafka, no ClickHouse, no loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.errors import BrokenLog
from tokenline.event import TOKEN_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Int64s = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

IDENTITY = ("tenant_id", "source", "event_id")

_MS = pa.timestamp("ms", "UTC")
_STRING = pa.string()
_INT = pa.int64()
_EVENT_FIELDS = (
    *((name, _STRING) for name in ("tenant_id", "source", "event_id", "request_id")),
    ("attempt", _INT),
    *(
        (name, _STRING)
        for name in (
            "account_id",
            "subscriber_id",
            "gateway_id",
            "gateway_version",
            "gateway_epoch",
        )
    ),
    ("gateway_seq", _INT),
    *(
        (name, _STRING)
        for name in (
            "home_domain",
            "serving_domain",
            "provider",
            "model_requested",
            "model",
            "operation",
        )
    ),
    ("occurred_at", _MS),
    ("started_at", _MS),
    *((name, _INT) for name in TOKEN_KINDS),
    ("other_units", pa.map_(_STRING, _INT)),
    *((name, _STRING) for name in ("usage_source", "outcome", "hold_id", "corrects")),
    ("tags", pa.map_(_STRING, _STRING)),
)
_PLACE_FIELDS = (
    ("topic", _STRING),
    ("partition", _INT),
    ("offset", _INT),
    ("appended_at", _MS),
    ("late", _INT),
)
LEDGER_SCHEMA = pa.schema([*_EVENT_FIELDS, *_PLACE_FIELDS, ("total_tokens", _INT)])
DUPLICATES_SCHEMA = pa.schema(
    [
        *(
            (name, _STRING)
            for name in (
                "tenant_id",
                "account_id",
                "source",
                "event_id",
                "gateway_id",
                "gateway_epoch",
            )
        ),
        ("gateway_seq", _INT),
        *_PLACE_FIELDS,
    ]
)


class Verdict(IntEnum):
    """Say how charging judged one offset; one above REJECTED has no record that was judged."""

    COUNTED = 0
    LATE = 1
    CORRECTION = 2
    DUPLICATE = 3
    REJECTED = 4
    ABSENT = 5
    DELETED = 6
    UNJUDGED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Hold decoded events of one partition, in offset order, with what is known of each.

    `late` says that the event was late when appended; `repeats` that it is a copy and no ledger
    row.
    """

    topic: str
    partition: int
    batch: pa.RecordBatch
    offsets: Int64s
    appended_ms: Int64s
    late: Bools
    repeats: Bools

    def without_repeats_at(self, positions: Sequence[int]) -> Events:
        """Return the same events with these late ones found to be copies."""
        repeats = self.repeats.copy()
        repeats[list(positions)] = True
        return Events(
            topic=self.topic,
            partition=self.partition,
            batch=self.batch,
            offsets=self.offsets,
            appended_ms=self.appended_ms,
            late=self.late,
            repeats=repeats,
        )


def ledger_rows(events: Events) -> pa.Table:
    """Return the ledger rows in offset order.

    Raises:
        BrokenLog: the events lack a column of the ledger: schema and migrations do not belong
        together.
    """
    place = _place(events)
    columns = {name: _typed(events.batch, name, kind) for name, kind in _EVENT_FIELDS} | place
    columns["total_tokens"] = pa.array(total_tokens(events.batch))
    return _picked(pa.table(columns), ~events.repeats)


def duplicate_rows(events: Events) -> pa.Table:
    """Return one row for each copy."""
    place = _place(events)
    columns = {
        field.name: place[field.name]
        if field.name in place
        else _typed(events.batch, field.name, field.type)
        for field in DUPLICATES_SCHEMA
    }
    return _picked(pa.table(columns), events.repeats)


def identity_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what names an event: copies of it share this."""
    return tuple(row[name] for name in IDENTITY)


def total_tokens(batch: pa.RecordBatch) -> Int64s:
    """Return the sum over the disjoint kinds of each event."""
    total = np.zeros(batch.num_rows, np.int64)
    for name in TOKEN_KINDS:
        total += batch.column(name).to_numpy()
    return total


def late_identities(events: Events) -> pa.Table:
    """Return position, offset, account and identity of each late event not yet known as a copy."""
    positions = np.flatnonzero(events.late & ~events.repeats)
    picked = events.batch.select(["tenant_id", "account_id", "source", "event_id"]).take(
        pa.array(positions)
    )
    return (
        pa.Table.from_batches([picked])
        .append_column("position", pa.array(positions))
        .append_column("offset", pa.array(events.offsets[positions]))
    )


def repeats_within(events: Events, late: pa.Table) -> list[int]:
    """Return the positions of late events whose identity stands earlier in the same run."""
    if late.num_rows == 0:
        return []
    same_id = pc.is_in(events.batch.column("event_id"), late.column("event_id").combine_chunks())
    maybe = np.flatnonzero(same_id.to_numpy(zero_copy_only=False) & ~events.repeats)
    picked = events.batch.select(list(IDENTITY)).take(pa.array(maybe))
    names = zip(*(column.to_pylist() for column in picked.columns), strict=True)
    first: dict[tuple[str, ...], int] = {}
    for position, name in zip(maybe.tolist(), names, strict=True):
        first.setdefault(name, position)
    firsts = set(first.values())
    return [position for position in late.column("position").to_pylist() if position not in firsts]


def with_place(
    batch: pa.RecordBatch, topic: str, partition: int, offsets: Int64s, appended_ms: Int64s
) -> pa.Table:
    """Return the batch with topic, partition, offset and append time of each record."""
    table = pa.Table.from_batches([batch])
    for name, column in _place_columns(topic, partition, offsets, appended_ms).items():
        table = table.append_column(name, column)
    return table


def rows_not_at(rows: pa.Table, landed: Int64s) -> pa.Table:
    """Return the rows without those whose offset is among `landed`."""
    return (
        _picked(rows, ~np.isin(rows.column("offset").to_numpy(), landed)) if len(landed) else rows
    )


def _place(events: Events) -> dict[str, pa.Array]:
    columns = _place_columns(events.topic, events.partition, events.offsets, events.appended_ms)
    return columns | {"late": pa.array(events.late.astype(np.int64))}


def _place_columns(
    topic: str, partition: int, offsets: Int64s, appended_ms: Int64s
) -> dict[str, pa.Array]:
    zeros = np.zeros(len(offsets), np.int64)
    return {
        "topic": pa.DictionaryArray.from_arrays(
            pa.array(zeros.astype(np.int32)), pa.array([topic])
        ),
        "partition": pa.array(zeros + partition),
        "offset": pa.array(offsets),
        "appended_at": pa.array(appended_ms).cast(_MS),
    }


def _typed(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    if name not in batch.schema.names:
        raise BrokenLog(
            f"decoded events have no {name}: "
            "the usage schema and the ledger's migrations do not belong together"
        )
    column = batch.column(name)
    return column if column.type.equals(kind) or pa.types.is_map(kind) else column.cast(kind)


def _picked(table: pa.Table, wanted: Bools) -> pa.Table:
    return table if wanted.all() else table.filter(pa.array(wanted))
