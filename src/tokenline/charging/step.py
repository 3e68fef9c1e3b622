"""Hold what goes into a fold and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tokenline.metering.spans import NO_SPANS, Spans

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from tokenline.charging.usage_orders import WindowChange
    from tokenline.metering.tally import Tally
    from tokenline.quota.answers import OrderAnswer
    from tokenline.quota.decided import Decided
    from tokenline.quota.entries import Change
    from tokenline.quota.hold_rows import HoldAnswer

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

NO_BURNS: Int64s = np.zeros((0, 3), np.int64)
NO_SLOTS: Int64s = np.zeros(0, np.int64)
NO_NAMES: UInt64s = np.zeros((0, 2), np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageChunk:
    """Hold decoded usage of one partition in offset order.

    `batch`, `keys`, `offsets` and `appended_ms` have one entry a decoded event; `refused` names the
    records that could not be decoded. All offsets lie in `lo..hi`, and each is in one of these, in
    `absent` (it has no record) or in `deleted` (gone before it was read, appended by
    `deleted_until_ms` as far as is known).
    """

    lo: int
    hi: int
    batch: pa.RecordBatch
    keys: list[str | None]
    offsets: Int64s
    appended_ms: Int64s
    refused: list[Refused]
    absent: Spans = field(default_factory=lambda: NO_SPANS)
    deleted: Spans = field(default_factory=lambda: NO_SPANS)
    deleted_until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commanded:
    """Hold one decoded record of a topic of commands, its schema's name and where it stood."""

    offset: int
    appended_ms: int
    fields: Mapping[str, Any]
    name: str = "account_command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Name a record that becomes a dead letter; `identity` holds what could be read of it.

    `command` is what could be read of an order, for whoever waits for its answer.
    """

    offset: int
    appended_ms: int
    reason: str
    detail: str
    identity: Mapping[str, str | int] = field(default_factory=dict)
    command: Commanded | None = None


@dataclass(frozen=True, slots=True)
class Replied:
    """Hold what is answered to whom."""

    command: Commanded
    answer: OrderAnswer | HoldAnswer


@dataclass(frozen=True, slots=True)
class Sent:
    """Hold an `account_order` that charging itself writes to the account that `fields` name.

    It is published when the step is durable, and again by a successor, word for word: its command id
    makes that once. When it was issued is stamped by the worker that journals it.
    """

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Say of the offsets that were counted or are late, in their order, what each was charged.

    Columns of equal length: µtok, the version of the catalog, and the number of the bucket that paid
    (see `quota.charge.Paid`). `splits` has a row of offset, bucket number and µtok for each part of what
    several buckets paid.
    """

    utok: Int64s = field(default_factory=lambda: NO_SLOTS)
    versions: Int64s = field(default_factory=lambda: NO_SLOTS)
    buckets: Int64s = field(default_factory=lambda: NO_SLOTS)
    splits: Int64s = field(default_factory=lambda: NO_BURNS)

    @property
    def version_runs(self) -> Int64s:
        """Return the versions as pairs of one and how many in a row have it."""
        if not len(self.versions):
            return NO_SLOTS
        starts = np.flatnonzero(np.concatenate(([True], self.versions[1:] != self.versions[:-1])))
        return np.stack(
            (self.versions[starts], np.diff(starts, append=len(self.versions))), 1
        ).ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Name the offsets of a run that were not counted; all others were.

    A correction is held back; one that is late is among the late as well. `absent` and `deleted` are
    runs: first, last, first, last, … `commands_next`, `holds_next` and `turns` say what was applied before
    it (see `charging.turns`).
    """

    lo: int
    hi: int
    as_of_ms: int
    late: list[int]
    duplicate: list[int]
    rejected: list[int]
    absent: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    deleted_since_ms: int = 0
    deleted_until_ms: int = 0
    commands_next: int = 0
    holds_next: int = 0
    turns: list[int] = field(default_factory=list)
    correction: list[int] = field(default_factory=list)
    charges: Charges = field(default_factory=Charges)

    @property
    def late_usage(self) -> list[int]:
        """Return the offsets that are late and were charged at once."""
        held = set(self.correction)
        return [offset for offset in self.late if offset not in held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Hold absolute totals to be published: windows of one append minute, months of accounts.

    They include all up to the position `through`, see `PartitionState.position`. Nothing is added to `tally`
    any more, so another thread may sum it while the next minute is counted. `closed` says that the
    minute is over; else its totals will be published again, larger. `seq` is the newest step when
    it was taken, 0 in a recovery.
    """

    seq: int
    segment_start_ms: int
    through: int
    closed: bool
    tally: Tally
    months: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def burns(self) -> Int64s:
        """Return what usage took from each bucket in the minute: slot, number, µtok."""
        return self.tally.burns()

    @property
    def late(self) -> Int64s:
        """Return the same of late usage."""
        return self.tally.late()

    @property
    def windows(self) -> pl.DataFrame:
        """Return the totals of every window touched, one row each; sums what is not summed yet."""
        return self.tally.rows()


@dataclass(slots=True, kw_only=True)
class Step:
    """Hold all that one fold changed; it becomes one atomic batch of the journal.

    `alarms` are slots of accounts that have used so much unpaid by now that somebody must know.
    """

    seq: int
    minute_ms: int
    touched: Int64s = field(default_factory=lambda: NO_SLOTS)
    new_keys: list[str] = field(default_factory=list)
    names: UInt64s = field(default_factory=lambda: NO_NAMES)
    lines: pa.RecordBatch | None = None
    burns: Int64s = field(default_factory=lambda: NO_BURNS)
    late: Int64s = field(default_factory=lambda: NO_BURNS)
    replies: list[Replied] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    window_changes: list[WindowChange] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)
    judged: Judged | None = None
    alarms: list[int] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    flush: Flush | None = None
    as_of_ms: int = 0
    cause: tuple[str, int] = ("", 0)
    counted: int = 0
    tokens: int = 0
