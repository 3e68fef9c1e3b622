"""Describe one usage event as a gateway developer builds it, checked when made.

An event is one upstream attempt, failures included. Token kinds are disjoint: a cached prompt token
counts in `cache_read_tokens`, not in `input_tokens`; keeping them so is the caller's duty: no
check can see it. Who sent it, in which position (gateway_*), is the emitter's to add. Nothing here
knows Kafka or Avro; the default `event_id` is the one thing that reads the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, TypeVar, get_args

from tokenline.clock import SystemClock
from tokenline.counts import INT64_MAX, count_of, shown
from tokenline.errors import InvalidEvent
from tokenline.names import NAME_MAX_BYTES, why_bad, why_bad_of

# The ten disjoint kinds, in the schema's order; everything that sums tokens iterates over this.
TOKEN_KINDS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
)
UsageSource = Literal["reported", "partial", "estimated"]
# Whose doing the end was: the client's, the provider's, the line's, or the gateway's own.
Outcome = Literal["completed", "client_abort", "upstream_error", "cut_off", "gateway_error"]

MAP_MAX_ENTRIES = 64
TAG_MAX_CHARS = 1024
ATTEMPT_MAX = 10_000

_USAGE_SOURCES: dict[str, None] = dict.fromkeys(get_args(UsageSource))
_OUTCOMES: dict[str, None] = dict.fromkeys(get_args(Outcome))
_CLOCK = SystemClock()
_set = object.__setattr__
Value = TypeVar("Value")


def new_event_id() -> str:
    """Return a UUIDv7: unique, and in the order of time, which keeps the ledger's index small."""
    noise = int.from_bytes(os.urandom(10), "big")
    high = (_CLOCK.wall_ms() << 16) | 0x7000 | (noise >> 68)
    low = (1 << 63) | (noise & 0x3FFF_FFFF_FFFF_FFFF)
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """State what one attempt used; tokens are whole numbers, times are ms since the epoch, UTC.

    Sending the same object again is safe: its identity is (tenant_id, source, event_id). `occurred_at` 0 means
    now, and an empty `source` means the emitter's; the emitter fills both in.

    Raises:
        InvalidEvent: a field is wrong; the text names it.
    """

    account_id: str
    provider: str
    model: str
    event_id: str = field(default_factory=new_event_id)
    tenant_id: str = "default"
    source: str = ""
    request_id: str = ""
    attempt: int = 1
    subscriber_id: str = ""
    home_domain: str = ""
    serving_domain: str = ""
    model_requested: str = ""
    operation: str = "chat"
    occurred_at: int = 0
    started_at: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    other_units: Mapping[str, int] = field(default_factory=dict)
    usage_source: UsageSource = "reported"
    outcome: Outcome = "completed"
    hold_id: str = ""
    corrects: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what the line would only send to the dead letters."""
        self._check_texts()
        self._check_numbers()
        _check_one_of("usage_source", self.usage_source, _USAGE_SOURCES)
        _check_one_of("outcome", self.outcome, _OUTCOMES)
        # Of most events both are the empty default.
        if self.other_units or type(self.other_units) is not dict:
            _set(self, "other_units", checked_map("other_units", self.other_units, count_of))
        if self.tags or type(self.tags) is not dict:
            _set(self, "tags", checked_map("tags", self.tags, _tag_of))

    @property
    def total_tokens(self) -> int:
        """The sum over all kinds."""
        return sum(self.kinds())

    def kinds(self) -> tuple[int, ...]:
        """Return the counts in the order of `TOKEN_KINDS`."""
        counts: tuple[int, ...] = _kinds_of(self)
        return counts

    def record(self) -> dict[str, object]:
        """Return the fields by name as the schema has them, without the emitter's (gateway_*)."""
        return dict(zip(_FIELDS, _fields_of(self), strict=True))

    def _check_texts(self) -> None:
        texts = _texts_of(self)
        if set(map(type, texts)) != _STR:
            texts = self._read_texts(texts)
        required = texts[: len(_REQUIRED)]
        # Nearly all texts are of visible ASCII and short: then one look at all of them tells.
        joined = "".join(texts)
        plain = joined.isascii() and joined.isprintable() and not _ODD.intersection(joined)
        if plain and all(required) and max(map(len, texts)) <= NAME_MAX_BYTES:
            return
        for name, text in zip(_TEXTS, texts, strict=True):
            if (text or name in _REQUIRED) and (why := why_bad_of(name, text)):
                raise InvalidEvent(f"{name} {why}")

    def _read_texts(self, texts: tuple[object, ...]) -> tuple[str, ...]:
        """Make plain texts of other kinds of str, an enum's or numpy's; name what is none."""
        for name, value in zip(_TEXTS, texts, strict=True):
            _set(self, name, _text_of(name, value))
        found: tuple[str, ...] = _texts_of(self)
        return found

    def _check_numbers(self) -> None:
        numbers = _numbers_of(self)
        if set(map(type, numbers)) != _INT or min(numbers) < 0 or max(numbers) > INT64_MAX:
            for name, value in zip(_NUMBERS, numbers, strict=True):
                _set(self, name, count_of(name, value))
        if not 1 <= self.attempt <= ATTEMPT_MAX:
            raise InvalidEvent(f"attempt must be 1 to {ATTEMPT_MAX}, not {self.attempt}")


