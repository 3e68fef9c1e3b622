"""Keep landed rows in ClickHouse; server and embedded warehouse alike.

Inserts are whole Arrow tables and synchronous. No insert is ever dropped for a token or a hash: a
record that says "landed" can outlive the rows it speaks of, so only rows are believed, and FINAL
removes what landed twice.
"""

# ruff: noqa: S608  # the database's name is checked by Settings; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokenline.errors import BadData
from tokenline.landing.connect import connect, warehouse_errors
from tokenline.landing.line import meet
from tokenline.landing.lookups import Lookups
from tokenline.landing.pack import packed
from tokenline.landing.row import DUPLICATES_SCHEMA, LEDGER_SCHEMA
from tokenline.landing.seal import Seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clickhouse_connect.driver.client import Client

    from tokenline.landing.row import Int64s
    from tokenline.landing.store import Ordered, Settlement, Table
    from tokenline.settings import Settings
    from tokenline.wire.line import Line

QUERY_MAX_BYTES = 16 << 20

_SEAL_COLUMNS = (
    "topic, partition, lo, hi, counted, late, duplicate, rejected, absent, deleted, unlanded, "
    "unjudged, tokens, digest, copies_digest, prev, chain, writer_epoch, toUnixTimestamp64Milli(deleted_since), "
    "toUnixTimestamp64Milli(deleted_until), toUnixTimestamp64Milli(as_of), "
    "toUnixTimestamp64Milli(landed_at)"
)
_SEAL_FIELDS = (
    "topic", "partition", "lo", "hi", "counted", "late", "duplicate", "rejected", "absent",
    "deleted", "unlanded", "unjudged", "tokens", "digest", "copies_digest", "prev", "chain", "writer_epoch",
    "deleted_since_ms", "deleted_until_ms", "as_of_ms", "landed_at_ms",
)  # fmt: skip
_SEAL_TIMES = ("deleted_since", "deleted_until", "as_of", "landed_at")


