"""Keep what callers were promised of their events until the broker, or the closing emitter, has said it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from tokenline.errors import BrokerUnavailable
from tokenline.wire.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.errors import InvalidEvent
    from tokenline.wire.delivery import Parcel


class Promise(NamedTuple):
    """Hold one event's place in the life of its emitter, and who waits for its receipt."""

    event_id: str
    seq: int
    done: asyncio.Future[Receipt]

    def spooled(self, epoch: str) -> Receipt:
        """Return the receipt of an event that is on disk, and sent later."""
        return Receipt(self.event_id, epoch, self.seq, "spooled")

    def overdue(self, waited_s: float, last_error: str) -> BrokerUnavailable:
        """Return the error that says that the broker has not answered for so long."""
        return BrokerUnavailable(
            f"no ack for event {self.event_id} within {waited_s:.3f} s; it is in the outbox and "
            f"will be sent. Last error: {last_error or 'none'}",
            event_id=self.event_id,
        )


class Promises:
    """Hold the promises of one emitter, by position in its outbox."""

    def __init__(self) -> None:
        self._open: dict[int, Promise] = {}

    def add(
        self, position: int, event_id: str, seq: int, loop: asyncio.AbstractEventLoop | None
    ) -> Promise:
        """Promise a receipt; its future belongs to the emitter's loop, which may have ended."""
        promise = Promise(event_id, seq, asyncio.Future(loop=loop))
        self._open[position] = promise
        return promise

    def acknowledge(
        self, parcels: Sequence[Parcel], epoch: str, partition: int, base_offset: int
    ) -> None:
        """Hand out the receipts of what the broker has; below 0 it did not say where."""
        for index, parcel in enumerate(parcels):
            promise = self._open.pop(parcel.position, None)
            if promise is not None and not promise.done.done():
                offset = base_offset + index if base_offset >= 0 else -1
                promise.done.set_result(
                    Receipt(promise.event_id, epoch, promise.seq, "acknowledged", partition, offset)
                )

    def refuse(self, position: int, error: InvalidEvent) -> None:
        """Say that the broker will never take an event."""
        promise = self._open.pop(position, None)
        if promise is not None and not promise.done.done():
            promise.done.set_exception(error)
            # The caller may have dropped the future; a log line has said it.
            promise.done.exception()

    def close(self, epoch: str) -> None:
        """Say of all others that they are on disk."""
        for promise in self._open.values():
            if not promise.done.done():
                promise.done.set_result(promise.spooled(epoch))
        self._open.clear()
