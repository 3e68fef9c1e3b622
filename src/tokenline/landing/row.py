"""Turn decoded usage and charging's verdicts into the rows of the ledger and of the duplicates.

Pure Arrow: no clock, no Kafka, no ClickHouse, no loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.errors import BrokenLog
from tokenline.event import TOKEN_KINDS
from tokenline.landing.charges import Charges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Int64s = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

IDENTITY = ("tenant_id", "account_id", "source", "event_id")
# What a correction names: the identity of the event that it replaces.
REPLACED = ("tenant_id", "account_id", "source", "corrects")
COPY = "copy"

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
_CHARGE_FIELDS = (
    ("judgement", _STRING),
    ("charge_utok", _INT),
    ("catalog_version", _INT),
    ("paid_buckets", pa.list_(_INT)),
    ("paid_utok", pa.list_(_INT)),
)
LEDGER_SCHEMA = pa.schema([*_EVENT_FIELDS, *_PLACE_FIELDS, ("total_tokens", _INT), *_CHARGE_FIELDS])
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
        ("reason", _STRING),
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

    `late` says that the event is in no window: it was late when appended, or replaces one that was.
    `held` says that it is a correction. `repeats` that it is no ledger row, but one of the duplicates, for
    the reason that `reasons` has of its position, COPY where it has none; `refused` that it is a dead letter.
    """

    topic: str
    partition: int
    batch: pa.RecordBatch
    offsets: Int64s
    appended_ms: Int64s
    late: Bools
    repeats: Bools
    held: Bools | None = None
    charges: Charges | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    refused: frozenset[int] = frozenset()

    @property
    def corrections(self) -> Bools:
        """Say which are corrections."""
        return np.zeros(len(self.offsets), np.bool_) if self.held is None else self.held

    @property
    def charged(self) -> Charges:
        """What each was charged."""
        return Charges.none(len(self.offsets)) if self.charges is None else self.charges

    @property
    def kept(self) -> Bools:
        """Say which are rows of the ledger."""
        kept = ~self.repeats
        kept[list(self.refused)] = False
        return kept

    def without_repeats_at(self, reasons: Mapping[int, str]) -> Events:
        """Return the same events with these found to be no ledger rows, each for a reason."""
        repeats = self.repeats.copy()
        repeats[list(reasons)] = True
        return replace(self, repeats=repeats, reasons={**self.reasons, **reasons})

    def rows_at(self, positions: Sequence[int]) -> pa.Table:
        """Return these events as rows of the ledger, whether they are any or not."""
        at = np.array(positions, np.int64)
        charged = self.charged
        splits = charged.splits[np.isin(charged.splits[:, 0], self.offsets[at])]
        some = replace(
            self,
            batch=self.batch.take(pa.array(at)),
            offsets=self.offsets[at],
            appended_ms=self.appended_ms[at],
            late=self.late[at],
            repeats=np.zeros(len(at), np.bool_),
            held=self.corrections[at],
            charges=Charges(
                utok=charged.utok[at],
                versions=charged.versions[at],
                buckets=charged.buckets[at],
                splits=splits,
            ),
            refused=frozenset(),
        )
        return ledger_rows(some)


def ledger_rows(events: Events) -> pa.Table:
    """Return the ledger rows in offset order.

    Raises:
        BrokenLog: the events lack a column of the ledger: schema and migrations do not belong
        together.
    """
    place, charged = _place(events), events.charged
    columns = {name: _typed(events.batch, name, kind) for name, kind in _EVENT_FIELDS} | place
    columns["total_tokens"] = pa.array(total_tokens(events.batch))
    columns["judgement"] = _judgements(events)
    columns["charge_utok"] = pa.array(charged.utok)
    columns["catalog_version"] = pa.array(charged.versions)
    columns["paid_buckets"], columns["paid_utok"] = charged.paid(events.offsets)
    return _picked(pa.table(columns), events.kept)


def duplicate_rows(events: Events) -> pa.Table:
    """Return one row for each event that is none of the ledger, and why."""
    place = _place(events)
    columns = {
        field.name: place[field.name]
        if field.name in place
        else _typed(events.batch, field.name, field.type)
        for field in DUPLICATES_SCHEMA
        if field.name != "reason"
    }
    reasons = [events.reasons.get(at, COPY) for at in np.flatnonzero(events.repeats).tolist()]
    rows = _picked(pa.table(columns), events.repeats)
    return rows.append_column("reason", pa.array(reasons, _STRING))


def _judgements(events: Events) -> pa.Array:
    codes = np.where(events.late, 1, 0).astype(np.int8)
    codes[events.corrections] = 2
    words = pa.array(["counted", "late", "correction"])
    return pa.DictionaryArray.from_arrays(pa.array(codes), words)


def identity_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what names an event: copies of it share this."""
    return tuple(row[name] for name in IDENTITY)


def plain_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows with times as ms since the epoch: datetime cannot hold all that a gateway may send."""
    for at, kind in enumerate(rows.schema):
        if pa.types.is_timestamp(kind.type):
            column = rows.column(at).cast(pa.timestamp("ms", kind.type.tz)).cast(pa.int64())
            rows = rows.set_column(at, kind.name, column)
    plain: list[dict[str, Any]] = rows.to_pylist()
    return plain


def total_tokens(batch: pa.RecordBatch) -> Int64s:
    """Return the sum over the disjoint kinds of each event."""
    total = np.zeros(batch.num_rows, np.int64)
    for name in TOKEN_KINDS:
        total += batch.column(name).to_numpy()
    return total


def identities_at(events: Events, positions: Int64s, names: Sequence[str] = IDENTITY) -> pa.Table:
    """Return tenant_id, account_id, source and event_id, position and offset of these events.

    With REPLACED as `names` event_id is that of the event which each of them corrects.
    """
    picked = events.batch.select(list(names)).take(pa.array(positions)).rename_columns(IDENTITY)
    return (
        pa.Table.from_batches([picked])
        .append_column("position", pa.array(positions))
        .append_column("offset", pa.array(events.offsets[positions]))
    )


def repeats_within(events: Events, asked: pa.Table) -> list[int]:
    """Return the positions of events asked for whose identity stands earlier in the same run."""
    if asked.num_rows == 0:
        return []
    same_id = pc.is_in(events.batch.column("event_id"), asked.column("event_id").combine_chunks())
    maybe = np.flatnonzero(same_id.to_numpy(zero_copy_only=False) & ~events.repeats)
    picked = events.batch.select(list(IDENTITY)).take(pa.array(maybe))
    names = zip(*(column.to_pylist() for column in picked.columns), strict=True)
    first: dict[tuple[str, ...], int] = {}
    for position, name in zip(maybe.tolist(), names, strict=True):
        first.setdefault(name, position)
    firsts = set(first.values())
    return [position for position in asked.column("position").to_pylist() if position not in firsts]


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