class ClickHouseStore:
    """Keep rows in the database of the settings; the migrations have been applied.

    Once it is held to a line, the next use checks that the database holds it, or, if it `may_adopt`, has it
    take that on (see `landing.line`).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line: Line | None = None
        self.may_adopt = False
        self._database = settings.clickhouse_database
        self._known: Client | None = None
        self._lookups = Lookups(self._database, self._query, self._arrow)
        self._write_settings: dict[str, Any] = {
            "async_insert": 0,
            "insert_deduplicate": 0,
            # Rows of one batch have distinct keys; looking for equal ones costs a third of the
            # insert.
            "optimize_on_insert": 0,
            "max_partitions_per_insert_block": 0,
        }
        # Two thousand identities stand in the text of a query; the server's own bound is 256 KiB.
        self._read_settings: dict[str, Any] = {"max_query_size": QUERY_MAX_BYTES}
        if settings.clickhouse_cluster:
            # Read your own writes, whichever replica answers.
            self._write_settings["insert_quorum"] = "auto"
            self._read_settings["select_sequential_consistency"] = 1

    def hold_to(self, line: Line) -> None:
        """Use the database for this line only, from the next use on."""
        self.close()
        self._line = line

    def ask(self) -> None:
        """Return when the warehouse answers and has the tables.

        Raises:
            MissingTables: it has not.
        """
        self._query(f"SELECT lo FROM {self._database}.seals LIMIT 0", {})

    def insert(self, table: Table, rows: pa.Table) -> None:
        """Write one Arrow table."""
        if rows.num_rows == 0:
            return
        with warehouse_errors(f"inserting {rows.num_rows} rows into {table}"):
            try:
                self._client().insert_arrow(
                    f"{self._database}.{table}", packed(rows), settings=self._write_settings
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise BadData(f"rows of {table} are not Arrow that can be sent: {error}") from error

    def put_seal(self, seal: Seal) -> None:
        """Write one row."""
        row = {name: getattr(seal, name) for name in _SEAL_FIELDS}
        table = pa.Table.from_pylist([row]).rename_columns(
            [name.removesuffix("_ms") for name in _SEAL_FIELDS]
        )
        for name in _SEAL_TIMES:
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(pa.timestamp("ms", "UTC")))
        with warehouse_errors(f"sealing {seal.topic}[{seal.partition}] {seal.lo}..{seal.hi}"):
            self._client().insert_arrow(
                f"{self._database}.seals", table, settings=self._write_settings
            )

    def newest_seal(self, topic: str, partition: int) -> Seal | None:
        """Return the last seal of the highest writer epoch."""
        rows = self._query(
            f"SELECT {_SEAL_COLUMNS} FROM {self._database}.seals FINAL "
            "WHERE topic = %(topic)s AND partition = %(partition)s "
            "ORDER BY writer_epoch DESC, hi DESC LIMIT 1",
            {"topic": topic, "partition": partition},
        )
        return _seal(rows[0]) if rows else None

    def seals(self, topic: str) -> list[Seal]:
        """Return all seals of a topic."""
        rows = self._query(
            f"SELECT {_SEAL_COLUMNS} FROM {self._database}.seals FINAL WHERE topic = %(topic)s",
            {"topic": topic},
        )
        return [_seal(row) for row in rows]

    def landed_offsets(self, topic: str, partition: int, lo: int) -> Int64s:
        """Read the files without FINAL: a row that a merge will drop has landed too."""
        found = self._arrow(
            f"SELECT toInt64(offset) AS offset FROM {self._database}.ledger "
            "WHERE topic = %(topic)s AND partition = %(partition)s AND offset >= %(lo)s "
            "ORDER BY offset",
            {"topic": topic, "partition": partition, "lo": lo},
        )
        return np.unique(found.column("offset").to_numpy())

    def earlier_copies(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Ask for the identities in groups."""
        return self._lookups.earlier_copies(topic, partition, identities)

    def earlier_corrections(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Ask for what corrects the identities, in groups."""
        return self._lookups.earlier_corrections(topic, partition, identities)

    def earlier_rows(
        self, topic: str, partition: int, identities: pa.Table
    ) -> dict[int, list[dict[str, Any]]]:
        """Ask for whole rows, in groups."""
        return self._lookups.earlier_rows(topic, partition, identities)

    def elsewhere(self, identities: pa.Table) -> set[int]:
        """Look at all ids of the tenants."""
        return self._lookups.elsewhere(identities)

    def settlements(self, orders: Sequence[Ordered]) -> dict[str, Settlement]:
        """Ask windows and entries for what the orders came to."""
        return self._lookups.settlements(orders)

    def ledger_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows that FINAL keeps."""
        return self._between("ledger", LEDGER_SCHEMA, topic, partition, lo, hi)

    def duplicates_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows that FINAL keeps."""
        return self._between("duplicates", DUPLICATES_SCHEMA, topic, partition, lo, hi)

    def _between(
        self, table: Table, schema: pa.Schema, topic: str, partition: int, lo: int, hi: int
    ) -> pa.Table:
        columns = ", ".join(field.name for field in schema)
        found = self._arrow(
            f"SELECT {columns} FROM {self._database}.{table} FINAL "
            "WHERE topic = %(topic)s AND partition = %(partition)s "
            "AND offset BETWEEN %(lo)s AND %(hi)s ORDER BY offset",
            {"topic": topic, "partition": partition, "lo": lo, "hi": hi},
        )
        return pa.table(
            {field.name: _cast(found.column(field.name), field.type) for field in schema}
        )

    def rows_where(self, table: Table, condition: str, parameters: dict[str, Any]) -> pa.Table:
        """Return all columns of the rows of a table that FINAL keeps and a condition of ours holds for."""
        return self._arrow(
            f"SELECT * FROM {self._database}.{table} FINAL WHERE {condition}", parameters
        )

    def close(self) -> None:
        """Close the client's connections."""
        if self._known is not None:
            self._known.close()
            self._known = None

    def _client(self) -> Client:
        # Opened on first use: a worker may start while the warehouse is away.
        if self._known is None:
            client = connect(self._settings)
            if self._line is not None:
                meet(client, self._settings, self._line, adopt=self.may_adopt)
            self._known = client
        return self._known

    def _query(self, text: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
        with warehouse_errors("asking the warehouse"):
            return (
                self._client()
                .query(text, parameters=parameters, settings=self._read_settings)
                .result_rows
            )

    def _arrow(self, text: str, parameters: dict[str, Any]) -> pa.Table:
        with warehouse_errors("asking the warehouse"):
            return self._client().query_arrow(
                text, parameters=parameters, settings=self._read_settings, use_strings=True
            )


def _seal(row: Sequence[Any]) -> Seal:
    return Seal(**dict(zip(_SEAL_FIELDS, row, strict=True)))


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column if pa.types.is_map(kind) or column.type.equals(kind) else column.cast(kind)
