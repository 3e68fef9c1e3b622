"""Hold all that charging knows of one partition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from tokenline.charging.step import Flush, Sent, Step
from tokenline.charging.terms import begins_at, free_models_at, terms_at
from tokenline.charging.turns import Turns
from tokenline.metering.home import Home
from tokenline.metering.seen import SeenEvents
from tokenline.metering.tally import Tally
from tokenline.quota.books import Books
from tokenline.quota.cells import MONTHS, AccountCells, Cell
from tokenline.quota.dues import Dues
from tokenline.quota.forgetting import HOUR_MS, forget_idle
from tokenline.quota.told_ends import told_ends

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenline.metering.judge import Bounds
    from tokenline.quota.decided import Decided
    from tokenline.quota.terms import FreeModels, Terms
from tokenline.rating.book import CatalogBook

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Totals:
    """Count what became of all records of the partition since the line began.

    `deleted` were gone before they were read.
    """

    counted: int = 0
    late: int = 0
    duplicate: int = 0
    rejected: int = 0
    tokens: int = 0
    deleted: int = 0
    corrections: int = 0


@dataclass(slots=True)
class PartitionState:
    """Hold accounts, seen identities, the open tally and how far each topic was read.

    `line_id` is the line that its journal belongs to, empty before that is known.
    `next_offsets` is the first offset of each topic not yet applied: anything below is skipped.
    `minute_ms` is the append minute in hand, `clock_ms` the time of the balances; neither goes back.
    `usage_ms` is when the newest usage that was read was appended.
    `ticked_ms` is the moment of the newest tick: usage appended earlier was here before it, as a rule;
    `tick_took` how many accounts the last one took. `home` is the partition: an account has a row here
    only if its key belongs into it. `strays` counts rows of a journal that did not know that; nobody
    finds them.
    `closing_seq` is the step that closed a minute whose totals are not published yet, 0 when there is
    none. `orders_next` is the first place of an order of landing that was not carried out (see
    `usage_orders`). `sent` gathers, within a step, what it asks of other accounts, `turns` between two
    runs of usage the order of commands and holds.
    """

    bounds: Bounds
    home: Home = field(default_factory=Home)
    strays: int = 0
    line_id: str = ""
    epoch: int = 0
    seq: int = 0
    minute_ms: int = 0
    usage_ms: int = 0
    next_offsets: dict[str, int] = field(
        default_factory=lambda: {"usage": 0, "commands": 0, "holds": 0}
    )
    turns: Turns = field(default_factory=Turns)
    flushed_minute_ms: int = 0
    flushed: int = -1
    orders_next: int = 0
    published_seq: int = 0
    closing_seq: int = 0
    clock_ms: int = 0
    ticked_ms: int = 0
    tick_took: int = 0
    cells: AccountCells = field(default_factory=AccountCells)
    catalogs: CatalogBook = field(default_factory=CatalogBook)
    books: Books = field(init=False)
    totals: Totals = field(default_factory=Totals)
    sent: list[Sent] = field(default_factory=list)
    seen: SeenEvents = field(init=False)
    tally: Tally = field(init=False)
    told_dues: Dues = field(init=False)
    _dirty_months: list[Int64s] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A copy may say it occurred `future_skew_ms` after its first one was appended and not be
        # late yet. The journal names the minute only: recovery may take an event for older by one.
        self.seen = SeenEvents(self.bounds.horizon_ms + self.bounds.future_skew_ms + 60_000)
        self.tally = Tally(self.minute_ms)
        # Usage that counts is no older than the horizon when it is appended.
        linger_ms = self.bounds.horizon_ms + 60_000
        self.books = Books(
            self.cells, self.terms_of, linger_ms, self._begins_at, free_models=self.free_models
        )
        # Accounts of which something was told that ends by the clock.
        self.told_dues = Dues(self._told_end)

    def terms_of(self, plan: str, at_ms: int) -> Terms | None:
        """Return the terms of a plan by the catalog in force at a moment."""
        return terms_at(self.catalogs, plan, at_ms)

    def free_models(self, at_ms: int) -> FreeModels:
        """Return what costs nothing by the catalog in force at a moment."""
        return free_models_at(self.catalogs, at_ms)

    def _begins_at(self, plan: str, version: int) -> int:
        return begins_at(self.catalogs, plan, version)

    def _told_end(self, first: int, end: int) -> Int64s:
        slots = np.arange(first, min(end, len(self.cells)))
        return told_ends(self.cells, self.books, slots)

    def note_told(self, decided: Iterable[Decided]) -> None:
        """Note when what a step decided of accounts ends by itself."""
        found = {one.slot for one in decided if not (one.subscriber or one.group)}
        slots = np.array(sorted(found), np.int64)
        ends = told_ends(self.cells, self.books, slots) if found else slots
        for slot, end_ms in zip(slots.tolist(), ends.tolist(), strict=True):
            self.told_dues.note(slot, end_ms)

    @property
    def first_due_ms(self) -> int:
        """The moment before which nothing happens by time alone."""
        books = self.books
        return min(books.dues.first_ms, self.told_dues.first_ms, books.told.dues.first_ms)

    def is_due(self, now_ms: int) -> bool:
        """Say whether anything is due by a moment."""
        books = self.books
        every = (books.dues, self.told_dues, books.told.dues)
        return any(dues.first_ms <= now_ms and dues.due(now_ms, 1) for dues in every)

    def decision_minute(self, minute_ms: int) -> int:
        """Return the minute as of which accounts are decided: that in hand, or of a tick behind it.

        Windows that were over when a tick came are over, though older usage comes after it.
        """
        return max(minute_ms, self.ticked_ms // 60_000 * 60_000)

    def move_clock(self, now_ms: int) -> int:
        """Return the moment at which balances are looked at next: theirs, or `now_ms` if it is later.

        Usage and commands are two topics, and one may be behind the other; a balance never goes back.
        """
        self.clock_ms = max(self.clock_ms, now_ms)
        return self.clock_ms

    @property
    def position(self) -> int:
        """Return how far usage and commands were applied, as one number that grows with each record of either.

        What changes a month by usage has the sum of its offset and of the next command's, what changes it by
        a command the sum of its offset and of the next usage: whichever came later has more. Holds change no
        month.
        """
        return self.next_offsets["usage"] + self.next_offsets["commands"] - 1

    def begin_step(self, now_ms: int) -> Step:
        """Start a step at `now_ms`; closes the minute in hand when `now_ms` is past it."""
        self.seq += 1
        minute_ms = max(now_ms // 60_000 * 60_000, self.minute_ms)
        flush = None
        if minute_ms > self.minute_ms:
            flush = self._close_minute()
            if minute_ms // HOUR_MS > self.minute_ms // HOUR_MS:
                forget_idle(self.books, minute_ms)
            self.minute_ms, self.tally = minute_ms, Tally(minute_ms)
        return Step(seq=self.seq, minute_ms=minute_ms, flush=flush)

    @property
    def settled_seq(self) -> int:
        """Return the last step that nobody needs the journal for: it is published, its minute too."""
        if self.closing_seq:
            return min(self.published_seq, self.closing_seq - 1)
        return self.published_seq

    def flush(self) -> Flush | None:
        """Return the totals changed since the last flush, or None; the caller publishes them."""
        if not self.tally.dirty and not self._dirty_months:
            return None
        return self._flush(self.tally.snapshot(), closed=False)

    def _close_minute(self) -> Flush | None:
        """Return a flush even if nothing changed: only then is the minute known to be published."""
        if not self.minute_ms:
            return None
        self.closing_seq = self.seq
        return self._flush(self.tally, closed=True)

    def note_flushed(self, flush: Flush) -> None:
        """Note that the totals of `flush` are published: a recovery need not sum them again."""
        self.flushed = max(self.flushed, flush.through)
        if flush.closed:
            self.flushed_minute_ms = max(self.flushed_minute_ms, flush.segment_start_ms)
            # Else the next minute ended while this one was on its way.
            if flush.seq == self.closing_seq:
                self.closing_seq = 0

    def _flush(self, tally: Tally, *, closed: bool) -> Flush:
        if not self.tally.dirty:
            tally = Tally(self.tally.segment_start_ms)
        self.tally.dirty = False
        return Flush(
            seq=self.seq,
            segment_start_ms=tally.segment_start_ms,
            through=self.position,
            closed=closed,
            tally=tally,
            months=self._month_rows(),
        )

    def mark_months(self, slots: Int64s) -> None:
        """Note that the month cells of `slots` changed."""
        self._dirty_months.append(slots)

    def mark_months_since(self, position: int) -> None:
        """Note every account whose month changed after a position; used after a recovery."""
        rows = self.cells.matrix
        newest = np.maximum(rows[:, Cell.MONTH_VERSION], rows[:, Cell.LAST_MONTH_VERSION])
        self.mark_months(np.flatnonzero(newest > position))

    def head(self) -> Mapping[str, object]:
        """Return the small facts of the state, for the journal and for status."""
        return {
            "line_id": self.line_id,
            "epoch": self.epoch,
            "seq": self.seq,
            "minute_ms": self.minute_ms,
            "usage_ms": self.usage_ms,
            "clock_ms": self.clock_ms,
            "ticked_ms": self.ticked_ms,
            "next_offsets": dict(self.next_offsets),
            "turns": [self.turns.holds_from, *self.turns.pairs],
            "flushed_minute_ms": self.flushed_minute_ms,
            "flushed": self.flushed,
            "orders_next": self.orders_next,
            "published_seq": self.published_seq,
            "zones": list(self.cells.zones),
            "accounts": len(self.cells),
            "partitions": self.home.partitions,
            "strays": self.strays,
            "tables": {name: len(table) for name, table in self.books.named_tables.items()},
            "totals": {name: getattr(self.totals, name) for name in Totals.__slots__},
        }

    def _month_rows(self) -> pl.DataFrame:
        if not self._dirty_months:
            return pl.DataFrame()
        slots = np.unique(np.concatenate(self._dirty_months))
        self._dirty_months = []
        rows = self.cells.matrix
        frames = [_months_of(slots, rows, columns) for columns in MONTHS]
        return pl.concat(frames)


def _months_of(slots: Int64s, rows: Int64s, columns: tuple[Cell, Cell, Cell, Cell]) -> pl.DataFrame:
    start, tokens, events, version = columns
    # After a recovery `slots` may be all accounts; few of them have used anything. A month from which a
    # correction took the last event is told as well.
    used = slots[(rows[slots, events] > 0) | (rows[slots, version] > 0)]
    return pl.DataFrame(
        {
            "slot": used,
            "window_start": rows[used, start],
            "total_tokens": rows[used, tokens],
            "events": rows[used, events],
            "version": rows[used, version],
        }
    )
