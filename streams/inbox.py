"""Let micro-batches wait before a partition's line, orders before usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenline.wire.topics import USAGE

INBOX_ORDERS = 64  # deliveries, often of one order each


def nothing() -> None:
    """Be done: how far commands were read is in the journal and nowhere else."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one micro-batch on its way to its partition; `stem` is the topic's (see `wire.topics`).

    `taken` is called when the line begins to work on it, or drops it; `done` when all of it is told.
    """

    stem: str
    records: Sequence[Any]
    done: Callable[[], Any] = nothing
    taken: Callable[[], Any] = nothing


class Inbox:
    """Hold what waits for one partition, orders before usage; nobody who brings something waits.

    Somebody stands still until an order is answered, so it is folded before all usage that waits. Who
    brings usage is bounded by `streams.room`, who brings orders looks whether they are `crowded`.
    """

    def __init__(self) -> None:
        self._usage: asyncio.Queue[Delivery] = asyncio.Queue()
        self._orders: asyncio.Queue[Delivery] = asyncio.Queue()
        self._arrived = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Take a delivery in."""
        (self._usage if delivery.stem == USAGE else self._orders).put_nowait(delivery)
        self._arrived.set()

    async def get(self) -> Delivery:
        """Return the next one; waits for it."""
        while self.empty():
            self._arrived.clear()
            await self._arrived.wait()
        found = (self._usage if self._orders.empty() else self._orders).get_nowait()
        found.taken()
        return found

    def all_orders(self, first: Delivery) -> Delivery:
        """Return `first` and all orders that wait behind it as one delivery."""
        waiting = [first, *(self._orders.get_nowait() for _ in range(self._orders.qsize()))]
        records = [record for one in waiting for record in one.records]
        return Delivery(first.stem, records, waiting[-1].done)

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return self._usage.empty() and self._orders.empty()

    @property
    def crowded(self) -> bool:
        """Say whether so many orders wait that no more should be read."""
        return self._orders.qsize() >= INBOX_ORDERS
