"""Read a journal back into the state that wrote it."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.journal import JournalWriter, epoch_of, live_records
from tokenline.charging.packs import (
    Message,
    out_seq,
    unpack_burns,
    unpack_names,
    unpack_out,
    unpack_part,
    unpack_rows,
    unpack_seen,
    unpack_tables,
)
from tokenline.charging.partition import PartitionState, Totals
from tokenline.charging.step import Flush
from tokenline.charging.turns import Turns
from tokenline.errors import BrokenLog
from tokenline.metering.tally import Tally
from tokenline.quota.cells import WIDTH
from tokenline.quota.table import FREE, OWNER

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

Int64s = npt.NDArray[np.int64]

HEADS = (b"open", b"head")  # `open` of an older version held a head too; ours says nothing
ROWS = (b"rows", b"page")
BOOKS = (b"books", b"leaf")
NEWER = (
    "the journal holds {} of a newer worker; this one does not read them: start the newer version"
)


@dataclass(slots=True)
class Recovered:
    """Hold the state and what its new owner has to do first.

    `out` holds the messages of the last steps, which may not have been published; `unflushed` the
    totals of closed minutes that may not have been. The keys are for `writer`.
    """

    state: PartitionState
    out: list[tuple[int, list[Message]]] = field(default_factory=list)
    unflushed: list[Flush] = field(default_factory=list)
    stale_keys: list[bytes] = field(default_factory=list)
    timed_keys: dict[int, list[bytes]] = field(default_factory=dict)
    rows: int = 0

    def writer(self) -> JournalWriter:
        """Return the writer of the epoch entered, which removes what is stale when it is covered."""
        bounds = self.state.bounds
        # The state remembers a name for a minute more than the horizon; its record outlives that.
        remember_ms = bounds.horizon_ms + bounds.future_skew_ms + 120_000
        return JournalWriter(
            self.state.epoch, remember_ms, stale_keys=self.stale_keys, timed_keys=self.timed_keys
        )


@dataclass(slots=True)
class _Rows:
    """Gather account rows that arrive in any order of slots."""

    matrix: Int64s = field(default_factory=lambda: np.zeros((1024, WIDTH), np.int64))
    keys: list[str | None] = field(default_factory=list)
    end: int = 0

    def take(self, value: bytes) -> int:
        first_new, names, slots, rows = unpack_rows(value)
        self._name(first_new, names)
        self.end = max(self.end, int(slots.max(initial=-1)) + 1)
        if self.end > len(self.matrix):
            grown = np.zeros((max(self.end, 2 * len(self.matrix)), WIDTH), np.int64)
            grown[: len(self.matrix)] = self.matrix
            self.matrix = grown
        there = rows.shape[1]
        if there > WIDTH:
            raise BrokenLog(NEWER.format("rows of accounts"))
        self.matrix[slots, :there] = rows
        self.matrix[slots, there:] = 0
        return len(slots)

    def _name(self, first: int, names: list[str]) -> None:
        end = first + len(names)
        self.keys.extend(repeat(None, end - len(self.keys)))
        # A slot keeps its name for ever, but for one a fenced owner gave too late. Keeping the first
        # text where both are the same, and not the newest, frees this one whole.
        if self.keys[first:end] != names:
            self.keys[first:end] = names

    def cut(self, count: int) -> None:
        """Forget all slots from `count` on: a fenced owner opened them too late.

        Compaction may have taken the opening that would have told (see `live_records`) and not yet
        the rows themselves.
        """
        del self.keys[count:]
        # No further than rows were put: what lies behind is memory that nobody touched yet.
        self.matrix[count : self.end] = 0
        self.end = min(self.end, count)


@dataclass(slots=True)
class _TableRows:
    """Gather rows of one table of the books; rows that were never written are nobody's.

    Columns are only ever added at the end, and 0 means what was so before: rows of an older worker
    are as wide as its table was.
    """

    width: int
    matrix: Int64s = field(init=False)

    def __post_init__(self) -> None:
        self.matrix = np.zeros((0, self.width), np.int64)

    def take(self, rows: Int64s, values: Int64s) -> None:
        there = values.shape[1]
        if there > self.width:
            raise BrokenLog(NEWER.format("rows"))
        end = int(rows.max()) + 1
        if end > len(self.matrix):
            grown = np.zeros((max(end, 2 * len(self.matrix)), self.width), np.int64)
            grown[:, OWNER] = FREE
            grown[: len(self.matrix)] = self.matrix
            self.matrix = grown
        self.matrix[rows, :there] = values
        self.matrix[rows, there:] = 0

    def cut(self, count: int) -> Int64s:
        """Return the rows the newest head knows of; what lies behind was written too late.

        Raises:
            BrokenLog: the head knows of more.
        """
        if count > len(self.matrix):
            raise BrokenLog(
                "the journal's head names rows that are not there; it was cut or edited"
            )
        return np.ascontiguousarray(self.matrix[:count])


class Recovery:
    """Fill an empty `state` while its journal is read, and enter the next epoch.

    Account rows are put in their places at once and let go of, and so are messages that were
    published: together they are several times larger than the state. All else is small, and waits
    until it is known what is the last of its key.
    """

    def __init__(self, state: PartitionState) -> None:
        self._found = Recovered(state)
        self._rows = _Rows()
        self._tables = [_TableRows(table.width) for table in state.books.tables]
        self._parts: dict[int, list[pa.RecordBatch]] = {}
        self._burns: dict[int, list[Int64s]] = {}
        self._survivors: dict[bytes, tuple[int, bytes]] = {}
        self._out: deque[tuple[int, bytes]] = deque()
        self._newest = 0

    def take(self, offset: int, key: bytes, value: bytes | None) -> None:
        """Take in the next record, in offset order; None removes what the key held.

        Raises:
            BrokenLog: the record is of another format.
        """
        if value is None:
            self._survivors.pop(key, None)
            return
        epoch, kind = epoch_of(key), _kind(key)
        self._newest = max(self._newest, epoch)
        # Behind a newer opening nothing is history (see `live_records`).
        if epoch == self._newest:
            if kind in ROWS:
                self._found.rows += self._rows.take(value)
            elif kind in BOOKS:
                self._take_books(value)
            elif kind == b"out":
                self._out.append((out_seq(value), key))
            elif kind == b"head":
                self._forget_published(json.loads(value)["published_seq"])
        self._survivors[key] = (offset, b"" if kind in ROWS + BOOKS else value)

    def _take_books(self, value: bytes) -> None:
        for number, rows, values in unpack_tables(value):
            if number >= len(self._tables):
                raise BrokenLog(NEWER.format("a table"))
            self._tables[number].take(rows, values)

    def _forget_published(self, published_seq: int) -> None:
        """Empty the records of messages nobody will ask for; their keys are still to be removed.

        A message an account, each a few small objects, would leave holes all over the memory that
        the accounts' names lie in.
        """
        while self._out and self._out[0][0] <= published_seq:
            key = self._out.popleft()[1]
            offset, value = self._survivors.get(key, (0, b""))
            if value and out_seq(value) <= published_seq:
                self._survivors[key] = (offset, b"")

    def finish(self) -> Recovered:
        """Return what was found; no record may follow.

        Raises:
            BrokenLog: a slot has no name, or a record is of an unknown kind or format.
        """
        found, state = self._found, self._found.state
        live, found.stale_keys = live_records(self._survivors)
        # The newest head first: it says which messages were published, and how many accounts there are.
        # Of the steps, never of an opening: it may stand behind steps that its owner had not read.
        heads = [value for key, value in live if _kind(key) == b"head"]
        if heads:
            head = json.loads(heads[-1])
            _take_head(state, head)
            self._rows.cut(int(head["accounts"]))
            self._fill_books(head.get("tables", {}))
        for key, value in live:
            self._take_live(key, value)
        _fill_cells(state, self._rows)
        state.books.adopt()
        state.books.dues.note_new_terms()
        state.told_dues.note_everything(len(state.cells))
        _fill_tallies(found, self._parts, self._burns)
        state.mark_months_since(state.flushed_offset)
        found.out.sort(key=itemgetter(0))
        state.epoch = max((epoch_of(key) for key, _ in live), default=0) + 1
        return found

    def _take_live(self, key: bytes, value: bytes) -> None:
        found, kind = self._found, _kind(key)
        if kind == b"seen":
            minute_ms, names = unpack_seen(value)
            found.state.seen.remember(names, minute_ms)
            found.timed_keys.setdefault(minute_ms, []).append(key)
        elif kind == b"part":
            minute_ms, lines = unpack_part(value)
            self._parts.setdefault(minute_ms, []).append(lines)
            found.timed_keys.setdefault(minute_ms, []).append(key)
        elif kind == b"burn":
            minute_ms, burns = unpack_burns(value)
            self._burns.setdefault(minute_ms, []).append(burns)
            found.timed_keys.setdefault(minute_ms, []).append(key)
        elif kind == b"names":
            unpack_names(value, found.state)
            found.stale_keys.append(key)
        elif kind == b"out":
            found.stale_keys.append(key)
            if value and out_seq(value) > found.state.published_seq:
                found.out.append(unpack_out(value))
        elif kind in ROWS + BOOKS + HEADS:
            found.stale_keys.append(key)
        else:
            raise BrokenLog(f"the journal holds a record of unknown kind {key!r}")

    def _fill_books(self, counts: Mapping[str, int]) -> None:
        """Give each table its rows; one that the head does not name is younger than it, and empty.

        Raises:
            BrokenLog: the head names a table that this worker does not know.
        """
        tables = self._found.state.books.named_tables
        if counts.keys() - tables.keys():
            raise BrokenLog(NEWER.format("a table"))
        for (name, table), rows in zip(tables.items(), self._tables, strict=True):
            if count := counts.get(name, 0):
                table.adopt(rows.cut(count))


def _kind(key: bytes) -> bytes:
    return key.split(b"/")[1]


def _take_head(state: PartitionState, head: Mapping[str, object]) -> None:
    state.line_id = str(head.get("line_id", ""))
    state.seq = int(str(head["seq"]))
    state.minute_ms = int(str(head["minute_ms"]))
    state.clock_ms = int(str(head.get("clock_ms", 0)))
    state.ticked_ms = int(str(head.get("ticked_ms", 0)))
    state.flushed_minute_ms = int(str(head["flushed_minute_ms"]))
    state.flushed_offset = int(str(head["flushed_offset"]))
    state.published_seq = int(str(head["published_seq"]))
    offsets, totals, zones = head["next_offsets"], head["totals"], head["zones"]
    assert isinstance(offsets, dict) and isinstance(totals, dict) and isinstance(zones, list)  # noqa: S101, PT018
    state.next_offsets |= offsets
    turns = head.get("turns", [0])
    assert isinstance(turns, list)  # noqa: S101
    state.turns = Turns(turns[0], turns[1:])
    state.totals = Totals(**totals)
    state.cells.zones[:] = zones


def _fill_cells(state: PartitionState, rows: _Rows) -> None:
    keys = [key for key in rows.keys if key is not None]
    if len(keys) != len(rows.keys) or rows.end > len(keys):
        raise BrokenLog("the journal names account slots with gaps; it was cut or edited")
    state.cells.adopt(keys, rows.matrix)


def _fill_tallies(
    found: Recovered, parts: dict[int, list[pa.RecordBatch]], burns: dict[int, list[Int64s]]
) -> None:
    state = found.state
    for minute_ms in sorted(parts.keys() | burns.keys()):
        if minute_ms <= state.flushed_minute_ms:
            continue
        tally = Tally(minute_ms)
        for lines in parts.get(minute_ms, []):
            tally.add(lines)
        for rows in burns.get(minute_ms, []):
            tally.add_burns(rows)
        if minute_ms == state.minute_ms:
            state.tally = tally
        else:
            flush = Flush(
                seq=0,
                segment_start_ms=minute_ms,
                through_offset=state.flushed_offset,
                closed=True,
                tally=tally,
            )
            found.unflushed.append(flush)
    if state.tally.segment_start_ms != state.minute_ms:
        state.tally = Tally(state.minute_ms)
