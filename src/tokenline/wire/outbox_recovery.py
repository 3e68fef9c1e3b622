"""Read an outbox back after a crash: what is owed, and what the disk did not keep.

Positions run without a gap, every frame tells the next one, and a segment's name its first. So what is
missing is known by its numbers, whatever was hit: a bit, a sector, a whole file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from tokenline.wire.outbox_frames import (
    LEAST_EVENT_BYTES,
    Segment,
    gaps_of,
    read_segment,
    runs_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tokenline.wire.outbox_frames import Run

# Its number, then the position of its first event.
_NAME = re.compile(r"(\d+)-(\d+)\.seg")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Part:
    """Track one segment file: how many of its events the broker does not have yet."""

    path: Path
    first: int
    unacked: int
    size_bytes: int


@dataclass(slots=True)
class Recovered:
    """Hold what all segments say; `lost` are runs of positions whose events the disk did not keep."""

    parts: list[Part] = field(default_factory=list)
    unacked: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    lost: list[Run] = field(default_factory=list)
    following: int = 1


def segment_path(directory: Path, number: int, first: int) -> Path:
    """Return where a segment is whose first event has the position `first`."""
    return directory / f"{number:08d}-{first}.seg"


def segment_paths(directory: Path) -> list[Path]:
    """Return the segments of an outbox, oldest first."""
    paths = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(paths, key=number_of)


def number_of(path: Path) -> int:
    """Return the number of a segment."""
    return int(path.name.partition("-")[0])


def recover(paths: Sequence[Path], *, doubtful: bool) -> Recovered:
    """Read all segments, oldest first, and cut off what a killed process was writing.

    After a reboot that appends did not wait for (`doubtful`), how many are missing at the end nobody
    knows; they are not counted.
    """
    found, acked = Recovered(), set[int]()
    gaps: list[Run] = []
    for path in paths:
        newest = path == paths[-1]
        segment = _read(path, newest=newest)
        if segment is None:
            continue
        gaps += _add(found, path, segment, counted=newest and not doubtful)
        for first, count in segment.acked:
            acked.update(range(first, first + count))
    for position in acked & found.unacked.keys():
        del found.unacked[position]
    missing = {at for first, count in gaps for at in range(first, first + count)}
    found.lost = runs_of(missing - acked)
    return found


def merged(runs: Iterable[Run], others: Iterable[Run]) -> tuple[Run, ...]:
    """Return the runs that have every position of either."""
    both = [*runs, *others]
    return tuple(runs_of({at for first, count in both for at in range(first, first + count)}))


def _read(path: Path, *, newest: bool) -> Segment | None:
    """Return what a segment holds; None where it never held anything, and is removed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        size_bytes = path.stat().st_size
        _log.error("outbox_unreadable", path=str(path), error=repr(error))
        unknown = size_bytes // LEAST_EVENT_BYTES
        return Segment(damaged=[(0, size_bytes)], unknown=unknown, good_bytes=size_bytes)
    segment = read_segment(data)
    if segment.damaged:
        _log.error("outbox_damaged", path=str(path), places=segment.damaged[:10])
    if newest and segment.good_bytes < len(data):
        cut = len(data) - segment.good_bytes
        _log.warning("outbox_tail_cut", path=str(path), cut_bytes=cut)
        os.truncate(path, segment.good_bytes)
    if not segment.good_bytes:
        path.unlink()
        return None
    return segment


def _add(found: Recovered, path: Path, segment: Segment, *, counted: bool) -> list[Run]:
    """Add a segment; return the positions that are missing in it and before it."""
    named = int(path.stem.partition("-")[2])
    if not found.parts:
        found.following = named
    first = max(found.following, named)
    gaps = [(found.following, first - found.following)]
    gaps += gaps_of((event[0] for event in segment.events), first, segment.following)
    found.following = max(first, segment.following)
    if counted:
        gaps.append((found.following, segment.unknown))
        found.following += segment.unknown
    mine = {position: (key, value) for position, key, value in segment.events}
    found.unacked |= mine
    found.parts.append(Part(path, first, 0, path.stat().st_size))
    return [run for run in gaps if run[1]]
