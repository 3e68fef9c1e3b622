"""Refuse at the emitter what charging would refuse by the same settings, and names that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.errors import InvalidEvent

if TYPE_CHECKING:
    from tokenline.event import UsageEvent
    from tokenline.settings import Settings

EVENT_MAX_BYTES = 128 * 1024
_DAY_MS = 86_400_000


def check_sane(event: UsageEvent, settings: Settings, now_ms: int) -> None:
    """Check an event's counts and its time.

    Raises:
        InvalidEvent: the text says which is out of bounds.
    """
    most = settings.max_tokens_per_event
    if max(event.kinds()) > most:
        raise InvalidEvent(f"event {event.event_id} has a count above {most}: {event.kinds()}")
    if not event.occurred_at:
        return
    ahead_ms = event.occurred_at - now_ms
    if ahead_ms > settings.future_skew_s * 1000:
        raise InvalidEvent(f"occurred_at is {ahead_ms} ms in the future")
    if -ahead_ms > settings.max_age_days * _DAY_MS:
        raise InvalidEvent(f"occurred_at is {-ahead_ms} ms in the past")


def check_size(event: UsageEvent, value: bytes) -> None:
    """Check the size of an encoded event.

    Raises:
        InvalidEvent: it is too large.
    """
    if len(value) > EVENT_MAX_BYTES:
        size = len(value)
        raise InvalidEvent(f"event {event.event_id} has {size} bytes, at most {EVENT_MAX_BYTES}")
