"""Hold one version of the catalog: what is sold, and what a token of each model costs.

version = 3
effective_from = 2026-11-01T00:00:00+08:00    # a whole minute
time_zone = "Asia/Shanghai"                   # of the hours below
unknown_model = "reject"                      # or "default", and then [default_rate]

[[rates]]                                     # standard tokens a token, by kind
provider = "telecom"
model = "GLM-5"                               # "*": all of the provider that have no rate
input_tokens = 1
cache_read_tokens = "0.1"                     # text is exact; kinds not named: see `rates.PLAIN_KIND`
output_tokens = "5/4"
hours = [{ from = "00:00", to = "08:00", multiply = "0.5" }]

[groups]
flagship = ["telecom/GLM-5", "other/*"]

[plans.family]                                # fields: see `offers.Plan` and `offers.Pack`
title = "Family"
fee = "9.9"
tokens = 10_000_000
mode = "prepaid"

A whole sample is `schemas/catalog.toml`.
"""

from __future__ import annotations

import json
import tomllib
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, ValidationError, model_validator

from tokenline.errors import BadData
from tokenline.rating.offers import Pack, Plan
from tokenline.rating.parts import Listed, Name, Names, Part, renamed
from tokenline.rating.rates import ANY, MINUTE_MS, ModelRate, Rate, check_model, minute_of_day
from tokenline.texts import read_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last day a calendar can say, in any zone; no catalog is in force from there on.
END_OF_TIME_MS = 253_402_214_400_000
NO_RATE = -1
# What the file calls a field: faults are told in its words.
_FILE_NAMES: dict[int | str, str] = {
    "effective_ms": "effective_from",
    "fee_nano": "fee",
    "overage_nano": "overage_price",
    "start_minute": "from",
    "end_minute": "to",
}


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not an IANA zone such as Asia/Shanghai") from error
    return name


def _by_name(rates: tuple[ModelRate, ...]) -> tuple[ModelRate, ...]:
    ordered = tuple(sorted(rates, key=lambda rate: (rate.provider, rate.model)))
    for one, next_one in pairwise(ordered):
        if (one.provider, one.model) == (next_one.provider, next_one.model):
            raise ValueError(f"{one} stands twice")
    return ordered


