"""Keep the embedded engine away from a full disk: chDB takes a refused write for a done one.

chDB 26.9 looks at no result of `write`. On a full disk an INSERT is answered "done" and its part is
empty, and a merge puts an empty part in the place of good ones. So below `ROOM_BYTES_MIN` nothing is
written and merges stand still. A statement during which room became short is answered "no space", and
the caller looks at the rows again. Was the disk full before all stood still, the engine is started anew:
at its start it looks at every part, puts broken ones aside and takes up those they were made of. That
must not wait: the engine removes those after eight minutes.
"""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

from tokenline.platform import dialect
from tokenline.platform.access import Role
from tokenline.platform.engine import Engine, EngineError, Job, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOM_BYTES_MIN = 256 << 20
# Below this the system may have refused a write between two looks.
FULL_BYTES = 48 << 20
# More than it takes to begin again, so that it does not stop and go in turns.
ROOM_BYTES_AGAIN = ROOM_BYTES_MIN + (64 << 20)
LOOK_S = 0.1


class RoomyEngine(Engine):
    """Be an engine that writes only while there is room.

    Arguments:
        path: the data directory; made if missing.
        restart: ends this process, in order; whoever started it starts it again.
        free: says how many bytes are free.
        database: the one whose views a reader may see.
    """

    def __init__(
        self,
        path: Path,
        restart: Callable[[], None],
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        *,
        database: str = "tokenline",
    ) -> None:
        super().__init__(path, database)
        self._folder = path
        self._restart = restart
        self._free = free
        self._looking = threading.RLock()
        self._closing = threading.Event()
        self._writing = 0
        self._shortages = 0
        self._was_full = False
        # Nothing was written by this process yet, so nothing was refused.
        self._still = True
        self._short = self._free(path) < ROOM_BYTES_MIN
        if self._short:
            self._ask("SYSTEM STOP MERGES")
        threading.Thread(target=self._watch, name="headroom", daemon=True).start()

    def run(self, job: Job) -> Result:
        """Run one statement to its end.

        Raises:
            EngineError: as the engine has it; NOT_ENOUGH_SPACE when there was too little room at any
                moment of a statement that writes: its rows may or may not be there.
        """
        if job.only_reads or job.statement.reads:
            return super().run(job)
        shortages = self._begin()
        try:
            result = super().run(job)
        finally:
            with self._looking:
                self._writing -= 1
        self.look()
        if self._shortages != shortages:
            raise self._no_space()
        return result

    def close(self) -> None:
        """Close every connection; the last one lets go of the path."""
        self._closing.set()
        super().close()

    def look(self) -> None:
        """Look how much room there is; stop and start writing when that changed."""
        with self._looking:
            free = self._free(self._folder)
            if not self._short and free < ROOM_BYTES_MIN:
                self._short, self._still = True, False
                self._shortages += 1
                self._ask("SYSTEM STOP MERGES")
            if self._short and not self._still:
                self._come_to_rest(free)
            if self._short and self._still and not self._was_full and free >= ROOM_BYTES_AGAIN:
                self._short = False
                self._ask("SYSTEM START MERGES")

    def _come_to_rest(self, free: int) -> None:
        """Wait for what still writes; was the disk full meanwhile, its parts are to be looked at."""
        self._was_full |= free < FULL_BYTES
        self._still = not self._writing and not self._merging()
        if self._still and self._was_full:
            self._restart()

    def _begin(self) -> int:
        """Note that a statement begins to write; return how often room was short before.

        Raises:
            EngineError: it is short now.
        """
        with self._looking:
            self.look()
            if self._short:
                raise self._no_space()
            self._writing += 1
            return self._shortages

    def _no_space(self) -> EngineError:
        free_mb = self._free(self._folder) >> 20
        return EngineError(
            f"Code: 243. DB::Exception: Only {free_mb} MiB are free at {self._folder}, the warehouse "
            f"writes with {ROOM_BYTES_MIN >> 20} MiB or more. (NOT_ENOUGH_SPACE)"
        )

    def _merging(self) -> bool:
        return self._ask("SELECT count() FROM system.merges").strip() != b"0"

    def _ask(self, sql: str) -> bytes:
        return super().run(Job(statement=dialect.split(sql.encode()), role=Role.WRITER)).body

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_S):
            self.look()
