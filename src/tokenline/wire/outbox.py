"""Keep every event on disk from the moment it is accepted until the broker has it.

A directory holds `life.json` (see `outbox_life`), `line_id` (see `outbox_line`), `lock`, and numbered
segments that are only appended to. Positions 1, 2, 3 … never restart; gateway_seq is the position within
the present life, so the line can tell from the control totals whether anything is missing.

What a crash at each point leaves behind (each is a test):
 1 before the event's write    the caller got nothing; the next event takes the position
 2 in the middle of the write  a torn tail: cut off at the next start, then as in 1
 3 written, not sent           sent at the next start, same identity, epoch and seq
 4 sent, ack not received      sent again; charging counts it once by its identity
 5 acked, ack not written      as in 4
 6 in the middle of the acks   a torn tail; as in 5
 7 new segment without start   removed at the next start
 8 sealed segments half gone   they go oldest first, so no ack is lost before its event

A process crash loses nothing, because the page cache outlives it. Power loss may lose what the
kernel had not written yet (seconds of events) unless `fsync` is on: then each append waits for the
disk. Without it, the first start after a reboot begins a new life, as the old count may have lost
its end.
"""

from __future__ import annotations

import bisect
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from tokenline.errors import BrokenLog, OutboxFull
from tokenline.wire.outbox_frames import (
    acks_frame,
    event_frame,
    read_segment,
    runs_of,
    start_frame,
)
from tokenline.wire.outbox_life import begin_life, boot_id, go_on, lock, read_life, sync

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tokenline.wire.outbox_frames import Segment
    from tokenline.wire.outbox_life import Life

SEGMENT_MAX_BYTES = 4 * 1024 * 1024
_SUFFIX = ".seg"
_DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Part:
    """Track one segment file: how many of its events the broker does not have yet."""

    path: Path
    first: int
    unacked: int
    size_bytes: int


