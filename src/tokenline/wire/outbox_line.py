"""Hold an outbox to one line: the id of the line that its life is counted for stands beside its segments.

A life counts its events without gaps, and the line's own count is held against that. So a life that
served one line would look to another like one whose events were lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from tokenline.wire.outbox_life import sync

if TYPE_CHECKING:
    from pathlib import Path

    from tokenline.wire.line import Line
    from tokenline.wire.outbox import Outbox

FILE = "line_id"

_log = structlog.get_logger(__name__)


def join(outbox: Outbox, line: Line) -> bool:
    """Let an outbox serve a line; say whether a new life began for it.

    Events that wait for another line are sent to this one only if it goes on from that one.

    Raises:
        ForeignLine: events wait in it for another line.
        OSError: the disk does not take the note that it serves another line now.
    """
    known = _read(outbox.directory)
    if known == line.line_id:
        return False
    if outbox.unacked and known not in line.predecessors:
        line.require(
            known,
            f"outbox {outbox.directory} with {outbox.unacked} events that wait",
            "start this gateway for that line until they are sent (TOKENLINE_KAFKA_BOOTSTRAP, "
            "TOKENLINE_TOPIC_PREFIX), or move the directory away: then they are sent to nobody",
        )
    if known:
        # First the life: if its note is lost, the next start begins another one, which is harmless.
        outbox.begin_anew()
        _log.warning(
            "outbox_serves_another_line", directory=str(outbox.directory), before=known,
            now=line.line_id,
        )  # fmt: skip
    try:
        _write(outbox.directory, line.line_id)
    except OSError as error:
        if known:
            raise
        # What is kept is sent all the same, and that makes room: the next connection notes it.
        _log.warning("outbox_line_not_noted", directory=str(outbox.directory), error=repr(error))
    return bool(known)


def _read(directory: Path) -> str:
    try:
        return (directory / FILE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def _write(directory: Path, line_id: str) -> None:
    fresh = directory / f"{FILE}.new"
    fresh.write_text(f"{line_id}\n", encoding="ascii")
    sync(fresh)
    fresh.replace(directory / FILE)
    sync(directory)
