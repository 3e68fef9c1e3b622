"""Let micro-batches wait before a partition's line, orders before usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenline.wire.topics import USAGE

INBOX_CHUNKS = 4
INBOX_ORDERS = 64  # deliveries, often of one order each


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one micro-batch on its way to its partition; `stem` is the topic's (see `wire.topics`).

    Without records it says that there are none up to `through`, and that those below `deleted_to` were
    deleted.
    """

    stem: str
    records: Sequence[Any]
    done: Callable[[], Any]
    through: int = -1
    deleted_to: int = 0


def nothing() -> None:
    """Be done: how far commands were read is in the journal and nowhere else."""


class Inbox:
    """Hold a few deliveries of each kind; who brings more waits.

    Somebody stands still until an order is answered, so it is folded before all usage that waits.
    """

    def __init__(self) -> None:
        self._usage: asyncio.Queue[Delivery] = asyncio.Queue(INBOX_CHUNKS)
        self._orders: asyncio.Queue[Delivery] = asyncio.Queue(INBOX_ORDERS)
        self._arrived = asyncio.Event()

    async def put(self, delivery: Delivery) -> None:
        """Take a delivery in; waits while there is no room."""
        await (self._usage if delivery.stem == USAGE else self._orders).put(delivery)
        self._arrived.set()

    async def get(self) -> Delivery:
        """Return the next one; waits for it."""
        while self.empty():
            self._arrived.clear()
            await self._arrived.wait()
        return (self._usage if self._orders.empty() else self._orders).get_nowait()

    def all_orders(self, first: Delivery) -> Delivery:
        """Return `first` and all orders that wait behind it as one delivery."""
        waiting = [first, *(self._orders.get_nowait() for _ in range(self._orders.qsize()))]
        records = [record for one in waiting for record in one.records]
        return Delivery(first.stem, records, waiting[-1].done)

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return self._usage.empty() and self._orders.empty()

    def full(self) -> bool:
        """Say whether there is no room for usage."""
        return self._usage.full()

    def clear(self) -> None:
        """Drop what waits; who stands before the inbox goes on."""
        for waiting in (self._usage, self._orders):
            while not waiting.empty():
                waiting.get_nowait()
