"""Hold what the flows of one landing worker share, and wait for servers that are away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import structlog

from tokenline.errors import MissingTables, Unavailable
from tokenline.landing.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenline.clock import Clock
    from tokenline.landing.lander import Step
    from tokenline.landing.progress import LandingProgress
    from tokenline.landing.store import Store
    from tokenline.settings import Settings
    from tokenline.wire.columns import ColumnCodec

RETRY_FIRST_S = 0.2
RETRY_LAST_S = 5.0
# Usage batches of a worker on their way at once: one is decoded, one inserted, one ready for either.
# More would only hold more decoded rows in memory; one that waits holds the raw records.
LANDS_AT_ONCE = 3

_log = structlog.get_logger("tokenline.landing")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Hold what every flow of a worker shares."""

    settings: Settings
    store: Store
    codec: ColumnCodec
    clock: Clock
    progress: LandingProgress
    fatal: Callable[[BaseException], None]
    step: Step
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LANDS_AT_ONCE))

    @property
    def quarantine(self) -> Quarantine:
        """Return where records go that are not believed."""
        return Quarantine(self.store, self.progress)


async def until_answered(
    tools: Tools, work: Callable[[], ResultT], *, first: Callable[[], object] | None = None
) -> ResultT:
    """Run blocking `work` in a thread until a server answers; `first` before every repetition."""
    delay_s = RETRY_FIRST_S
    repeated = False

    def attempt() -> ResultT:
        if repeated and first is not None:
            first()
        return work()

    while True:
        try:
            result = await asyncio.to_thread(attempt)
        except (Unavailable, MissingTables) as error:
            note_away(tools, error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
            repeated = True
        else:
            note_back(tools)
            return result


def note_away(tools: Tools, error: Exception) -> None:
    """Remember an unanswered call; only the first of a row is logged."""
    progress = tools.progress
    progress.retries += 1
    progress.last_error = str(error)
    if progress.away_since_s is None:
        progress.away_since_s = tools.clock.monotonic_s()
        _log.warning("a server is away; landing waits and keeps trying", error=str(error)[:300])


def note_back(tools: Tools) -> None:
    """Remember an answered call."""
    progress = tools.progress
    if progress.away_since_s is not None:
        away_s = tools.clock.monotonic_s() - progress.away_since_s
        progress.away_since_s = None
        _log.info("the server is back; landing goes on", away_s=round(away_s, 1))
