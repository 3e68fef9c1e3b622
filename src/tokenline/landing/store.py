"""Say what landing needs of a warehouse; the contract that both stores keep.

Rows are never changed in place. Each table keeps one row per key, whatever is inserted twice, but a
reader that does not ask for that (FINAL) may still see both; every read here does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from tokenline.landing.row import Int64s
    from tokenline.landing.seal import Seal

Table = Literal[
    "ledger",
    "duplicates",
    "windows",
    "decisions",
    "accounts",
    "dead_letters",
    "gateway_totals",
    "balance_changes",
    "quarantine",
]


@dataclass(frozen=True, slots=True)
class Ordered:
    """Name an order of landing by whose it is and what it is called."""

    tenant_id: str
    account_id: str
    command_id: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """Hold what a correction was charged, by which catalog, when, and which buckets paid how much."""

    charge_utok: int
    catalog_version: int
    charged_ms: int
    parts: tuple[tuple[int, int], ...]


class Store(Protocol):
    """Keep landed rows and seals.

    Every method blocks, may be called from any thread, and raises WarehouseUnavailable when nobody
    answers: then nothing is known of what was written, and a caller must look before it writes
    again. BadData means that trying again gives the same.
    """

    def insert(self, table: Table, rows: pa.Table) -> None:
        """Write rows; columns go by name.

        Returning means they survive a crash of the warehouse's machine. Raising does not mean that
        none was written: rows of another month may be in. Of rows with one key windows,
        gateway_totals and balance_changes keep the highest version, decisions the highest epoch;
        in the other tables rows with one key are the same row.
        """
        ...

    def put_seal(self, seal: Seal) -> None:
        """Write one seal, after its rows. Writing it twice is writing it once."""
        ...

    def newest_seal(self, topic: str, partition: int) -> Seal | None:
        """Return the last seal of the highest writer epoch: the next writer goes on from there.

        It may not be the seal with the highest offset: a writer that has lost its partition can
        have run ahead.
        """
        ...

    def seals(self, topic: str) -> list[Seal]:
        """Return all seals of a topic, those of lost writers too, in no order."""
        ...

    def landed_offsets(self, topic: str, partition: int, lo: int) -> Int64s:
        """Return the offsets from `lo` up that are in the ledger's files, ascending."""
        ...

    def earlier_copies(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Return the positions whose identity stands in the ledger at a lower offset.

        `identities` is as `row.identities_at` gives it. Cost grows with its rows: ask for late events
        and corrections only.
        """
        ...

    def earlier_corrections(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """Return the positions whose identity is corrected by a row of the ledger at a lower offset."""
        ...

    def earlier_rows(
        self, topic: str, partition: int, identities: pa.Table
    ) -> dict[int, list[dict[str, Any]]]:
        """Return for each position the ledger's rows of its identity at lower offsets, in their order.

        A row is as `LEDGER_SCHEMA`, times as ms. Positions that have none are not there.
        """
        ...

    def elsewhere(self, identities: pa.Table) -> set[int]:
        """Return the positions whose event stands in the ledger under another account of the tenant.

        Nothing leads to it but a look at all ids of the tenant: ask seldom.
        """
        ...

    def settlements(self, orders: Sequence[Ordered]) -> dict[str, Settlement]:
        """Return by command id what corrections came to, of those that are known here as a whole."""
        ...

    def ledger_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the ledger rows of these offsets, both included, in order, as `LEDGER_SCHEMA`."""
        ...

    def duplicates_between(self, topic: str, partition: int, lo: int, hi: int) -> pa.Table:
        """Return the rows of duplicates at these offsets, both included, in order, as `DUPLICATES_SCHEMA`."""
        ...

    def close(self) -> None:
        """Let go of connections; written rows stay."""
        ...
