"""Frame what an outbox segment holds, so that damage costs what it hit and no more: pure bytes, no files.

A segment is a run of frames, big-endian:

    magic (4) | kind (1) | length (4) | next (8) | payload crc (4) | header crc (4) | payload

Kinds: start (first position of the segment), event (key, value), acks (runs of acknowledged
positions). `next` is the position that the next event gets, so each frame behind a damaged place
tells how many events were in it. The magic never occurs within a payload: a payload that has its
first three bytes has a zero behind them. So behind a damaged place the next magic with a whole
header begins a frame, whatever a caller wrote into an event.

Only what a killed process was writing is torn: the beginning of one frame, at the end of the newest
segment. Everything else that does not check is damage.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

START = 1
EVENT = 2
ACKS = 3

# No byte of it occurs in UTF-8, so hardly any event has to be stuffed.
_STUFFED = b"\xf5\xf9\xfd"
_MAGIC = _STUFFED + b"\x01"
_FIELDS = struct.Struct(">4sBIQI")
_CRC = struct.Struct(">I")
HEAD_BYTES = _FIELDS.size + _CRC.size
_START = struct.Struct(">Q")
_KEY = struct.Struct(">H")
_RUN = struct.Struct(">QI")
LEAST_EVENT_BYTES = HEAD_BYTES + _KEY.size
# So few wrong bits of a header are mended where all else fits: by chance no other header fits so well.
_MENDED_BITS = 4

Event = tuple[int, bytes, bytes]
Run = tuple[int, int]


class _Head(NamedTuple):
    kind: int
    length: int
    next: int
    crc: int


@dataclass(slots=True)
class Segment:
    """Hold what one segment says; what begins at `good_bytes` is torn.

    `following` is the position behind its last event, 0 where no frame tells. `damaged` are places as
    (byte, bytes); `unknown` is how many events there can be at most in damage that no frame follows.
    """

    following: int = 0
    events: list[Event] = field(default_factory=list)
    acked: list[Run] = field(default_factory=list)
    damaged: list[Run] = field(default_factory=list)
    unknown: int = 0
    good_bytes: int = 0

    def take(self, head: _Head, payload: bytes) -> None:
        """Add what a whole frame says."""
        payload = payload.replace(_STUFFED + b"\0", _STUFFED)
        if head.kind == EVENT:
            split = _KEY.size + _KEY.unpack_from(payload)[0]
            self.events.append((head.next - 1, payload[_KEY.size : split], payload[split:]))
        elif head.kind == ACKS:
            self.acked.extend(_RUN.iter_unpack(payload))
        self.skip(head)

    def skip(self, head: _Head) -> None:
        """Note which positions a frame tells of, whether its payload can be read or not."""
        self.following = max(self.following, head.next)


def start_frame(first: int) -> bytes:
    """Return the frame that opens a segment."""
    return _frame(START, first, _START.pack(first))


def event_frame(position: int, key: bytes, value: bytes) -> bytes:
    """Return the frame of one event; `value` is what Kafka will get, byte for byte."""
    payload = b"".join((_KEY.pack(len(key)), key, value))
    return _frame(EVENT, position + 1, payload.replace(_STUFFED, _STUFFED + b"\0"))


def acks_frame(runs: Iterable[Run], following: int) -> bytes:
    """Return the frame of acknowledged runs (first position, count); `following` is the next event's position."""
    payload = b"".join(_RUN.pack(*run) for run in runs)
    return _frame(ACKS, following, payload.replace(_STUFFED, _STUFFED + b"\0"))


def torn_frame(size: int) -> bytes:
    """Return `size` bytes of a frame that is longer: what is read of it is cut off."""
    fields = _FIELDS.pack(_MAGIC, ACKS, 2 * size, 0, 0)
    return (fields + _CRC.pack(zlib.crc32(fields))).ljust(size, b"\0")


def read_segment(data: bytes) -> Segment:
    """Return what the bytes say: all whole frames, and where others were."""
    segment, at = Segment(), 0
    while at < len(data) and not _is_torn(data, at):
        at = _read_frame(segment, data, at)
    segment.good_bytes = at
    torn = _head_at(data, at)
    if torn is not None:
        # It was never promised, but it tells how many were before it.
        segment.following = max(segment.following, torn.next - (torn.kind == EVENT))
    return segment


