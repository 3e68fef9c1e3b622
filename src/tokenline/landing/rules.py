"""Say which decoded records no worker of ours would write: a table cannot hold them, or they stand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.metering.home import partitions_of

if TYPE_CHECKING:
    from tokenline.landing.row import Bools, Int64s
    from tokenline.landing.store import Table

# The last moment of a `DateTime64`; a month of a later one is none.
LAST_MOMENT_MS = 10_413_791_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """State what a table wants: `place` must be the record's partition, the account's home if it is `keyed`.

    Whole numbers are not below zero, but for those `signed`; `month` is the time that names the month
    a row is kept under.
    """

    keyed: bool = False
    place: str = ""
    signed: frozenset[str] = frozenset()
    month: str = ""


RULES: dict[Table, Rules] = {
    "windows": Rules(keyed=True, place="partition", month="window_start"),
    "balance_changes": Rules(
        keyed=True, place="partition", signed=frozenset({"amount_utok", "bucket"}), month="at"
    ),
    "decisions": Rules(
        keyed=True,
        place="cause_partition",
        signed=frozenset(
            {
                *("used", "limit", "threshold_percent"),
                *("overage_utok", "written_off_utok", "least_call_utok"),
            }
        ),
        month="as_of",
    ),
    "dead_letters": Rules(
        place="partition", signed=frozenset({"gateway_seq"}), month="appended_at"
    ),
    "gateway_totals": Rules(),
}


def misfits(
    table: Table, batch: pa.RecordBatch, standing: Int64s, partitions: int
) -> dict[int, str]:
    """Return the rows that break a rule, each with the words for it.

    `standing` is the partition that each record stands in, of so many.
    """
    rules = RULES[table]
    found: dict[int, str] = {}
    for item in batch.schema:
        column = batch.column(item.name)
        if pa.types.is_integer(item.type) and item.name not in rules.signed:
            found |= _named(pc.less(column, 0), f"{item.name} is below zero")
        elif item.name == rules.month:
            moments = column.cast(pa.int64())
            outside = pc.or_(pc.less(moments, 0), pc.greater(moments, LAST_MOMENT_MS))
            found |= _named(outside, f"{item.name} is no moment that a month could be of")
    if rules.place:
        elsewhere = batch.column(rules.place).to_numpy(zero_copy_only=False) != standing
        found |= _at(elsewhere, f"{rules.place} is not the partition it stands in")
    if rules.keyed:
        found |= _at(_homes(batch, partitions) != standing, "its account belongs elsewhere")
    return found


def _homes(batch: pa.RecordBatch, partitions: int) -> Int64s:
    keys = pc.binary_join_element_wise(batch.column("tenant_id"), batch.column("account_id"), "/")
    found = keys.dictionary_encode()
    homes = partitions_of(found.dictionary.cast(pa.binary()).to_pylist(), partitions)
    where: Int64s = homes[found.indices.to_numpy()]
    return where


def _named(wrong: pa.BooleanArray, why: str) -> dict[int, str]:
    return _at(wrong.to_numpy(zero_copy_only=False), why) if pc.any(wrong).as_py() else {}


def _at(wrong: Bools, why: str) -> dict[int, str]:
    return dict.fromkeys(np.flatnonzero(wrong).tolist(), why)
