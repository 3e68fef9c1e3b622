"""Let micro-batches wait before a partition's line, orders before usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenline.wire.topics import COMMANDS, HOLDS

INBOX_CHUNKS = 4
INBOX_ORDERS = 64  # deliveries, often of one order each


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one micro-batch on its way to its partition; `stem` is the topic's (see `wire.topics`)."""

    stem: str
    records: Sequence[Any]
    done: Callable[[], Any]


class Inbox:
    """Hold a few deliveries of each topic; who brings more waits.

    Somebody stands still until an order or a hold is answered, so they are folded before all usage that
    waits, the two by turns.
    """

    def __init__(self) -> None:
        self._usage: asyncio.Queue[Delivery] = asyncio.Queue(INBOX_CHUNKS)
        # The first is asked first: whose turn it is.
        self._orders: dict[str, asyncio.Queue[Delivery]] = {
            stem: asyncio.Queue(INBOX_ORDERS) for stem in (COMMANDS, HOLDS)
        }
        self._arrived = asyncio.Event()

    async def put(self, delivery: Delivery) -> None:
        """Take a delivery in; waits while there is no room."""
        await self._orders.get(delivery.stem, self._usage).put(delivery)
        self._arrived.set()

    async def get(self) -> Delivery:
        """Return the next one; waits for it."""
        while self.empty():
            self._arrived.clear()
            await self._arrived.wait()
        for stem, waiting in self._orders.items():
            if not waiting.empty():
                self._orders[stem] = self._orders.pop(stem)
                return waiting.get_nowait()
        return self._usage.get_nowait()

    def all_orders(self, first: Delivery) -> Delivery:
        """Return `first` and all that waits of its topic as one delivery."""
        queue = self._orders[first.stem]
        waiting = [first, *(queue.get_nowait() for _ in range(queue.qsize()))]
        records = [record for one in waiting for record in one.records]
        return Delivery(first.stem, records, waiting[-1].done)

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return all(waiting.empty() for waiting in self._all())

    def full(self) -> bool:
        """Say whether there is no room for usage."""
        return self._usage.full()

    def clear(self) -> None:
        """Drop what waits; who stands before the inbox goes on."""
        for waiting in self._all():
            while not waiting.empty():
                waiting.get_nowait()

    def _all(self) -> tuple[asyncio.Queue[Delivery], ...]:
        return (self._usage, *self._orders.values())
