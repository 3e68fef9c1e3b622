"""tokenline (词元): the usage line for AI tokens.

A gateway needs one name: `Gateway` admits calls, stops them when the line says so, and hands over
what they used. It bundles `Emitter`, which keeps each `UsageEvent` until the broker has it, and
`Guard`, which answers whether an account may go on; each can be used alone. `Settings` says where
the line is.

Read in this order: `event`, `metering`, `rating`, `quota` (pure), `wire`, `gateway`, `landing`,
`platform`, `streams`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.event import TOKEN_KINDS, UsageEvent

if TYPE_CHECKING:
    from tokenline.gateway.call import Call
    from tokenline.gateway.gateway import Gateway
    from tokenline.reasons import http_status
    from tokenline.settings import Settings
    from tokenline.wire.emitter import Emitter
    from tokenline.wire.guard import Guard
    from tokenline.wire.receipt import Receipt
    from tokenline.wire.view import Verdict

# Kafka and Avro load only when somebody asks for a name that needs them.
_LAZY = {
    "Call": "tokenline.gateway.call",
    "Emitter": "tokenline.wire.emitter",
    "Gateway": "tokenline.gateway.gateway",
    "Guard": "tokenline.wire.guard",
    "Receipt": "tokenline.wire.receipt",
    "Settings": "tokenline.settings",
    "Verdict": "tokenline.wire.view",
    "http_status": "tokenline.reasons",
}

__all__ = [
    "TOKEN_KINDS",
    "Call",
    "Emitter",
    "Gateway",
    "Guard",
    "Receipt",
    "Settings",
    "UsageEvent",
    "Verdict",
    "http_status",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tokenline' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  only lazy names need it

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
