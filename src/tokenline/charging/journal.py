"""Write the state of a partition as a journal of small absolute records, and read it back.

A step is one atomic record batch of the compacted `state` topic. Records, by key `EPOCH/kind/…`:

    open            that this epoch began; never written again      until the next covers it
    head            where each topic was read to; zones; totals     newest wins
    rows/CYCLE/N    the account rows this step touched, whole       covered by pages
    page/CYCLE/N    4,096 account rows as they lie in memory        rewritten in a cycle
    seen/MINUTE/N   names of the events this step counted           until the horizon
    part/TURN/N     what the tally took of this step                until flushed
    out/N           messages to publish after this step's ack       until published

Rows and pages are absolute, so reading survivors in offset order gives the newest state whatever
compaction removed. A cycle rewrites every page; `rows` of the cycle before last are then covered
and their keys are used again. Keys carry the epoch: a late record of a fenced owner can never
replace one of ours (DESIGN invariant 4). Nor may it replace or remove one of its own that is still
needed: a key is removed, or used again, only when the step that covers it was acknowledged and the
minute it closed is published (`settled_seq` has passed it), so what a fenced owner still sends covers
nothing. Bytes are little-endian and carry a version.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenline.errors import BrokenLog
from tokenline.quota.cells import WIDTH, AccountCells

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Step

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Record = tuple[bytes, bytes | None]

FORMAT = 1
FORMAT_PACKED = 2  # of `out` only
OUT_PLAIN_BYTES = 1 << 20
PAGE_ROWS = 4096
PAGES_A_STEP = 4
CYCLES_KEPT = 3
PAGE_CYCLES_KEPT = 2
MINUTES_KEPT = 3
OUT_KEPT = 64

_ROWS = struct.Struct("<BIIII")
_MINUTE = struct.Struct("<Bq")
_OUT_HEAD = struct.Struct("<BQI")
_OUT = struct.Struct("<BHi")


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one record to publish: topic stem, key, value (None is a tombstone)."""

    topic: str
    key: bytes
    value: bytes | None


