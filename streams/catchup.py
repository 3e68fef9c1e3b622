"""Take up what waited while nobody charged, in the order in which it came.

Commands move an account's clock: holds expire by it, are forgotten, and buckets close. All that lies
long enough after the fact for usage to come first, as long as usage is not much further behind than
commands. After a long absence it would be, so then both are taken by turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.wire.topics import COMMANDS, USAGE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

# Shares of how long late usage is waited for: being behind and one turn must be well below it together.
BEHIND_SHARE = 2
TURN_SHARE = 6


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
        while (first_ms := await self.first_ms()) is not None:
            if until_ms is not None and first_ms >= until_ms:
                return
            later = (
                at
                for at, record in enumerate(self._records)
                if until_ms is not None and record.timestamp >= until_ms
            )
            count = next(later, len(self._records))
            some, self._records = self._records[:count], self._records[count:]
            yield some


async def by_turns(
    commands: Waiting, usage: Waiting, now_ms: int, linger_ms: int
) -> AsyncGenerator[tuple[str, list[Any]], None]:
    """Yield (topic, records): by turns while usage is far behind, then the commands that are left.

    `linger_ms` is how long buckets and ended holds wait for late usage (`Books.linger_ms`).
    In each turn commands come first: an account's first event must find it.
    """
    behind_ms = now_ms - linger_ms // BEHIND_SHARE
    while (oldest_ms := await usage.first_ms()) is not None and oldest_ms < behind_ms:
        for stem, waiting in ((COMMANDS, commands), (USAGE, usage)):
            async for records in waiting.before(oldest_ms + linger_ms // TURN_SHARE):
                yield stem, records
    async for records in commands.before(None):
        yield COMMANDS, records
