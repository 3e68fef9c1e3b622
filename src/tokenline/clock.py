"""Be the only place that reads a clock; everything else is handed its time.

Wall time is read at the edges only (emitter, guard, commands). Workers take "now" from
the broker's append time of the record in hand, so a replay decides as the first run did.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Give the two times an edge may need."""

    def wall_ms(self) -> int:
        """Return milliseconds since the epoch, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back; only differences mean something."""
        ...


class SystemClock:
    """Read the machine's clocks."""

    def wall_ms(self) -> int:
        """Return milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()


class FrozenClock:
    """Stand still until told to move; for tests."""

    def __init__(self, wall_ms: int = 1_790_000_000_000) -> None:
        self._wall_ms = wall_ms

    def wall_ms(self) -> int:
        """Return the frozen moment."""
        return self._wall_ms

    def monotonic_s(self) -> float:
        """Return the frozen moment in seconds."""
        return self._wall_ms / 1000

    def advance_ms(self, step_ms: int) -> None:
        """Move time on by `step_ms`."""
        self._wall_ms += step_ms
