"""Decide when something that died is started again: always, with pauses that grow while it keeps dying."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_FIRST_S = 0.5
WAIT_MAX_S = 30.0
# Who was ready for so long has recovered: its next death is a first one.
STEADY_S = 20.0


class Restarts:
    """Remember the deaths of one component.

    Waits 0.5, 1, 2, 4, ... up to 30 s. A life that was ready for 20 s makes the next pause short again.

    Arguments:
        now_s: a clock that never goes back, in seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._in_a_row = 0
        self._ready_since_s: float | None = None
        self._due_s: float | None = None
        self.deaths = 0

    @property
    def noted(self) -> bool:
        """Whether the present death is known."""
        return self._due_s is not None

    @property
    def due(self) -> bool:
        """Whether it should be started now."""
        return self._due_s is not None and self._now_s() >= self._due_s

    @property
    def ready(self) -> bool:
        """Whether it was ready since it was started last."""
        return self._ready_since_s is not None

    def died(self) -> float:
        """Note a death; return how many seconds to wait before the next start."""
        now_s = self._now_s()
        if self._ready_since_s is not None and now_s - self._ready_since_s >= STEADY_S:
            self._in_a_row = 0
        # More would be no longer a pause, and in time no longer a float.
        wait_s = min(WAIT_FIRST_S * float(1 << min(self._in_a_row, 16)), WAIT_MAX_S)
        self._in_a_row += 1
        self.deaths += 1
        self._ready_since_s, self._due_s = None, now_s + wait_s
        return wait_s

    def started(self) -> None:
        """Note that it was started again."""
        self._due_s = None

    def became_ready(self) -> None:
        """Note that it is ready; saying so again changes nothing."""
        if self._ready_since_s is None:
            self._ready_since_s = self._now_s()
