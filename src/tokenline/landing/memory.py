"""Be the store's twin in memory: same contract, no warehouse; for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokenline.errors import BadData
from tokenline.landing.row import LEDGER_SCHEMA, identity_of

if TYPE_CHECKING:
    from tokenline.landing.row import Int64s
    from tokenline.landing.seal import Seal
    from tokenline.landing.store import Table

# The ORDER BY of each table, and the column whose highest value wins; None where equal keys are
# equal rows.
KEYS: dict[Table, tuple[tuple[str, ...], str | None]] = {
    "ledger": (("tenant_id", "account_id", "occurred_at", "source", "event_id"), "-offset"),
    "duplicates": (("tenant_id", "topic", "partition", "offset"), None),
    "windows": (
        (
            "tenant_id",
            "account_id",
            "grain",
            "window_start",
            "subscriber_id",
            "provider",
            "model",
            "segment_start",
        ),
        "version",
    ),
    "decisions": (("tenant_id", "account_id", "subscriber_id", "version"), "epoch"),
    "accounts": (("tenant_id", "account_id", "offset"), None),
    "dead_letters": (("tenant_id", "topic", "partition", "offset"), None),
    "balance_changes": (("tenant_id", "account_id", "bucket", "entry"), "version"),
    "gateway_totals": (("gateway_id", "gateway_epoch"), "version"),
    "quarantine": (("topic", "partition", "offset"), None),
}


class MemoryStore:
    """Keep rows in dictionaries, one per key."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {name: {} for name in KEYS}
        self._landed: set[tuple[str, int, int]] = set()
        self._seals: dict[tuple[str, int, int, int], Seal] = {}

    def insert(self, table: Table, rows: pa.Table) -> None:
        """Keep the winning row of each key."""
        key_columns, version = KEYS[table]
        missing = set(key_columns) - set(rows.column_names)
        if missing:
            raise BadData(f"rows of {table} lack {sorted(missing)}")
        for row in _times_as_int(rows).to_pylist():
            key = tuple(row[name] for name in key_columns)
            old = self._tables[table].get(key)
            if old is None or _rank(row, version) >= _rank(old, version):
                self._tables[table][key] = row
            if table == "ledger":
                self._landed.add((row["topic"], row["partition"], row["offset"]))

    def put_seal(self, seal: Seal) -> None:
        """Keep one seal for each place and writer."""
        self._seals[(seal.topic, seal.partition, seal.lo, seal.writer_epoch)] = seal

    def newest_seal(self, topic: str, partition: int) -> Seal | None:
        """Return the last seal of the highest epoch."""
        own = [seal for seal in self.seals(topic) if seal.partition == partition]
        return max(own, key=lambda seal: (seal.writer_epoch, seal.hi), default=None)

    def seals(self, topic: str) -> list[Seal]:
        """Return all seals of a topic."""
        return [seal for seal in self._seals.values() if seal.topic == topic]

    def landed_offsets(self, topic: str, partition: int, lo: int) -> Int64s:
        """Return every offset that was ever inserted into the ledger."""
        return np.array(
            sorted(
                at
                for where, part, at in self._landed
                if (where, part) == (topic, partition) and at >= lo
            ),
            np.int64,
        )

    def earlier_copies(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Look each identity up in the ledger."""
        lowest: dict[tuple[str, ...], int] = {}
        for row in self._of(topic, partition):
            identity = identity_of(row)
            lowest[identity] = min(row["offset"], lowest.get(identity, row["offset"]))
        return {
            row["position"]
            for row in identities.to_pylist()
            if lowest.get(identity_of(row), row["offset"]) < row["offset"]
        }

    def ledger_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows in offset order."""
        rows = sorted(
            (row for row in self._of(topic, partition) if lo <= row["offset"] <= hi),
            key=lambda row: int(row["offset"]),
        )
        return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)

    def rows(self, table: Table) -> list[dict[str, Any]]:
        """Return what a table holds, for asserts."""
        return list(self._tables[table].values())

    def close(self) -> None:
        """Keep everything; there is nothing to let go of."""

    def _of(self, topic: str, partition: int) -> list[dict[str, Any]]:
        return [
            row
            for row in self.rows("ledger")
            if (row["topic"], row["partition"]) == (topic, partition)
        ]


def _times_as_int(rows: pa.Table) -> pa.Table:
    """Return times as ms since the epoch: datetime cannot hold all that a gateway may send."""
    for at, kind in enumerate(rows.schema):
        if pa.types.is_timestamp(kind.type):
            rows = rows.set_column(at, kind.name, rows.column(at).cast(pa.int64()))
    return rows


def _rank(row: dict[str, Any], version: str | None) -> int:
    if version is None:
        return 0
    return -int(row[version[1:]]) if version.startswith("-") else int(row[version])
