"""Decide when something that died is started again, and when that is hopeless."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_S = 60.0
DEATHS_MAX = 5
WAIT_FIRST_S = 0.5
WAIT_MAX_S = 8.0


class Restarts:
    """Remember the deaths of one component.

    Waits 0.5, 1, 2, 4, ... up to 8 s; deaths older than a minute are forgotten.

    Arguments:
        now_s: a clock that never goes back, in seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        self._due_s: float | None = None

    @property
    def count(self) -> int:
        """Deaths in the last minute."""
        return sum(at > self._now_s() - WINDOW_S for at in self._deaths)

    @property
    def hopeless(self) -> bool:
        """Whether it died too often to go on."""
        return self.count >= DEATHS_MAX

    @property
    def noted(self) -> bool:
        """Whether the present death is known."""
        return self._due_s is not None

    @property
    def due(self) -> bool:
        """Whether it should be started now."""
        return self._due_s is not None and self._now_s() >= self._due_s

    def died(self) -> float:
        """Note a death; return how many seconds to wait before the next start."""
        self._deaths.append(self._now_s())
        wait_s = min(WAIT_FIRST_S * float(1 << (self.count - 1)), WAIT_MAX_S)
        self._due_s = self._now_s() + wait_s
        return wait_s

    def started(self) -> None:
        """Note that it was started again."""
        self._due_s = None
