"""Let calls go on for a while when charging is out of reach: a capped slice an account, kept on disk.

A slice is counted on disk before its call begins, with what the call may use at most, and corrected
when it ends; so a gateway that crashes and starts again does not begin a new one. What calls use goes
through the outbox like any usage and is charged when charging is back; only then the slice is whole
again. It exists because a grace without a cap is unlimited service (RFC 8506 5.7 leaves it open).

Memory decides, a thread writes: all that came while it wrote goes to the disk at once, so no disk
holds up the calls of the others, and a hundred calls wait as long as one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from tokenline.gateway.slice_file import Account, SliceFile

if TYPE_CHECKING:
    from pathlib import Path

_USED_UP = "its emergency slice is used up"
_IN_DOUBT = "what is used of its emergency slice nobody knows: its file was damaged"


class Emergency:
    """Count what each account used of its emergency slice on this gateway; one event loop.

    Raises:
        SettingsError: no file can be kept there; the text names it.
    """

    def __init__(self, path: Path) -> None:
        self._file = SliceFile(path)
        self._used = self._file.read()
        self._changed: set[Account] = set()
        self._cleared = False
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenline-emergency")

    @property
    def in_use(self) -> bool:
        """Say whether any account has used anything of a slice, as far as is known."""
        return bool(self._used) or self._file.in_doubt

    def used_utok(self, tenant: str, account: str) -> int:
        """Return what the account used of its slice, calls that run included."""
        return self._used.get((tenant, account), 0)

    async def take(self, tenant: str, account: str, amount_utok: int, slice_utok: int) -> str:
        """Count `amount_utok` if that leaves no more than `slice_utok` used; else return why not.

        A disk that does not take it in is a slice that is used up: a crash would begin a new one.
        """
        if self._file.in_doubt:
            return _IN_DOUBT
        if self.used_utok(tenant, account) + amount_utok > slice_utok:
            return _USED_UP
        self._count((tenant, account), amount_utok)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self.write()
        try:
            await written
        except (OSError, sqlite3.Error) as error:
            self._count((tenant, account), -amount_utok)
            return f"its emergency slice cannot be counted on this disk: {error}"
        except asyncio.CancelledError:
            self.correct(tenant, account, -amount_utok)
            raise
        return ""

    def correct(self, tenant: str, account: str, more_utok: int) -> None:
        """Add to what was counted; below zero takes back what a call did not use."""
        self._count((tenant, account), more_utok)
        self.write()

    def restore(self) -> None:
        """Make every slice whole again: all that was used is with charging now."""
        self._used.clear()
        self._changed.clear()
        self._cleared, self._file.in_doubt = True, False
        self.write()

    def write(self) -> None:
        """Write what has changed, in the background; what the disk refuses waits for the next time."""
        if self._writing is None or self._writing.done():
            # A call may end where the loop has ended: then what it left is written at the close.
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                self._writing = loop.create_task(self._write(), name="tokenline-emergency")

    def close(self) -> None:
        """Write what has changed, if the disk lets us, and close the file."""
        self._thread.shutdown(wait=True)
        if self._changed or self._cleared:
            with suppress(OSError, sqlite3.Error):
                self._file.write(self._rows(), cleared=self._cleared)
        self._file.close()

    def _count(self, account: Account, more_utok: int) -> None:
        self._used[account] = self._used.get(account, 0) + more_utok
        self._changed.add(account)

    def _rows(self) -> dict[Account, int]:
        return {account: self._used.get(account, 0) for account in self._changed}

    async def _write(self) -> None:
        """Write until nothing waits; all that has come meanwhile at once."""
        loop = asyncio.get_running_loop()
        while self._changed or self._cleared:
            rows, cleared, waiting = self._rows(), self._cleared, self._waiting
            self._changed, self._cleared, self._waiting = set(), False, []
            try:
                await loop.run_in_executor(self._thread, self._put, rows, cleared)
            except (OSError, sqlite3.Error, RuntimeError) as error:
                self._changed |= rows.keys()
                self._cleared |= cleared
                _tell(
                    waiting, error if not isinstance(error, RuntimeError) else OSError(str(error))
                )
                if not self._waiting:
                    return
            else:
                _tell(waiting, None)

    def _put(self, rows: dict[Account, int], cleared: bool) -> None:
        self._file.write(rows, cleared=cleared)


def _tell(waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
    for written in waiting:
        if written.done():
            continue
        if error is None:
            written.set_result(None)
        else:
            written.set_exception(error)
