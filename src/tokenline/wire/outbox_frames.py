"""Frame what an outbox segment holds: pure bytes, no files.

A segment is a run of frames, each `crc32 (4) | length (4) | kind (1) | payload`, big-endian; the
crc covers kind and payload. Kinds: start (first position of the segment), event (position, key,
value), acks (runs of acknowledged positions). Reading stops at the first frame that is not whole.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

START = 1
EVENT = 2
ACKS = 3

_HEAD = struct.Struct(">IIB")
_START = struct.Struct(">Q")
_EVENT = struct.Struct(">QH")
_RUN = struct.Struct(">QI")


@dataclass(slots=True)
class Segment:
    """Hold what one segment says, up to `good_bytes`, where its last whole frame ends."""

    first: int
    events: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    acked: list[tuple[int, int]] = field(default_factory=list)
    good_bytes: int = 0
    # The rest is the beginning of one frame, as a crash in the middle of a write leaves it.
    torn: bool = True

    @property
    def following(self) -> int:
        """The position that follows this segment."""
        return self.events[-1][0] + 1 if self.events else self.first


def start_frame(first: int) -> bytes:
    """Return the frame that opens a segment."""
    return _frame(START, _START.pack(first))


def event_frame(position: int, key: bytes, value: bytes) -> bytes:
    """Return the frame of one event; `value` is what Kafka will get, byte for byte."""
    return _frame(EVENT, b"".join((_EVENT.pack(position, len(key)), key, value)))


def acks_frame(runs: Iterable[tuple[int, int]]) -> bytes:
    """Return the frame of acknowledged runs (first position, count)."""
    return _frame(ACKS, b"".join(_RUN.pack(*run) for run in runs))


def read_segment(data: bytes) -> Segment | None:
    """Return what the bytes say; None when not even the start is whole."""
    frames = _frames(data)
    kind, payload, end = next(frames, (0, b"", 0))
    if kind != START:
        return None
    segment = Segment(first=_START.unpack(payload)[0], good_bytes=end)
    for kind, payload, end in frames:
        if kind == EVENT:
            position, key_bytes = _EVENT.unpack_from(payload)
            split = _EVENT.size + key_bytes
            segment.events.append((position, payload[_EVENT.size : split], payload[split:]))
        else:
            segment.acked.extend(_RUN.iter_unpack(payload))
        segment.good_bytes = end
    segment.torn = _is_torn(data[segment.good_bytes :])
    return segment


def runs_of(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Return the positions as (first, count) runs, ascending; none may occur twice."""
    runs: list[tuple[int, int]] = []
    first = count = 0
    for position in sorted(positions):
        if count and position == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = position, 1
    return [*runs, (first, count)] if count else runs


def _frame(kind: int, payload: bytes) -> bytes:
    return _HEAD.pack(zlib.crc32(payload, kind), len(payload), kind) + payload


def _frames(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    at = 0
    while at + _HEAD.size <= len(data):
        crc, length, kind = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        payload = data[at + _HEAD.size : end]
        if len(payload) != length or zlib.crc32(payload, kind) != crc:
            return
        if kind != START if at == 0 else kind not in (EVENT, ACKS):
            return
        yield kind, payload, end
        at = end


def _is_torn(rest: bytes) -> bool:
    if len(rest) < _HEAD.size:
        return True
    _, length, kind = _HEAD.unpack_from(rest)
    return kind in (EVENT, ACKS) and len(rest) < _HEAD.size + length
