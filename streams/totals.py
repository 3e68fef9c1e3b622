"""Say in Avro what a minute came to: windows, months, and what usage took from buckets.

The entries of balances that are no usage are said at once, with the step that made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from tokenline.charging.packs import Message
from tokenline.event import TOKEN_KINDS
from tokenline.metering.calendar import MINUTE_MS
from tokenline.quota.terms import Source
from tokenline.wire.kafka import account_key
from tokenline.wire.topics import BALANCES, WINDOWS

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenline.charging.journal import Record
    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Flush, Int64s, Step
    from tokenline.wire.avro import Codec
    from tokenline.wire.columns import ColumnCodec

FLUSH_ROWS = 1_000  # about 2 ms of the loop
ENTRY_PREFIX = {"usage": "usage", "late_usage": "late"}
NAMES = {WINDOWS: "account_window", BALANCES: "balance_change"}


@dataclass(frozen=True, slots=True)
class TotalRows:
    """Hold totals of one topic with all columns of its schema, and their Kafka keys."""

    stem: str
    keys: Sequence[bytes]
    batch: pa.RecordBatch


def totals_of(
    columns: ColumnCodec, state: PartitionState, flush: Flush, partition: int
) -> list[TotalRows]:
    """Return the totals of minutes, of months and of buckets; safe in a thread."""
    minute_ms = flush.segment_start_ms
    frames = (
        (WINDOWS, _window_frame(state, flush.windows, "minute", minute_ms, partition)),
        (WINDOWS, _window_frame(state, flush.months, "month", 0, partition)),
        (BALANCES, _burn_frame(state, flush.burns, "usage", minute_ms, partition)),
        (BALANCES, _burn_frame(state, flush.late, "late_usage", minute_ms, partition)),
    )
    return [_as_rows(columns, stem, frame) for stem, frame in frames if not frame.is_empty()]


def encode_totals(
    columns: ColumnCodec, totals: Iterable[TotalRows]
) -> Iterator[tuple[str, list[Record]]]:
    """Yield topic, and totals as keys and values, FLUSH_ROWS at a time."""
    for rows in totals:
        for first in range(0, len(rows.keys), FLUSH_ROWS):
            keys = rows.keys[first : first + FLUSH_ROWS]
            values = columns.encode(NAMES[rows.stem], rows.batch.slice(first, FLUSH_ROWS))
            yield rows.stem, list(zip(keys, values, strict=True))


def changes_of(
    codec: Codec, state: PartitionState, step: Step, partition: int
) -> Iterator[Message]:
    """Yield a message for each entry of a step; its number names it, so told again it is the same."""
    for change in step.changes:
        tenant, account = split_key(state.cells.keys[change.slot])
        fields = {
            "tenant_id": tenant,
            "account_id": account,
            "bucket": change.bucket,
            "entry": str(change.number),
            "kind": change.kind.name.lower(),
            "amount_utok": change.amount_utok,
            "at": change.at_ms,
            "version": 1,
            "partition": partition,
            "source": Source(change.source).name.lower(),
            "command_id": change.cause.command_id,
            "counterpart": change.cause.counterpart,
            "giver_entry": change.cause.giver_entry,
            "catalog_version": _catalog_version(state, change.at_ms),
        }
        yield Message(
            BALANCES, account_key(tenant, account), codec.encode("balance_change", fields)
        )


def window_changes_of(
    codec: Codec, state: PartitionState, step: Step, partition: int
) -> Iterator[Message]:
    """Yield a message for each window that an order of the step changed; its cause names it."""
    for change in step.window_changes:
        tenant, account = split_key(state.cells.keys[change.slot])
        fields = {
            "tenant_id": tenant,
            "account_id": account,
            "subscriber_id": change.subscriber,
            "provider": change.provider,
            "model": change.model,
            "grain": change.grain,
            "window_start": change.window_start_ms,
            "segment_start": 0
            if change.grain == "month"
            else step.as_of_ms // MINUTE_MS * MINUTE_MS,
            "partition": partition,
            "events": change.events,
            "total_tokens": change.total_tokens,
            "version": step.cause[1],
            "charge_utok": change.charge_utok,
            "catalog_version": change.catalog_version,
            "cause": change.cause,
            **dict(zip(TOKEN_KINDS, change.counts, strict=True)),
        }
        key = account_key(tenant, account)
        yield Message(WINDOWS, key, codec.encode("account_window", fields))


def _catalog_version(state: PartitionState, at_ms: int) -> int:
    catalog = state.catalogs.at(at_ms)
    return 0 if catalog is None else catalog.version


def split_key(key: str) -> tuple[str, str]:
    """Return tenant and account; a tenant has no slash, an account may."""
    tenant, _, account = key.partition("/")
    return tenant, account


def _as_rows(columns: ColumnCodec, stem: str, frame: pl.DataFrame) -> TotalRows:
    keys = frame.get_column("key").cast(pl.Binary).to_list()
    batch = frame.drop("key").to_arrow().combine_chunks().to_batches()[0]
    return TotalRows(stem, keys, columns.ordered(NAMES[stem], batch))


def _names(state: PartitionState, slots: Sequence[int]) -> list[pl.Series]:
    """Return the columns key, tenant_id and account_id."""
    keys = pl.Series("key", [state.cells.keys[slot] for slot in slots], pl.String)
    parts = keys.str.splitn("/", 2).struct.rename_fields(["tenant_id", "account_id"])
    return [keys, *parts.struct.unnest().get_columns()]


def _window_frame(
    state: PartitionState, rows: pl.DataFrame, grain: str, segment_start_ms: int, partition: int
) -> pl.DataFrame:
    """Return `rows` with all columns of the `account_window` schema."""
    if rows.is_empty():
        return rows
    blank = [
        pl.lit("").alias(name)
        for name in ("subscriber_id", "provider", "model", "cause")
        if name not in rows.columns
    ]
    numbers = (*TOKEN_KINDS, "charge_utok", "catalog_version")
    zero = [pl.lit(0, pl.Int64).alias(name) for name in numbers if name not in rows.columns]
    return rows.with_columns(
        *_names(state, rows.get_column("slot").to_list()),
        *blank,
        *zero,
        pl.lit(grain).alias("grain"),
        pl.from_epoch("window_start", time_unit="ms"),
        pl.lit(segment_start_ms, pl.Int64).cast(pl.Datetime("ms")).alias("segment_start"),
        pl.lit(partition, pl.Int32).alias("partition"),
    )


def _burn_frame(
    state: PartitionState, burns: Int64s, kind: str, minute_ms: int, partition: int
) -> pl.DataFrame:
    """Return what usage took from each bucket in the minute, an entry each.

    Its version is the amount: within a minute it only grows, whoever sums it.
    """
    burns = burns[burns[:, 2] > 0]
    if not len(burns):
        return pl.DataFrame()
    return pl.DataFrame(
        [
            *_names(state, burns[:, 0].tolist()),
            pl.Series("bucket", burns[:, 1]),
            pl.Series("amount_utok", -burns[:, 2]),
            pl.Series("version", burns[:, 2]),
        ]
    ).with_columns(
        pl.lit(f"{ENTRY_PREFIX[kind]}/{minute_ms}").alias("entry"),
        pl.lit(kind).alias("kind"),
        # The bucket may be gone when the minute is told again: its grant says where it came from.
        *(pl.lit("").alias(name) for name in ("source", "command_id", "counterpart")),
        *(pl.lit(0, pl.Int64).alias(name) for name in ("giver_entry", "catalog_version")),
        pl.lit(minute_ms, pl.Int64).cast(pl.Datetime("ms")).alias("at"),
        pl.lit(partition, pl.Int32).alias("partition"),
    )
