"""Let a process live on when nobody takes what it says: a full disk or a closed pipe under its log.

What is said then is lost. Else the log line that tells of the full disk would end the work it tells of.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


class _Forgiving(io.FileIO):
    """Take everything; what the system refuses is lost."""

    def write(self, data: Buffer) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def never_fail() -> None:
    """Let `print` and logs to stdout and stderr fail no more."""
    sys.stdout, sys.stderr = _open(1), _open(2)


def unfailing(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what says the same and never fails."""

    def saying(line: str) -> None:
        with suppress(OSError):
            say(line)

    return saying


def _open(descriptor: int) -> io.TextIOWrapper:
    raw = _Forgiving(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )
