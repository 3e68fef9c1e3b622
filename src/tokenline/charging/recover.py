"""Read a journal back into the state that wrote it."""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenline.charging.journal import JournalWriter, epoch_of, follows, kind_of, live_records
from tokenline.charging.packs import (
    Message,
    out_seq,
    unpack_burns,
    unpack_names,
    unpack_out,
    unpack_part,
    unpack_seen,
    unpack_tables,
)
from tokenline.charging.partition import PartitionState, Totals
from tokenline.charging.recover_rows import NEWER, AccountRows, TableRows
from tokenline.charging.step import Flush
from tokenline.charging.turns import Turns
from tokenline.errors import BrokenLog
from tokenline.metering.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

Int64s = npt.NDArray[np.int64]

# What bytes raise that are none of ours, whatever is tried with them.
NOT_OURS = (
    *(struct.error, zlib.error, pa.ArrowException, OverflowError),
    *(ValueError, KeyError, TypeError, IndexError, AttributeError),
)
# Keys that are none of ours are removed too; longer or more of them would not fit a step.
FOREIGN_KEY_BYTES, FOREIGN_KEYS = 256, 100_000
_NUMBERS = (
    *("seq", "minute_ms", "flushed_minute_ms", "flushed_offset", "published_seq", "accounts"),
)
ROWS = (b"rows", b"page")
BOOKS = (b"books", b"leaf")


@dataclass(slots=True)
class Recovered:
    """Hold the state and what its new owner has to do first.

    `out` holds the messages of the last steps, which may not have been published; `unflushed` the
    totals of closed minutes that may not have been. The keys are for `writer`. `ignored` counts records
    that are none of ours, of which the first was `ignored_first`.
    """

    state: PartitionState
    out: list[tuple[int, list[Message]]] = field(default_factory=list)
    unflushed: list[Flush] = field(default_factory=list)
    stale_keys: list[bytes] = field(default_factory=list)
    timed_keys: dict[int, list[bytes]] = field(default_factory=dict)
    rows: int = 0
    ignored: int = 0
    ignored_first: str = ""

    def writer(self) -> JournalWriter:
        """Return the writer of the epoch entered, which removes what is stale when it is covered."""
        bounds = self.state.bounds
        # The state remembers a name for a minute more than the horizon; its record outlives that.
        remember_ms = bounds.horizon_ms + bounds.future_skew_ms + 120_000
        return JournalWriter(
            self.state.epoch, remember_ms, stale_keys=self.stale_keys, timed_keys=self.timed_keys
        )