_FIELDS = tuple(UsageEvent.__slots__)
_REQUIRED = ("tenant_id", "account_id", "event_id", "provider", "model")
_TEXTS = (
    *_REQUIRED,
    *("source", "request_id", "subscriber_id", "home_domain", "serving_domain"),
    *("model_requested", "operation", "hold_id", "corrects"),
)
_NUMBERS = (*TOKEN_KINDS, "attempt", "occurred_at", "started_at")
_STR = {str}
# What a field may forbid, or what may stand where it must not.
_ODD = frozenset(" /~*")
_INT = {int}
# One C call for all fields, here and in the checks: an event is made and checked in about 10 µs.
_kinds_of = attrgetter(*TOKEN_KINDS)
_fields_of = attrgetter(*_FIELDS)
_texts_of = attrgetter(*_TEXTS)
_numbers_of = attrgetter(*_NUMBERS)


def checked_map(
    name: str, entries: object, checked: Callable[[str, object], Value]
) -> dict[str, Value]:
    """Return a copy of a map, its values `checked`.

    Raises:
        InvalidEvent: it is no map, has too many entries, or one is wrong; the text names it.
    """
    if not isinstance(entries, Mapping):
        raise InvalidEvent(f"{name} must be a map (dict), not {shown(entries)}")
    if len(entries) > MAP_MAX_ENTRIES:
        raise InvalidEvent(
            f"{name} has {len(entries)} entries, at most {MAP_MAX_ENTRIES} are taken"
        )
    found: dict[str, Value] = {}
    for key, value in entries.items():
        text = _text_of(f"a key of {name}", key)
        if why := why_bad(text):
            raise InvalidEvent(f"a key of {name} {why}")
        found[text] = checked(f"{name}[{text!r}]", value)
    return found


def _text_of(name: str, value: object) -> str:
    """Return a text as a plain str; an enum's or numpy's is one too."""
    if not isinstance(value, str):
        raise InvalidEvent(f"{name} must be text (str), not {shown(value)}")
    return str.__str__(value)


def _tag_of(name: str, value: object) -> str:
    """Return a tag: it may hold any text, but a lone surrogate has no UTF-8."""
    text = _text_of(name, value)
    if len(text) > TAG_MAX_CHARS:
        raise InvalidEvent(f"{name} has {len(text)} characters, at most {TAG_MAX_CHARS} are taken")
    if not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidEvent(f"{name} has half a character, which no UTF-8 can say")
    return text


def _check_one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidEvent(f"{name} must be one of {', '.join(allowed)}, not {shown(value)}")
