"""Hold runs of offsets as rows of first and last, both included, ascending and apart.

Offsets of a topic may have gaps: transaction markers, what compaction removed, what retention took. A
gap may be as long as the topic is old, so nothing here is as large as the offsets that it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Spans = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NO_SPANS: Spans = np.zeros((0, 2), np.int64)


def span(first: int, last: int) -> Spans:
    """Return one run; none when `last` lies before `first`."""
    return np.array([[first, last]], np.int64) if first <= last else NO_SPANS


def spans_of(pairs: Sequence[int] | Int64s) -> Spans:
    """Return the runs of a flat list first, last and again first, last."""
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def gaps(offsets: Int64s, lo: int, hi: int) -> Spans:
    """Return the runs between `lo` and `hi`, both included, without any of the ascending `offsets`."""
    if len(offsets) == hi - lo + 1:
        return NO_SPANS
    return between(np.stack((offsets, offsets), axis=1), lo, hi)


def between(spans: Spans, lo: int, hi: int) -> Spans:
    """Return the runs between `lo` and `hi`, both included, without any offset of these runs within them."""
    first = np.concatenate(([lo - 1], spans[:, 1])) + 1
    last = np.concatenate((spans[:, 0], [hi + 1])) - 1
    apart = first <= last
    return np.stack((first[apart], last[apart]), axis=1)


def clipped(spans: Spans, lo: int, hi: int) -> Spans:
    """Return what lies between `lo` and `hi`, both included."""
    if not len(spans):
        return spans
    cut = np.stack((np.maximum(spans[:, 0], lo), np.minimum(spans[:, 1], hi)), axis=1)
    return cut[cut[:, 0] <= cut[:, 1]]


def size_of(spans: Spans) -> int:
    """Return how many offsets the runs have."""
    return int((spans[:, 1] - spans[:, 0] + 1).sum())


def within(spans: Spans, offsets: Int64s) -> Bools:
    """Say of each offset whether a run has it."""
    at = np.searchsorted(spans[:, 0], offsets, side="right") - 1
    found = at >= 0
    found[found] = offsets[found] <= spans[at[found], 1]
    return found
