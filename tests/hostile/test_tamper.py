"""Whoever may write to the warehouse edits its tables so that they agree with each other: reconcile finds it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import clickhouse_connect
import pytest
from stand import Stand, account_key, event

from tests.orders import CATALOG
from tokenline.event import UsageEvent
from tokenline.landing.migrate import views
from tokenline.wire.emitter import Emitter
from tokenline.wire.orders import Orders

TABLES = (
    *("ledger", "duplicates", "windows", "balance_changes", "gateway_totals", "seals"),
    *("decisions", "dead_letters", "accounts"),
)
GRANT = "account_id = 'acme' AND kind = 'grant' AND bucket = 2"
FOREIGN = "* REPLACE ('elsewhere' AS topic)"
STRAY = "* REPLACE (toUInt32(77) AS partition)"


@pytest.fixture(scope="module")
def warehouse_client(warehouse):
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        yield client


@pytest.fixture(scope="module")
def stand(line_settings, tmp_path_factory):
    """Run a line with everything in it, once: plans, subscribers, a copy, a dead letter and a gateway."""
    place = tmp_path_factory.mktemp("stand")
    with Stand(line_settings(partitions=2), place) as one:
        one.start()
        asyncio.run(sold(one))
        one.apply()
        twice = event("acme", provider="p", model="max", subscriber_id="ann", input_tokens=40)
        for frame in (twice, twice, b"junk"):
            one.put("usage", [(account_key("default", "acme"), frame)], one.home("acme"))
        rest = {"account": "acme", "provider": "p", "model": "mini", "subscriber_id": "bob"}
        one.use(2, input_tokens=50, output_tokens=30, **rest)
        one.use(3, input_tokens=90, **rest)
        asyncio.run(emitted(one))
        for partition in range(2):
            one.all_sealed(partition)
        assert one.reconcile(60).ok
        one.stop()
        yield one


async def sold(stand):
    async with Orders(stand.settings) as orders:
        await orders.publish_catalog(CATALOG.version, CATALOG.effective_ms, CATALOG.to_json())
        for name in ("acme", "by-gateway"):
            await orders.order(name, kind="open", plan="strict")
        await orders.order("acme", kind="grant", amount_utok=70_000_000)


async def emitted(stand):
    async with Emitter(stand.settings, source="gw", gateway_id="g1") as emitter:
        for _ in range(4):
            fields = {"provider": "p", "model": "max", "input_tokens": 3}
            await emitter.emit(UsageEvent(account_id="by-gateway", **fields))
        await emitter.flush()


class Tampered:
    """Edit tables of a line, and put them back as they were."""

    def __init__(self, stand, client):
        self.stand, self._client = stand, client
        self._db = stand.settings.clickhouse_database

    def run(self, text):
        self._client.command(text.format(db=self._db), settings={"mutations_sync": 1})

    def copy(self, table, columns, where="1"):
        """Add rows of a table as they were, with these columns changed."""
        self.run(f"INSERT INTO {{db}}.{table} SELECT {columns} FROM {{db}}.{table} WHERE {where}")

    def move(self, table, columns, where):
        """Change columns of a key: rows with them instead of the rows that there were."""
        self.run(f"CREATE TABLE {{db}}._moved AS {{db}}.{table}")
        self.run(f"INSERT INTO {{db}}._moved SELECT * FROM {{db}}.{table} FINAL WHERE {where}")
        self.run(f"ALTER TABLE {{db}}.{table} DELETE WHERE {where}")
        self.run(f"INSERT INTO {{db}}.{table} SELECT {columns} FROM {{db}}._moved")
        self.run("DROP TABLE {db}._moved SYNC")

    @contextmanager
    def kept(self):
        for table in TABLES:
            self.run(f"CREATE TABLE {{db}}._kept_{table} AS {{db}}.{table}")
            self.run(f"INSERT INTO {{db}}._kept_{table} SELECT * FROM {{db}}.{table}")
        try:
            yield self
        finally:
            for table in TABLES:
                self.run(f"TRUNCATE TABLE {{db}}.{table}")
                self.run(f"INSERT INTO {{db}}.{table} SELECT * FROM {{db}}._kept_{table}")
                self.run(f"DROP TABLE {{db}}._kept_{table} SYNC")
            for name, query in views(self.stand.settings).items():
                self.run(f"CREATE OR REPLACE VIEW {{db}}.{name} AS ".format(db=self._db) + query)


@pytest.fixture
def line(stand, warehouse_client):
    with Tampered(stand, warehouse_client).kept() as one:
        yield one


def invent_under(line, columns):
    """Add an event, its minute and its month, all alike, where no seal can cover them."""
    line.copy("ledger", columns.replace("REPLACE (", "REPLACE ('invented' AS event_id, "),
              "account_id = 'acme' AND model = 'mini' ORDER BY offset LIMIT 1")  # fmt: skip
    row = "SELECT total_tokens FROM {db}.ledger WHERE event_id = 'invented'"
    for table, where in (("windows", "grain = 'minute'"), ("windows", "grain = 'month'")):
        line.run(
            f"ALTER TABLE {{db}}.{table} UPDATE events = events + 1, input_tokens = input_tokens + "
            f"50, output_tokens = output_tokens + 30, total_tokens = total_tokens + ({row}) "
            f"WHERE account_id = 'acme' AND {where}"
        )


def late_row(line):
    line.copy("ledger", "* REPLACE ('invented' AS event_id, 'late' AS judgement, toUInt8(1) AS late, "
              "'elsewhere' AS topic)", "account_id = 'acme' LIMIT 1")  # fmt: skip


def shift_kinds(line):
    line.run(
        "ALTER TABLE {db}.windows UPDATE input_tokens = input_tokens + output_tokens, output_tokens = 0 "
        "WHERE account_id = 'acme' AND model = 'mini'"
    )


def rename_subscriber(line):
    line.move("windows", "* REPLACE ('eve' AS subscriber_id)", "subscriber_id = 'bob'")


def discount_alike(line):
    """Halve what a window cost, and what usage took from the bucket, by the same amount."""
    line.run(
        "ALTER TABLE {db}.windows UPDATE charge_utok = charge_utok - 1000000 "
        "WHERE account_id = 'acme' AND model = 'max' AND grain = 'minute'"
    )
    line.run(
        "ALTER TABLE {db}.balance_changes UPDATE amount_utok = amount_utok + 1000000 "
        "WHERE account_id = 'acme' AND kind = 'usage'"
    )


def move_usage(line):
    line.move("balance_changes", "* REPLACE (bucket + 40 AS bucket)",
              "account_id = 'acme' AND kind = 'usage'")  # fmt: skip


def edit_duplicate(line):
    line.run("ALTER TABLE {db}.duplicates UPDATE event_id = 'another' WHERE 1")


def drop_duplicate(line):
    line.run("ALTER TABLE {db}.duplicates DELETE WHERE 1")


def move_as_of(line):
    line.run("ALTER TABLE {db}.seals UPDATE as_of = as_of + INTERVAL 1 DAY WHERE 1")


def empty_totals(line):
    line.run("TRUNCATE TABLE {db}.gateway_totals")


def edit_total(line):
    line.run("ALTER TABLE {db}.gateway_totals UPDATE emitted = emitted + 1 WHERE 1")


def replace_view(line):
    line.run(
        "CREATE OR REPLACE VIEW {db}.v_usage AS SELECT * FROM {db}.ledger FINAL "
        "WHERE account_id != 'acme'"
    )


def drop_view(line):
    line.run("DROP VIEW {db}.v_seals SYNC")


def edit(table, change, where="1"):
    """Return a tampering that changes a column of rows."""
    return lambda line: line.run(f"ALTER TABLE {{db}}.{table} UPDATE {change} WHERE {where}")


def invent_grant(line):
    """Add the entry that would come next, to the bucket of another."""
    line.copy(
        "balance_changes",
        "* REPLACE (toString((SELECT max(toUInt64OrZero(entry)) FROM {db}.balance_changes WHERE "
        "account_id = 'acme' AND kind != 'usage') + 1) AS entry)",
        GRANT,
    )


def drop_decisions(line):
    line.run("ALTER TABLE {db}.decisions DELETE WHERE account_id = 'acme'")


TAMPERINGS = [
    (late_row, "rows of ledger that no seal covers"),
    (lambda line: invent_under(line, FOREIGN), "rows of ledger that no seal covers"),
    (lambda line: invent_under(line, STRAY), "rows of ledger that no seal covers"),
    (shift_kinds, "output_tokens in ledger and windows"),
    (rename_subscriber, "input_tokens in ledger and windows"),
    (discount_alike, "charge_utok in ledger and windows"),
    (move_usage, "µtok that events say and entries of usage took"),
    (
        edit("balance_changes", "amount_utok = amount_utok * 10", GRANT),
        "amount_utok is not what Kafka",
    ),
    (invent_grant, "is not in Kafka, whose newest is"),
    (edit("balance_changes", "kind = 'adjustment'", GRANT), "kind is not what Kafka has"),
    (edit("balance_changes", "command_id = 'forged'", GRANT), "command_id is not what Kafka has"),
    (drop_decisions, "Kafka has it and the table has not"),
    (edit("decisions", "used = used + 5"), "used is not what Kafka has"),
    (edit("dead_letters", "reason = 'too_old'"), "reason is not what Kafka has"),
    (edit("dead_letters", "value_base64 = ''"), "value_base64 is not what Kafka has"),
    (edit("accounts", "month_tokens = 10"), "month_tokens is not what Kafka has"),
    (edit_duplicate, "does not follow from duplicates"),
    (drop_duplicate, "duplicates in seals and tables"),
    (move_as_of, "chain does not follow from its own fields"),
    (empty_totals, "events in its control total in Kafka and in gateway_totals"),
    (edit_total, "events in its control total in Kafka and in gateway_totals"),
    (replace_view, "view v_usage is not the one that the migrations made"),
    (drop_view, "view v_seals is not there"),
]


@pytest.mark.parametrize(("tamper", "named"), TAMPERINGS)
def test_it_is_found_and_named(line, tamper, named):
    tamper(line)
    report = line.stand.reconcile(0)
    assert not report.ok
    assert named in report.to_json(), report.to_json()


def test_what_was_put_back_is_as_it_was(line, stand):
    shift_kinds(line)
    assert not stand.reconcile(0).ok
    line.run("TRUNCATE TABLE {db}.windows")
    line.run("INSERT INTO {db}.windows SELECT * FROM {db}._kept_windows")
    assert stand.reconcile(0).ok
