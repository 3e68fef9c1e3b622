"""Say what became of an event, and how an emitter is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tokenline.wire.delivery import Delivery
    from tokenline.wire.outbox import Outbox


class Receipt(NamedTuple):
    """Say where an event is: acknowledged by the broker, or spooled on disk and sent later."""

    event_id: str
    gateway_epoch: str
    gateway_seq: int
    status: Literal["acknowledged", "spooled"]
    partition: int = -1
    offset: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitterStats:
    """Count one life of an emitter; `waiting` and `outbox_bytes` are of this moment.

    `lost` is how many events the disk did not keep, at most: a damaged outbox.
    """

    emitted: int
    acknowledged: int
    lost: int
    waiting: int
    outbox_bytes: int
    refused: int
    producers_started: int
    last_error: str


def stats_of(outbox: Outbox, delivery: Delivery, refused: int) -> EmitterStats:
    """Return the counts of the life that an outbox is in."""
    return EmitterStats(
        emitted=outbox.emitted,
        acknowledged=outbox.acknowledged,
        lost=outbox.lost,
        waiting=outbox.unacked,
        outbox_bytes=outbox.size_bytes,
        refused=refused,
        producers_started=delivery.producers_started,
        last_error=delivery.last_error,
    )
