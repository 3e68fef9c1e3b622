"""Read what a gateway reports of a call: the event it makes, and what can be read of a report that is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenline.counts import count_of, shown
from tokenline.errors import InvalidEvent
from tokenline.event import TOKEN_KINDS, UsageEvent
from tokenline.rating.tariff import ANSWER_KINDS, PROMPT_KINDS

if TYPE_CHECKING:
    from tokenline.gateway.lease import Key
    from tokenline.gateway.prices import Price

# Whose the call is was settled when it was admitted.
_ADMITTED = ("tenant_id", "account_id", "subscriber_id", "hold_id")
_NAMES = frozenset(field.name for field in fields_of(UsageEvent))
Said = Mapping[str, Any]


def event_of(key: Key, hold_id: str, now_ms: int, usage: object, fields: Said) -> UsageEvent:
    """Return the event of a call.

    `usage` has token kinds by name, or is a whole event; `fields` go before what it says. Another
    provider or model than was asked for is what ran instead.

    Raises:
        InvalidEvent: something in it is wrong; the text names it.
    """
    if isinstance(usage, UsageEvent):
        return _of_whole(key, hold_id, now_ms, usage, fields)
    said = {"provider": key.provider, "model": key.model, **_checked(usage, fields)}
    return UsageEvent(
        tenant_id=key.tenant,
        account_id=key.account,
        subscriber_id=key.subscriber,
        hold_id=hold_id,
        **said | _completed(key, said, now_ms),
    )


def _of_whole(key: Key, hold_id: str, now_ms: int, usage: UsageEvent, fields: Said) -> UsageEvent:
    whose = usage.tenant_id, usage.account_id, usage.subscriber_id
    if whose != key[:3]:
        raise InvalidEvent(
            f"the call was admitted for {'/'.join(key[:3])}, the usage is of {'/'.join(whose)}"
        )
    _check_fields(fields)
    names = ("model", "model_requested", "occurred_at")
    said = {name: getattr(usage, name) for name in names} | dict(fields)
    return replace(usage, hold_id=hold_id, **said | _completed(key, said, now_ms))


def _completed(key: Key, said: Said, now_ms: int) -> dict[str, Any]:
    """Return when it occurred, and which model was asked for where another ran."""
    # What is neither is left as it is: the event names what is wrong with it.
    at_ms, ran, asked = said.get("occurred_at", 0), said["model"], said.get("model_requested", "")
    found: dict[str, Any] = {}
    if isinstance(at_ms, int) and not at_ms:
        found["occurred_at"] = now_ms
    if isinstance(ran, str) and ran != key.model and isinstance(asked, str) and not asked:
        found["model_requested"] = key.model
    return found


def readable(usage: object, most: int) -> dict[str, int]:
    """Return the counts of a report that can be read, whatever else is wrong with it.

    A whole float and a text of digits are no counts, but it is clear what they say.
    """
    if not isinstance(usage, Mapping):
        return {}
    found = {}
    for kind in TOKEN_KINDS:
        if (count := _readable(usage.get(kind), most)) is not None:
            found[kind] = count
    return found


def filled(told: Mapping[str, int], prompt_tokens: int, answer_tokens: int) -> dict[str, int]:
    """Return what was told of a call, and where nothing was told of its prompt or answer, these."""
    found = dict(told)
    if not found.keys() & set(PROMPT_KINDS):
        found["input_tokens"] = prompt_tokens
    if not found.keys() & set(ANSWER_KINDS):
        found["output_tokens"] = answer_tokens
    return found


def dearest_utok(usage: Mapping[str, int], price: Price) -> int:
    """Return the most that so much usage may cost."""
    prompt_utok = sum(usage.get(kind, 0) for kind in PROMPT_KINDS) * price.prompt_utok
    return prompt_utok + sum(usage.get(kind, 0) for kind in ANSWER_KINDS) * price.answer_utok


def _readable(value: object, most: int) -> int | None:
    if isinstance(value, float) and math.isfinite(value):
        value = math.ceil(value)
    elif isinstance(value, str) and value.isdecimal() and len(value) < len(str(most)) + 1:
        value = int(value)
    try:
        return count_of("", value, most)
    except InvalidEvent:
        return None


def _checked(usage: object, fields: Said) -> dict[str, Any]:
    if not isinstance(usage, Mapping):
        raise InvalidEvent(
            f"usage must be a map of token kinds or a UsageEvent, not {shown(usage)}"
        )
    said = dict(usage)
    _check_fields(said)
    _check_fields(fields)
    if twice := said.keys() & fields.keys():
        raise InvalidEvent(f"{min(twice)} is said twice, in the usage and beside it")
    return said | dict(fields)


def _check_fields(said: Said) -> None:
    for name in said:
        if name in _ADMITTED:
            raise InvalidEvent(f"finish takes no {name}: whose the call is was said to admit")
        if name not in _NAMES:
            kinds = ", ".join(TOKEN_KINDS)
            raise InvalidEvent(f"a usage event has no field {shown(name)}; token kinds: {kinds}")
