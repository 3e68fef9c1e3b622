"""Run the migrations on a real warehouse, and kill them at every step."""

from __future__ import annotations

import uuid
from dataclasses import replace

import clickhouse_connect
import pytest

from tokenline.errors import BrokenLog, SettingsError, WarehouseUnavailable
from tokenline.landing import migrate
from tokenline.settings import Settings


class Killed(BaseException):
    """Stand for kill -9 of the runner: nothing of ours catches it."""


@pytest.fixture
def line(warehouse):
    settings = Settings(clickhouse_url=warehouse, clickhouse_database=f"m_{uuid.uuid4().hex[:10]}")
    yield settings
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        client.command(f"DROP DATABASE IF EXISTS {settings.clickhouse_database} SYNC")


def tables_of(settings):
    """What was built, with the database's own name taken out."""
    with clickhouse_connect.get_client(dsn=settings.clickhouse_url) as client:
        rows = client.query(
            "SELECT name, create_table_query FROM system.tables "
            f"WHERE database = '{settings.clickhouse_database}' ORDER BY name"
        ).result_rows
    return [(name, text.replace(settings.clickhouse_database, "line")) for name, text in rows]


def test_a_plan_changes_nothing_and_apply_does_it_once(line):
    assert {one.status for one in migrate.plan(line)} == {"pending"}
    assert tables_of(line) == []

    applied = migrate.apply(line)

    assert len(applied) == len(migrate.plan(line))
    assert migrate.apply(line) == []
    assert migrate.verify(line) == []


def test_a_run_killed_at_every_step_and_repeated_builds_what_a_fresh_run_builds(line, warehouse):
    steps = []
    migrate.apply(line, step=steps.append)
    fresh = tables_of(line)
    settings = Settings(clickhouse_url=warehouse, clickhouse_database=f"k_{uuid.uuid4().hex[:10]}")
    seen = set()

    def die_at_a_new_step(name):
        if name not in seen:
            seen.add(name)
            raise Killed

    while seen != set(steps):
        with pytest.raises(Killed):
            migrate.apply(settings, step=die_at_a_new_step)
    migrate.apply(settings, step=die_at_a_new_step)

    assert tables_of(settings) == fresh
    assert migrate.verify(settings) == []
    with clickhouse_connect.get_client(dsn=warehouse) as client:
        client.command(f"DROP DATABASE {settings.clickhouse_database} SYNC")


def test_a_changed_file_is_refused(line, monkeypatch):
    migrate.apply(line)
    changed = [
        replace(one, checksum="0" * 64) if one.file == 3 else one for one in migrate.statements()
    ]
    monkeypatch.setattr(migrate, "statements", lambda: changed)

    with pytest.raises(BrokenLog, match=r"0003_duplicates.*changed after it was applied"):
        migrate.plan(line)
    with pytest.raises(BrokenLog):
        migrate.apply(line)


def test_a_warehouse_of_a_newer_version_is_refused(line, monkeypatch):
    migrate.apply(line)
    older = [one for one in migrate.statements() if one.file < 9]
    monkeypatch.setattr(migrate, "statements", lambda: older)

    with pytest.raises(BrokenLog, match="0009 statement 1, which this version does not know"):
        migrate.apply(line)


def test_verify_names_what_somebody_dropped(line):
    migrate.apply(line)
    with clickhouse_connect.get_client(dsn=line.clickhouse_url) as client:
        client.command(f"DROP VIEW {line.clickhouse_database}.v_accounts")

    assert migrate.verify(line) == ["v_accounts is missing"]


def test_views_read_with_the_rights_of_who_made_them(line):
    """So a reader of views needs no right to a table, in the warehouse and in a server."""
    migrate.apply(line)
    views = {name: text for name, text in tables_of(line) if text.startswith("CREATE VIEW")}
    assert len(views) >= 10
    assert [name for name, text in views.items() if "SQL SECURITY DEFINER" not in text] == []
    assert [name for name in views if not name.startswith("v_")] == []


@pytest.mark.parametrize("cluster", ["", "prod"])
def test_the_roles_of_a_server_are_sql_that_the_engine_reads_and_name_every_view(line, cluster):
    migrate.apply(line)
    wanted = migrate.roles(line.model_copy(update={"clickhouse_cluster": cluster}))
    with clickhouse_connect.get_client(dsn=line.clickhouse_url) as client:
        for one in wanted:
            said = client.query("SELECT formatQuery({q:String})", parameters={"q": one})
            assert said.result_rows[0][0].split()[0] in {"CREATE", "GRANT"}
    assert not [one for one in wanted if "{" in one]
    assert [one for one in wanted if ("ON CLUSTER 'prod'" in one) is not bool(cluster)] == []
    views = {name for name, text in tables_of(line) if text.startswith("CREATE VIEW")}
    own = f"ON {line.clickhouse_database}."
    assert {one.split(own)[1].split()[0] for one in wanted if own in one} == {*views, "*"}


def test_no_role_may_reach_beyond_the_lines_database(line):
    grants = [one for one in migrate.roles(line) if one.startswith("GRANT")]
    assert {one.split(" ON ")[1].split(".")[0] for one in grants} == {line.clickhouse_database}
    assert not [one for one in grants if "ALL" in one.split() or "WITH GRANT OPTION" in one]


def test_the_embedded_warehouse_says_that_it_has_its_roles(line):
    with pytest.raises(SettingsError, match="the embedded warehouse has them by itself"):
        migrate.apply_roles(line)


def test_nobody_at_the_address_is_unavailable():
    with pytest.raises(WarehouseUnavailable):
        migrate.plan(Settings(clickhouse_url="http://127.0.0.1:9"))


def test_a_hole_in_the_numbers_is_refused(tmp_path):
    (tmp_path / "0001_a.sql").write_text("SELECT 1;\n")
    (tmp_path / "0003_b.sql").write_text("SELECT 1;\n")

    with pytest.raises(SettingsError, match="next migration must be 0002_"):
        migrate.statements(tmp_path)


def test_a_cluster_gets_replicated_engines():
    settings = Settings(clickhouse_cluster="main", clickhouse_database="books")
    texts = {one.name: migrate.render(one.text, settings) for one in migrate.statements()}

    assert (
        "ReplicatedReplacingMergeTree("
        "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}', version)"
        in texts["0004_windows"]
    )
    assert "'{replica}')" in texts["0009_seals"]
    assert "books.ledger ON CLUSTER 'main'" in texts["0002_ledger"]
