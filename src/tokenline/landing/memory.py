"""Be the store's twin in memory: same contract, no warehouse; for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokenline.errors import BadData
from tokenline.landing.lookups import settled
from tokenline.landing.row import (
    DUPLICATES_SCHEMA,
    IDENTITY,
    LEDGER_SCHEMA,
    identity_of,
    plain_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.row import Int64s
    from tokenline.landing.seal import Seal
    from tokenline.landing.store import Ordered, Settlement, Table

# The ORDER BY of each table, and the column whose highest value wins; None where equal keys are
# equal rows.
KEYS: dict[Table, tuple[tuple[str, ...], str | None]] = {
    "ledger": ((*IDENTITY, "offset"), None),
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
            "cause",
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
        for row in plain_rows(rows):
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
        return set(self.earlier_rows(topic, partition, identities))

    def earlier_corrections(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Look for a row that corrects each identity."""
        rows = [row for row in self._of(topic, partition) if row["corrects"]]
        corrected = [
            ((row["tenant_id"], row["account_id"], row["source"], row["corrects"]), row["offset"])
            for row in rows
        ]
        return {
            one["position"]
            for one in identities.to_pylist()
            if any(name == identity_of(one) and at < one["offset"] for name, at in corrected)
        }

    def earlier_rows(
        self, topic: str, partition: int, identities: pa.Table
    ) -> dict[int, list[dict[str, Any]]]:
        """Look each identity up in the ledger."""
        ordered = sorted(self._of(topic, partition), key=lambda row: int(row["offset"]))
        found = {
            one["position"]: [
                row
                for row in ordered
                if identity_of(row) == identity_of(one) and row["offset"] < one["offset"]
            ]
            for one in identities.to_pylist()
        }
        return {position: rows for position, rows in found.items() if rows}

    def elsewhere(self, identities: pa.Table) -> set[int]:
        """Look at every row."""
        return {
            one["position"]
            for one in identities.to_pylist()
            for row in self.rows("ledger")
            if row["account_id"] != one["account_id"]
            and all(row[name] == one[name] for name in ("tenant_id", "source", "event_id"))
        }

    def settlements(self, orders: Sequence[Ordered]) -> dict[str, Settlement]:
        """Look at windows and entries."""
        names = {one.command_id for one in orders}
        charges = [
            (row["cause"], row["charge_utok"], row["catalog_version"])
            for row in self.rows("windows")
            if row["cause"].removesuffix(" in") in names
            and row["cause"].endswith(" in")
            and row["grain"] != "month"
        ]
        entries = [
            (row["command_id"], row["at"], row["bucket"], -row["amount_utok"])
            for row in sorted(self.rows("balance_changes"), key=lambda row: len(row["entry"]))
            if row["command_id"] in names and row["kind"] == "correction_in"
        ]
        return settled(charges, entries)

    def ledger_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows in offset order."""
        rows = sorted(
            (row for row in self._of(topic, partition) if lo <= row["offset"] <= hi),
            key=lambda row: int(row["offset"]),
        )
        return pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)

    def duplicates_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows in offset order."""
        rows = [
            row
            for row in self._tables["duplicates"].values()
            if (row["topic"], row["partition"]) == (topic, partition) and lo <= row["offset"] <= hi
        ]
        return pa.Table.from_pylist(
            sorted(rows, key=lambda row: int(row["offset"])), schema=DUPLICATES_SCHEMA
        )

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


def _rank(row: dict[str, Any], version: str | None) -> int:
    if version is None:
        return 0
    return -int(row[version[1:]]) if version.startswith("-") else int(row[version])
