"""Write the state of a partition as a journal of small absolute records, and read it back.

A step is one atomic record batch of the compacted `state` topic. Records, by key `EPOCH/kind/…`:

    open/OWNER      that this epoch began; holds nothing else       until the next covers it
    head/N          where each topic was read to; zones; totals     newest wins
    rows/CYCLE/N    the account rows this step touched, whole       covered by pages
    page/CYCLE/N    4,096 account rows as they lie in memory        rewritten in a cycle
    books/CYCLE/N   rows it touched of balances, buckets, holds,    covered by leaves
                    answers, limits, subscribers and what they were told
    leaf/CYCLE/T/N  2,048 rows of table T                           rewritten in a cycle
    names/N         plans, thresholds, scopes, limits, terms and    until the next is settled
                    catalogs
    seen/MINUTE/N   names of the events this step counted           until the horizon
    part/TURN/N     what the tally took of this step                until flushed
    burn/TURN/N     what this step's usage took from buckets        until flushed
    out/N           messages to publish after this step's ack       until published

Rows and pages are absolute, so reading survivors in offset order gives the newest state whatever
compaction removed. A cycle rewrites every page; `rows` of the cycle before last are then covered
and their keys are used again. Keys carry the epoch: a late record of a fenced owner can never
replace one of ours: an account has one writer. Nor may it replace or remove one of its own that is still
needed: a key is removed, or used again, only when the step that covers it was acknowledged and the
minute it closed is published (`settled_seq` has passed it), so what a fenced owner still sends covers
nothing. `head` and `out` go round: 64 steps, of which a fenced owner can have ten on their way.

An opening says only that older epochs are closed; it never repeats what its owner had read. It may
land behind steps which that owner did not read, and a copy of an older head there would take them
back. So the state is always: the newest live head, and all live rows up to it, which were written in
its batch or before. The first step of an epoch writes `names` of its own, since those of the old
epoch are removed with it. What the bytes are is in `packs`.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.packs import (
    NOTHING_NAMED,
    Message,
    Named,
    names_of,
    pack_burns,
    pack_names,
    pack_out,
    pack_part,
    pack_rows,
    pack_seen,
    pack_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Step
    from tokenline.quota.books import Books
    from tokenline.quota.cells import AccountCells

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Record = tuple[bytes, bytes | None]

PAGE_ROWS = 4096
LEAF_ROWS = 2048  # a hold's row is twice an account's
PAGES_A_STEP = 4
CYCLES_KEPT = 3
PAGE_CYCLES_KEPT = 2
MINUTES_KEPT = 3
OUT_KEPT = 64
STALE_A_STEP = 20_000
HEADS_KEPT = 64
# An owner opens the epoch after the last; a few may open one and die. A jump is nobody's of ours.
EPOCHS_AT_ONCE = 1_000_000
_KEY = re.compile(
    rb"([1-9][0-9]{0,17})/(open|head|rows|page|books|leaf|names|seen|part|burn|out)(?:/[^/]*)*"
)


@dataclass(slots=True)
class JournalWriter:
    """Turn steps into records; holds where the page cycle stands and which keys are to be removed.

    `stale_keys` are keys of older epochs, removed when the first cycle has covered what they held, a
    slice a step: an owner that was asked much leaves a million, and a step is one batch.
    `timed_keys` those that matter for a time only, by minute, removed at the horizon.
    `_due` holds keys with the step that covers them, `_cycle_seq` is the step that ended the last
    cycle. `_named` is what was last written as `names`: whichever step makes a plan, a scope or a
    catalog, the next record says so.
    """

    epoch: int
    remember_ms: int
    stale_keys: list[bytes] = field(default_factory=list)
    timed_keys: dict[int, list[bytes]] = field(default_factory=dict)
    _cycle: int = 0
    _rows_written: int = 0
    _books_written: int = 0
    _table: int = 0  # that `_page_next` is of: 0 the accounts, then those of the books
    _page_next: int = 0
    _debt_rows: int = 0
    _in_minute: int = 0
    _minute_ms: int = -1
    _turn: int = 0
    _cycle_seq: int = 0
    _named: Named = NOTHING_NAMED
    _names_written: int = 0
    _due: deque[tuple[int, list[bytes]]] = field(default_factory=deque)
    _stale: deque[list[bytes]] = field(default_factory=deque)
    _stale_seq: int = 0

    def records(self, state: PartitionState, step: Step, out: Sequence[Message]) -> list[Record]:
        """Return the records of `step`, which must be appended as one batch."""
        # Removals first: a page of this very batch may use a key that is removed here.
        records: list[Record] = [(key, None) for key in self._covered(state.settled_seq)]
        self._enter_minute(step)
        self._forgive(state)
        if len(step.touched):
            records.append(self._rows(state.cells, step))
        records.extend(self._books(state.books))
        records.extend(self._names(state, step.seq))
        if len(step.names):
            records.append(self._seen(step))
        if step.lines is not None:
            key = self._key("part", self._turn, self._in_minute)
            records.append((key, pack_part(step.minute_ms, step.lines)))
        if len(step.burns):
            key = self._key("burn", self._turn, self._in_minute)
            records.append((key, pack_burns(step.minute_ms, step.burns)))
        records.append((self._key("out", step.seq % OUT_KEPT), pack_out(step.seq, out)))
        records.extend(self._pages(state, step.seq))
        head = json.dumps(state.head()).encode()
        records.append((self._key("head", step.seq % HEADS_KEPT), head))
        self._in_minute += 1
        return records

    def opening(self, owner: str = "") -> list[Record]:
        """Return the record that opens this epoch; all older epochs are closed by it.

        It stays where it is: `owner` is unique, so that of two that open one epoch at a time the
        second cannot take away the first, which closed the older epochs earlier.
        """
        return [(f"{self.epoch}/open/{owner}".encode(), b"{}")]

    def _names(self, state: PartitionState, seq: int) -> Iterator[Record]:
        """Give the names when they are not those last written."""
        if (named := names_of(state)) == self._named:
            return
        if self._named != NOTHING_NAMED:
            # Not one key for all: a fenced owner would replace what is needed.
            self._due.append((seq, [self._key("names", self._names_written - 1)]))
        yield self._key("names", self._names_written), pack_names(state)
        self._named, self._names_written = named, self._names_written + 1

    def _covered(self, settled_seq: int) -> Iterator[bytes]:
        """Give the keys whose cover is acknowledged, each once."""
        while self._due and self._due[0][0] <= settled_seq:
            yield from self._due.popleft()[1]
        if self._stale and self._stale_seq <= settled_seq:
            yield from self._stale.popleft()

    def _enter_minute(self, step: Step) -> None:
        if step.minute_ms == self._minute_ms:
            return
        # Minutes with usage are counted, not minutes of the clock: a gap must not reuse keys early.
        self._turn = (self._turn + 1) % MINUTES_KEPT
        self._minute_ms, self._in_minute = step.minute_ms, 0
        for minute in [m for m in self.timed_keys if m < step.minute_ms - self.remember_ms]:
            self._due.append((step.seq, self.timed_keys.pop(minute)))

    def _forgive(self, state: PartitionState) -> None:
        """Owe no more than one cycle: that pays for everything."""
        sizes = (len(state.cells), *map(len, state.books.tables))
        pages = sum(
            -(-rows // (LEAF_ROWS if table else PAGE_ROWS)) for table, rows in enumerate(sizes)
        )
        self._debt_rows = min(self._debt_rows, max(pages, 1) * PAGE_ROWS)

    def _rows(self, cells: AccountCells, step: Step) -> Record:
        key = self._key("rows", self._cycle % CYCLES_KEPT, self._rows_written)
        self._rows_written += 1
        self._debt_rows += len(step.touched)
        first_new = len(cells) - len(step.new_keys) if step.new_keys else 0
        return key, pack_rows(first_new, step.new_keys, step.touched, cells.matrix[step.touched])

    def _seen(self, step: Step) -> Record:
        key = self._key("seen", step.minute_ms // 60_000, self._in_minute)
        self.timed_keys.setdefault(step.minute_ms, []).append(key)
        return key, pack_seen(step.minute_ms, step.names)

    def _books(self, books: Books) -> Iterator[Record]:
        """Give what changed in the tables since the last step, as one record."""
        touched = [table.take_touched() for table in books.tables]
        rows = sum(map(len, touched))
        if rows:
            key = self._key("books", self._cycle % CYCLES_KEPT, self._books_written)
            self._books_written += 1
            self._debt_rows += rows
            parts = zip(count(), books.tables, touched, strict=False)
            yield key, b"".join(pack_table(n, table, at) for n, table, at in parts if len(at))

    def _pages(self, state: PartitionState, seq: int) -> Iterator[Record]:
        """Pay rows written with pages written: a page for as many rows as it holds."""
        settled_seq = state.settled_seq
        for _ in range(PAGES_A_STEP):
            # A cycle begins when the last is acknowledged: it uses keys which that one covered.
            blocked = not self._page_next and not self._table and self._cycle_seq > settled_seq
            if self._debt_rows < PAGE_ROWS or blocked:
                return
            self._debt_rows -= PAGE_ROWS
            yield self._page(state.cells, seq) if not self._table else self._leaf(state.books, seq)
            self._turn_page(state, seq)

    def _turn_page(self, state: PartitionState, seq: int) -> None:
        """Go on to the next page, of the accounts and then of each table, or end the cycle."""
        self._page_next += 1
        sizes = (len(state.cells), *map(len, state.books.tables))
        while self._page_next * self._page_rows >= sizes[self._table]:
            self._page_next, self._table = 0, self._table + 1
            if self._table == len(sizes):
                self._table = 0
                self._end_cycle(seq)
                return

    @property
    def _page_rows(self) -> int:
        return LEAF_ROWS if self._table else PAGE_ROWS

    def _page(self, cells: AccountCells, seq: int) -> Record:
        first = self._page_next * PAGE_ROWS
        slots = np.arange(first, min(first + PAGE_ROWS, len(cells)), dtype=np.int64)
        keys = cells.keys[first : first + PAGE_ROWS]
        key = self._page_key(seq, "page", self._page_next)
        return key, pack_rows(first, keys, slots, cells.matrix[slots])

    def _leaf(self, books: Books, seq: int) -> Record:
        number, table = self._table - 1, books.tables[self._table - 1]
        first = self._page_next * LEAF_ROWS
        rows = np.arange(first, min(first + LEAF_ROWS, len(table)), dtype=np.int64)
        key = self._page_key(seq, "leaf", number, self._page_next)
        return key, pack_table(number, table, rows)

    def _page_key(self, seq: int, kind: str, *numbers: int) -> bytes:
        """Return a page's key in this cycle, and remove that of the last when this one is safe."""
        if self._cycle:
            old = self._key(kind, (self._cycle - 1) % PAGE_CYCLES_KEPT, *numbers)
            self._due.append((seq, [old]))
        return self._key(kind, self._cycle % PAGE_CYCLES_KEPT, *numbers)

    def _end_cycle(self, seq: int) -> None:
        self._cycle += 1
        self._cycle_seq = seq
        self._page_next = self._rows_written = self._books_written = 0
        if self.stale_keys:
            self._stale, self._stale_seq = deque(_slices(self.stale_keys)), seq
            self.stale_keys = []

    def _key(self, kind: str, *numbers: int) -> bytes:
        return "/".join([str(self.epoch), kind, *map(str, numbers)]).encode()


