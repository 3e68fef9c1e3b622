"""Say how many standard tokens a token is, by model, kind and hour of the day.

A kind that a rate does not name costs what its plain kind costs (`PLAIN_KIND`): never nothing, and
never 1 by accident. Units that are no tokens (`other_units`: searches, seconds of sound) cost what a rate
says of them by name, and nothing where it does not.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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
    UNIT_MAX,
    UTOK,
    clock_text,
    minute_of,
    ratio_of,
    unit_utok_of,
    utok_of,
    whole_utok,
)
from tokenline.rating.parts import Listed, Name, Part, named, renamed

MINUTE_MS = 60_000
ANY = "*"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
UnitUtok = Annotated[int, Field(ge=0, le=UNIT_MAX * UTOK)]
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
    """Hold the multipliers of all kinds in µtok a token, and the hours in which they differ.

    `units_utok` says by name what units cost that are no tokens, in µtok a unit.
    """

    utok: Row
    units_utok: dict[Name, UnitUtok] = Field(default_factory=dict)
    hours: Annotated[tuple[Hours, ...], Listed, AfterValidator(_by_start)] = ()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, said: Any) -> Any:  # noqa: ANN401
        if not isinstance(said, dict) or "utok" in said:
            return said
        said = renamed(said, "other_units", "units_utok", _units_of)
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
            for unit, utok in self.units_utok.items():
                whole_utok(utok * hours.ratio, f"hours {hours}: {unit} then", UNIT_MAX)
        return self

    def row_at(self, minute: int) -> tuple[int, ...]:
        """Return µtok a token of each kind at a minute of the local day."""
        top, bottom = self._multiply_at(minute)
        return tuple(utok * top // bottom for utok in self.utok)

    def unit_at(self, unit: str, minute: int) -> int | None:
        """Return µtok a unit at a minute of the local day; None where the unit has no price."""
        utok = self.units_utok.get(unit)
        if utok is None:
            return None
        top, bottom = self._multiply_at(minute)
        return utok * top // bottom

    def _multiply_at(self, minute: int) -> tuple[int, int]:
        return next((hours.multiply for hours in self.hours if hours.hold(minute)), (1, 1))


class ModelRate(Rate):
    """Hold the rate of one model, or with model `*` of all of a provider that have none.

    From `applies_ms` on it prices what no version priced then (see `book`); None is from when its version
    is in force.
    """

    provider: Name
    model: Name
    applies_ms: Annotated[int, Field(ge=0, multiple_of=MINUTE_MS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_moment(cls, said: Any) -> Any:  # noqa: ANN401
        return renamed(said, "applies_from", "applies_ms", moment_of)

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


def moment_of(said: object) -> int:
    """Return a whole minute with an offset as ms since the epoch.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(said, datetime) or said.tzinfo is None:
        raise ValueError(f"{said} is not a time with an offset, such as 2026-11-01T00:00:00+08:00")
    if said.second or said.microsecond:
        raise ValueError(f"{said} is not a whole minute")
    return (said - EPOCH) // timedelta(milliseconds=1)


def _units_of(said: object) -> dict[str, object]:
    if not isinstance(
        said, dict
    ):  # pydantic takes nothing but a ValueError for a fault of the file
        raise ValueError(  # noqa: TRY004
            f'{said!r} is no table such as {{ web_search_count = "500" }}'
        )
    for kind in TOKEN_KINDS:
        if kind in said:
            raise ValueError(f"{kind} is a kind of tokens: give it beside other_units")
    return {unit: named(str(unit), unit_utok_of, price) for unit, price in said.items()}


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
