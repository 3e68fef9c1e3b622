"""Keep the leases of one gateway: one desk for each, where calls reserve and wait in line.

A lease belongs to what it may pay for: account, subscriber, provider and model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from tokenline.clock import Clock
from tokenline.gateway.desk import Ask, Desk
from tokenline.gateway.lease import Key, Need, Reserved
from tokenline.gateway.waiting import Waiter
from tokenline.wire.tasks import end_tasks


@dataclass(slots=True)
class KeeperStats:
    """Count what a keeper has done."""

    questions: int = 0
    refused: int = 0
    sessions: int = 0
    unanswered: int = 0
    grant_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))


class Keeper:
    """Hand out reservations; `ask` puts a question to the line and may raise Unavailable."""

    def __init__(self, ask: Ask, clock: Clock, *, idle_s: float = 5.0) -> None:
        self._ask = ask
        self._clock = clock
        self._idle_s = idle_s
        self._desks: dict[Key, Desk] = {}
        self.stats = KeeperStats()

    def __len__(self) -> int:
        """Return how many leases there are."""
        return len(self._desks)

    def try_reserve(self, key: Key, amount_utok: int) -> Reserved | None:
        """Reserve from what is in hand, at once; None where there is not enough or others wait."""
        desk = self._desks.get(key)
        if desk is None or desk.waiters:
            return None
        return desk.try_reserve(amount_utok)

    async def reserve(self, key: Key, need: Need, within_s: float) -> Reserved:
        """Reserve `full_utok`, or of a scarce balance what there is, but no less than `least_utok`.

        Raises:
            CallRefused: the line refuses it, or others hold what is left and kept it all the time.
            ChargingUnavailable: the line did not answer within the time.
        """
        return await self._wait(key, Waiter(need, _future(), within_s))

    async def extend(self, key: Key, held: Reserved, need: Need, within_s: float) -> bool:
        """Add `need` to what a call that runs has reserved; False when its lease or the call has ended.

        Raises as `reserve` does.
        """
        desk = self._desks.get(key)
        if desk is None or desk.lease is not held.lease or held.lease.over:
            return False
        more = desk.try_reserve(need.full_utok)
        if more is None:
            more = await self._wait(key, Waiter(need, _future(), within_s, held.lease))
        if more.lease is not held.lease or held.ended:
            self.finish(key, more, 0)
            return False
        held.amount_utok += more.amount_utok
        return True

    def finish(self, key: Key, held: Reserved, used_utok: int) -> None:
        """Turn a reservation into what was used; what is left of it is there for others at once."""
        held.lease.finish(held.amount_utok, used_utok)
        held.ended = True
        desk = self._desks.get(key)
        if desk is not None and desk.lease is held.lease:
            desk.returned()

    async def close(self, within_s: float) -> None:
        """Give back every lease on which no call runs; what is not answered in time expires."""
        desks = list(self._desks.values())
        settling = [desk.task for desk in desks if desk.close()]
        if settling:
            await asyncio.wait(settling, timeout=within_s)
        # Calls may have come meanwhile, and opened others.
        desks = list(self._desks.values())
        await end_tasks(desk.task for desk in desks)
        self._desks.clear()

    async def _wait(self, key: Key, waiter: Waiter) -> Reserved:
        desk = self._desks.get(key)
        if desk is None:
            desk = self._desks[key] = Desk(self, key)
        desk.enter(waiter)
        try:
            # Not `wait_for`: before Python 3.12 it may swallow a cancellation.
            async with asyncio.timeout(waiter.within_s):
                return await waiter.done
        except BaseException as error:
            if isinstance(error, TimeoutError) and (last := desk.last_of(waiter)) is not None:
                return last
            if (given := desk.leave(waiter)) is not None:
                # It was given in the very moment of giving up.
                self.finish(key, given, 0)
            if isinstance(error, TimeoutError):
                raise desk.too_late(waiter.need) from None
            raise

    def _forget(self, key: Key) -> None:
        self._desks.pop(key, None)


def _future() -> asyncio.Future[Reserved]:
    return asyncio.get_running_loop().create_future()
