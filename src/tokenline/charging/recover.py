"""Read a journal back into the state that wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.journal import (
    Message,
    Record,
    epoch_of,
    live_records,
    unpack_out,
    unpack_part,
    unpack_rows,
    unpack_seen,
)
from tokenline.charging.partition import PartitionState, Totals
from tokenline.errors import BrokenLog
from tokenline.metering.tally import Tally
from tokenline.quota.cells import WIDTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Recovered:
    """Hold the state and what its new owner has to do first.

    `out` holds the messages of the last steps, which may not have been published; `unflushed` the
    tallies of closed minutes whose windows may not have been. The keys are for `JournalWriter`.
    """

    state: PartitionState
    out: list[tuple[int, list[Message]]] = field(default_factory=list)
    unflushed: list[Tally] = field(default_factory=list)
    stale_keys: list[bytes] = field(default_factory=list)
    timed_keys: dict[int, list[bytes]] = field(default_factory=dict)
    rows: int = 0


@dataclass(slots=True)
class _Rows:
    """Gather account rows that arrive in any order of slots."""

    matrix: Int64s = field(default_factory=lambda: np.zeros((1024, WIDTH), np.int64))
    keys: dict[int, str] = field(default_factory=dict)

    def take(self, value: bytes) -> int:
        first_new, names, slots, rows = unpack_rows(value)
        self.keys.update(enumerate(names, start=first_new))
        top = int(slots.max(initial=-1)) + 1
        if top > len(self.matrix):
            grown = np.zeros((max(top, 2 * len(self.matrix)), WIDTH), np.int64)
            grown[: len(self.matrix)] = self.matrix
            self.matrix = grown
        self.matrix[slots] = rows
        return len(slots)


def recover(state: PartitionState, survivors: Mapping[bytes, tuple[int, bytes]]) -> Recovered:
    """Fill an empty `state` from the last value of each key, and enter the next epoch.

    Raises:
        BrokenLog: a slot has no name, or the records are of another format.
    """
    live, dead = live_records(survivors)
    found = Recovered(state, stale_keys=dead)
    rows = _Rows()
    parts: dict[int, list[pa.RecordBatch]] = {}
    for key, value in live:
        _take(found, rows, parts, key, value)
    _fill_cells(state, rows)
    _fill_tallies(found, parts)
    state.mark_months_since(state.flushed_offset)
    found.out = sorted((seq, out) for seq, out in found.out if seq > state.published_seq)
    state.epoch += 1
    return found


def _take(
    found: Recovered, rows: _Rows, parts: dict[int, list[pa.RecordBatch]], key: bytes, value: bytes
) -> None:
    state, kind = found.state, key.split(b"/")[1]
    if kind == b"seen":
        minute_ms, names = unpack_seen(value)
        state.seen.remember(names, minute_ms)
        found.timed_keys.setdefault(minute_ms, []).append(key)
        return
    if kind == b"part":
        minute_ms, lines = unpack_part(value)
        parts.setdefault(minute_ms, []).append(lines)
        found.timed_keys.setdefault(minute_ms, []).append(key)
        return
    found.stale_keys.append(key)
    if kind in (b"rows", b"page"):
        found.rows += rows.take(value)
    elif kind == b"out":
        found.out.append(unpack_out(value))
    elif kind in (b"open", b"head"):
        _take_head(state, json.loads(value), epoch_of(key))
    else:
        raise BrokenLog(f"the journal holds a record of unknown kind {key!r}")


def _take_head(state: PartitionState, head: Mapping[str, object], epoch: int) -> None:
    state.epoch = epoch
    state.seq = int(str(head["seq"]))
    state.minute_ms = int(str(head["minute_ms"]))
    state.flushed_minute_ms = int(str(head["flushed_minute_ms"]))
    state.flushed_offset = int(str(head["flushed_offset"]))
    state.published_seq = int(str(head["published_seq"]))
    offsets, totals, zones = head["next_offsets"], head["totals"], head["zones"]
    assert isinstance(offsets, dict) and isinstance(totals, dict) and isinstance(zones, list)  # noqa: S101, PT018
    state.next_offsets = dict(offsets)
    state.totals = Totals(**totals)
    state.cells.zones[:] = zones


def _fill_cells(state: PartitionState, rows: _Rows) -> None:
    count = len(rows.keys)
    if sorted(rows.keys) != list(range(count)):
        raise BrokenLog("the journal names account slots with gaps; it was cut or edited")
    state.cells.extend([rows.keys[slot] for slot in range(count)])
    state.cells.matrix[:] = rows.matrix[:count]


def _fill_tallies(found: Recovered, parts: dict[int, list[pa.RecordBatch]]) -> None:
    state = found.state
    for minute_ms in sorted(parts):
        if minute_ms <= state.flushed_minute_ms:
            continue
        tally = Tally(minute_ms)
        for lines in parts[minute_ms]:
            tally.add(lines)
        if minute_ms == state.minute_ms:
            state.tally = tally
        else:
            found.unflushed.append(tally)
    if state.tally.segment_start_ms != state.minute_ms:
        state.tally = Tally(state.minute_ms)


__all__ = ["Record", "Recovered", "recover"]