@dataclass(slots=True)
class JournalWriter:
    """Turn steps into records; holds where the page cycle stands and which keys are to be removed.

    `stale_keys` are keys of older epochs, removed when the first cycle has covered what they held;
    `timed_keys` those that matter for a time only, by minute, removed at the horizon.
    `_due` holds keys with the step that covers them, `_cycle_seq` is the step that ended the last
    cycle.
    """

    epoch: int
    remember_ms: int
    stale_keys: list[bytes] = field(default_factory=list)
    timed_keys: dict[int, list[bytes]] = field(default_factory=dict)
    _cycle: int = 0
    _rows_written: int = 0
    _page_next: int = 0
    _debt_rows: int = 0
    _in_minute: int = 0
    _minute_ms: int = -1
    _turn: int = 0
    _cycle_seq: int = 0
    _due: deque[tuple[int, list[bytes]]] = field(default_factory=deque)

    def records(self, state: PartitionState, step: Step, out: Sequence[Message]) -> list[Record]:
        """Return the records of `step`, which must be appended as one batch."""
        # Removals first: a page of this very batch may use a key that is removed here.
        records: list[Record] = [(key, None) for key in self._covered(state.settled_seq)]
        self._enter_minute(step)
        if len(step.touched):
            records.append(self._rows(state.cells, step))
        if len(step.names):
            records.append(self._seen(step))
        if step.lines is not None:
            key = self._key("part", self._turn, self._in_minute)
            records.append((key, pack_part(step.minute_ms, step.lines)))
        records.append((self._key("out", step.seq % OUT_KEPT), pack_out(step.seq, out)))
        records.extend(self._pages(state.cells, step.seq, state.settled_seq))
        records.append((self._key("head"), json.dumps(state.head()).encode()))
        self._in_minute += 1
        return records

    def opening(self, state: PartitionState) -> list[Record]:
        """Return the records that open this epoch; all older epochs are closed by them.

        `open` stays where it is. The head moves on with every step, and compaction would leave
        nothing between the steps before it and what a fenced owner wrote after it.
        """
        head = json.dumps(state.head()).encode()
        return [(self._key("open"), head), (self._key("head"), head)]

    def _covered(self, settled_seq: int) -> Iterator[bytes]:
        """Give the keys whose cover is acknowledged, each once."""
        while self._due and self._due[0][0] <= settled_seq:
            yield from self._due.popleft()[1]

    def _enter_minute(self, step: Step) -> None:
        if step.minute_ms == self._minute_ms:
            return
        # Minutes with usage are counted, not minutes of the clock: a gap must not reuse keys early.
        self._turn = (self._turn + 1) % MINUTES_KEPT
        self._minute_ms, self._in_minute = step.minute_ms, 0
        for minute in [m for m in self.timed_keys if m < step.minute_ms - self.remember_ms]:
            self._due.append((step.seq, self.timed_keys.pop(minute)))

    def _rows(self, cells: AccountCells, step: Step) -> Record:
        key = self._key("rows", self._cycle % CYCLES_KEPT, self._rows_written)
        self._rows_written += 1
        # One cycle pays for everything.
        self._debt_rows = min(self._debt_rows + len(step.touched), max(len(cells), PAGE_ROWS))
        first_new = len(cells) - len(step.new_keys) if step.new_keys else 0
        return key, pack_rows(first_new, step.new_keys, step.touched, cells.matrix[step.touched])

    def _seen(self, step: Step) -> Record:
        key = self._key("seen", step.minute_ms // 60_000, self._in_minute)
        self.timed_keys.setdefault(step.minute_ms, []).append(key)
        return key, pack_seen(step.minute_ms, step.names)

    def _pages(self, cells: AccountCells, seq: int, settled_seq: int) -> Iterator[Record]:
        """Pay rows written with pages written: a page for as many rows as it holds."""
        for _ in range(PAGES_A_STEP):
            # A cycle begins when the last is acknowledged: it uses keys which that one covered.
            blocked = self._page_next == 0 and self._cycle_seq > settled_seq
            if self._debt_rows < PAGE_ROWS or blocked:
                return
            yield self._page(cells, seq)
            if self._page_next * PAGE_ROWS >= len(cells):
                self._end_cycle(seq)

    def _page(self, cells: AccountCells, seq: int) -> Record:
        number, first = self._page_next, self._page_next * PAGE_ROWS
        self._debt_rows -= PAGE_ROWS
        self._page_next += 1
        slots = np.arange(first, min(first + PAGE_ROWS, len(cells)), dtype=np.int64)
        keys = cells.keys[first : first + PAGE_ROWS]
        if self._cycle:
            self._due.append((seq, [self._page_key(self._cycle - 1, number)]))
        return self._page_key(self._cycle, number), pack_rows(
            first, keys, slots, cells.matrix[slots]
        )

    def _page_key(self, cycle: int, number: int) -> bytes:
        return self._key("page", cycle % PAGE_CYCLES_KEPT, number)

    def _end_cycle(self, seq: int) -> None:
        self._cycle += 1
        self._cycle_seq = seq
        self._page_next = self._rows_written = 0
        if self.stale_keys:
            # One batch, so that a reader never meets half of an old epoch (see `live_records`).
            self._due.append((seq, self.stale_keys))
            self.stale_keys = []

    def _key(self, kind: str, *numbers: int) -> bytes:
        return "/".join([str(self.epoch), kind, *map(str, numbers)]).encode()


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


def epoch_of(key: bytes) -> int:
    """Return the owner epoch a key carries."""
    return int(key.split(b"/", 1)[0])


def pack_rows(first_new: int, new_keys: Sequence[str], slots: Int64s, rows: Int64s) -> bytes:
    """Return account rows and the names of the slots from `first_new` on."""
    names = json.dumps(list(new_keys)).encode() if new_keys else b""
    head = _ROWS.pack(FORMAT, first_new, len(new_keys), len(slots), len(names))
    return b"".join(
        (head, names, slots.astype("<u4").tobytes(), np.ascontiguousarray(rows, "<i8").tobytes())
    )


def unpack_rows(value: bytes) -> tuple[int, list[str], Int64s, Int64s]:
    """Return what `pack_rows` was given."""
    version, first_new, new, count, names_bytes = _ROWS.unpack_from(value)
    _check_format("rows", version)
    at = _ROWS.size
    names = json.loads(value[at : at + names_bytes]) if new else []
    at += names_bytes
    slots = np.frombuffer(value, "<u4", count, at).astype(np.int64)
    rows = np.frombuffer(value, "<i8", count * WIDTH, at + 4 * count).reshape(count, WIDTH)
    return first_new, names, slots, rows


def pack_seen(minute_ms: int, names: UInt64s) -> bytes:
    """Return the names counted in an append minute."""
    return _MINUTE.pack(FORMAT, minute_ms) + np.ascontiguousarray(names, "<u8").tobytes()


def unpack_seen(value: bytes) -> tuple[int, UInt64s]:
    """Return what `pack_seen` was given."""
    version, minute_ms = _MINUTE.unpack_from(value)
    _check_format("names", version)
    names = np.frombuffer(value, "<u8", offset=_MINUTE.size)
    return minute_ms, names.reshape(-1, 2).astype(np.uint64)


def pack_part(minute_ms: int, lines: pa.RecordBatch) -> bytes:
    """Return counted lines of an append minute, as Arrow IPC."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, lines.schema) as writer:
        writer.write_batch(lines)
    return b"".join((_MINUTE.pack(FORMAT, minute_ms), sink.getvalue()))


def unpack_part(value: bytes) -> tuple[int, pa.RecordBatch]:
    """Return what `pack_part` was given."""
    version, minute_ms = _MINUTE.unpack_from(value)
    _check_format("lines", version)
    return minute_ms, pa.ipc.open_stream(pa.py_buffer(value)[_MINUTE.size :]).read_next_batch()


def pack_out(seq: int, messages: Sequence[Message]) -> bytes:
    """Return the messages a step publishes after its ack; many are compressed.

    A step is one batch of 16 MiB at most, and one step may cut off ten thousand accounts: such
    messages are nearly all the same.
    """
    parts = []
    for message in messages:
        topic = message.topic.encode()
        size = -1 if message.value is None else len(message.value)
        parts += [
            _OUT.pack(len(topic), len(message.key), size),
            topic,
            message.key,
            message.value or b"",
        ]
    body = b"".join(parts)
    if len(body) <= OUT_PLAIN_BYTES:
        return _OUT_HEAD.pack(FORMAT, seq, len(messages)) + body
    return _OUT_HEAD.pack(FORMAT_PACKED, seq, len(messages)) + zlib.compress(body, 1)


def out_seq(value: bytes) -> int:
    """Return the step whose messages `unpack_out` would return."""
    return int(_OUT_HEAD.unpack_from(value)[1])


def unpack_out(value: bytes) -> tuple[int, list[Message]]:
    """Return what `pack_out` was given."""
    version, seq, count = _OUT_HEAD.unpack_from(value)
    _check_format("messages", version, FORMAT_PACKED)
    value = value[_OUT_HEAD.size :]
    if version == FORMAT_PACKED:
        value = zlib.decompress(value)
    at, messages = 0, []
    for _ in range(count):
        topic_bytes, key_bytes, size = _OUT.unpack_from(value, at)
        at += _OUT.size
        topic, at = value[at : at + topic_bytes].decode(), at + topic_bytes
        key, at = value[at : at + key_bytes], at + key_bytes
        body, at = (None, at) if size < 0 else (value[at : at + size], at + size)
        messages.append(Message(topic, key, body))
    return seq, messages


def _check_format(what: str, version: int, *also: int) -> None:
    if version not in (FORMAT, *also):
        raise BrokenLog(
            f"the journal holds {what} of format {version}; this worker does not read it"
        )
