"""Keep on disk what each account used of its emergency slice: one SQLite file, written by one thread."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from tokenline.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Account = tuple[str, str]

_TABLE = """
CREATE TABLE IF NOT EXISTS slices (
    tenant_id TEXT NOT NULL, account_id TEXT NOT NULL, used_utok INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, account_id)
)
"""
_NO_ROOM = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, errno.ENOSPC, errno.EDQUOT))
_DAMAGED = frozenset((sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT))

_log = structlog.get_logger(__name__)


class SliceFile:
    """Read and write the rows; not opened before it is needed.

    `in_doubt` says that the file was damaged: nobody knows what was used. It is set aside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self.in_doubt = False

    def read(self) -> dict[Account, int]:
        """Return what each account used; nothing where the file is damaged, or no room to make one.

        Raises:
            SettingsError: no file can be kept there; the text names it.
        """
        try:
            rows = self._open().execute("SELECT * FROM slices").fetchall()
        except (OSError, sqlite3.Error) as error:
            self._judge(error)
            return {}
        return {(tenant, account): int(used) for tenant, account, used in rows}

    def write(self, rows: Mapping[Account, int], *, cleared: bool) -> None:
        """Put rows in the place of what was kept of them, and with `cleared` of all others, at once.

        Raises:
            OSError, sqlite3.Error: the disk does not take it; nothing has changed.
        """
        db = self._open()
        with db:
            db.execute("BEGIN IMMEDIATE")
            if cleared:
                db.execute("DELETE FROM slices")
            values = [(*account, used) for account, used in rows.items()]
            db.executemany("INSERT OR REPLACE INTO slices VALUES (?, ?, ?)", values)

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Read at the start by one thread, and then written by another.
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                db.execute(_TABLE)
            except sqlite3.Error:
                db.close()
                raise
            self._db = db
        return self._db

    def _judge(self, error: OSError | sqlite3.Error) -> None:
        code = error.errno if isinstance(error, OSError) else _primary(error)
        if code in _DAMAGED:
            self.close()
            aside = self._path.with_suffix(".damaged")
            with suppress(OSError):
                self._path.replace(aside)
            self.in_doubt = True
            _log.error("emergency_slices_damaged", file=str(aside), error=repr(error))
        elif code in _NO_ROOM:
            _log.warning("emergency_slices_unreadable", file=str(self._path), error=repr(error))
        else:
            text = f"{self._path}: cannot keep emergency slices there: {error}"
            raise SettingsError(text) from error


def _primary(error: sqlite3.Error) -> int:
    """Return SQLite's primary code; -1 where it said none."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else code
