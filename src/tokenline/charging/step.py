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

    from tokenline.metering.tally import Tally
    from tokenline.quota.answers import OrderAnswer
    from tokenline.quota.decided import Decided
    from tokenline.quota.entries import Change
    from tokenline.quota.hold_rows import HoldAnswer

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

# What nobody can read says nothing of who sent it: code or schema may be bad.
UNREADABLE = frozenset({"undecodable", "unknown_schema"})
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

    def refused_in_a_row(self) -> list[int]:
        """Return how many unreadable records stand before each decoded event and, last, behind them all."""
        unreadable = [one.offset for one in self.refused if one.reason in UNREADABLE]
        refused = np.array(unreadable, np.int64)
        before = np.searchsorted(self.offsets, refused)
        rows: list[int] = np.bincount(before, minlength=len(self.offsets) + 1).tolist()
        return rows


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
class Judged:
    """Name the offsets of a run that were not counted; all others were.

    `absent` and `deleted` are runs: first, last, first, last, …
    `commands_next`, `holds_next` and `turns` say what was applied before it (see `charging.turns`).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Hold absolute totals to be published: windows of one append minute, months of accounts.

    They include every event up to `through_offset` of the usage topic. Nothing is added to `tally`
    any more, so another thread may sum it while the next minute is counted. `closed` says that the
    minute is over; else its totals will be published again, larger. `seq` is the newest step when
    it was taken, 0 in a recovery.
    """

    seq: int
    segment_start_ms: int
    through_offset: int
    closed: bool
    tally: Tally
    months: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def burns(self) -> Int64s:
        """Return what usage took from each bucket in the minute: slot, number, µtok."""
        return self.tally.burns()

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
    replies: list[Replied] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)
    judged: Judged | None = None
    alarms: list[int] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    flush: Flush | None = None
    as_of_ms: int = 0
    cause: tuple[str, int] = ("", 0)
    counted: int = 0
    tokens: int = 0
