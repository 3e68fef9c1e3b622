"""Sum counted events into minute windows, a segment for each minute of append time.

    window 12:00   | events that occurred 12:00:00 to 12:00:59
      segment 12:00|=====      appended in 12:00
      segment 12:01|     ==    appended in 12:01 (a call that was reported late)

A segment's rows only grow while its append minute lasts, so nothing older stays in memory and no
landed row of a closed minute is ever rewritten. Partials merge by addition: associative and
commutative, an empty tally is zero, any chunking gives the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tokenline.event import TOKEN_KINDS
from tokenline.metering.judge import arrow_int64s

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64s = npt.NDArray[np.int64]

TEXT_COLUMNS = ("subscriber_id", "provider", "model")
KEY = ("slot", *TEXT_COLUMNS, "window_start")
NUMBERS = ("slot", "offset", "total_tokens", "charge_utok", "catalog_version")
LINE_COLUMNS = (*TEXT_COLUMNS, "occurred_at", *TOKEN_KINDS)
SUMS = ("events", "total_tokens", "charge_utok", *TOKEN_KINDS)
NEWEST = ("version", "catalog_version")
NO_BURNS: Int64s = np.zeros((0, 3), np.int64)
MERGE_ROWS = 100_000
PACK_CHUNKS = 32


class Tally:
    """Hold what was counted in one append minute of one partition."""

    def __init__(self, segment_start_ms: int) -> None:
        self.segment_start_ms = segment_start_ms
        self._merged: pl.DataFrame | None = None
        # Level by level: PACK_CHUNKS batches of one level make one of the next.
        self._levels: list[list[pa.RecordBatch]] = []
        self._pending_rows = 0
        self._burns: list[Int64s] = []
        self._late: list[Int64s] = []
        self.dirty = False

    def add(self, lines: pa.RecordBatch) -> None:
        """Take one chunk's lines in; they are kept as they are and summed many at a time."""
        self._hold(lines, 0)
        self._pending_rows += len(lines)
        self.dirty = True
        if self._pending_rows > MERGE_ROWS:
            self._merge()

    def add_burns(self, burns: Int64s) -> None:
        """Take in what usage took from buckets: a row each of slot, bucket number and µtok."""
        if len(burns):
            self._burns.append(burns)
            self.dirty = True

    def add_late(self, burns: Int64s) -> None:
        """Take in what late usage took: it has entries of its own, and stands in no window."""
        if len(burns):
            self._late.append(burns)
            self.dirty = True

    def burns(self) -> Int64s:
        """Return the absolute sums of every bucket used, a row each, by slot and number."""
        self._burns = _summed(self._burns)
        return self._burns[0] if self._burns else NO_BURNS

    def late(self) -> Int64s:
        """Return the same of late usage."""
        self._late = _summed(self._late)
        return self._late[0] if self._late else NO_BURNS

    def rows(self) -> pl.DataFrame:
        """Return the absolute totals of every window touched, one row each."""
        self._merge()
        return pl.DataFrame() if self._merged is None else self._merged

    def snapshot(self) -> Tally:
        """Return a tally of what was added so far, to which nothing will be added."""
        taken = Tally(self.segment_start_ms)
        self._merge()
        taken._merged = self._merged
        taken.add_burns(self.burns())
        taken.add_late(self.late())
        taken.dirty = False
        return taken

    def _hold(self, lines: pa.RecordBatch, level: int) -> None:
        """Keep few and large batches: thousands of small ones cost 0.3 s when the minute ends."""
        if level == len(self._levels):
            self._levels.append([])
        held = self._levels[level]
        held.append(lines)
        if len(held) == PACK_CHUNKS:
            self._levels[level] = []
            self._hold(_packed(held), level + 1)

    def _merge(self) -> None:
        parts = [] if self._merged is None else [self._merged]
        lines = [batch for level in self._levels for batch in level]
        if lines:
            parts.append(_sums_of(lines))
        self._levels, self._pending_rows = [], 0
        if parts:
            merged = pl.concat(parts).group_by(KEY)
            self._merged = merged.agg(pl.col(NEWEST).max(), pl.col(SUMS).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class LineNumbers:
    """Hold what is known of counted events beside what they say, a column of equal length each.

    `charge_utok` and `catalog_version` are what they cost and by which catalog, 0 where none was in
    force.
    """

    slots: Int64s
    offsets: Int64s
    totals: Int64s
    charge_utok: Int64s
    catalog_version: Int64s

    def take(self, at: Int64s) -> LineNumbers:
        """Return those of the events at these places."""
        return LineNumbers(
            slots=self.slots[at],
            offsets=self.offsets[at],
            totals=self.totals[at],
            charge_utok=self.charge_utok[at],
            catalog_version=self.catalog_version[at],
        )


def _summed(burns: Sequence[Int64s]) -> list[Int64s]:
    """Return the burns with one row a bucket, as one array; of none none."""
    if not burns:
        return []
    rows = np.concatenate(burns)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    fresh = np.flatnonzero((rows[1:, :2] != rows[:-1, :2]).any(axis=1)) + 1
    starts = np.concatenate(([0], fresh))
    sums = rows[starts]
    sums[:, 2] = np.add.reduceat(rows[:, 2], starts)
    return [sums]


def lines_of(batch: pa.RecordBatch, numbers: LineNumbers) -> pa.RecordBatch:
    """Return what a tally needs of counted events, a line each; columns are shared, not copied."""
    columns = (
        *(numbers.slots, numbers.offsets, numbers.totals),
        *(numbers.charge_utok, numbers.catalog_version),
    )
    lines = batch.select(LINE_COLUMNS)
    for at, (name, column) in enumerate(zip(NUMBERS, columns, strict=True)):
        lines = lines.add_column(at, name, arrow_int64s(column))
    return lines


def of_today(lines: pa.RecordBatch) -> pa.RecordBatch:
    """Return lines that an older version wrote with the columns of this one: nothing was rated then."""
    for at, name in enumerate(NUMBERS):
        if name not in lines.schema.names:
            lines = lines.add_column(at, name, arrow_int64s(np.zeros(len(lines), np.int64)))
    return lines


def _packed(lines: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    # Lines of a journal that another version wrote may say otherwise which columns may be null.
    schema = lines[0].schema
    alike = [
        one if one.schema.equals(schema) else pa.RecordBatch.from_arrays(one.columns, schema=schema)
        for one in lines
    ]
    return pa.Table.from_batches(alike).combine_chunks().to_batches()[0]


def _sums_of(lines: Sequence[pa.RecordBatch]) -> pl.DataFrame:
    frame = pl.from_arrow(_packed(lines))
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  # a table always gives a frame
    minute = pl.col("occurred_at").to_physical() // 60_000 * 60_000
    return (
        frame.with_columns(minute.alias("window_start"))
        .group_by(KEY)
        .agg(
            pl.col("offset").max().alias("version"),
            pl.col("catalog_version").max(),
            pl.len().cast(pl.Int64).alias("events"),
            pl.col("total_tokens", "charge_utok", *TOKEN_KINDS).sum(),
        )
    )
