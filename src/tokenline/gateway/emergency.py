"""Let calls go on for a while when charging is out of reach: a capped slice an account, kept on disk.

A slice is counted before its call begins, with what the call may use at most, and corrected when it
ends; so a gateway that crashes and starts again does not begin a new one. What calls use goes
through the outbox like any usage and is charged when charging is back; only then the slice is whole
again. It exists because a grace without a cap is unlimited service (RFC 8506 5.7 leaves it open).
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from tokenline.errors import SettingsError

_TABLE = """
CREATE TABLE IF NOT EXISTS slices (
    tenant_id TEXT NOT NULL, account_id TEXT NOT NULL, used_utok INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, account_id)
)
"""
_ADD = """
INSERT INTO slices VALUES (?, ?, ?)
ON CONFLICT (tenant_id, account_id) DO UPDATE SET used_utok = used_utok + excluded.used_utok
"""


class Emergency:
    """Count what each account used of its emergency slice on this gateway.

    Raises:
        SettingsError: the file cannot be opened; the text names it.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"{path}: cannot keep emergency slices there: {error}") from error
        # Most gateways never need one: then nothing is looked up.
        self._any = bool(self._db.execute("SELECT 1 FROM slices LIMIT 1").fetchone())

    @property
    def in_use(self) -> bool:
        """Say whether any account has used anything of a slice."""
        return self._any

    def used_utok(self, tenant: str, account: str) -> int:
        """Return what the account used of its slice, calls that run included."""
        found = self._db.execute(
            "SELECT used_utok FROM slices WHERE tenant_id = ? AND account_id = ?", (tenant, account)
        ).fetchone()
        return int(found[0]) if found else 0

    def take(self, tenant: str, account: str, amount_utok: int, slice_utok: int) -> bool:
        """Count `amount_utok` if that leaves no more than `slice_utok` used; say whether it was.

        A disk that does not take it in is a slice that is used up: a crash would begin a new one.
        """
        try:
            if self.used_utok(tenant, account) + amount_utok > slice_utok:
                return False
            self._add(tenant, account, amount_utok)
        except sqlite3.Error:
            return False
        return True

    def correct(self, tenant: str, account: str, more_utok: int) -> None:
        """Add to what was counted, if the disk lets us; below zero takes back what a call did not use."""
        with contextlib.suppress(sqlite3.Error):
            self._add(tenant, account, more_utok)

    def restore(self) -> None:
        """Make every slice whole again, if the disk lets us: all that was used is with charging now."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("DELETE FROM slices")
            self._any = False

    def _add(self, tenant: str, account: str, more_utok: int) -> None:
        self._db.execute(_ADD, (tenant, account, more_utok))
        self._any = True

    def close(self) -> None:
        """Close the file."""
        self._db.close()
