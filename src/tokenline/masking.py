"""Keep secrets, and bytes of strangers, out of what people and logs see."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

import structlog

MASK = "***"
# What stands between :// and the last @ of an address: a password may itself hold an @ or a slash.
_USER = re.compile(r"(?<=://)[^\s'\"]*(?=@)")
_PARAMETER = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:password|passwd|pwd|secret|token|api_?key|credential|signature)[\w.-]*=)"
    r"[^&;#\s'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """Return a text with the credentials of every address in it masked: user, password, parameters."""
    return _PARAMETER.sub(rf"\g<name>{MASK}", _USER.sub(MASK, text))


def printable(text: str, most: int = 200) -> str:
    """Return what a stranger sent as one line: control characters and invisible ones are escaped.

    It is at most `most` characters long, or ends with how many were left out.
    """
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[: most + 1])
    left = len(text) - most
    return (
        shown if left <= 0 and len(shown) <= most else f"{shown[:most]}... ({len(text)} characters)"
    )


def mask_logs() -> None:
    """Have every log line of this process masked; harmless when repeated."""
    known = structlog.get_config()["processors"]
    if mask_event not in known:
        structlog.configure(processors=[mask_event, *known])


def mask_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask the texts of a log event; a processor of structlog."""
    return {
        name: without_secrets(value) if isinstance(value, str) else value
        for name, value in event.items()
    }
