"""Bound what waits in this process for each partition, so that one that stands still stops no other.

A micro-batch is given when the consumer hands it on, and taken when its partition begins to work on
it. A partition with no room is not fetched for; the others are. Nobody waits with a record in hand.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from faust.types.tuples import TP

# Micro-batches that may wait for a partition.
BATCHES_MAX = 4
# Records that may wait in the whole process; beyond it a partition has room for one micro-batch. A large
# one counts as many: with these 50 MB.
RECORDS_MAX = 200_000
RECORD_BYTES = 256


class Room:
    """Know which partitions have room."""

    def __init__(self) -> None:
        self._given: dict[TP, dict[int, int]] = {}
        self._weight = 0
        self._changed = asyncio.Event()

    def give(self, tp: TP, last_offset: int, records: int, size_bytes: int = 0) -> None:
        """Note a micro-batch that is handed on; its last offset is its name."""
        weight = max(records, size_bytes // RECORD_BYTES)
        self._given.setdefault(tp, {})[last_offset] = weight
        self._weight += weight

    def take(self, tp: TP, last_offset: int) -> None:
        """Note that work on a micro-batch begins, or that it is dropped; twice is once."""
        self._weight -= self._given.get(tp, {}).pop(last_offset, 0)
        self._changed.set()

    def clear(self) -> None:
        """Forget all: the group dealt the partitions out again, and what waited is nobody's."""
        self._given.clear()
        self._weight = 0
        self._changed.set()

    def among(self, partitions: Iterable[TP]) -> set[TP]:
        """Return those that have room."""
        most = BATCHES_MAX if self._weight < RECORDS_MAX else 1
        return {tp for tp in partitions if len(self._given.get(tp, ())) < most}

    async def wait(self, timeout_s: float) -> None:
        """Return when something was taken, or after `timeout_s`."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