def _slices(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Cut keys of older epochs into what one step removes; those that close an epoch come last, together.

    What a fenced owner wrote too late is told by the opening before it alone (see `live_records`), and
    must be gone when that goes. Of all else a reader may meet any half: it is covered.
    """
    opens = [key for key in keys if kind_of(key) == b"open"]
    rest = [key for key in keys if kind_of(key) != b"open"]
    for first in range(0, len(rest), STALE_A_STEP):
        yield rest[first : first + STALE_A_STEP]
    yield opens


def live_records(
    survivors: Mapping[bytes, tuple[int, bytes]],
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Part what counts from what fenced owners wrote too late.

    `survivors` holds the last value of each key with its offset. A record of an older epoch that
    stands after a newer epoch's opening was written by an owner who had already lost the partition:
    it is not history. Returns the live records in offset order and the keys of the dead ones.
    """
    ordered = sorted((offset, key, value) for key, (offset, value) in survivors.items())
    live: list[tuple[bytes, bytes]] = []
    dead: list[bytes] = []
    newest = 0
    for _, key, value in ordered:
        epoch = epoch_of(key)
        newest = max(newest, epoch)
        if epoch == newest:
            live.append((key, value))
        else:
            dead.append(key)
    return live, dead


def epoch_of(key: bytes | None) -> int:
    """Return the owner epoch a key carries; 0 of a key that is none of ours."""
    found = _KEY.fullmatch(key or b"")
    return int(found[1]) if found else 0


def kind_of(key: bytes) -> bytes:
    """Return what kind of record a key is of; empty of a key that is none of ours."""
    found = _KEY.fullmatch(key)
    return found[2] if found else b""


def follows(epoch: int, newest: int) -> bool:
    """Say whether an epoch can be that of an owner, where the newest before it is `newest` (0: none)."""
    return epoch > 0 and (not newest or epoch <= newest + EPOCHS_AT_ONCE)
