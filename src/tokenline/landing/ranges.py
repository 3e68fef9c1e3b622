"""Read charged ranges out of their records; one that contradicts itself is a fault, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenline.landing.batch import ChargedRange
from tokenline.landing.verdicts import Verdicts
from tokenline.metering.spans import Spans, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenline.landing.row import Int64s

_LISTS = ("late", "duplicate", "rejected")
_SPANS = ("absent", "deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Name a record that is not believed, and why."""

    record: Any
    reason: str
    detail: str


def ranges_of(
    batch: Any,  # noqa: ANN401  # Arrow
    records: Sequence[Any],
    topic: str,
    partition: int,
) -> Iterator[ChargedRange | Fault]:
    """Yield the charged range of each row of a decoded batch, which came from these records."""
    scalars = batch.select(["topic", "partition", "lo_offset", "hi_offset", "epoch"]).to_pylist()
    times = {
        name: batch.column(name).cast("int64").to_pylist()
        for name in ("as_of", "deleted_since", "deleted_until")
    }
    lists = {name: batch.column(f"{name}_offsets") for name in (*_LISTS, *_SPANS)}
    for row, (one, record) in enumerate(zip(scalars, records, strict=True)):
        offsets = {
            name: np.asarray(column[row].values.to_numpy(), np.int64)
            for name, column in lists.items()
        }
        if why := _contradiction(one, offsets, topic, partition):
            yield Fault(record=record, reason="contradiction", detail=why)
            continue
        yield ChargedRange(
            lo=one["lo_offset"],
            hi=one["hi_offset"],
            verdicts=Verdicts(
                **{name: offsets[name] for name in _LISTS},
                **{name: spans_of(offsets[name]) for name in _SPANS},
            ),
            as_of_ms=times["as_of"][row],
            epoch=one["epoch"],
            deleted_since_ms=times["deleted_since"][row],
            deleted_until_ms=times["deleted_until"][row],
            record=record,
        )


def _contradiction(
    one: dict[str, Any], offsets: dict[str, Int64s], topic: str, partition: int
) -> str:
    """Say why a range cannot be true whatever Kafka holds; empty when it can."""
    lo, hi = one["lo_offset"], one["hi_offset"]
    if (one["topic"], one["partition"]) != (topic, partition):
        return f"partition {partition} of charged speaks of {one['topic']}[{one['partition']}]"
    if not 0 <= lo <= hi:
        return f"a range from {lo} to {hi}"
    odd = [name for name in _SPANS if len(offsets[name]) % 2]
    if odd:
        return f"{odd[0]} offsets are not pairs of first and last"
    spans = [spans_of(offsets[name]) for name in _SPANS]
    points = [np.stack((offsets[name], offsets[name]), axis=1) for name in _LISTS]
    return _overlap(np.concatenate([*spans, *points]), lo, hi)


def _overlap(named: Spans, lo: int, hi: int) -> str:
    """Say which offsets are named twice, or outside of the range."""
    named = named[np.argsort(named[:, 0], kind="stable")]
    first, last = named[:, 0], named[:, 1]
    if (first > last).any() or (len(named) and (first[0] < lo or last.max() > hi)):
        return f"offsets outside of {lo}..{hi} are named"
    if (first[1:] <= last[:-1]).any():
        return "an offset is named twice"
    return ""
