"""State what is sold: plans for a bill cycle, packs for some days, and the limits within a plan.

Money is whole nano-yuan, tokens are whole standard tokens; `*_utok` gives the same in µtok. Of
several buckets the one with the lowest `priority` burns first.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tokenline.rating.exact import NANO, UTOK, YUAN_MAX, nano_of
from tokenline.rating.parts import TOKENS_MAX, Listed, Name, Names, Part, Tokens, renamed

Nano = Annotated[int, Field(ge=0, le=YUAN_MAX * NANO)]
Priority = Annotated[int, Field(ge=0, le=1_000_000)]
Ceiling = Annotated[int, Field(ge=0, le=10**15)]
Mode = Literal["postpaid", "prepaid", "strict"]
# What becomes of a hold that nobody settled: what was reported so far is charged, nothing, or all of it.
# Of a lease, all of it is what was in hand for calls to come as well.
HoldEnd = Literal["charge_reported", "release", "charge_granted"]
Per = Literal["minute", "hour", "day", "week", "month", "cycle"]
_ROLLING = ("minute", "hour", "day", "week")


def _ascending(percents: tuple[int, ...]) -> tuple[int, ...]:
    if any(one >= next_one for one, next_one in pairwise(percents)):
        raise ValueError("percents must ascend")
    return percents


# Above 100 a plan with overage can still warn.
Percents = Annotated[
    tuple[Annotated[int, Field(ge=1, le=1000)], ...], Listed, AfterValidator(_ascending)
]


class PlanLimit(Part):
    """Hold a ceiling per window: plain tokens, or µtok (so models weigh as they cost), or requests.

    Of the account or of each subscriber, or of the one named; of all models or of one group.
    """

    tokens: Ceiling | None = None
    utok: Annotated[int, Field(ge=0, le=TOKENS_MAX * UTOK)] | None = None
    requests: Ceiling | None = None
    per: Per
    rolling: bool = False
    of: Literal["account", "subscriber"] = "account"
    group: Name | None = None
    subscriber: Name | None = None

    @model_validator(mode="after")
    def _check(self) -> PlanLimit:
        if sum(one is not None for one in (self.tokens, self.utok, self.requests)) != 1:
            raise ValueError("give exactly one of tokens, utok and requests")
        if self.rolling and self.per not in _ROLLING:
            raise ValueError(f"a {self.per} has no fixed length, so it cannot be rolling")
        if self.subscriber and self.of != "subscriber":
            raise ValueError('a limit that names a subscriber needs of = "subscriber"')
        return self

    @property
    def unit(self) -> Literal["tokens", "utok", "requests"]:
        """What is counted."""
        if self.tokens is not None:
            return "tokens"
        return "requests" if self.utok is None else "utok"

    @property
    def ceiling(self) -> int:
        """How many of `unit` a window may have."""
        amount: int = getattr(self, self.unit)
        return amount

    @property
    def window(self) -> tuple[str, ...]:
        """What is counted where: no two limits of a plan may say the same."""
        rolling = "rolling" if self.rolling else "calendar"
        return (self.unit, self.per, rolling, self.of, self.group or "", self.subscriber or "")


class Plan(Part):
    """Hold what a plan gives for a bill cycle, what it costs and what happens at its edges.

    `overage_nano` is for a million standard tokens. `subscriber_tokens` caps each subscriber.
    `longest_call_s` is for how long a strict plan expects a call to run: one that runs over a change of
    tariff is held at the dearer price, and never costs more than it held. Where calls are held, an
    account with no more left than `least_call_tokens` is cut: no call costs less. A plan that does not
    say it takes 100 tokens for that, or a thousandth of what there was, if that is less. A model that
    costs nothing may be used when all is used up, unless `zero_rated_needs_balance`. What a version of
    the catalog says of a plan is in force for accounts on it from their next cycle on, or, by
    `running_accounts`, from when the version begins: then it is a change of plan at that moment. An
    account that chooses the plan is on it as `change` says, unless its order says when: `upgrade_now` is
    at once if it gives at least as much a cycle as what the account has, else with the next cycle.
    """

    title: Name
    fee_nano: Nano
    tokens: Tokens
    mode: Mode
    used_up: Literal["stop", "overage"] = "stop"
    overage_nano: Nano | None = None
    rollover_tokens: Tokens = 0
    priority: Priority = 100
    groups: Names = ()
    thresholds: Percents = (50, 80, 100)
    hold_validity_s: Annotated[int, Field(ge=1, le=3600)] = 60
    longest_call_s: Annotated[int, Field(ge=1, le=14_400)] = 600
    least_call_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    zero_rated_needs_balance: bool = False
    hold_expiry: HoldEnd = "charge_reported"
    abort: HoldEnd = "charge_reported"
    unreachable: Literal["stop", "leases", "emergency"] = "stop"
    emergency_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    proration: Literal["prorate", "full"] = "prorate"
    change: Literal["upgrade_now", "now", "next_cycle"] = "upgrade_now"
    running_accounts: Literal["next_cycle", "now"] = "next_cycle"
    subscriber_tokens: Tokens | None = None
    limits: Annotated[tuple[PlanLimit, ...], Listed] = ()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401  what a file says may be anything
        said = renamed(said, "fee", "fee_nano", nano_of)
        return renamed(said, "overage_price", "overage_nano", nano_of)

    @model_validator(mode="after")
    def _check(self) -> Plan:
        _only_with("overage_price", self.overage_nano, f"used_up = {self.used_up!r}", "'overage'")
        unreachable = f"unreachable = {self.unreachable!r}"
        _only_with("emergency_tokens", self.emergency_tokens, unreachable, "'emergency'")
        if self.mode == "strict" and self.used_up == "overage":
            raise ValueError("a strict plan never goes beyond its tokens: it cannot have overage")
        windows = [limit.window for limit in self.limits]
        for at, window in enumerate(windows):
            if window in windows[:at]:
                raise ValueError(f"limits: two for one window: {' '.join(filter(None, window))}")
        return self

    @property
    def allowance_utok(self) -> int:
        """What a cycle gives, in µtok."""
        return self.tokens * UTOK

    @property
    def priced_ahead_s(self) -> int:
        """How far ahead to look for the dearest price of a call, in seconds."""
        longest_s = self.longest_call_s if self.mode == "strict" else 0
        return max(2 * self.hold_validity_s, longest_s)

    @property
    def least_call_utok(self) -> int | None:
        """What is too little for any call, in µtok; None is what is usual."""
        return None if self.least_call_tokens is None else self.least_call_tokens * UTOK

    @property
    def rollover_utok(self) -> int:
        """What may go over to the next cycle at most, in µtok."""
        return self.rollover_tokens * UTOK

    @property
    def emergency_utok(self) -> int:
        """What a gateway may use while charging is out of its reach, in µtok."""
        return (self.emergency_tokens or 0) * UTOK

    @property
    def subscriber_utok(self) -> int | None:
        """What one subscriber may use of a cycle, in µtok; None is all."""
        return None if self.subscriber_tokens is None else self.subscriber_tokens * UTOK


class Pack(Part):
    """Hold what a pack gives once and for how long; `issuer` paid for it, if not the account."""

    title: Name
    fee_nano: Nano
    tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)]
    valid_days: Annotated[int, Field(ge=1, le=3660)]
    priority: Priority = 100
    source: Literal["pack", "gift", "free"] = "pack"
    transferable: bool = False
    shared: bool = True
    groups: Names = ()
    issuer: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401
        return renamed(said, "fee", "fee_nano", nano_of)

    @model_validator(mode="after")
    def _check(self) -> Pack:
        if self.source == "free" and self.fee_nano:
            raise ValueError("a free pack has no fee: write fee = 0")
        return self

    @property
    def allowance_utok(self) -> int:
        """What the pack gives, in µtok."""
        return self.tokens * UTOK


def _only_with(name: str, given: int | None, said: str, wanted: str) -> None:
    """Refuse a value without the choice it belongs to, and the choice without the value."""
    if (given is not None) != said.endswith(wanted):
        verb = "needs" if given is None else "takes no"
        raise ValueError(f"{said} {verb} {name}")
