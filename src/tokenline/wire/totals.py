"""Publish control totals: what a gateway says it emitted, for the line to be measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.wire.topics import total_key

if TYPE_CHECKING:
    from tokenline.clock import Clock
    from tokenline.wire.avro import Codec
    from tokenline.wire.delivery import Delivery
    from tokenline.wire.outbox import Outbox


class ControlTotals:
    """Publish what a life emitted, what of it was acknowledged and lost, whenever that changed.

    The newest wins by key.

    A crash leaves the last published total behind the truth; the next start on the same outbox goes
    on counting in the same life and publishes the right one.
    """

    def __init__(
        self, outbox: Outbox, delivery: Delivery, codec: Codec, clock: Clock, *, source: str
    ) -> None:
        self._outbox = outbox
        self._delivery = delivery
        self._codec = codec
        self._clock = clock
        self._source = source
        self._sent = (-1, -1, -1)
        self.refused = 0
        # The line that the life counts for; known once a broker answered.
        self.line_id = ""

    async def publish(self) -> None:
        """Publish what changed, if a broker is there; also, once, of a life that a reboot ended."""
        if self._outbox.ended is not None:
            epoch, emitted, lost = self._outbox.ended
            if await self._send(epoch, emitted, emitted - lost, lost):
                self._outbox.ended = None
        outbox = self._outbox
        counts = outbox.emitted, outbox.acknowledged - self.refused, outbox.lost
        if counts != self._sent and await self._send(self._outbox.life.gateway_epoch, *counts):
            self._sent = counts

    async def _send(self, epoch: str, emitted: int, acknowledged: int, lost: int) -> bool:
        gateway_id = self._outbox.life.gateway_id
        total = {
            "gateway_id": gateway_id,
            "gateway_epoch": epoch,
            "source": self._source,
            "emitted": emitted,
            "acknowledged": acknowledged,
            "lost": lost,
            "as_of": self._clock.wall_ms(),
            "line_id": self.line_id,
        }
        value = self._codec.encode("gateway_total", total)
        return await self._delivery.publish_control(total_key(gateway_id, epoch), value)
