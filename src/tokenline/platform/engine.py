"""Own the one chDB engine of this process and run statements on it.

chDB admits one process a path. Within it, connections are cheap (0.3 ms) and each keeps its
own settings and database, so a connection is kept for every set of settings clients send.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenline.errors import PlatformError
from tokenline.platform import processes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenline.platform.dialect import Statement

IDLE_MAX = 64
_CODE = re.compile(r"Code: (\d+)\.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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


@dataclass(frozen=True, slots=True)
class Job:
    """One statement and all that a request says about how to run it."""

    statement: Statement
    database: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_format: str = "TabSeparated"

    @property
    def connection(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What a connection must be set to for this job; `readonly` comes last, as it locks."""
        return self.database, tuple(sorted(self.settings, key=lambda pair: pair[0] == "readonly"))


class Engine:
    """Run jobs on the engine at one path; safe to call from several threads.

    Arguments:
        path: the data directory; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._guard = processes.hold(path, "warehouse")
        import chdb  # noqa: PLC0415  500 MB, and only the process that holds the path needs it

        self._path = str(path.resolve())
        self._connect = chdb.connect
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        try:
            self._anchor = self._connect(self._path)
        except RuntimeError as error:
            raise PlatformError(f"cannot open the warehouse at {path}: {error}") from error

    def run(self, job: Job) -> Result:
        """Run one statement to its end; an INSERT is in the table when this returns.

        Raises:
            EngineError: the engine refused it; an INSERT that fails may have written whole
                blocks of about a million rows, never part of one.
        """
        connection = self._take(job)
        try:
            result = (
                _insert(connection, job)
                if job.statement.data is not None
                else _query(connection, job)
            )
        except BaseException:
            connection.close()
            raise
        if job.statement.changes_connection:
            connection.close()
        else:
            self._give_back(job, connection)
        return result

    def close(self) -> None:
        """Close every connection; the last one lets go of the path."""
        with self._lock:
            for _, connection in self._idle.values():
                connection.close()
            self._idle.clear()
            self._anchor.close()
        self._guard.close()

    def _take(self, job: Job) -> Any:  # noqa: ANN401  chDB has no types
        wanted = job.connection
        with self._lock:
            for key, (settings, connection) in reversed(self._idle.items()):
                if settings == wanted:
                    del self._idle[key]
                    return connection
        connection = self._connect(self._path)
        try:
            _prepare(connection, job)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, job: Job, connection: Any) -> None:  # noqa: ANN401  chDB has no types
        with self._lock:
            self._idle[id(connection)] = (job.connection, connection)
            oldest = self._idle.popitem(last=False)[1][1] if len(self._idle) > IDLE_MAX else None
        if oldest is not None:
            oldest.close()


def _prepare(connection: Any, job: Job) -> None:  # noqa: ANN401  chDB has no types
    database, settings = job.connection
    if database:
        _ask(connection, f"USE `{_escape(database, '`')}`")
    for name, value in settings:
        if not _NAME.fullmatch(name):
            raise EngineError(
                f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)"
            )
        _ask(connection, f"SET {name} = '{_escape(value, chr(39))}'")


def _query(connection: Any, job: Job) -> Result:  # noqa: ANN401  chDB has no types
    answer = _ask(connection, job.statement.sql, job.default_format, job.parameters)
    return Result(
        body=answer.bytes() or b"",
        read_rows=answer.storage_rows_read(),
        read_bytes=answer.storage_bytes_read(),
        written_rows=answer.rows_written(),
        written_bytes=answer.bytes_written(),
    )


def _insert(connection: Any, job: Job) -> Result:  # noqa: ANN401  chDB has no types
    """Hand the engine the raw data; nothing is in the table before `finish` returns."""
    statement = job.statement
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


def _escape(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote)
