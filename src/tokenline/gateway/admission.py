"""Read what a gateway asks for, and see to the end of the call it gets."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tokenline.counts import count_of, duration_of
from tokenline.errors import InvalidEvent
from tokenline.event import UsageEvent

if TYPE_CHECKING:
    from types import TracebackType

    from tokenline.gateway.call import Call
    from tokenline.gateway.gateway import Gateway
    from tokenline.gateway.lease import Key

# Whose names were found good is remembered of so many: to look again costs as much as an admission.
KNOWN_KEYS = 16_384


class Asked(NamedTuple):
    """Hold what a gateway asked for; tokens."""

    key: Key
    prompt_tokens: int
    max_tokens: int
    within_s: float
    streams: bool = True


def asked_of(
    key: Key, prompt_tokens: int, max_tokens: int, within_ms: float, most: int, *, streams: bool
) -> Asked:
    """Return what is asked, checked; an answer is no longer than one event may say (`most`).

    Raises:
        InvalidEvent: no event may have such a name or count, or the wait is no duration; the text
            says which.
    """
    try:
        _check_names(key)
    except TypeError as error:
        # What cannot be looked up is no text either.
        raise InvalidEvent(f"a name of a call must be text (str): {error}") from error
    prompt_tokens = count_of("prompt_tokens", prompt_tokens, most)
    max_tokens = min(count_of("max_tokens", max_tokens), most)
    within_s = duration_of("within_ms", within_ms) / 1000
    return Asked(key, prompt_tokens, max_tokens, within_s, streams=bool(streams))


@lru_cache(maxsize=KNOWN_KEYS)
def _check_names(key: Key) -> None:
    """Refuse names that no event may have: nobody could ever tell what such a call used."""
    UsageEvent(
        tenant_id=key.tenant,
        account_id=key.account,
        subscriber_id=key.subscriber,
        provider=key.provider,
        model=key.model,
        event_id="-",
    )


class Admission:
    """Open a call and see to its end; what `Gateway.admit` returns."""

    def __init__(self, gateway: Gateway, asked: Asked) -> None:
        self._gateway = gateway
        self._asked = asked
        self._call: Call | None = None

    async def __aenter__(self) -> Call:
        """Admit the call; see `Gateway.admit` for what is raised."""
        self._call = await self._gateway.open_call(self._asked)
        return self._call

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle by the plan's abort policy what was not finished."""
        # Nothing is awaited here: it must also end whole where the loop has ended.
        if self._call is not None and not self._call.finished:
            self._gateway.abort(self._call, error)
