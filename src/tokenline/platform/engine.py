"""Own the one chDB engine of this process and run statements on it.

chDB admits one process a path. Within it, connections are cheap (0.3 ms) and each keeps its own role,
settings and database, so a connection is kept for every set of them that clients send.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenline.errors import PlatformError
from tokenline.platform import access, processes
from tokenline.platform.access import Role
from tokenline.platform.dialect import require_no_insert
from tokenline.platform.reading import Gate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenline.platform.dialect import Statement

IDLE_MAX = 64
_CODE = re.compile(r"Code: (\d+)\.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of a syntax error, what is about our own question and what would have been right: hundreds of words.
_TAIL = re.compile(
    r"(?:\. Expected one of: |\.? *: *In scope SELECT formatQuery).*(?= \(\w+\)$)", re.DOTALL
)


class EngineError(Exception):
    """Carry an error of the engine as ClickHouse words it; `code` is ClickHouse's number."""

    def __init__(self, text: str) -> None:
        at = text.rfind("Code: ") if text.count("Code: ") > 1 else text.find("Code: ")
        super().__init__(text[max(at, 0) :].strip())
        match = _CODE.search(str(self))
        self.code = int(match[1]) if match else 1002  # UNKNOWN_EXCEPTION


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave back."""

    body: bytes
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    format: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One statement and all that a request says about how to run it."""

    statement: Statement
    role: Role
    database: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_format: str = "TabSeparated"

    @property
    def only_reads(self) -> bool:
        """Whether its role may only read, so that the gate looks at it."""
        return self.role is not Role.WRITER


@dataclass(slots=True)
class _Held:
    """A connection set to a role, a database and settings; `mark` finds its statements."""

    wanted: tuple[str, str, tuple[tuple[str, str], ...]]
    connection: Any
    mark: str


class Engine:
    """Run jobs on the engine at one path; safe to call from several threads.

    Arguments:
        path: the data directory; made if missing.
        database: the one whose views a reader may see.
    """

    def __init__(self, path: Path, database: str = "tokenline") -> None:
        self._guard = processes.hold(path, "warehouse")
        import chdb  # noqa: PLC0415  500 MB, and only the process that holds the path needs it

        config = access.write_config(path.resolve(), database)
        self.database = database
        self._path = f"{path.resolve()}?config-file={config}"
        self._connect = chdb.connect
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, _Held] = OrderedDict()
        self._running: dict[Job, _Held] = {}
        try:
            self._anchor = self._connect(self._path)
        except RuntimeError as error:
            raise PlatformError(f"cannot open the warehouse at {path}: {error}") from error
        names = _ask(self._anchor, "SELECT name FROM system.functions").bytes() or b""
        self._gate = Gate(names.decode().split())

    def run(self, job: Job) -> Result:
        """Run one statement to its end; an INSERT is in the table when this returns.

        Raises:
            RefusedStatementError: its role may only read, and this does more.
            EngineError: the engine refused it or it was ended; an INSERT that fails may have
                written whole blocks of about a million rows, never part of one.
        """
        sql, out = job.statement.sql, job.default_format
        if job.only_reads:
            require_no_insert(job.statement)
            reading = self._gate.check(self._canonical(job.statement.sql))
            sql, out = reading.sql, reading.format or out
        held = self._take((job.role, job.database, job.settings))
        with self._lock:
            self._running[job] = held
        try:
            if job.statement.data is None:
                result = _query(held.connection, sql, out, job.parameters)
            else:
                result = _insert(held.connection, job.statement)
        except BaseException:
            self._forget(job)
            held.connection.close()
            raise
        self._forget(job)
        if job.statement.changes_connection:
            held.connection.close()
        else:
            self._give_back(held)
        return result

    def end(self, job: Job) -> None:
        """Ask a job that runs to end; does nothing if it does not run (yet)."""
        with self._lock:
            held = self._running.get(job)
            if held is not None:
                _ask(
                    self._anchor,
                    f"KILL QUERY WHERE Settings['log_comment'] = '{held.mark}' ASYNC",
                )

    def close(self) -> None:
        """Close every connection; the last one lets go of the path."""
        with self._lock:
            for held in self._idle.values():
                held.connection.close()
            self._idle.clear()
            self._anchor.close()
        self._guard.close()

    def _canonical(self, sql: bytes) -> bytes:
        """Return the statement as the engine writes it down; one statement, or an error."""
        limits = tuple((name, str(most)) for name, most in access.LIMITS[access.WARDEN].items())
        held = self._take((access.WARDEN, "", limits))
        text = sql.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
        try:
            answer = _ask(
                held.connection, b"SELECT formatQuerySingleLine('" + text + b"')", "TSVRaw"
            )
        except EngineError as error:
            held.connection.close()
            raise EngineError(_plain(str(error))) from None
        self._give_back(held)
        return (answer.bytes() or b"").removesuffix(b"\n")

    def _forget(self, job: Job) -> None:
        with self._lock:
            del self._running[job]

    def _take(self, wanted: tuple[str, str, tuple[tuple[str, str], ...]]) -> _Held:
        with self._lock:
            for key, held in reversed(self._idle.items()):
                if held.wanted == wanted:
                    return self._idle.pop(key)
        held = _Held(wanted, self._connect(self._path), secrets.token_hex(8))
        try:
            _prepare(held)
        except BaseException:
            held.connection.close()
            raise
        return held

    def _give_back(self, held: _Held) -> None:
        with self._lock:
            self._idle[id(held)] = held
            oldest = self._idle.popitem(last=False)[1] if len(self._idle) > IDLE_MAX else None
        if oldest is not None:
            oldest.connection.close()


