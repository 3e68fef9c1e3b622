"""Say when to try again, and what an answer means.

The wait doubles from the first to a longest; a jitter of up to a quarter less is taken from the
message's own id, so it is the same in each run and no two messages march in step.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

MS = 1000
# A receiver may ask for patience, not for ever.
RETRY_AFTER_MAX_MS = 3_600_000
_DOUBLINGS_MAX = 40


class Answer(Enum):
    """Say what becomes of a message once a receiver answered, or did not."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GONE = "gone"


def answer_of(status: int) -> Answer:
    """Return what an HTTP status means; 0 stands for no answer. A redirect is not followed: it fails."""
    if 200 <= status <= 299:
        return Answer.DELIVERED
    return Answer.GONE if status == 410 else Answer.RETRY


def wait_ms(attempt: int, message_id: str, first_ms: int, longest_ms: int) -> int:
    """Return how long to wait after the failed attempt number `attempt`, counted from 1."""
    whole = min(longest_ms, first_ms << min(attempt - 1, _DOUBLINGS_MAX))
    digest = hashlib.sha256(f"{message_id}#{attempt}".encode()).digest()
    return whole - whole * int.from_bytes(digest[:4], "big") // (4 << 32)


def retry_after_ms(header: str, now_ms: int) -> int:
    """Return how long a `Retry-After` of seconds or of a date asks to wait, at most an hour; 0 if none."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]) * MS, RETRY_AFTER_MAX_MS)
    try:
        moment = parsedate_to_datetime(text)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        until_ms = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND
    except (ValueError, OverflowError):
        # The header is another's: a zone of a billion hours is no reason to stop telling everybody else.
        return 0
    return min(max(until_ms - now_ms, 0), RETRY_AFTER_MAX_MS)


_MILLISECOND = datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
