"""Let micro-batches wait before a partition's line, orders before usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streams.records import inflated_bytes_of
from tokenline.wire.topics import COMMANDS, HOLDS

INBOX_ORDERS = 64  # deliveries, often of one order each
INBOX_ORDER_BYTES = 4 << 20


def nothing() -> None:
    """Be done: how far commands were read is in the journal and nowhere else."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Hold one micro-batch on its way to its partition; `stem` is the topic's (see `wire.topics`).

    `taken` is called when the line begins to work on it, or drops it; `done` when all of it is published.
    Without records it says that there are none up to `through`, and that those below `deleted_to` were
    deleted.
    """

    stem: str
    records: Sequence[Any]
    done: Callable[[], Any] = nothing
    taken: Callable[[], Any] = nothing
    through: int = -1
    deleted_to: int = 0

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the records' values have, as far as the reader counted them."""
        return inflated_bytes_of(self.records)


class Inbox:
    """Hold what waits for one partition; nobody who brings something waits.

    Somebody stands still until an order or a hold is answered, so they are folded before all usage that
    waits, the two by turns. Who brings usage is bounded by `streams.room`, who brings orders or holds looks
    whether they are `crowded`.
    """

    def __init__(self) -> None:
        self._usage: asyncio.Queue[Delivery] = asyncio.Queue()
        # The first is asked first: whose turn it is.
        self._orders: dict[str, asyncio.Queue[Delivery]] = {
            stem: asyncio.Queue() for stem in (COMMANDS, HOLDS)
        }
        self._order_bytes = dict.fromkeys(self._orders, 0)
        self._arrived = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Take a delivery in."""
        self._orders.get(delivery.stem, self._usage).put_nowait(delivery)
        if delivery.stem in self._order_bytes:
            self._order_bytes[delivery.stem] += delivery.size_bytes
        self._arrived.set()

    async def get(self) -> Delivery:
        """Return the next one; waits for it."""
        while self.empty():
            self._arrived.clear()
            await self._arrived.wait()
        found = self._taken_from(self._next())
        found.taken()
        return found

    def all_orders(self, first: Delivery) -> Delivery:
        """Return `first` and all that waits of its topic as one delivery."""
        queue = self._orders[first.stem]
        waiting = [first, *(self._taken_from(queue) for _ in range(queue.qsize()))]
        records = [record for one in waiting for record in one.records]
        return Delivery(first.stem, records, waiting[-1].done)

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return self._usage.empty() and all(one.empty() for one in self._orders.values())

    def crowded(self, stem: str) -> bool:
        """Say whether so many orders or holds wait that no more of them should be read."""
        return (
            self._orders[stem].qsize() >= INBOX_ORDERS
            or self._order_bytes[stem] >= INBOX_ORDER_BYTES
        )

    def _taken_from(self, queue: asyncio.Queue[Delivery]) -> Delivery:
        found = queue.get_nowait()
        if found.stem in self._order_bytes:
            self._order_bytes[found.stem] -= found.size_bytes
        return found

    def _next(self) -> asyncio.Queue[Delivery]:
        for stem, waiting in self._orders.items():
            if not waiting.empty():
                self._orders[stem] = self._orders.pop(stem)
                return waiting
        return self._usage
