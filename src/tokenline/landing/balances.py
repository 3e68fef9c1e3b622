"""Ask the warehouse what balances were charged."""

# ruff: noqa: S608  # as in `queries`: the database's name is checked by Settings; there is no other input

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.audit.reconcile import ChargeSides, EntrySides, TransferSides

if TYPE_CHECKING:
    from tokenline.landing.queries import Asker

DIFFERENCES_MAX = 100

_SIDES = """
SELECT tenant_id, account_id, sum(toInt128(w)) AS windows, sum(toInt128(b)) AS buckets
FROM (
  SELECT tenant_id, account_id, toInt128(charge_utok) AS w, toInt128(0) AS b
  FROM {db}.windows FINAL WHERE grain = 'minute' AND charge_utok > 0
  UNION ALL
  SELECT tenant_id, account_id, 0, -toInt128(amount_utok)
  FROM {db}.balance_changes FINAL WHERE kind = 'usage'
)
GROUP BY tenant_id, account_id
"""


def charged(asker: Asker) -> int:
    """Return what all windows cost, in µtok."""
    row = asker.row(f"SELECT sum(toInt128(windows)) FROM ({_SIDES})", {})
    return int(row[0]) if row else 0


def unequal_charges(asker: Asker) -> list[ChargeSides]:
    """Return the accounts whose windows cost another amount than their buckets paid."""
    rows = asker.rows(
        f"SELECT * FROM ({_SIDES}) WHERE windows != buckets "
        f"ORDER BY tenant_id, account_id LIMIT {DIFFERENCES_MAX}"
    )
    return [
        ChargeSides(
            tenant_id=str(row[0]),
            account_id=str(row[1]),
            windows_utok=int(row[2]),
            buckets_utok=int(row[3]),
        )
        for row in rows
    ]


def missing_entries(asker: Asker) -> list[EntrySides]:
    """Return the accounts of whose numbered entries some are not there: they count from 1 without gaps."""
    rows = asker.rows(
        "SELECT tenant_id, account_id, max(toUInt64(entry)) AS newest, count() AS landed "
        "FROM {db}.balance_changes FINAL WHERE kind != 'usage' "
        "GROUP BY tenant_id, account_id HAVING newest != landed "
        f"ORDER BY tenant_id, account_id LIMIT {DIFFERENCES_MAX}"
    )
    return [
        EntrySides(
            tenant_id=str(row[0]), account_id=str(row[1]), newest=int(row[2]), landed=int(row[3])
        )
        for row in rows
    ]


def transferred(asker: Asker) -> tuple[int, int]:
    """Return what left accounts for others and what of it is on the way, in µtok.

    Only parts that left are on the way: what came from nowhere does not make up for one.
    """
    row = asker.row(
        "SELECT sum(toInt128(given_utok)), sumIf(toInt128(on_the_way_utok), on_the_way_utok > 0) FROM {db}.v_transfers",
        {},
    )
    return (int(row[0]), int(row[1])) if row else (0, 0)


def unequal_transfers(asker: Asker) -> list[TransferSides]:
    """Return the parts of transfers of which another amount arrived than left, or none yet."""
    rows = asker.rows(
        "SELECT tenant_id, giver, part, given_utok, taken_utok + returned_utok "
        "FROM {db}.v_transfers WHERE on_the_way_utok != 0 "
        f"ORDER BY tenant_id, giver, part LIMIT {DIFFERENCES_MAX}"
    )
    return [
        TransferSides(
            tenant_id=str(row[0]),
            giver=str(row[1]),
            entry=int(row[2]),
            given_utok=int(row[3]),
            arrived_utok=int(row[4]),
        )
        for row in rows
    ]