class Recovery:
    """Fill an empty `state` while its journal is read, and enter the next epoch.

    Account rows are put in their places at once and let go of, and so are messages that were
    published: together they are several times larger than the state. All else is small, and waits
    until it is known what is the last of its key.
    """

    def __init__(self, state: PartitionState) -> None:
        self._found = Recovered(state)
        self._rows = AccountRows()
        self._tables = [TableRows(table.width) for table in state.books.tables]
        self._parts: dict[int, list[pa.RecordBatch]] = {}
        self._burns: dict[int, list[Int64s]] = {}
        self._survivors: dict[bytes, tuple[int, bytes]] = {}
        self._out: deque[tuple[int, bytes]] = deque()
        self._newest = 0
        self._foreign: dict[bytes, None] = {}

    def take(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Take in the next record, in offset order; None removes what the key held.

        What cannot be a record of ours changes nothing: whoever wrote it, this partition has an owner.

        Raises:
            BrokenLog: the record is of a newer worker.
        """
        if value is None:
            self._survivors.pop(key or b"", None)
            return
        if key is None or not follows(epoch_of(key), self._newest):
            self._ignore(offset, key, "its key is none of the journal's")
            return
        kind = kind_of(key)
        try:
            self._take(kind, key, value)
        except NOT_OURS as error:
            self._ignore(offset, key, f"{type(error).__name__}: {error}")
        else:
            self._survivors[key] = (offset, b"" if kind in ROWS + BOOKS else value)

    def _take(self, kind: bytes, key: bytes, value: bytes) -> None:
        epoch = epoch_of(key)
        head = _checked_head(value) if kind == b"head" else {}
        self._newest = max(self._newest, epoch)
        # Behind a newer opening nothing is history (see `live_records`).
        if epoch != self._newest:
            return
        if kind in ROWS:
            self._found.rows += self._rows.take(value)
        elif kind in BOOKS:
            self._take_books(value)
        elif kind == b"out":
            self._out.append((out_seq(value), key))
        elif kind == b"head":
            self._forget_published(head["published_seq"])

    def _ignore(self, offset: int, key: bytes | None, why: str) -> None:
        found = self._found
        if not found.ignored:
            found.ignored_first = f"offset {offset}, key {(key or b'')[:80]!r}: {why}"[:400]
        found.ignored += 1
        if key is None or epoch_of(key) or len(key) > FOREIGN_KEY_BYTES:
            return
        if len(self._foreign) < FOREIGN_KEYS:
            self._foreign[key] = None

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
            BrokenLog: a slot has no name, rows are missing, or a record is of a newer worker.
        """
        found, state = self._found, self._found.state
        live, found.stale_keys = live_records(self._survivors)
        # The newest head first: it says which messages were published, and how many accounts there are.
        # Of the steps, never of an opening: it may stand behind steps that its owner had not read.
        heads = [value for key, value in live if kind_of(key) == b"head"]
        head = json.loads(heads[-1]) if heads else {}
        if heads:
            _take_head(state, head)
            self._rows.cut(int(head["accounts"]))
            self._fill_books(head.get("tables", {}))
        for key, value in live:
            try:
                self._take_live(key, value)
            except NOT_OURS as error:
                self._ignore(self._survivors[key][0], key, f"{type(error).__name__}: {error}")
                found.stale_keys.append(key)
        found.stale_keys += self._foreign
        _fill_cells(state, self._rows)
        _hide_strays(state, head)
        state.books.adopt()
        state.books.dues.note_new_terms()
        state.told_dues.note_everything(len(state.cells))
        _fill_tallies(found, self._parts, self._burns)
        state.mark_months_since(state.flushed_offset)
        found.out.sort(key=itemgetter(0))
        state.epoch = max((epoch_of(key) for key, _ in live), default=0) + 1
        return found

    def _take_live(self, key: bytes, value: bytes) -> None:
        found, kind = self._found, kind_of(key)
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
        else:
            found.stale_keys.append(key)

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


def _checked_head(value: bytes) -> Mapping[str, Any]:
    """Return a head that an owner wrote.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    head: Mapping[str, Any] = json.loads(value)
    numbers = [head[name] for name in _NUMBERS]
    numbers += [*head["next_offsets"].values(), *head["totals"].values()]
    if {type(one) for one in numbers} - {int} or {type(one) for one in head["zones"]} - {str}:
        raise ValueError("it is no head of an owner")
    return head


def _take_head(state: PartitionState, head: Mapping[str, object]) -> None:
    state.line_id = str(head.get("line_id", ""))
    state.seq = int(str(head["seq"]))
    state.minute_ms = int(str(head["minute_ms"]))
    state.usage_ms = int(str(head.get("usage_ms", state.minute_ms + 59_999)))
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


def _fill_cells(state: PartitionState, rows: AccountRows) -> None:
    keys = [key for key in rows.keys if key is not None]
    if len(keys) != len(rows.keys) or rows.end > len(keys):
        raise BrokenLog("the journal names account slots with gaps; it was cut or edited")
    state.cells.adopt(keys, rows.matrix)


def _hide_strays(state: PartitionState, head: Mapping[str, object]) -> None:
    """Let nobody find accounts that belong into another partition: there they have their owner.

    Who wrote this head for as many partitions as there are now let none in, so it is not looked for any.
    """
    if head.get("partitions") == state.home.partitions and not head.get("strays"):
        return
    strays = state.home.strays(state.cells.keys)
    state.cells.hide(strays)
    state.strays = len(strays)


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
