"""Hold what a plan says of charging, and what a grant brings: the words the engine is spoken to in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenline.quota.cells import Cell

if TYPE_CHECKING:
    from collections.abc import Collection

NEVER_MS = (1 << 63) - 1
# The last moment of the year 9999: later ones have no date.
LAST_DATE_MS = 253_402_300_799_999
# Parts of an allowance, in percent, that are told when they are used: of accounts whose plan names no others.
THRESHOLDS_PERCENT = (50, 80, 100)


UTOK = 1_000_000  # a standard token


def tokens_text(amount_utok: int) -> str:
    """Return an amount as people read it: "1,234.5 standard tokens"."""
    return f"{tokens_number(amount_utok)} standard token" + "s" * (abs(amount_utok) != UTOK)


def tokens_number(amount_utok: int) -> str:
    """Return an amount in standard tokens: "1,234.5"."""
    whole, rest = divmod(abs(amount_utok), UTOK)
    return "-" * (amount_utok < 0) + f"{whole:,}" + f".{rest:06}".rstrip("0") * (rest > 0)


class Mode(IntEnum):
    """Say how a plan is charged; the order is part of the journal's format."""

    POSTPAID = 0
    PREPAID = 1
    STRICT = 2


class HoldExpiry(IntEnum):
    """Say what becomes of a hold nobody settled; the order is part of the journal's format."""

    CHARGE_REPORTED = 0
    RELEASE = 1
    CHARGE_GRANTED = 2


class Source(IntEnum):
    """Say where a bucket came from; the order is part of the journal's format."""

    OVERAGE = 0
    PLAN = 1
    PACK = 2
    FREE = 3
    GIFT = 4
    TOP_UP = 5
    ROLLOVER = 6
    TRANSFER = 7
    REFUND = 8
    ADJUSTMENT = 9
    WRITTEN_OFF = 10
    LATE_ADJUSTMENT = 11
    CLAIM = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Name what a bucket may pay for; empty is everything.

    `models` are `provider/model`, or `provider/*` for all models of a provider.
    """

    models: tuple[str, ...] = ()
    subscribers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FreeModels:
    """Hold the models that cost nothing, as of a `Scope`, and a digest of them; 0 for none."""

    models: tuple[str, ...] = ()
    digest: int = 0


NO_FREE_MODELS = FreeModels()


class Use(NamedTuple):
    """Name what is paid for."""

    provider: str = ""
    model: str = ""
    subscriber: str = ""

    def among(self, models: Collection[str]) -> bool:
        """Say whether its model is one of `models`, each `provider/model` or `provider/*`; none are all."""
        if not models:
            return True
        return f"{self.provider}/{self.model}" in models or f"{self.provider}/*" in models


NOTHING = Use()


class Unit(IntEnum):
    """Say what a limit counts; the order is part of the journal's format."""

    TOKENS = 0
    UTOK = 1
    REQUESTS = 2


class Per(IntEnum):
    """Say how long a limit's window is; the order is part of the journal's format."""

    MINUTE = 0
    HOUR = 1
    DAY = 2
    WEEK = 3
    MONTH = 4
    CYCLE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSpec:
    """Say what is counted where, and by what name; how much is allowed stands with the account.

    `each` counts every subscriber on its own, or only the one that `subscriber` names; usage that
    names no subscriber is nobody's. `models` are as of a `Scope`. Two of one name and subscriber are
    the same limit, whatever models are in its group.
    """

    name: str
    unit: Unit
    per: Per
    rolling: bool = False
    each: bool = False
    subscriber: str = ""
    models: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """What a limit of a group of models is told by; empty for one of all models."""
        if not self.models or not self.subscriber:
            return self.name if self.models else ""
        # Before the group, which may be called anything: behind it this could be another's name.
        what, colon, group = self.name.partition(":")
        return f"{what}@{self.subscriber}{colon}{group}"

    @property
    def identity(self) -> tuple[str, str]:
        """What a limit is known by when a plan changes."""
        return self.name, self.subscriber

    def covers(self, use: Use) -> bool:
        """Say whether `use` counts into the limit."""
        if self.each and not (use.subscriber and self.subscriber in ("", use.subscriber)):
            return False
        return use.among(self.models)


def limit_spec(said: dict[str, Any]) -> LimitSpec:
    """Return the limit that `asdict` gave."""
    kinds = {"unit": Unit(said["unit"]), "per": Per(said["per"])}
    return LimitSpec(**said | kinds | {"models": tuple(said["models"])})


# What one subscriber may use of a bill cycle: by the plan, or by an order of the account's own.
SUBSCRIBER_CAP = LimitSpec(name="subscriber_tokens", unit=Unit.UTOK, per=Per.CYCLE, each=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTerms:
    """Hold what only gateways go by: charging passes it on with each decision; times in ms."""

    unreachable: str = "stop"
    emergency_utok: int = 0
    abort: str = "charge_reported"
    longest_call_ms: int = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Hold what a `plan` grants each cycle and how it is charged, by one `version` of the catalog; times in ms.

    An account keeps the terms it took. What a session asks is sized at the dearest price of the next
    `priced_ahead_ms`. What is left and no more than `least_call_utok` pays for no call; None is what
    is usual.
    `thresholds` are percents of the allowance, ascending; above 100 they count what is paid beyond it.
    `ceilings` are pairs of a limit's cell and its value; limits that are not named are none. `limits`
    are all others, each with its ceiling. A use that costs nothing needs no balance, unless
    `zero_rated_needs_balance`. `change` says when these terms are in force for an account that chooses
    them: "now", with the "next_cycle", or "upgrade_now".
    """

    mode: Mode = Mode.POSTPAID
    allowance_utok: int = 0
    rollover_utok: int = 0
    priority: int = 100
    scope: Scope = Scope()
    overage: bool = False
    prorated: bool = True
    hold_validity_ms: int = 60_000
    priced_ahead_ms: int = 120_000
    least_call_utok: int | None = None
    hold_expiry: HoldExpiry = HoldExpiry.CHARGE_REPORTED
    zero_rated_needs_balance: bool = False
    gateway: GatewayTerms = GatewayTerms()
    ceilings: tuple[tuple[Cell, int], ...] = ()
    thresholds: tuple[int, ...] = THRESHOLDS_PERCENT
    limits: tuple[tuple[LimitSpec, int], ...] = ()
    change: str = "upgrade_now"
    plan: str = ""
    version: int = 0

    def is_due_at_once(self, before: Terms) -> bool:
        """Say whether an account on other terms that chooses these goes by them before its next cycle."""
        if self.change == "upgrade_now":
            return self.allowance_utok >= before.allowance_utok
        return self.change == "now"

    def differs(self, other: Terms) -> bool:
        """Say whether they say something else, whatever plan and version of the catalog they are from."""
        return replace(self, plan=other.plan, version=other.version) != other


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Describe a bucket to be: how much, since when and until when, for what, burnt how early.

    A lower priority burns first. `valid_from_ms` 0 also pays for usage from before the grant that is
    reported only now. An allowance is for the days from `covers_from_ms` on, and of what is left of it
    at its end at most `rolls_utok` go on. Of equals the one with the earlier `ranks_at_ms` burns
    first; 0 is the moment of the grant.
    """

    amount_utok: int
    source: Source
    priority: int = 100
    valid_from_ms: int = 0
    valid_to_ms: int = NEVER_MS
    scope: Scope = Scope()
    transferable: bool = False
    covers_from_ms: int = 0
    rolls_utok: int = 0
    ranks_at_ms: int = 0
