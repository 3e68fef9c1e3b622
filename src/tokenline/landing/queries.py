"""Ask the warehouse what commands want to know; read-only."""

# ruff: noqa: S608  # the database's name is checked by Settings; all else is bound

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from tokenline.audit.reconcile import AccountSides, GatewaySides, Landed, Tally
from tokenline.clock import Clock, SystemClock
from tokenline.landing.connect import connect, reading, warehouse_errors
from tokenline.metering.calendar import spans_at
from tokenline.quota.cells import MONTHS_APART_MS
from tokenline.wire.kafka import account_key, partition_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clickhouse_connect.driver.client import Client

    from tokenline.settings import Settings

Format = Literal["table", "json", "csv"]
MINUTE_MS = 60_000
DIFFERENCES_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaView:
    """State what an account has used of its month, as far as it has landed.

    `used` and `limit` are tokens, `limit` -1 for none. `state` is that of the newest decision, or
    open once its window has ended. `late_used` are tokens of late events of the month: billed, but
    not counted against the limit. `as_of_ms` is the broker time up to which usage of the account's
    partition has landed; 0 when none has. `known` is false for an account that was never applied.
    """

    tenant_id: str
    account_id: str
    known: bool
    plan: str
    used: int
    limit: int
    late_used: int
    state: str
    rule: str
    reason: str
    month_start_ms: int
    resets_at_ms: int
    as_of_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def quota(
    settings: Settings, tenant: str, account: str, *, clock: Clock | None = None
) -> QuotaView:
    """Return the account's month so far.

    Raises:
        WarehouseUnavailable: nobody answers.
    """
    now_ms = (clock or SystemClock()).wall_ms()
    who = {"tenant": tenant, "account": account}
    asker = Asker(settings)
    set_to = asker.row(
        "SELECT plan, time_zone, month_tokens FROM {db}.v_accounts "
        "WHERE tenant_id = %(tenant)s AND account_id = %(account)s",
        who,
    )
    plan, zone, limit = set_to or ("", "UTC", -1)
    start_ms, end_ms = spans_at(zone, now_ms // MINUTE_MS * MINUTE_MS).month
    used, late_used = _used_in_month(asker, who | {"start": start_ms, "end": end_ms})
    state, rule, reason, resets_at_ms = _state_now(asker, who, now_ms)
    as_of_ms = _landed_until_ms(asker, settings, tenant, account)
    asker.close()
    return QuotaView(
        tenant_id=tenant,
        account_id=account,
        known=set_to is not None,
        plan=plan,
        used=used,
        limit=int(limit),
        late_used=late_used,
        state=state,
        rule=rule,
        reason=reason,
        month_start_ms=start_ms,
        # What a limit of 0 has cut never resets; what is open starts anew with the month.
        resets_at_ms=resets_at_ms if state == "cut" else end_ms,
        as_of_ms=as_of_ms,
    )


def sql(settings: Settings, query: str, fmt: Format = "table") -> str:
    """Return the answer to one read-only query as text; bare names mean the line's database.

    Raises:
        BadData: ClickHouse refused the query, for example because it writes.
        SettingsError: a table is not there, or the migrations were never applied.
        WarehouseUnavailable: nobody answers.
    """
    with warehouse_errors("the query failed"):
        client = connect(settings, database=settings.clickhouse_database)
        try:
            if fmt == "table":
                return _drawn(client, query)
            name = {"json": "JSON", "csv": "CSVWithNames"}[fmt]
            return client.raw_query(query, settings=reading(client), fmt=name).decode()
        finally:
            client.close()


class Asker:
    """Ask one warehouse several questions; `{db}` in a text is the line's database."""

    def __init__(self, settings: Settings) -> None:
        self._database = settings.clickhouse_database
        with warehouse_errors("asking the warehouse"):
            self._client = connect(settings)

    @property
    def database(self) -> str:
        """Return the name of the line's database."""
        return self._database

    def rows(self, text: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Return all rows."""
        with warehouse_errors("asking the warehouse"):
            return self._client.query(
                text.replace("{db}", self._database),
                parameters=parameters,
                settings=reading(self._client),
            ).result_rows

    def row(self, text: str, parameters: dict[str, Any]) -> Sequence[Any] | None:
        """Return the first row, or None."""
        found = self.rows(text, parameters)
        return found[0] if found else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _used_in_month(asker: Asker, month: dict[str, Any]) -> tuple[int, int]:
    """Return tokens counted in the month, and those of late events."""
    used = asker.row(
        # An account that moved to another zone keeps the month it began in the old one.
        "SELECT sum(toInt128(total_tokens)) FROM {db}.v_month_counters WHERE tenant_id = %(tenant)s "
        "AND account_id = %(account)s "
        "AND abs(toUnixTimestamp64Milli(window_start) - %(start)s) < %(apart)s",
        month | {"apart": MONTHS_APART_MS},
    )
    late = asker.row(
        "SELECT sum(toInt128(total_tokens)) FROM {db}.v_usage "
        "WHERE tenant_id = %(tenant)s AND account_id = %(account)s AND late = 1 "
        "AND occurred_at >= fromUnixTimestamp64Milli(%(start)s, 'UTC') "
        "AND occurred_at < fromUnixTimestamp64Milli(%(end)s, 'UTC')",
        month,
    )
    return int(used[0]) if used else 0, int(late[0]) if late else 0


def _state_now(asker: Asker, who: dict[str, Any], now_ms: int) -> tuple[str, str, str, int]:
    """Return state, rule, reason and reset of the newest decision; a window that ended is open."""
    decided = asker.row(
        "SELECT state, rule, reason, toUnixTimestamp64Milli(resets_at) FROM {db}.v_decisions "
        "WHERE tenant_id = %(tenant)s AND account_id = %(account)s AND subscriber_id = '' "
        "AND model_group = '' ORDER BY version DESC LIMIT 1",
        who,
    )
    state, rule, reason, resets_at_ms = decided or ("open", "", "", 0)
    if resets_at_ms and now_ms >= resets_at_ms:
        return "open", "", "window_reset", 0
    return state, rule, reason, resets_at_ms


def _landed_until_ms(asker: Asker, settings: Settings, tenant: str, account: str) -> int:
    partition = partition_of(account_key(tenant, account), settings.partitions)
    landed = asker.row(
        "SELECT toUnixTimestamp64Milli(max(as_of)) FROM {db}.v_seals "
        "WHERE topic = %(topic)s AND partition = %(partition)s",
        {"topic": settings.topic("usage"), "partition": partition},
    )
    return int(landed[0]) if landed else 0


_SIDES = """
SELECT tenant_id, account_id,
  sum(toInt128(le)) AS l_events, sum(toInt128(lt)) AS l_tokens,
  sum(toInt128(we)) AS w_events, sum(toInt128(wt)) AS w_tokens,
  sum(toInt128(ce)) AS c_events, sum(toInt128(ct)) AS c_tokens
FROM (
  SELECT tenant_id, account_id, count() AS le, sum(toInt128(total_tokens)) AS lt,
    toInt128(0) AS we, toInt128(0) AS wt, toInt128(0) AS ce, toInt128(0) AS ct
  FROM {db}.ledger FINAL WHERE late = 0 GROUP BY tenant_id, account_id
  UNION ALL
  SELECT tenant_id, account_id, 0, 0,
    sumIf(toInt128(events), grain = 'minute'), sumIf(toInt128(total_tokens), grain = 'minute'),
    sumIf(toInt128(events), grain = 'month'), sumIf(toInt128(total_tokens), grain = 'month')
  FROM {db}.windows FINAL GROUP BY tenant_id, account_id
)
GROUP BY tenant_id, account_id
"""


def account_totals(asker: Asker) -> tuple[int, AccountSides]:
    """Return how many accounts there are, and the sums over all of them."""
    sums = ", ".join(f"sum(toInt128({name}))" for name in _SIDE_NAMES)
    row = asker.rows(f"SELECT count(), '', '', {sums} FROM ({_SIDES})")[0]
    return int(row[0]), _account_sides(row[1:])


def unequal_accounts(asker: Asker) -> list[AccountSides]:
    """Return the accounts whose sides differ, at most `DIFFERENCES_MAX`."""
    rows = asker.rows(
        f"SELECT * FROM ({_SIDES}) WHERE l_events != w_events OR l_tokens != w_tokens "
        "OR l_events != c_events OR l_tokens != c_tokens "
        f"ORDER BY tenant_id, account_id LIMIT {DIFFERENCES_MAX}"
    )
    return [_account_sides(row) for row in rows]


def foreign_totals(asker: Asker, line_id: str) -> list[str]:
    """Return, a line each, which control totals count for another line than this."""
    rows = asker.rows(
        "SELECT gateway_id, gateway_epoch, emitted, line_id FROM {db}.gateway_totals FINAL "
        "WHERE line_id NOT IN ('', %(line)s) ORDER BY gateway_id, gateway_epoch",
        {"line": line_id},
    )
    return [
        f"the control total of {gateway}/{epoch} counts {emitted} events for line {other}"
        for gateway, epoch, emitted, other in rows
    ]


def gateways(asker: Asker, topic: str, line_id: str) -> list[GatewaySides]:
    """Return each life of a gateway that is in a landed record or in a control total of this line."""
    rows = asker.rows(
        """
        SELECT gateway_id, gateway_epoch, max(stated), max(emitted), max(acknowledged),
          sum(toInt128(records)) AS records, sum(toInt128(seqs)) AS seqs, max(highest), max(lost)
        FROM (
          SELECT gateway_id, gateway_epoch, 1 AS stated, emitted, acknowledged,
            0 AS records, 0 AS seqs, 0 AS highest, lost
          FROM {db}.gateway_totals FINAL WHERE line_id IN ('', %(line)s)
          UNION ALL
          SELECT gateway_id, gateway_epoch, 0, 0, 0,
            count(), uniqExact(gateway_seq), max(gateway_seq), 0
          FROM (
            SELECT gateway_id, gateway_epoch, gateway_seq
            FROM {db}.ledger FINAL WHERE topic = %(topic)s
            UNION ALL
            SELECT gateway_id, gateway_epoch, gateway_seq
            FROM {db}.duplicates FINAL WHERE topic = %(topic)s
            UNION ALL
            SELECT gateway_id, gateway_epoch,
              arrayJoin(if(empty(gateway_seqs), [gateway_seq], arrayFlatten(arrayMap(
                at -> range(gateway_seqs[at], gateway_seqs[at + 1] + 1),
                range(1, length(gateway_seqs), 2))))) AS gateway_seq
            FROM {db}.dead_letters FINAL WHERE topic = %(topic)s
          )
          WHERE gateway_id != '' AND gateway_seq > 0
          GROUP BY gateway_id, gateway_epoch
        )
        GROUP BY gateway_id, gateway_epoch
        """,
        {"topic": topic, "line": line_id},
    )
    return [
        GatewaySides(
            gateway_id=row[0], gateway_epoch=row[1], stated=bool(row[2]), emitted=int(row[3]),
            acknowledged=int(row[4]), records=int(row[5]), distinct=int(row[6]),
            highest=int(row[7]), lost=int(row[8]),
        )
        for row in rows
    ]  # fmt: skip


def landed_by_partition(asker: Asker, topic: str) -> dict[int, Landed]:
    """Return what the tables hold of each partition of usage."""
    rows = asker.rows(
        """
        SELECT partition, sum(toInt128(n_counted)), sum(toInt128(n_late)),
          sum(toInt128(n_copies)), sum(toInt128(n_dead)), sum(toInt128(n_tokens))
        FROM (
          SELECT partition, countIf(late = 0) AS n_counted, countIf(late = 1) AS n_late,
            toUInt64(0) AS n_copies, toUInt64(0) AS n_dead, sum(toInt128(total_tokens)) AS n_tokens
          FROM {db}.ledger FINAL WHERE topic = %(topic)s GROUP BY partition
          UNION ALL
          SELECT partition, 0, 0, count(), 0, 0
          FROM {db}.duplicates FINAL WHERE topic = %(topic)s GROUP BY partition
          UNION ALL
          SELECT partition, 0, 0, 0, sum(toInt128(records)), 0
          FROM {db}.dead_letters FINAL WHERE topic = %(topic)s GROUP BY partition
        )
        GROUP BY partition
        """,
        {"topic": topic},
    )
    return {
        int(row[0]): Landed(
            counted=int(row[1]), late=int(row[2]), duplicates=int(row[3]),
            dead_letters=int(row[4]), tokens=int(row[5]),
        )
        for row in rows
    }  # fmt: skip


def quarantined(asker: Asker) -> dict[str, int]:
    """Return how many records of each topic are in the quarantine."""
    rows = asker.rows("SELECT topic, count() FROM {db}.quarantine FINAL GROUP BY topic")
    return {str(topic): int(count) for topic, count in rows}


_SIDE_NAMES = ("l_events", "l_tokens", "w_events", "w_tokens", "c_events", "c_tokens")


def _account_sides(row: Sequence[Any]) -> AccountSides:
    tallies = [Tally(events=int(row[at]), tokens=int(row[at + 1])) for at in (2, 4, 6)]
    return AccountSides(
        tenant_id=str(row[0]),
        account_id=str(row[1]),
        ledger=tallies[0],
        windows=tallies[1],
        counters=tallies[2],
    )


def _drawn(client: Client, query: str) -> str:
    answer = client.query(query, settings=reading(client))
    table = Table(*answer.column_names)
    for row in answer.result_rows:
        table.add_row(*(str(value) for value in row))
    out = io.StringIO()
    Console(file=out, width=200, markup=False).print(table)
    return out.getvalue()
