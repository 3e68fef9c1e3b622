"""Order the calls before one lease: whose turn it is, and for whom what comes back is saved.

The line goes in its order, calls that run before those that have not begun. A call for which there is
too little lets smaller ones pass for the first half of the time it waits. In the second half none begins
that stands behind it, so what comes back adds up for it; only calls that run still go before it, and
they end. If it leaves in vain, others may pass for as long as was saved up for it, so a row of calls
that are too large does not shut out the small ones either. That is among the calls of one gateway: the
line knows no order among gateways, and gives to who asks when there is something.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tokenline.gateway.lease import Lease, Need, Reserved


@dataclass(slots=True, eq=False)
class Waiter:
    """Stand in line: what a call needs, how long it waits, and of which lease if it runs.

    It is `told` once a question that counts it was answered: before that nobody knows how much it can have.
    """

    need: Need
    done: asyncio.Future[Reserved]
    within_s: float
    lease: Lease | None = None
    passed_until_s: float = 0.0
    told: bool = False


class Waiters:
    """Hold the calls in line; moments are monotonic seconds of the caller's."""

    def __init__(self) -> None:
        self._line: deque[Waiter] = deque()
        self._pass_until_s = 0.0

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._line)

    def __iter__(self) -> Iterator[Waiter]:
        """Yield all in their order; some may leave meanwhile."""
        return iter(tuple(self._line))

    def enter(self, waiter: Waiter, now_s: float) -> None:
        """Stand in line; a call that runs goes before those that have not begun."""
        waiter.passed_until_s = now_s + waiter.within_s / 2
        if waiter.lease is None:
            self._line.append(waiter)
        else:
            self._line.appendleft(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Leave the line, served or refused."""
        if waiter in self._line:
            self._line.remove(waiter)

    def leave(self, waiter: Waiter, now_s: float) -> bool:
        """Leave the line in vain; say whether something was saved for it, which others may have now."""
        saved = any(one is waiter and self.saves_for(one, now_s) for one in self.in_turn(now_s))
        self.remove(waiter)
        if saved:
            saved_s = now_s - max(waiter.passed_until_s, self._pass_until_s)
            self._pass_until_s = now_s + saved_s
        return saved

    def in_turn(self, now_s: float) -> Iterator[Waiter]:
        """Yield those in line who may be served, as far as there is room."""
        for waiter in self:
            yield waiter
            if self.saves_for(waiter, now_s):
                return

    def saves_for(self, waiter: Waiter, now_s: float) -> bool:
        """Say whether nobody behind this one may pass it any more."""
        return now_s >= max(waiter.passed_until_s, self._pass_until_s)
