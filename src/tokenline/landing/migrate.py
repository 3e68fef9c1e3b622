"""Apply numbered SQL files, forward only, so that a run may die at any moment and be repeated.

DDL knows no transaction. So each statement stands alone, is harmless when repeated (IF NOT EXISTS),
and is recorded as started before and as done after. A statement found started is simply run again:
there is no dirty state to mend by hand.
"""

# ruff: noqa: S608  # the database's name is checked by Settings; values are bound

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenline.clock import Clock, SystemClock
from tokenline.errors import BrokenLog, SettingsError
from tokenline.landing.connect import connect, warehouse_errors
from tokenline.wire.registry import schemas_dir

if TYPE_CHECKING:
    from pathlib import Path

    from clickhouse_connect.driver.client import Client

    from tokenline.settings import Settings

Status = Literal["pending", "started", "done"]
# Called before each point at which a run may be killed; tests die there.
Step = Callable[[str], None]

# Beside the migrations: roles are of a server, not of a database, and running them again is right.
ROLES_FILE = "roles.sql"
_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_ENGINE = re.compile(r"\{engine (?P<kind>\w*MergeTree)\((?P<args>[^)]*)\)\}")
_VIEW = re.compile(
    r"CREATE (?:OR REPLACE )?VIEW (?:IF NOT EXISTS )?\{database\}\.\w+\{on_cluster\}"
)

