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

What the disk itself spoils (a bit, a sector, a file) costs the events it hit: they are counted as
`lost`, and their positions are not used again. A full disk refuses events, for as long as it is full;
what is kept is sent, and that makes room.
"""

from __future__ import annotations

import bisect
import errno
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import structlog

from tokenline.errors import OutboxFull, SettingsError
from tokenline.wire.outbox_frames import (
    acks_frame,
    event_frame,
    runs_of,
    start_frame,
    torn_frame,
)
from tokenline.wire.outbox_life import begin_life, boot_id, lock, read_life, sync, write_life
from tokenline.wire.outbox_recovery import (
    Part,
    merged,
    number_of,
    recover,
    segment_path,
    segment_paths,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tokenline.wire.outbox_life import Life
    from tokenline.wire.outbox_recovery import Recovered

SEGMENT_MAX_BYTES = 4 * 1024 * 1024
# A disk that was full has room again when it takes so much.
ROOM_BYTES = 64 * 1024
_DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_log = structlog.get_logger(__name__)


class Ended(NamedTuple):
    """Hold the total of a life that is over, which is still owed to the line."""

    epoch: str
    emitted: int
    lost: int


class Outbox:
    """Append events, note acknowledgements, hand back the rest after a crash; one owner at a time.

    All calls are synchronous and return when the kernel has the bytes. `max_events` bounds what is
    unacknowledged, `max_bytes` the disk space; beyond either, `append` raises OutboxFull.

    Raises:
        SettingsError: another process owns the directory, it belongs to another gateway, or it cannot
            be used.
        OutboxFull: the disk has no room for a new directory.
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
        self._parts: list[Part] = []
        self._acks: list[int] = []
        self._recovered: list[tuple[int, bytes, bytes]] = []
        # No segment is open at first, and where a new one found no room.
        self._fd = -1
        self._lock_fd = -1
        self.unacked = 0
        self.size_bytes = 0
        self._next = 1
        self._saved: Life | None = None
        # Whether the disk refused what was written last.
        self.disk_full = False
        # The life that ended at this start: its total is still owed.
        self.ended: Ended | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = lock(directory)
            self.life = self._open(gateway_id)
        except OSError as error:
            self._free()
            if error.errno in _DISK_FULL:
                self._refuse(error)
            raise SettingsError(f"outbox {directory} cannot be used: {error}") from error
        except BaseException:
            self._free()
            raise
        # What is kept is sent all the same; the next append tries again.
        with suppress(OutboxFull):
            self._roll()
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
    def lost(self) -> int:
        """Of these, how many the disk did not keep, at most."""
        return self.life.lost_events

    @property
    def acknowledged(self) -> int:
        """Of these, how many the broker is known to have; events of an ended life count as owed."""
        return max(0, self.emitted - self.unacked - self.lost)

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
        self.check_room(len(frame))
        if self._fd < 0 or self._parts[-1].size_bytes >= self._segment_bytes:
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
        """Write the noted acknowledgements and remove segments that nobody needs any more.

        Raises:
            OSError: the disk fails; what is noted is kept for the next time.
        """
        # First what makes room: acknowledgements of what is gone are needed by nobody.
        self._unlink_done()
        try:
            if self.disk_full:
                self._look_for_room()
            if not self._acks:
                return
            if self._fd < 0 or self._parts[-1].size_bytes >= self._segment_bytes:
                self._roll()
            self._write(acks_frame(runs_of(self._acks), self._next))
        except OutboxFull:
            # Unwritten acks cost a re-send after a crash, no more.
            return
        self._acks.clear()
        self._unlink_done()

    def begin_anew(self) -> None:
        """Begin a new life; what waits is still of the old one, whose total is owed to nobody here.

        Raises:
            OSError: the disk does not take the note; the life goes on.
        """
        fresh = begin_life(self.life.gateway_id, base=self._next - 1)
        write_life(self.directory, fresh)
        self.life = self._saved = fresh
        self.ended = None

    def close(self) -> None:
        """Write what is noted and give the directory free; what is unacknowledged stays."""
        if self._lock_fd < 0:
            return
        try:
            self.flush_acks()
        except OSError as error:
            _log.warning("outbox_acks_not_written", error=repr(error))
        finally:
            self._free()

    def check_room(self, more_bytes: int = 0) -> None:
        """Refuse what goes beyond a bound.

        Raises:
            OutboxFull: the text says which bound.
        """
        held = f"outbox {self.directory} is full: it holds"
        if self.unacked >= self._max_events:
            raise OutboxFull(f"{held} {self.unacked} unacknowledged events")
        if self.size_bytes + more_bytes > self._max_bytes:
            self._unlink_done()
        if self.size_bytes + more_bytes > self._max_bytes:
            raise OutboxFull(f"{held} {self.size_bytes} of {self._max_bytes} bytes")

    def _free(self) -> None:
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1

    def _look_for_room(self) -> None:
        """Write what a killed process would leave of a long frame, and take it back.

        Raises:
            OutboxFull: there is no room for so much yet.
        """
        if self._fd < 0:
            self._roll()
        try:
            _write_whole(self._fd, torn_frame(ROOM_BYTES), self._parts[-1].size_bytes, fsync=False)
            os.ftruncate(self._fd, self._parts[-1].size_bytes)
        except OSError as error:
            self._refuse(error)
        self.disk_full = False

    def _write(self, frame: bytes) -> None:
        part = self._parts[-1]
        try:
            _write_whole(self._fd, frame, part.size_bytes, fsync=self._fsync)
        except _HalfWrittenError as error:
            # What follows goes into another segment: there it is found whatever stands here.
            os.close(self._fd)
            self._fd = -1
            self._refuse(error.cause)
        except OSError as error:
            self._refuse(error)
        part.size_bytes += len(frame)
        self.size_bytes += len(frame)

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno not in _DISK_FULL:
            raise error
        self.disk_full = True
        raise OutboxFull(f"the disk under outbox {self.directory} is full") from error

    def _roll(self) -> None:
        """Open the next segment; the one before is sealed by that."""
        self._save_life()
        number = number_of(self._parts[-1].path) + 1 if self._parts else 1
        path = segment_path(self.directory, number, self._next)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        frame = start_frame(self._next)
        try:
            # Left by a start that found no room.
            path.unlink(missing_ok=True)
            fd = os.open(path, flags, 0o600)
            try:
                _write_whole(fd, frame, 0, fsync=self._fsync)
            except OSError:
                os.close(fd)
                path.unlink()
                raise
        except OSError as error:
            self._refuse(error)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._parts.append(Part(path, self._next, 0, len(frame)))
        self.size_bytes += len(frame)
        if self._fsync:
            sync(self.directory)

    def _save_life(self) -> None:
        """Write the life if it is new or another: before any event of it, and before damage is removed."""
        if self._saved == self.life:
            return
        try:
            write_life(self.directory, self.life)
        except OSError as error:
            self._refuse(error)
        self._saved = self.life

    def _unlink_done(self) -> None:
        while len(self._parts) > 1 and not self._parts[0].unacked and self._saved == self.life:
            self._parts[0].path.unlink(missing_ok=True)
            self.size_bytes -= self._parts.pop(0).size_bytes

    def _open(self, gateway_id: str) -> Life:
        """Read what earlier runs left; return their life, which goes on, or another."""
        life = self._saved = read_life(self.directory, gateway_id)
        doubtful = life is not None and life.boot != boot_id() and not self._fsync
        found = recover(segment_paths(self.directory), doubtful=doubtful)
        self._take(found)
        if life is None or not self._parts:
            return begin_life(gateway_id, base=self._next - 1)
        life = replace(life, lost=merged(life.lost, found.lost))
        # Nothing is in doubt where nothing was ever written in this life.
        if doubtful and self._next - 1 > life.base:
            self.ended = Ended(life.gateway_epoch, self._next - 1 - life.base, life.lost_events)
            return begin_life(gateway_id, base=self._next - 1)
        self._next = max(self._next, life.base + 1)
        return replace(life, boot=boot_id())

    def _take(self, found: Recovered) -> None:
        self._parts, self._next = found.parts, found.following
        self.size_bytes = sum(part.size_bytes for part in found.parts)
        starts = [part.first for part in found.parts]
        for position in found.unacked:
            found.parts[bisect.bisect_right(starts, position) - 1].unacked += 1
        self.unacked = len(found.unacked)
        self._recovered = [(at, *found.unacked[at]) for at in sorted(found.unacked)]
        if found.lost:
            count = sum(count for _, count in found.lost)
            _log.error("outbox_events_lost", directory=str(self.directory), at_most=count)


class _HalfWrittenError(OSError):
    """Report a frame that is in the file, whole or in part, though it should not be."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(*cause.args)
        self.cause = cause


def _write_whole(fd: int, frame: bytes, at: int, *, fsync: bool) -> None:
    """Write all of the frame or, when the disk does not take it, nothing."""
    try:
        _write_all(fd, frame)
        if fsync:
            os.fsync(fd)
    except OSError as error:
        try:
            os.ftruncate(fd, at)
        except OSError:
            raise _HalfWrittenError(error) from error
        raise


def _write_all(fd: int, frame: bytes) -> None:
    if os.write(fd, frame) != len(frame):
        # The rest found no room: the next write would have been told so.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
