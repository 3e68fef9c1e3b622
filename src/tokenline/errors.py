"""Draw the tree of everything that can go wrong, and what the line then does.

TokenlineError
├── SettingsError          a variable or file is wrong           -> refuse to start, name it
├── BadData                the input is wrong                    -> dead letter, the line goes on
│   ├── InvalidEvent       an event breaks its contract          -> refused at `emit`, nothing was sent
│   ├── Undecodable        bytes are not what their schema says  -> dead letter
│   ├── InvalidSignature   a webhook is not what its sender signed -> refused by the receiver
│   ├── UnknownSchema      the registry has no such schema id    -> dead letter
│   └── PoisonedInput      N bad records in a row                -> the worker stops: code or schema is bad
├── BackPressure           slow down and try again               -> the caller waits or sheds
│   └── OutboxFull         the gateway's spool is at its bound
├── Unavailable            a server is away                      -> retry with backoff; nothing is lost
│   ├── BrokerUnavailable  Kafka did not acknowledge in time
│   ├── WarehouseUnavailable  ClickHouse did not answer
│   └── RegistryUnavailable   the schema registry did not answer
├── Declined               the rules do not allow a command      -> answered with the reason, nothing changed
├── StaleView              the guard has not heard from the line -> open or closed, by setting
├── FencedOut              another worker owns the partition     -> publish nothing, end the process
├── BrokenLog              offsets or state contradict           -> end the process, a human looks
└── PlatformError          the embedded stack cannot run         -> one clear line, non-zero exit
    ├── PortTaken
    ├── NoJava
    └── NotRunning
"""

from __future__ import annotations

from enum import IntEnum


class TokenlineError(Exception):
    """Be the root of every error this package raises on purpose."""


class SettingsError(TokenlineError):
    """Refuse a setting; the text names the variable or file and what would be right."""


class BadData(TokenlineError):
    """Refuse an input; the line goes on."""


class InvalidEvent(BadData):
    """Refuse an event at the emitter; nothing was written or sent."""


class Undecodable(BadData):
    """Refuse bytes that are not an Avro datum of the schema they name."""


class InvalidSignature(BadData):
    """Refuse a webhook that is not authentic or not fresh."""


class UnknownSchema(BadData):
    """Refuse a schema id the registry does not know."""


class PoisonedInput(BadData):
    """Stop the worker: this many bad records in a row mean that code or schema is bad."""


class BackPressure(TokenlineError):
    """Ask the caller to slow down; trying again later is right."""


class OutboxFull(BackPressure):
    """Refuse an event because the on-disk outbox is at its bound."""


class Unavailable(TokenlineError):
    """Report that a server is away; the work is kept and trying again is right."""


class BrokerUnavailable(Unavailable):
    """Report that Kafka did not acknowledge within the deadline.

    `event_id` names the event that is kept and will be sent, when the call was about one.
    """

    def __init__(self, text: str, *, event_id: str = "") -> None:
        super().__init__(text)
        self.event_id = event_id


class WarehouseUnavailable(Unavailable):
    """Report that ClickHouse did not answer."""


class RegistryUnavailable(Unavailable):
    """Report that the schema registry did not answer."""


class Declined(TokenlineError):
    """Refuse a command the rules do not allow; `reason` is a `Reason` of `quota`."""

    def __init__(self, reason: IntEnum) -> None:
        super().__init__(reason.name.lower())
        self.reason = reason


class StaleView(TokenlineError):
    """Report that the guard's view is older than its bound and the guard fails closed."""


class FencedOut(TokenlineError):
    """Report that another worker has opened a newer epoch of this partition."""


class BrokenLog(TokenlineError):
    """Report offsets or state that contradict each other; going on could lose or double usage."""


class PlatformError(TokenlineError):
    """Report that the embedded stack cannot start or is not there."""


class PortTaken(PlatformError):
    """Report a port that another process holds."""


class NoJava(PlatformError):
    """Report that no Java runtime could be started."""


class NotRunning(PlatformError):
    """Report that no stack runs in the data directory."""
