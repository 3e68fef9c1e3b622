"""tokenline (词元): the usage line for AI tokens.

A gateway needs four names: `UsageEvent` says what one call used, `Emitter` hands it over and keeps
it until the broker has it, `Guard` answers whether an account may go on, `Settings` says where the
line is.

Read in this order: `event`, `metering`, `quota` (pure), `wire`, `landing`, `platform`, `streams`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.event import TOKEN_KINDS, UsageEvent

if TYPE_CHECKING:
    from tokenline.settings import Settings
    from tokenline.wire.emitter import Emitter
    from tokenline.wire.guard import Guard
    from tokenline.wire.receipt import Receipt
    from tokenline.wire.view import Verdict

# Kafka and Avro load only when somebody asks for a name that needs them.
_LAZY = {
    "Emitter": "tokenline.wire.emitter",
    "Guard": "tokenline.wire.guard",
    "Receipt": "tokenline.wire.receipt",
    "Settings": "tokenline.settings",
    "Verdict": "tokenline.wire.view",
}

__all__ = [
    "TOKEN_KINDS",
    "Emitter",
    "Guard",
    "Receipt",
    "Settings",
    "UsageEvent",
    "Verdict",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tokenline' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  only lazy names need it

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
