"""Draw the tree of everything that can go wrong, and what the line then does.

TokenlineError
├── SettingsError          a variable or file is wrong           -> refuse to start, name it
│   ├── MissingTables      the warehouse was not migrated        -> a worker waits, a command says how
│   └── ForeignLine        Kafka, warehouse, journal, outbox are not of one line -> refuse, name both
├── BadData                the input is wrong                    -> dead letter, the line goes on
│   ├── InvalidEvent       an event breaks its contract          -> refused at `emit`, nothing was sent
│   ├── Undecodable        bytes are not what their schema says  -> dead letter
│   ├── InvalidSignature   a webhook is not what its sender signed -> refused by the receiver
│   └── UnknownSchema      the registry has no such schema id    -> dead letter
├── BackPressure           slow down and try again               -> the caller waits or sheds
│   └── OutboxFull         the gateway's spool is at its bound
├── CallRefused            a call may not be made               -> the gateway refuses it, says why and what helps
│   ├── QuotaExceeded      a balance or a limit has too little
│   ├── UnknownAccount     the line knows no such account
│   ├── UnknownModel       no catalog has a price for the model
│   ├── AccountSuspended   somebody has to resume the account
│   ├── AccountClosed      the account is closed for good
│   └── CutOff             a call that runs has to stop          -> the gateway ends its stream
├── Unavailable            a server is away                      -> retry with backoff; nothing is lost
│   ├── ChargingUnavailable   charging does not answer, and the plan does not let calls go on
│   ├── BrokerUnavailable  Kafka did not acknowledge in time
│   ├── WarehouseUnavailable  ClickHouse did not answer
│   └── RegistryUnavailable   the schema registry did not answer
├── Declined               the rules do not allow a command      -> answered with the reason, nothing changed
├── StaleView              the guard has not heard from the line -> open or closed, by setting
├── FencedOut              another worker owns the partition     -> publish nothing, end the process
├── BrokenLog              our own journal or tables contradict  -> end the process, a human looks
└── PlatformError          the embedded stack cannot run         -> one clear line, non-zero exit
    ├── PortTaken
    ├── NoJava
    └── NotRunning
"""

from __future__ import annotations

from enum import IntEnum

# Soon: what is away or held just now may be back.
RETRY_AFTER_MS = 1000


class TokenlineError(Exception):
    """Be the root of every error this package raises on purpose."""


class SettingsError(TokenlineError):
    """Refuse a setting; the text names the variable or file and what would be right."""


class MissingTables(SettingsError):
    """Report that the warehouse has no tables of ours: `tokenline migrate apply` makes them."""


class ForeignLine(SettingsError):
    """Refuse to bring together what belongs to two lines; the text names both and what to do."""


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


class BackPressure(TokenlineError):
    """Ask the caller to slow down; trying again after `retry_after_ms` is right."""

    retry_after_ms = RETRY_AFTER_MS


class OutboxFull(BackPressure):
    """Refuse an event because the on-disk outbox is at its bound."""


class CallRefused(TokenlineError):
    """Refuse a call, or stop one that runs; the children say which kind of reason it is.

    `reason` is one of the closed list of `tokenline.reasons`; where it is a limit, `limit_name` says
    which (`minute_requests`, `subscriber_tokens`, `day_utok:flagship`). `used`, `held` for calls and
    `limit` count in `unit` (utok, tokens, requests), `limit` is -1 where there is none. `resets_at_ms` is
    when it may go on by itself, 0 when that is not by the clock. `top_up_utok` is the least that would
    let the call pass, 0 where a top-up does not help; `retry_after_ms` how long to wait before the next
    try, 0 where waiting does not help. `tokenline.http_status` says with which status to answer.
    """

    def __init__(
        self,
        account: str,
        reason: str,
        *,
        subscriber: str = "",
        limit_name: str = "",
        unit: str = "",
        used: int = 0,
        held: int = 0,
        limit: int = -1,
        resets_at_ms: int = 0,
        retry_after_ms: int = 0,
        top_up_utok: int = 0,
    ) -> None:
        who = f"{account} ({subscriber})" if subscriber else account
        which = f" ({limit_name})" if limit_name else ""
        held_text = f" and {held} held" if held else ""
        bounds = f", {used} used{held_text} of {limit} {unit}".rstrip() if limit >= 0 else ""
        help_text = f"; a top-up of {top_up_utok} µtok would let it pass" if top_up_utok else ""
        super().__init__(f"{who}: {reason}{which}{bounds}{help_text}")
        self.account, self.subscriber, self.reason = account, subscriber, reason
        self.limit_name, self.unit = limit_name, unit
        self.used, self.held, self.limit = used, held, limit
        self.resets_at_ms, self.retry_after_ms = resets_at_ms, retry_after_ms
        self.top_up_utok = top_up_utok


class QuotaExceeded(CallRefused):
    """Refuse a call because a balance or a limit has too little for it."""


class UnknownAccount(CallRefused):
    """Refuse a call of an account that the line does not know."""


class UnknownModel(CallRefused):
    """Refuse a call of a model that no catalog has a price for."""


class AccountSuspended(CallRefused):
    """Refuse a call of an account that is suspended until somebody resumes it."""


class AccountClosed(CallRefused):
    """Refuse a call of an account that is closed."""


class CutOff(CallRefused):
    """Stop a call that runs: its account was cut off, or what was reserved for it is used."""


class Unavailable(TokenlineError):
    """Report that a server is away; the work is kept and trying again after `retry_after_ms` is right."""

    retry_after_ms = RETRY_AFTER_MS


class BrokerUnavailable(Unavailable):
    """Report that Kafka did not acknowledge within the deadline.

    `event_id` names the event that is kept and will be sent, when the call was about one.
    """

    def __init__(self, text: str, *, event_id: str = "") -> None:
        super().__init__(text)
        self.event_id = event_id


class ChargingUnavailable(Unavailable):
    """Report that charging does not answer and the account's plan does not let calls go on meanwhile."""


class WarehouseUnavailable(Unavailable):
    """Report that ClickHouse did not answer."""


class RegistryUnavailable(Unavailable):
    """Report that the schema registry did not answer."""


class Declined(TokenlineError):
    """Refuse a command the rules do not allow; `reason` is a `Reason` of `quota`.

    `detail` says to people which rule, with its figures; it may be empty.
    """

    def __init__(self, reason: IntEnum, detail: str = "") -> None:
        super().__init__(reason.name.lower())
        self.reason, self.detail = reason, detail


class StaleView(TokenlineError):
    """Report that the guard's view is older than its bound and the guard fails closed."""


class FencedOut(TokenlineError):
    """Report that another worker has opened a newer epoch of this partition."""


class BrokenLog(TokenlineError):
    """Report that what we wrote ourselves contradicts itself, or is of a newer version.

    Going on could lose or double usage. No record of anybody else is a reason for it.
    """


class PlatformError(TokenlineError):
    """Report that the embedded stack cannot start or is not there."""


class PortTaken(PlatformError):
    """Report a port that another process holds."""


class NoJava(PlatformError):
    """Report that no Java runtime could be started."""


class NotRunning(PlatformError):
    """Report that no stack runs in the data directory."""
