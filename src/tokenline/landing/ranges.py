"""Read charged ranges out of their records; one that contradicts itself is a fault, not an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenline.landing.batch import ChargedRange
from tokenline.landing.charges import RangeCharges
from tokenline.landing.verdicts import Verdicts
from tokenline.metering.spans import Spans, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenline.landing.row import Int64s

_LISTS = ("late", "correction", "duplicate", "rejected")
_CHARGES = ("charges_utok", "catalog_versions", "paid_buckets", "splits")
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
    lists |= {name: batch.column(name) for name in _CHARGES}
    for row, (one, record) in enumerate(zip(scalars, records, strict=True)):
        offsets = {
            name: np.asarray(column[row].values.to_numpy(), np.int64)
            for name, column in lists.items()
        }
        if why := _contradiction(one, offsets, topic, partition):
            yield Fault(record=record, reason="contradiction", detail=why)
            continue
        verdicts = Verdicts(
            **{name: offsets[name] for name in _LISTS},
            **{name: spans_of(offsets[name]) for name in _SPANS},
        )
        lo, hi = one["lo_offset"], one["hi_offset"]
        charges = _charges(lo, hi, verdicts, offsets)
        if why := charges.fault():
            yield Fault(record=record, reason="contradiction", detail=why)
            continue
        yield ChargedRange(
            lo=lo,
            hi=hi,
            verdicts=verdicts,
            charges=charges,
            as_of_ms=times["as_of"][row],
            epoch=one["epoch"],
            deleted_since_ms=times["deleted_since"][row],
            deleted_until_ms=times["deleted_until"][row],
            record=record,
        )


def _charges(lo: int, hi: int, verdicts: Verdicts, columns: dict[str, Int64s]) -> RangeCharges:
    return RangeCharges(
        lo=lo,
        hi=hi,
        verdicts=verdicts,
        utok=columns["charges_utok"],
        version_runs=columns["catalog_versions"],
        buckets=columns["paid_buckets"],
        splits=columns["splits"].reshape(-1, 3),
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
    if len(offsets["splits"]) % 3 or len(offsets["catalog_versions"]) % 2:
        return "splits are no triples, or catalog versions no pairs"
    spans = [spans_of(offsets[name]) for name in _SPANS]
    # A correction may be late as well: then both lists name it.
    late = offsets["late"]
    alone = {"late": late[~np.isin(late, offsets["correction"])]}
    lists = [alone.get(name, offsets[name]) for name in _LISTS]
    points = [np.stack((one, one), axis=1) for one in lists]
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