def _prepare(held: _Held) -> None:
    """Set a connection up; the role keeps it from everything else; `readonly` comes last, as it locks."""
    role, database, settings = held.wanted
    _ask(held.connection, f"SET ROLE {role}")
    if database:
        _ask(held.connection, f"USE `{_escape(database, '`')}`")
    locked = ("readonly", str(access.READONLY[role]))
    for name, value in (*settings, ("log_comment", held.mark), locked):
        if not _NAME.fullmatch(name):
            raise EngineError(
                f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)"
            )
        _ask(held.connection, f"SET {name} = '{_escape(value, chr(39))}'")


def _query(connection: Any, sql: bytes, out: str, parameters: Mapping[str, str]) -> Result:  # noqa: ANN401  chDB has no types
    answer = _ask(connection, sql, out, parameters)
    return Result(
        body=answer.bytes() or b"",
        read_rows=answer.storage_rows_read(),
        read_bytes=answer.storage_bytes_read(),
        written_rows=answer.rows_written(),
        written_bytes=answer.bytes_written(),
        format=out,
    )


def _insert(connection: Any, statement: Statement) -> Result:  # noqa: ANN401  chDB has no types
    """Hand the engine the raw data; nothing is in the table before `finish` returns."""
    try:
        inserter = connection.send_insert(statement.sql.decode(), statement.format)
        if statement.data:
            inserter.append(statement.data)
        written = inserter.finish()
    except (RuntimeError, UnicodeError) as error:
        raise EngineError(_text(error)) from error
    return Result(b"", written_rows=written.rows_written, written_bytes=written.bytes_written)


def _ask(
    connection: Any,  # noqa: ANN401  chDB has no types
    sql: str | bytes,
    out: str = "TabSeparated",
    parameters: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401  chDB has no types
    try:
        return connection.query(sql, out, params=dict(parameters or {}))
    except Exception as error:  # chDB raises its own kind, RuntimeError and UnicodeError
        raise EngineError(_text(error)) from error


def _text(error: BaseException) -> str:
    """Return the engine's words; bytes of bad data in them break chDB's own decoding."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnicodeDecodeError):
            return cause.object.decode(errors="backslashreplace")
        cause = cause.__cause__
    return str(error)


def _plain(text: str) -> str:
    """Return a syntax error in one line."""
    return " ".join(_TAIL.sub(".", text).split())


def _escape(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote)