def gaps_of(positions: Iterable[int], first: int, following: int) -> Iterator[Run]:
    """Yield the runs of `first` to `following` that the ascending `positions` leave out."""
    expected = first
    for position in positions:
        if position > expected:
            yield expected, position - expected
        expected = max(expected, position + 1)
    if following > expected:
        yield expected, following - expected


def runs_of(positions: Iterable[int]) -> list[Run]:
    """Return the positions as (first, count) runs, ascending; none may occur twice."""
    runs: list[Run] = []
    first = count = 0
    for position in sorted(positions):
        if count and position == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = position, 1
    return [*runs, (first, count)] if count else runs


def _frame(kind: int, following: int, payload: bytes) -> bytes:
    return _header(kind, following, payload) + payload


def _header(kind: int, following: int, payload: bytes) -> bytes:
    fields = _FIELDS.pack(_MAGIC, kind, len(payload), following, zlib.crc32(payload))
    return fields + _CRC.pack(zlib.crc32(fields))


def _head_at(data: bytes, at: int) -> _Head | None:
    """Return the header that begins at a byte; None where none does, or it is damaged."""
    fields = data[at : at + _FIELDS.size]
    stored = data[at + _FIELDS.size : at + HEAD_BYTES]
    if not fields.startswith(_MAGIC) or stored != _CRC.pack(zlib.crc32(fields)):
        return None
    _, kind, length, following, crc = _FIELDS.unpack(fields)
    return _Head(kind, length, following, crc)


def _next_head(data: bytes, at: int) -> int:
    """Return where the next whole header begins, the end of the data where none does."""
    while (at := data.find(_MAGIC, at)) >= 0:
        if _head_at(data, at) is not None:
            return at
        at += 1
    return len(data)


def _is_torn(data: bytes, at: int) -> bool:
    """Say whether the rest is the beginning of one frame."""
    rest = len(data) - at
    if rest < HEAD_BYTES:
        return data[at : at + len(_MAGIC)] == _MAGIC[:rest]
    head = _head_at(data, at)
    if head is None or rest >= HEAD_BYTES + head.length:
        return False
    return _next_head(data, at + 1) == len(data)


def _read_frame(segment: Segment, data: bytes, at: int) -> int:
    """Take the frame at a byte, or note that it is damaged; return where the next one begins."""
    head = _head_at(data, at)
    if head is None:
        end = _next_head(data, at + 1)
        if not _mend(segment, data, at, end):
            segment.damaged.append((at, end - at))
            segment.unknown = (end - at) // LEAST_EVENT_BYTES if end == len(data) else 0
        return end
    end = at + HEAD_BYTES + head.length
    payload = data[at + HEAD_BYTES : end]
    if zlib.crc32(payload) == head.crc:
        segment.take(head, payload)
        return end
    segment.skip(head)
    # Where bytes are missing the next frame begins before this one should end.
    following = _next_head(data, at + 1)
    segment.damaged.append((at, following - at))
    segment.unknown = max(0, following - end) // LEAST_EVENT_BYTES if following == len(data) else 0
    return following


def _mend(segment: Segment, data: bytes, at: int, end: int) -> bool:
    """Take a frame of which only some bits of the header are wrong; False where that is not all.

    What its header must have said follows from its place: it has one payload, up to the next frame,
    and its positions follow those of the frame before.
    """
    payload, said = data[at + HEAD_BYTES : end], int.from_bytes(data[at : at + HEAD_BYTES])
    wanted = [(EVENT, segment.following + 1), (ACKS, segment.following)]
    if len(payload) == _START.size:
        wanted.append((START, _START.unpack(payload)[0]))
    for kind, following in wanted:
        header = _header(kind, following, payload)
        if (int.from_bytes(header) ^ said).bit_count() <= _MENDED_BITS:
            segment.take(_Head(kind, len(payload), following, 0), payload)
            return True
    return False