def _models(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("a group has at least one model")
    for name in names:
        provider, _, model = name.partition("/")
        if not (provider and model):
            raise ValueError(f"{name!r} is not provider/model or provider/{ANY}")
        check_model(provider, model)
    return names


Group = Annotated[Names, AfterValidator(_models)]


class Catalog(Part):
    """Hold one version, checked; two of the same content have the same JSON, byte for byte."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    effective_ms: Annotated[int, Field(ge=0, lt=END_OF_TIME_MS, multiple_of=MINUTE_MS)]
    time_zone: Annotated[str, AfterValidator(_known_zone)]
    currency: Literal["CNY"]
    unknown_model: Literal["reject", "default"]
    default_rate: Rate | None = None
    rates: Annotated[tuple[ModelRate, ...], Listed, AfterValidator(_by_name)] = ()
    groups: dict[Name, Group] = Field(default_factory=dict)
    plans: dict[Name, Plan] = Field(default_factory=dict)
    packs: dict[Name, Pack] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401  what a file says may be anything
        return renamed(said, "effective_from", "effective_ms", _moment)

    @model_validator(mode="after")
    def _check(self) -> Catalog:
        if (self.default_rate is not None) != (self.unknown_model == "default"):
            verb = "needs" if self.default_rate is None else "takes no"
            raise ValueError(f"unknown_model = {self.unknown_model!r} {verb} [default_rate]")
        if not self.rates_by_slot:
            raise ValueError("there is neither a rate nor a default_rate: nothing could be used")
        self._check_groups()
        for place, groups in self._scopes():
            self._check_scope(place, groups)
        return self

    # Tables are kept by catalog, and partitions hold copies: comparing must cost next to nothing.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalog) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON, in hex: names this very content."""
        return sha256(self.to_json().encode()).hexdigest()

    @property
    def effective_from(self) -> datetime:
        """When the version comes into force, in its own zone."""
        return datetime.fromtimestamp(self.effective_ms // 1000, ZoneInfo(self.time_zone))

    @cached_property
    def rates_by_slot(self) -> tuple[Rate, ...]:
        """Return all rates; the default one, if there is one, is the last."""
        return self.rates if self.default_rate is None else (*self.rates, self.default_rate)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Return the minutes of the day at which some rate may change, ascending."""
        every = (hours for rate in self.rates_by_slot for hours in rate.hours)
        return tuple(
            sorted({minute for hours in every for span in hours.spans() for minute in span})
        )

    def slot_of(self, provider: str, model: str) -> int:
        """Return where the rate of a model stands in `rates_by_slot`, or NO_RATE.

        The model's own comes first, then the provider's `*`, then the default.
        """
        slot = self._slots.get((provider, model))
        return self._slots.get((provider, ANY), self._default_slot) if slot is None else slot

    def rate_of(self, provider: str, model: str) -> Rate | None:
        """Return the rate of a model, or None where it has none and unknown models are refused."""
        slot = self.slot_of(provider, model)
        return None if slot == NO_RATE else self.rates_by_slot[slot]

    @cached_property
    def zero_rated(self) -> tuple[str, ...]:
        """Return the models whose every kind costs nothing, `provider/model`, ascending.

        A provider stands as `provider/*` when its `*` costs nothing and no model of it has a price of its
        own. What a default rate of nothing covers has no name, and is not here.
        """
        priced = {rate.provider for rate in self.rates if any(rate.utok)}
        return tuple(
            f"{rate.provider}/{rate.model}"
            for rate in self.rates
            if not any(rate.utok) and not (rate.model == ANY and rate.provider in priced)
        )

    def minute_at(self, moment_ms: int) -> int:
        """Return the minute of the day in the catalog's zone; 0 while no rate has hours."""
        return minute_of_day(self.time_zone, moment_ms // MINUTE_MS) if self.cuts else 0

    def period_at(self, moment_ms: int) -> int:
        """Return which part of the day it is: while it lasts, no rate changes."""
        return bisect_right(self.cuts, self.minute_at(moment_ms))

    def period_start(self, period: int) -> int:
        """Return the minute of the day at which a period begins."""
        return (0, *self.cuts)[period]

    def models_in(self, groups: Iterable[str]) -> tuple[str, ...]:
        """Return the members of groups, `provider/model` or `provider/*`; of no groups none.

        Raises:
            KeyError: there is no such group.
        """
        return tuple(sorted({member for group in groups for member in self.groups[group]}))

    def to_json(self) -> str:
        """Return the whole content; every number is an integer."""
        return json.dumps(
            self.model_dump(), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> Catalog:
        """Return what `to_json` gave, checked as a file is.

        Raises:
            BadData: it is no catalog; the text names the place.
        """
        try:
            return _checked(json.loads(text))
        except _BadParts as error:
            raise BadData(f"catalog: {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadData(f"catalog: not JSON: {error}") from error

    @cached_property
    def _slots(self) -> dict[tuple[str, str], int]:
        return {(rate.provider, rate.model): slot for slot, rate in enumerate(self.rates)}

    @cached_property
    def _default_slot(self) -> int:
        return NO_RATE if self.default_rate is None else len(self.rates)

    def _check_groups(self) -> None:
        """Refuse a member that no rate covers: it is misspelt, nothing could be charged to it."""
        providers = {rate.provider for rate in self.rates}
        for group, members in self.groups.items():
            for member in members:
                provider, _, model = member.partition("/")
                rated = provider in providers if model == ANY else self.rate_of(provider, model)
                if not rated and self.default_rate is None:
                    raise ValueError(f"groups.{group}: {member!r} has no rate")

    def _scopes(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        for name, plan in self.plans.items():
            yield f"plans.{name}.groups", plan.groups
            for at, limit in enumerate(plan.limits):
                yield f"plans.{name}.limits.{at}", (limit.group,) if limit.group else ()
        for name, pack in self.packs.items():
            yield f"packs.{name}.groups", pack.groups

    def _check_scope(self, place: str, groups: tuple[str, ...]) -> None:
        for group in groups:
            if group not in self.groups:
                known = ", ".join(sorted(self.groups)) or "none"
                raise ValueError(f"{place}: there is no group {group!r}; groups: {known}")


def read_catalog(path: Path) -> Catalog:
    """Parse and check a catalog file.

    Raises:
        BadData: the file is not there or is wrong; the text names the place.
    """
    try:
        return _checked(tomllib.loads(read_text(path, BadData)))
    except _BadParts as error:
        raise BadData(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path}: not TOML: {error}") from error


class _BadParts(BadData):
    """Say what is wrong and where, though not yet in which file."""


def _checked(said: Any) -> Catalog:  # noqa: ANN401
    try:
        return Catalog.model_validate(said)
    except ValidationError as error:
        fault = error.errors()[0]
        text = fault["msg"].removeprefix("Value error, ")
        raise _BadParts(": ".join(filter(None, (_place(fault["loc"], said), text)))) from error


def _place(path: tuple[int | str, ...], said: Any) -> str:  # noqa: ANN401
    """Return where a fault is; a rate is a number in a list, so also say whose it is."""
    place = ".".join(str(_FILE_NAMES.get(part, part)) for part in path)
    if path[:1] != ("rates",) or len(path) == 1:
        return place
    rate = said["rates"][path[1]]
    return f"{place} ({rate.get('provider')}/{rate.get('model')})" if type(rate) is dict else place


def _moment(said: object) -> int:
    if not isinstance(said, datetime) or said.tzinfo is None:
        raise ValueError(f"{said} is not a time with an offset, such as 2026-11-01T00:00:00+08:00")
    if said.second or said.microsecond:
        raise ValueError(f"{said} is not a whole minute")
    return (said - EPOCH) // timedelta(milliseconds=1)