# As `render` leaves it.
_DEFINED = re.compile(
    r"CREATE (?:OR REPLACE )?VIEW (?:IF NOT EXISTS )?\w+\.(?P<name>\w+)\b.*?\bAS\s+(?P<query>(?:SELECT|WITH)\b.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Hold one statement of one file.

    `checksum` is of the text before macros and without comments: neither settings nor a better
    word of explanation changes it.
    """

    file: int
    statement: int
    name: str
    text: str
    checksum: str
    status: Status = "pending"


def plan(settings: Settings) -> list[Statement]:
    """Return every statement with its status in the warehouse; changes nothing.

    Raises:
        BrokenLog: the warehouse holds a newer file, or a file changed after it was applied.
        WarehouseUnavailable: nobody answers.
    """
    return _planned(statements(), _recorded(settings))


def apply(
    settings: Settings, *, clock: Clock | None = None, step: Step = lambda _: None
) -> list[Statement]:
    """Run what is not done yet, in order, and return it.

    One runner at a time: the embedded warehouse sees to that; on a cluster it is the operator's
    duty.

    Raises:
        BrokenLog: as `plan`; nothing was run.
        BadData: ClickHouse refused a statement; those before it are done.
        WarehouseUnavailable: nobody answers; repeat the run.
    """
    clock = clock or SystemClock()
    every = statements()
    with warehouse_errors("migrating"):
        client = connect(settings)
        for bootstrap in (one for one in every if one.file == 1):
            step(f"bootstrap {bootstrap.statement}")
            client.command(render(bootstrap.text, settings))
        todo = [
            one for one in _planned(every, _read_records(client, settings)) if one.status != "done"
        ]
        for one in todo:
            _run(client, one, settings, clock, step)
        client.close()
    return todo


def verify(settings: Settings) -> list[str]:
    """Return what is wrong, a line each: statements not done, tables or views that are missing.

    Raises:
        BrokenLog: as `plan`.
    """
    planned = plan(settings)
    wrong = [
        f"{one.name}: statement {one.statement} is {one.status}"
        for one in planned
        if one.status != "done"
    ]
    with warehouse_errors("verifying"):
        client = connect(settings)
        rows = client.query(
            f"SELECT name FROM system.tables WHERE database = '{settings.clickhouse_database}'"
        ).result_rows
        client.close()
    present = {str(row[0]) for row in rows}
    wrong += [f"{table} is missing" for table in _created(planned) if table not in present]
    return wrong


def statements(folder: Path | None = None) -> list[Statement]:
    """Return the statements of all files in order; a semicolon at the end of a line ends one.

    Raises:
        SettingsError: numbers are not 1, 2, 3, …
    """
    folder = folder or schemas_dir() / "clickhouse"
    found: list[Statement] = []
    files = sorted(path for path in folder.glob("*.sql") if path.name != ROLES_FILE)
    for number, path in enumerate(files, start=1):
        match = _FILE_NAME.fullmatch(path.name)
        if not match or int(match[1]) != number:
            raise SettingsError(f"{path.name}: the next migration must be {number:04d}_<name>.sql")
        for position, text in enumerate(_split(path.read_text(encoding="utf-8")), start=1):
            checksum = hashlib.sha256(_bare(text).encode()).hexdigest()
            found.append(
                Statement(
                    file=number, statement=position, name=path.stem, text=text, checksum=checksum
                )
            )
    return found


def views(settings: Settings) -> dict[str, str]:
    """Return the query that each view of ours must have, by its name; the last definition counts."""
    found = {}
    for one in statements():
        text = render(_bare(one.text), settings)
        if match := _DEFINED.search(text):
            found[match["name"]] = match["query"]
    return found


def roles(settings: Settings) -> list[str]:
    """Return the statements that make the roles of a ClickHouse server and grant them their rights."""
    text = (schemas_dir() / "clickhouse" / ROLES_FILE).read_text(encoding="utf-8")
    views = sorted(name for name in _created(statements()) if name.startswith("v_"))
    found = []
    for one in _split(text):
        repeated = views if "{view}" in one else [""]
        found += [render(_bare(one).replace("{view}", view), settings) for view in repeated]
    return found


def apply_roles(settings: Settings) -> list[str]:
    """Make the roles and return the statements that were run; harmless when repeated.

    Raises:
        SettingsError: the user may not make roles, or this is the embedded warehouse.
        WarehouseUnavailable: nobody answers.
    """
    wanted = roles(settings)
    with warehouse_errors("making roles (the embedded warehouse has them by itself)"):
        client = connect(settings)
        for one in wanted:
            client.command(one)
        client.close()
    return wanted


def render(text: str, settings: Settings) -> str:
    """Return the statement with database, cluster and engine filled in.

    On a cluster `{engine ReplacingMergeTree(v)}` becomes the replicated engine, with a path of
    shard and table. A view reads its tables with the rights of who makes it, so that who may see
    views needs no right to a table.
    """
    cluster = settings.clickhouse_cluster

    def engine(match: re.Match[str]) -> str:
        kind, args = match["kind"], match["args"]
        if not cluster:
            return f"{kind}({args})"
        where = "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'"
        return f"Replicated{kind}({', '.join(part for part in (where, args) if part)})"

    text = _VIEW.sub(r"\g<0> SQL SECURITY DEFINER", text)
    named = text.replace("{database}", settings.clickhouse_database)
    named = named.replace("{on_cluster}", f" ON CLUSTER '{cluster}'" if cluster else "")
    return _ENGINE.sub(engine, named)


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r";[ \t]*(?:\n|$)", text) if _has_sql(part)]


def _has_sql(part: str) -> bool:
    return bool(_bare(part))


def _bare(text: str) -> str:
    """Return the text without comment lines and blank ones."""
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("--"))


def _created(planned: list[Statement]) -> list[str]:
    pattern = re.compile(
        r"CREATE (?:OR REPLACE )?(?:TABLE|VIEW) (?:IF NOT EXISTS )?\{database\}\.(\w+)"
    )
    found = [match[1] for one in planned if (match := pattern.search(one.text))]
    return list(dict.fromkeys(found))


def _run(client: Client, one: Statement, settings: Settings, clock: Clock, step: Step) -> None:
    step(f"{one.name} {one.statement} before")
    _record(client, one, "started", settings, clock)
    step(f"{one.name} {one.statement} started")
    client.command(render(one.text, settings))
    step(f"{one.name} {one.statement} run")
    _record(client, one, "done", settings, clock)


def _record(
    client: Client, one: Statement, status: Status, settings: Settings, clock: Clock
) -> None:
    # Done wins over started whatever the clock does in between.
    version = 2 if status == "done" else 1
    client.command(
        f"INSERT INTO {settings.clickhouse_database}.schema_migrations "
        "(file, statement, name, checksum, status, version, at) "
        f"VALUES ({one.file}, {one.statement}, '{one.name}', '{one.checksum}', '{status}', "
        f"{version}, "
        f"fromUnixTimestamp64Milli({clock.wall_ms()}, 'UTC'))",
        settings={"async_insert": 0},
    )


def _recorded(settings: Settings) -> dict[tuple[int, int], tuple[str, str]]:
    with warehouse_errors("reading the applied migrations"):
        client = connect(settings)
        known = client.query(
            "SELECT count() FROM system.tables "
            f"WHERE database = '{settings.clickhouse_database}' AND name = 'schema_migrations'"
        ).result_rows
        records = _read_records(client, settings) if known[0][0] else {}
        client.close()
    return records


def _read_records(client: Client, settings: Settings) -> dict[tuple[int, int], tuple[str, str]]:
    rows = client.query(
        "SELECT file, statement, toString(checksum), status "
        f"FROM {settings.clickhouse_database}.schema_migrations FINAL"
    ).result_rows
    return {
        (int(file), int(number)): (str(checksum), str(status))
        for file, number, checksum, status in rows
    }


def _planned(
    every: list[Statement], records: dict[tuple[int, int], tuple[str, str]]
) -> list[Statement]:
    known = {(one.file, one.statement) for one in every}
    newer = sorted(key for key in records if key not in known)
    if newer:
        raise BrokenLog(
            f"the warehouse has migration {newer[0][0]:04d} statement {newer[0][1]}, "
            "which this version does not know"
        )
    return [_with_status(one, records.get((one.file, one.statement))) for one in every]


def _with_status(one: Statement, record: tuple[str, str] | None) -> Statement:
    if record is None:
        return one
    checksum, status = record
    if checksum != one.checksum:
        raise BrokenLog(
            f"{one.name}: statement {one.statement} was changed after it was applied; "
            "put changes into a new file"
        )
    return Statement(
        file=one.file,
        statement=one.statement,
        name=one.name,
        text=one.text,
        checksum=one.checksum,
        status="done" if status == "done" else "started",
    )