class Outbox:
    """Append events, note acknowledgements, hand back the rest after a crash; one owner at a time.

    All calls are synchronous and return when the kernel has the bytes. `max_events` bounds what is
    unacknowledged, `max_bytes` the disk space; beyond either, `append` raises OutboxFull.

    Raises:
        SettingsError: another process owns the directory, or it belongs to another gateway.
        BrokenLog: a segment is damaged; going on could lose usage, so a human has to look.
    """

    def __init__(
        self,
        directory: Path,
        gateway_id: str,
        *,
        max_events: int = 200_000,
        max_bytes: int = 256 * 1024 * 1024,
        fsync: bool = False,
    ) -> None:
        self.directory = directory
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._segment_bytes = max(4096, min(SEGMENT_MAX_BYTES, max_bytes // 4))
        self._fsync = fsync
        self._parts: list[_Part] = []
        self._acks: list[int] = []
        self._fd = -1
        self.unacked = 0
        self.size_bytes = 0
        self._next = 1
        # The life that ended at this start, as (epoch, last seq): its total is still owed.
        self.ended: tuple[str, int] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = lock(directory)
        try:
            self.life, self._recovered = self._open(gateway_id)
            self._roll()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._unlink_done()

    @property
    def next_seq(self) -> int:
        """The gateway_seq that the next event gets."""
        return self._next - self.life.base

    @property
    def emitted(self) -> int:
        """Events accepted in this life: the last gateway_seq."""
        return self.next_seq - 1

    @property
    def acknowledged(self) -> int:
        """Of these, how many the broker is known to have; events of an ended life count as owed."""
        return max(0, self.emitted - self.unacked)

    def take_recovered(self) -> list[tuple[int, bytes, bytes]]:
        """Return (position, key, value) of each unacknowledged event of earlier runs, once."""
        recovered, self._recovered = self._recovered, []
        return recovered

    def append(self, key: bytes, value: bytes) -> int:
        """Write one event, which must carry `next_seq`, and return its position.

        Raises:
            OutboxFull: a bound is reached or the disk is full; nothing was written.
        """
        position = self._next
        frame = event_frame(position, key, value)
        self._check_room(len(frame))
        if self._parts[-1].size_bytes >= self._segment_bytes:
            self._roll()
        self._write(frame)
        self._next = position + 1
        self.unacked += 1
        self._parts[-1].unacked += 1
        return position

    def ack(self, positions: Iterable[int]) -> None:
        """Note that the broker has these events; on disk at the next `flush_acks`."""
        parts = self._parts
        newest = parts[-1]
        starts = [part.first for part in parts]
        for position in positions:
            at_newest = position >= newest.first
            part = newest if at_newest else parts[bisect.bisect_right(starts, position) - 1]
            part.unacked -= 1
            self._acks.append(position)
            self.unacked -= 1

    def flush_acks(self) -> None:
        """Write the noted acknowledgements and remove segments that nobody needs any more."""
        if not self._acks:
            return
        try:
            if self._parts[-1].size_bytes >= self._segment_bytes:
                self._roll()
            self._write(acks_frame(runs_of(self._acks)))
        except OutboxFull:
            # Unwritten acks cost a re-send after a crash, no more; removing segments makes room.
            _log.warning("outbox_acks_not_written", directory=str(self.directory))
        self._acks.clear()
        self._unlink_done()

    def begin_anew(self) -> None:
        """Begin a new life; what waits is still of the old one, whose total is owed to nobody here."""
        self.life = begin_life(self.directory, self.life.gateway_id, base=self._next - 1)
        self.ended = None

    def close(self) -> None:
        """Write what is noted and give the directory free; what is unacknowledged stays."""
        if self._fd < 0:
            return
        try:
            self.flush_acks()
        finally:
            os.close(self._fd)
            self._fd = -1
            os.close(self._lock_fd)

    def _check_room(self, frame_bytes: int) -> None:
        held = f"outbox {self.directory} is full: it holds"
        if self.unacked >= self._max_events:
            raise OutboxFull(f"{held} {self.unacked} unacknowledged events")
        if self.size_bytes + frame_bytes > self._max_bytes:
            self._unlink_done()
        if self.size_bytes + frame_bytes > self._max_bytes:
            raise OutboxFull(f"{held} {self.size_bytes} of {self._max_bytes} bytes")

    def _write(self, frame: bytes) -> None:
        part = self._parts[-1]
        if not _written(self._fd, frame, part.size_bytes):
            raise self._disk_full()
        part.size_bytes += len(frame)
        self.size_bytes += len(frame)
        if self._fsync:
            os.fsync(self._fd)

    def _disk_full(self) -> OutboxFull:
        return OutboxFull(f"the disk under outbox {self.directory} is full")

    def _roll(self) -> None:
        """Open the next segment; the one before is sealed by that."""
        number = int(self._parts[-1].path.stem) + 1 if self._parts else 1
        path = self.directory / f"{number:08d}{_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise self._disk_full() from error
        frame = start_frame(self._next)
        if not _written(fd, frame, 0):
            os.close(fd)
            path.unlink()
            raise self._disk_full()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._parts.append(_Part(path, self._next, 0, len(frame)))
        self.size_bytes += len(frame)
        if self._fsync:
            os.fsync(fd)
            sync(self.directory)

    def _unlink_done(self) -> None:
        while len(self._parts) > 1 and not self._parts[0].unacked:
            part = self._parts.pop(0)
            part.path.unlink(missing_ok=True)
            self.size_bytes -= part.size_bytes

    def _open(self, gateway_id: str) -> tuple[Life, list[tuple[int, bytes, bytes]]]:
        life = read_life(self.directory, gateway_id)
        if life is None:
            if self._segment_paths():
                raise BrokenLog(f"{self.directory} has segments but no life.json")
            return begin_life(self.directory, gateway_id, base=0), []
        doubtful = life.boot != boot_id() and not self._fsync
        recovered = self._recover(doubtful=doubtful)
        if not self._parts:
            return begin_life(self.directory, gateway_id, base=0), []
        # Nothing is in doubt when nothing was ever written in this life.
        if not doubtful or self._next - 1 == life.base:
            return go_on(self.directory, life), recovered
        self.ended = life.gateway_epoch, self._next - 1 - life.base
        return begin_life(self.directory, gateway_id, base=self._next - 1), recovered

    def _recover(self, *, doubtful: bool) -> list[tuple[int, bytes, bytes]]:
        """Read all segments, cut torn tails, and return what the broker may not have."""
        unacked: dict[int, tuple[bytes, bytes]] = {}
        paths = self._segment_paths()
        for path in paths:
            segment = self._read(path, newest=path == paths[-1], doubtful=doubtful)
            if segment is None:
                continue
            unacked.update((position, (key, value)) for position, key, value in segment.events)
            for first, count in segment.acked:
                for position in range(first, first + count):
                    unacked.pop(position, None)
            self._parts.append(_Part(path, segment.first, 0, segment.good_bytes))
            self.size_bytes += segment.good_bytes
            self._next = segment.following
        self._count(unacked)
        return [(position, *unacked[position]) for position in sorted(unacked)]

    def _read(self, path: Path, *, newest: bool, doubtful: bool) -> Segment | None:
        data = path.read_bytes()
        segment = read_segment(data)
        if segment is None:
            if not newest and not doubtful:
                raise self._damaged(path, 0)
            path.unlink()
            return None
        if self._parts and segment.first != self._next and not doubtful:
            raise self._damaged(self._parts[-1].path, self._parts[-1].size_bytes)
        if segment.good_bytes < len(data):
            # Only the last write of a killed process can be torn, and only if it was the newest.
            if not doubtful and not (newest and segment.torn):
                raise self._damaged(path, segment.good_bytes)
            cut = len(data) - segment.good_bytes
            _log.warning("outbox_tail_cut", path=str(path), cut_bytes=cut)
            os.truncate(path, segment.good_bytes)
        return segment

    def _damaged(self, path: Path, at: int) -> BrokenLog:
        return BrokenLog(
            f"{path} is damaged at byte {at}. Move {self.directory} away for a look and start "
            "the gateway again: it begins a new life, and the control totals show what is missing"
        )

    def _count(self, unacked: dict[int, tuple[bytes, bytes]]) -> None:
        starts = [part.first for part in self._parts]
        for position in unacked:
            self._parts[bisect.bisect_right(starts, position) - 1].unacked += 1
        self.unacked = len(unacked)

    def _segment_paths(self) -> list[Path]:
        return sorted(self.directory.glob(f"*{_SUFFIX}"))


def _written(fd: int, frame: bytes, at: int) -> bool:
    """Write all of the frame or, when the disk is full, nothing."""
    try:
        written = os.write(fd, frame)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        written = 0
    if written != len(frame):
        os.ftruncate(fd, at)
    return written == len(frame)
