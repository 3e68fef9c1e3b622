"""Ask ClickHouse which events of a run came before, were corrected, or stand elsewhere."""

# ruff: noqa: S608  # the database's name is checked by Settings; values are bound

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenline.landing.row import IDENTITY, LEDGER_SCHEMA, identity_of, plain_rows
from tokenline.landing.store import Ordered, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

# One question names at most this many events; the statement's text grows with it.
IDENTITIES_MAX = 2000
_NAMES = ", ".join(IDENTITY)
_OURS = "topic = %(topic)s AND partition = %(partition)s"


@dataclass(frozen=True, slots=True)
class Lookups:
    """Ask the ledger of one database; `query` returns rows, `arrow` a table."""

    database: str
    query: Callable[[str, dict[str, Any]], Sequence[Sequence[Any]]]
    arrow: Callable[[str, dict[str, Any]], pa.Table]

    def earlier_copies(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """As `Store` has it; the key leads to each identity."""
        return self._below(topic, partition, identities, _NAMES, "1")

    def earlier_corrections(self, topic: str, partition: int, identities: pa.Table) -> set[int]:
        """As `Store` has it; an index passes over what has no corrections."""
        names = "tenant_id, account_id, source, corrects"
        return self._below(topic, partition, identities, names, "corrects != ''")

    def earlier_rows(
        self, topic: str, partition: int, identities: pa.Table
    ) -> dict[int, list[dict[str, Any]]]:
        """As `Store` has it."""
        columns = ", ".join(LEDGER_SCHEMA.names)
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for wanted in _groups(identities):
            rows = self.arrow(
                f"SELECT DISTINCT {columns} FROM {self.database}.ledger "
                f"WHERE {_OURS} AND ({_NAMES}) IN %(identities)s ORDER BY offset",
                _bound(topic, partition, wanted),
            )
            by_identity: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
            for row in plain_rows(rows):
                by_identity[identity_of(row)].append(row)
            for one in wanted:
                rows_of = by_identity.get(identity_of(one), [])
                below = [row for row in rows_of if row["offset"] < one["offset"]]
                found[int(one["position"])] += below
        return {position: rows for position, rows in found.items() if rows}

    def elsewhere(self, identities: pa.Table) -> set[int]:
        """As `Store` has it."""
        found: set[int] = set()
        for wanted in _groups(identities):
            names = sorted({(one["tenant_id"], one["source"], one["event_id"]) for one in wanted})
            rows = self.query(
                f"SELECT DISTINCT tenant_id, source, event_id, account_id FROM {self.database}.ledger "
                "WHERE (tenant_id, source, event_id) IN %(names)s",
                {"names": names},
            )
            accounts: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for *name, account in rows:
                accounts[tuple(name)].add(account)
            for one in wanted:
                event = (one["tenant_id"], one["source"], one["event_id"])
                if accounts.get(event, set()) - {one["account_id"]}:
                    found.add(int(one["position"]))
        return found

    def settlements(self, orders: Sequence[Ordered]) -> dict[str, Settlement]:
        """As `Store` has it."""
        if not orders:
            return {}
        bound: dict[str, Any] = {
            "accounts": sorted({(one.tenant_id, one.account_id) for one in orders}),
            "causes": [f"{one.command_id} in" for one in orders],
            "commands": [one.command_id for one in orders],
        }
        ours = "(tenant_id, account_id) IN %(accounts)s"
        charges = self.query(
            f"SELECT cause, charge_utok, catalog_version FROM {self.database}.windows FINAL "
            f"WHERE {ours} AND cause IN %(causes)s AND grain != 'month'",
            bound,
        )
        entries = self.query(
            "SELECT command_id, toUnixTimestamp64Milli(at), bucket, -amount_utok "
            f"FROM {self.database}.balance_changes FINAL WHERE {ours} "
            "AND kind = 'correction_in' AND command_id IN %(commands)s ORDER BY toInt64OrZero(entry)",
            bound,
        )
        return settled(charges, entries)

    def _below(
        self, topic: str, partition: int, identities: pa.Table, names: str, also: str
    ) -> set[int]:
        """Return the positions whose identity is that of these columns of a row at a lower offset."""
        found: set[int] = set()
        for wanted in _groups(identities):
            rows = self.query(
                f"SELECT {names}, min(offset) FROM {self.database}.ledger "
                f"WHERE {_OURS} AND {also} AND ({names}) IN %(identities)s GROUP BY {names}",
                _bound(topic, partition, wanted),
            )
            lowest = {tuple(identity): int(offset) for *identity, offset in rows}
            found.update(_positions_above(lowest, wanted))
        return found


def settled(
    charges: Sequence[Sequence[Any]], entries: Sequence[Sequence[Any]]
) -> dict[str, Settlement]:
    """Put windows' rows and entries of corrections together; leave out what is not here as a whole."""
    parts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    moments: dict[str, int] = {}
    for command_id, at_ms, bucket, amount in entries:
        parts[command_id].append((int(bucket), int(amount)))
        moments[command_id] = int(at_ms)
    found = {}
    for cause, charge, version in charges:
        name = str(cause).removesuffix(" in")
        if sum(amount for _, amount in parts[name]) == charge:
            found[name] = Settlement(
                int(charge), int(version), moments.get(name, 0), tuple(parts[name])
            )
    return found


def _groups(identities: pa.Table) -> Iterator[list[dict[str, Any]]]:
    for at in range(0, identities.num_rows, IDENTITIES_MAX):
        yield identities.slice(at, IDENTITIES_MAX).to_pylist()


def _bound(topic: str, partition: int, wanted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({identity_of(one) for one in wanted})
    return {"topic": topic, "partition": partition, "identities": names}


def _positions_above(
    lowest: dict[tuple[str, ...], int], wanted: Sequence[Mapping[str, Any]]
) -> Iterator[int]:
    for one in wanted:
        if lowest.get(identity_of(one), one["offset"]) < one["offset"]:
            yield int(one["position"])
