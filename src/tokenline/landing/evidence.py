"""Ask the warehouse for what its tables say beside what is sealed (`audit.tampering`)."""

# ruff: noqa: S608  # the database's name is checked by Settings; all else is bound

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.audit.tampering import KindSides, PaidSides
from tokenline.event import TOKEN_KINDS
from tokenline.quota.subscribers import OTHERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenline.audit.tampering import Life
    from tokenline.landing.queries import Asker

DIFFERENCES_MAX = 100
COLUMNS = (*TOKEN_KINDS, "charge_utok")

# Their windows and entries have rows of orders, or of several subscribers, beside those of events.
_CORRECTED = """
SELECT tenant_id, account_id FROM {db}.windows FINAL WHERE cause != ''
UNION DISTINCT
SELECT tenant_id, account_id FROM {db}.ledger FINAL WHERE judgement = 'correction'
"""


def unsealed(
    asker: Asker, topic: str, partitions: Collection[int]
) -> dict[tuple[str, str, int], int]:
    """Return how many rows lie, by table, under a topic and partition without seals."""
    found = {}
    for table in ("ledger", "duplicates"):
        rows = asker.rows(
            f"SELECT topic, partition, count() FROM {{db}}.{table} FINAL GROUP BY topic, partition"
        )
        for where, partition, count in rows:
            if where != topic or int(partition) not in partitions:
                found[table, str(where), int(partition)] = int(count)
    return found


def unequal_kinds(asker: Asker) -> list[KindSides]:
    """Return where windows say another sum than the ledger, of each column that differs."""
    listed = ", ".join(f"toInt128({name})" for name in COLUMNS)
    key = "tenant_id, account_id, subscriber_id, provider, model"
    zeros = f"arrayResize(emptyArrayInt64(), {len(COLUMNS)})"
    rows = asker.rows(
        f"""
        SELECT {key}, sumForEach(l) AS ledger, sumForEach(w) AS windows
        FROM (
          SELECT {key}, [{listed}] AS l, CAST({zeros}, 'Array(Int128)') AS w
          FROM {{db}}.ledger FINAL WHERE late = 0
          UNION ALL
          SELECT {key}, CAST({zeros}, 'Array(Int128)'), [{listed}]
          FROM {{db}}.windows FINAL WHERE grain = 'minute'
        )
        WHERE (tenant_id, account_id) NOT IN (
          {_CORRECTED}
          UNION DISTINCT
          SELECT tenant_id, account_id FROM {{db}}.windows FINAL WHERE subscriber_id = %(others)s
        )
        GROUP BY {key} HAVING ledger != windows
        ORDER BY {key} LIMIT {DIFFERENCES_MAX}
        """,
        {"others": OTHERS},
    )
    return [
        KindSides(
            tenant_id=row[0], account_id=row[1], subscriber_id=row[2], provider=row[3], model=row[4],
            column=name, ledger=int(ledger), windows=int(windows),
        )
        for row in rows
        for name, ledger, windows in zip(COLUMNS, row[5], row[6], strict=True)
        if int(ledger) != int(windows)
    ]  # fmt: skip


def unequal_buckets(asker: Asker) -> list[PaidSides]:
    """Return the buckets from which usage took another amount than its events say."""
    rows = asker.rows(
        f"""
        SELECT tenant_id, account_id, bucket, sum(toInt128(l)) AS ledger, sum(toInt128(e)) AS entries
        FROM (
          SELECT tenant_id, account_id, paid.1 AS bucket, toInt128(paid.2) AS l, toInt128(0) AS e
          FROM {{db}}.ledger FINAL ARRAY JOIN arrayZip(paid_buckets, paid_utok) AS paid
          UNION ALL
          SELECT tenant_id, account_id, bucket, 0, -toInt128(amount_utok)
          FROM {{db}}.balance_changes FINAL WHERE kind = 'usage'
        )
        WHERE (tenant_id, account_id) NOT IN (
          {_CORRECTED}
          UNION DISTINCT
          SELECT tenant_id, account_id FROM {{db}}.ledger FINAL WHERE late = 1
        )
        GROUP BY tenant_id, account_id, bucket HAVING ledger != entries
        ORDER BY tenant_id, account_id, bucket LIMIT {DIFFERENCES_MAX}
        """
    )
    return [
        PaidSides(
            tenant_id=row[0], account_id=row[1], bucket=int(row[2]),
            ledger_utok=int(row[3]), entries_utok=int(row[4]),
        )
        for row in rows
    ]  # fmt: skip


def kept_totals(asker: Asker) -> dict[Life, int]:
    """Return what each life of a gateway has emitted, as its control total landed."""
    rows = asker.rows("SELECT gateway_id, gateway_epoch, emitted FROM {db}.gateway_totals FINAL")
    return {(str(gateway), str(epoch)): int(emitted) for gateway, epoch, emitted in rows}


def shared_events(asker: Asker) -> list[str]:
    """Return, a line each, events that the ledger has more than once, the newest first; at most 100."""
    rows = asker.rows(
        "SELECT tenant_id, source, event_id, arraySort(accounts), events FROM {db}.v_shared_identities "
        f"ORDER BY last_at DESC, event_id LIMIT {DIFFERENCES_MAX}"
    )
    return [
        f"event {event} of source {source}, tenant {tenant}, was charged {count} times, to "
        f"{', '.join(accounts)}"
        for tenant, source, event, accounts, count in rows
    ]


def view_differences(asker: Asker, wanted: dict[str, str]) -> list[str]:
    """Return, a line each, the views that are not there or ask something else than they must.

    The server writes both queries in its own way before they are compared.
    """
    found = {
        str(name): str(query)
        for name, query in asker.rows(
            "SELECT name, formatQuerySingleLine(as_select) FROM system.tables "
            "WHERE database = %(db)s AND engine = 'View'",
            {"db": asker.database},
        )
    }
    faults = []
    for name, query in sorted(wanted.items()):
        written = asker.rows("SELECT formatQuerySingleLine(%(query)s)", {"query": query})[0][0]
        if name not in found:
            faults.append(f"view {name} is not there")
        elif found[name] != written:
            faults.append(f"view {name} is not the one that the migrations made")
    return faults
