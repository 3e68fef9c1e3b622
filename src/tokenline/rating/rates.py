"""Say how many standard tokens a token is, by model, kind and hour of the day.

A kind that a rate does not name costs what its plain kind costs (`PLAIN_KIND`): never nothing, and
never 1 by accident.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from tokenline.event import TOKEN_KINDS
from tokenline.rating.exact import (
    DAY_MINUTES,
    MULTIPLIER_MAX,
    UTOK,
    clock_text,
    minute_of,
    ratio_of,
    utok_of,
    whole_utok,
)
from tokenline.rating.parts import Listed, Name, Part, named, renamed

MINUTE_MS = 60_000
ANY = "*"
# What a kind costs that is not named: so much as the kind it stands for.
PLAIN_KIND = {
    "cache_read_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "cache_write_1h_tokens": "cache_write_tokens",
    "reasoning_tokens": "output_tokens",
    "audio_input_tokens": "input_tokens",
    "audio_output_tokens": "output_tokens",
    "image_input_tokens": "input_tokens",
    "image_output_tokens": "output_tokens",
}
Utok = Annotated[int, Field(ge=0, le=MULTIPLIER_MAX * UTOK)]
# µtok a token for each of TOKEN_KINDS, in their order.
Row = Annotated[
    tuple[Utok, ...], Listed, Field(min_length=len(TOKEN_KINDS), max_length=len(TOKEN_KINDS))
]
Natural = Annotated[int, Field(ge=0, le=10**15)]


class Hours(Part):
    """Multiply a rate within some hours of the local day.

    From `start_minute` up to but not including `end_minute`; a start after the end goes through
    midnight. `multiply` is numerator and denominator, in lowest terms.
    """

    start_minute: Annotated[int, Field(ge=0, lt=DAY_MINUTES)]
    end_minute: Annotated[int, Field(gt=0, le=DAY_MINUTES)]
    multiply: Annotated[tuple[Natural, Natural], Listed]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401  what a file says may be anything
        said = renamed(said, "from", "start_minute", minute_of)
        said = renamed(said, "to", "end_minute", lambda to: minute_of(to) or DAY_MINUTES)
        if isinstance(said, dict) and isinstance(said.get("multiply"), str | int | float):
            return {**said, "multiply": named("multiply", _lowest_terms, said["multiply"])}
        return said

    @model_validator(mode="after")
    def _check(self) -> Hours:
        if self.start_minute == self.end_minute:
            raise ValueError(f"{self}: from and to are the same")
        if self.multiply[1] == 0 or self.ratio.as_integer_ratio() != self.multiply:
            raise ValueError(f"multiply: {self.multiply} is no fraction in lowest terms")
        return self

    def __str__(self) -> str:
        return f"{clock_text(self.start_minute)} to {clock_text(self.end_minute)}"

    @property
    def ratio(self) -> Fraction:
        """What the rate is multiplied by."""
        return Fraction(*self.multiply)

    def spans(self) -> list[tuple[int, int]]:
        """Return the half-open spans of a day's minutes: two where it goes through midnight."""
        start, end = self.start_minute, self.end_minute
        return [(start, end)] if start < end else [(0, end), (start, DAY_MINUTES)]

    def hold(self, minute: int) -> bool:
        """Say whether these hours hold at a minute of the day."""
        return any(start <= minute < end for start, end in self.spans())


def _by_start(hours: tuple[Hours, ...]) -> tuple[Hours, ...]:
    return tuple(sorted(hours, key=lambda one: one.start_minute))


class Rate(Part):
    """Hold the multipliers of all kinds in µtok a token, and the hours in which they differ."""

    utok: Row
    hours: Annotated[tuple[Hours, ...], Listed, AfterValidator(_by_start)] = ()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401
        if not isinstance(said, dict) or "utok" in said:
            return said
        given = {kind: said[kind] for kind in TOKEN_KINDS if kind in said}
        rest = {name: value for name, value in said.items() if name not in given}
        return {**rest, "utok": _row_of(given)}

    @model_validator(mode="after")
    def _check(self) -> Rate:
        spans = sorted(span for hours in self.hours for span in hours.spans())
        for (_, end), (start, _) in pairwise(spans):
            if start < end:
                raise ValueError(f"hours overlap at {clock_text(start)}")
        for hours in self.hours:
            for kind, utok in zip(TOKEN_KINDS, self.utok, strict=True):
                whole_utok(utok * hours.ratio, f"hours {hours}: {kind} then")
        return self

    def row_at(self, minute: int) -> tuple[int, ...]:
        """Return µtok a token of each kind at a minute of the local day."""
        for hours in self.hours:
            if hours.hold(minute):
                top, bottom = hours.multiply
                return tuple(utok * top // bottom for utok in self.utok)
        return self.utok


class ModelRate(Rate):
    """Hold the rate of one model, or with model `*` of all of a provider that have none."""

    provider: Name
    model: Name

    @model_validator(mode="after")
    def _check_names(self) -> ModelRate:
        check_model(self.provider, self.model)
        return self

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


def check_model(provider: str, model: str) -> None:
    """Refuse a provider with a slash or `*`, and a model with `*` within.

    Raises:
        ValueError: it is so; a group names a model as provider/model and could not be read.
    """
    if "/" in provider or ANY in provider:
        raise ValueError(f"provider {provider!r} must not have '/' or '{ANY}'")
    if ANY in model and model != ANY:
        raise ValueError(
            f"model {model!r}: '{ANY}' stands for all models, not for a part of a name"
        )


@lru_cache(maxsize=65_536)
def minute_of_day(zone: str, minute: int) -> int:
    """Return the minute of the local day, 0 to 1439, at a minute counted from the epoch, UTC."""
    local = datetime.fromtimestamp(minute * 60, ZoneInfo(zone))
    return local.hour * 60 + local.minute


def _lowest_terms(said: object) -> tuple[int, int]:
    ratio = ratio_of(said)
    if ratio > MULTIPLIER_MAX:
        raise ValueError(f"{said!r} is above {MULTIPLIER_MAX}")
    return ratio.as_integer_ratio()


def _row_of(given: dict[str, object]) -> tuple[int, ...]:
    read = {kind: named(kind, utok_of, said) for kind, said in given.items()}
    return tuple(_multiplier(read, kind) for kind in TOKEN_KINDS)


def _multiplier(read: dict[str, int], kind: str) -> int:
    while kind not in read:
        if kind not in PLAIN_KIND:
            raise ValueError(f"{kind} is missing: each rate names input_tokens and output_tokens")
        kind = PLAIN_KIND[kind]
    return read[kind]
