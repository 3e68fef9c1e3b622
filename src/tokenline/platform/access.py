"""Say who may do what in the embedded warehouse, in the engine's own words: roles and grants.

chDB knows one user and can add none, but takes roles from a file and lets a connection keep to
one of them (SET ROLE). So each connection of ours has exactly the rights of who asked. No role has a
source outside the warehouse (file, URL, another server), none may make users or roles.
Views run with the rights of who made them: that is how a reader sees views and no tables.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tokenline.platform.dialect import RefusedStatementError
from tokenline.platform.secrets import write_private

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_FILE = "tokenline-config.xml"
USERS_FILE = "tokenline-users.xml"


class Role(StrEnum):
    """Name who may log in; the value is the user's name."""

    WRITER = "writer"
    """Landing and migrations."""
    AUDITOR = "auditor"
    """Our own commands that read the tables themselves: reconcile."""
    READER = "reader"
    """People and programs that ask: the line's views."""


# Rights within the process: to end statements and to write queries down.
WARDEN = "warden"
GRANTS = {
    Role.WRITER: "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP DATABASE, "
    "DROP TABLE, DROP VIEW, UNDROP TABLE, TRUNCATE, OPTIMIZE, CHECK, SYSTEM MERGES ON *.*",
    Role.AUDITOR: "SELECT ON *.*",
    Role.READER: "SELECT ON {database}.v_*",
    WARDEN: "KILL QUERY ON *.*",
}
MIB = 1 << 20
# What one statement may take; a client may ask for less. A result is held in memory before it is sent.
LIMITS: dict[str, dict[str, int]] = {
    Role.WRITER: {},
    Role.AUDITOR: {
        "max_execution_time": 600,
        "max_memory_usage": 4096 * MIB,
        "max_query_size": 16 * MIB,
        "max_result_bytes": 512 * MIB,
    },
    Role.READER: {
        "max_execution_time": 30,
        "max_memory_usage": 1024 * MIB,
        "max_result_bytes": 256 * MIB,
        "max_result_rows": 1_000_000,
        "max_temporary_data_on_disk_size_for_query": 2048 * MIB,
        "max_threads": 2,
    },
    # It gets a query as a text, in which each character may be two.
    WARDEN: {"max_execution_time": 10, "max_query_size": 40 * MIB},
}
# `readonly` of a connection: 1 locks the settings too; 2 leaves them to `settings_of`, as clients of
# the commands send some. What is written is refused by the role in any case.
READONLY = {Role.WRITER: 0, Role.AUDITOR: 2, Role.READER: 1, WARDEN: 1}
# Settings that clients send with a query that only reads, beside lower limits. They change how an answer
# looks and nothing else.
READER_SETTINGS = frozenset(
    (
        "cast_string_to_dynamic_use_inference", "date_time_input_format", "date_time_output_format",
        "output_format_arrow_compression_method", "output_format_arrow_string_as_string",
        "output_format_json_quote_64bit_integers", "output_format_json_quote_denormals",
        "select_sequential_consistency",
    )
)  # fmt: skip


def write_config(folder: Path, database: str) -> Path:
    """Write the engine's configuration into its data directory and return the file to start it with."""
    users = folder / USERS_FILE
    write_private(users, _users(database))
    write_private(
        folder / CONFIG_FILE,
        f"<clickhouse><users_config>{escape(str(users))}</users_config></clickhouse>\n",
    )
    return folder / CONFIG_FILE


def settings_of(role: Role, asked: dict[str, str]) -> dict[str, str]:
    """Return the settings of a statement: those asked for, within the limits of the role.

    Raises:
        RefusedStatementError: who only reads may not ask for one of them.
    """
    for name in asked:
        if role is not Role.WRITER and name not in READER_SETTINGS | LIMITS[role].keys():
            raise RefusedStatementError(
                164, "READONLY", f"a query may not change the setting {name}"
            )
    return asked | {name: _bounded(asked.get(name), most) for name, most in LIMITS[role].items()}


def _bounded(asked: str | None, most: int) -> str:
    """Return the lower one; 0 and what is no number ask for no limit."""
    wanted = int(asked) if asked is not None and asked.isdecimal() else 0
    return str(min(wanted or most, most))


def _users(database: str) -> str:
    roles = "".join(
        f"<{role}><grants><query>GRANT {grants.format(database=database)}</query></grants></{role}>"
        for role, grants in GRANTS.items()
    )
    return (
        "<clickhouse><profiles><default/></profiles><quotas><default/></quotas>"
        f"<roles>{roles}</roles>"
        "<users><default><password/><profile>default</profile><quota>default</quota>"
        f"<networks><ip>::/0</ip></networks><grants><query>GRANT {', '.join(GRANTS)}</query></grants>"
        "</default></users></clickhouse>\n"
    )
