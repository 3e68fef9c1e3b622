"""Say which decoded records no worker of ours would write: a table cannot hold them, or they stand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.event import TOKEN_KINDS
from tokenline.metering.home import Home, partitions_of
from tokenline.names import bad_names
from tokenline.wire.kafka import account_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.row import Bools, Int64s
    from tokenline.landing.store import Table

# The last moment of a `DateTime64`; a month of a later one is none.
LAST_MOMENT_MS = 10_413_791_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """State what a table wants: `place` must be the record's partition, the account's home if it is `keyed`.

    `unsigned` are its columns that hold nothing below zero: ClickHouse would take -1 for 2^64 - 1. `month`
    is the time that names the month a row is kept under. `totals` are below zero only in a row that has a
    `cause`: it says what a correction took out.
    """

    keyed: bool = False
    place: str = ""
    unsigned: frozenset[str] = frozenset()
    month: str = ""
    totals: frozenset[str] = frozenset()


RULES: dict[Table, Rules] = {
    "windows": Rules(
        keyed=True,
        place="partition",
        unsigned=frozenset(("partition", "version", "catalog_version")),
        month="window_start",
        totals=frozenset(("events", *TOKEN_KINDS, "total_tokens")),
    ),
    "balance_changes": Rules(
        keyed=True,
        place="partition",
        unsigned=frozenset(("partition", "version", "giver_entry", "catalog_version")),
        month="at",
    ),
    "decisions": Rules(
        keyed=True,
        place="cause_partition",
        unsigned=frozenset(
            (
                "version",
                "epoch",
                "cause_partition",
                "cause_offset",
                "terms_version",
                "zero_rated_needs_balance",
            )
        ),
        month="as_of",
    ),
    "dead_letters": Rules(
        place="partition",
        unsigned=frozenset(("partition", "offset", "records")),
        month="appended_at",
    ),
    "gateway_totals": Rules(unsigned=frozenset(("emitted", "acknowledged", "lost"))),
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
        if item.name in rules.unsigned:
            found |= _named(pc.less(column, 0), f"{item.name} is below zero")
        elif item.name in rules.totals:
            wrong = pc.and_(pc.less(column, 0), pc.equal(batch.column("cause"), ""))
            found |= _named(wrong, f"{item.name} is below zero")
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


def own_commands(batch: pa.RecordBatch, records: Sequence[Any], home: Home) -> Int64s:
    """Return the rows of account commands that charging may have taken: the others set no account.

    It refuses what came in a transaction, has another's key, stands in another's partition or has a bad
    name; there is a dead letter of each.
    """
    names = zip(
        batch.column("tenant_id").to_pylist(), batch.column("account_id").to_pylist(), strict=True
    )
    named = [{"tenant_id": tenant, "account_id": account} for tenant, account in names]
    strays = set(home.strays([f"{one['tenant_id']}/{one['account_id']}" for one in named]))
    fit = [
        row
        for row, (one, record) in enumerate(zip(named, records, strict=True))
        if row not in strays
        and record.key == account_key(one["tenant_id"], one["account_id"])
        and not getattr(record, "in_transaction", False)
        and not any(bad_names(one))
    ]
    return np.array(fit, np.int64)


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
