"""Take up what waited while nobody charged, in the order in which it came.

Orders and holds are two topics, taken by the time of their append. Both move an account's clock: holds
expire by it, are forgotten, and buckets close. All that lies long enough after the fact for usage to
come first, as long as usage is not much further behind than they are. After a long absence it would be,
so then they and usage are taken by turns.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tokenline.wire.topics import USAGE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

# Shares of how long late usage is waited for: being behind and one turn must be well below it together.
BEHIND_SHARE = 2
TURN_SHARE = 6
# Orders and holds so close to each other have no order of their own; a turn of one record each would cost
# a step each.
TOGETHER_MS = 100


class Waiting:
    """Give out the records of one topic by the time the broker appended them."""

    def __init__(self, batches: AsyncIterator[list[Any]]) -> None:
        self._batches = batches
        self._records: list[Any] = []

    async def first_ms(self) -> int | None:
        """Return when the first that waits was appended; None when none does."""
        while not self._records:
            found = await anext(self._batches, None)
            if found is None:
                return None
            self._records = found
        return int(self._records[0].timestamp)

    async def before(self, until_ms: int | None) -> AsyncGenerator[list[Any], None]:
        """Yield what was appended before a moment, all of it for None; a clock set back changes no order."""
        while some := await self.take(until_ms):
            yield some

    async def take(self, until_ms: int | None) -> list[Any]:
        """Return some of what was appended before a moment, as it stands; empty when there is none."""
        if await self.first_ms() is None:
            return []
        later = (
            at
            for at, record in enumerate(self._records)
            if until_ms is not None and record.timestamp >= until_ms
        )
        count = next(later, len(self._records))
        some, self._records = self._records[:count], self._records[count:]
        return some


async def by_turns(
    orders: Mapping[str, Waiting], usage: Waiting, now_ms: int, linger_ms: int
) -> AsyncGenerator[tuple[str, list[Any]], None]:
    """Yield (topic, records): by turns while usage is far behind, then the orders that are left.

    `orders` are the topics of orders by name; `linger_ms` is how long buckets and ended holds wait for
    late usage (`Books.linger_ms`). In each turn orders come first: an account's first event must find it.
    """
    behind_ms = now_ms - linger_ms // BEHIND_SHARE
    while (oldest_ms := await usage.first_ms()) is not None and oldest_ms < behind_ms:
        until_ms = oldest_ms + linger_ms // TURN_SHARE
        async for stem, records in in_order(orders, until_ms):
            yield stem, records
        async for records in usage.before(until_ms):
            yield USAGE, records
    async for stem, records in in_order(orders, None):
        yield stem, records


async def in_order(
    orders: Mapping[str, Waiting], until_ms: int | None
) -> AsyncGenerator[tuple[str, list[Any]], None]:
    """Yield (topic, records) of several topics by the time of append; of one moment the first topic's first.

    Only what was appended before `until_ms`, all of it for None. A topic's own order stays what it is;
    what lies within `TOGETHER_MS` of each other may change places.
    """
    while True:
        firsts = [(await waiting.first_ms(), stem) for stem, waiting in orders.items()]
        due = [(ms, stem) for ms, stem in firsts if ms is not None]
        if not due:
            return
        first_ms, stem = min(due, key=itemgetter(0))
        if until_ms is not None and first_ms >= until_ms:
            return
        yield stem, await orders[stem].take(_end(stem, first_ms, due, until_ms))


def _end(stem: str, first_ms: int, due: list[tuple[int, str]], until_ms: int | None) -> int | None:
    """Return up to when one topic is taken at once: until another has something older."""
    others = [ms for ms, other in due if other != stem]
    bounds = [max(first_ms + TOGETHER_MS, min(others))] if others else []
    bounds += [] if until_ms is None else [until_ms]
    return min(bounds, default=None)
