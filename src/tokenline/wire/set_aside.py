"""Keep events that the broker will never take as files beside the outbox, for a person to look at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenline.wire.delivery import Parcel

_NAME = re.compile(r"refused-(\d+)\.avro")

_log = structlog.get_logger(__name__)


class SetAside:
    """Write each refused event to a file of its own; `on_kept` then takes its position.

    Until there is room for the file the event stays where it is, in the outbox, and is refused again
    after a crash.
    """

    def __init__(self, directory: Path, on_kept: Callable[[int], None]) -> None:
        self._directory = directory
        self._on_kept = on_kept
        self._waiting: dict[int, bytes] = {}

    def path(self, position: int) -> Path:
        """Return where an event is kept."""
        return self._directory / f"refused-{position}.avro"

    def count_since(self, base: int) -> int:
        """Return how many events after a position were set aside by earlier runs."""
        names = [_NAME.fullmatch(path.name) for path in self._directory.iterdir()]
        return sum(int(name[1]) > base for name in names if name is not None)

    def add(self, parcel: Parcel) -> None:
        """Set one event aside, now or as soon as there is room."""
        self._waiting[parcel.position] = parcel.value
        self.write()

    def write(self) -> None:
        """Write what waits, as far as there is room."""
        for position, value in list(self._waiting.items()):
            path = self.path(position)
            try:
                path.write_bytes(value)
            except OSError as error:
                _log.warning("refused_event_not_written", file=str(path), error=repr(error))
                return
            del self._waiting[position]
            self._on_kept(position)
