"""Turn what callers, the guard and the line say into what the others need to hear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.errors import CutOff, QuotaExceeded
from tokenline.gateway.call import STEP_TOKENS
from tokenline.gateway.lease import MOST_UTOK, Granted, Need

if TYPE_CHECKING:
    from tokenline.gateway.call import Asked
    from tokenline.gateway.lease import Key
    from tokenline.gateway.prices import Price
    from tokenline.wire.orders import Reply
    from tokenline.wire.view import Verdict


def need_of(asked: Asked, *, whole: bool, price: Price) -> Need:
    """Return what a call has to reserve: all it may cost, or as much as a prepaid one begins with."""
    prompt_utok = asked.prompt_tokens * price.prompt_utok
    answer = asked.max_tokens if whole else min(asked.max_tokens, STEP_TOKENS)
    # One event may cost no more than fits; a prompt and an answer together are two of its counts.
    return Need(
        full_utok=min(prompt_utok + answer * price.answer_utok, MOST_UTOK),
        least_utok=prompt_utok + min(answer, 1) * price.answer_utok,
    )


def granted_of(reply: Reply) -> Granted:
    """Return what a lease needs of an answer."""
    return Granted(
        reason=reply["reason"],
        granted_utok=reply["granted_utok"],
        threshold_utok=reply["threshold_utok"],
        validity_ms=reply["validity_ms"],
        final=bool(reply["final"]),
        late=bool(reply["late"]),
        rest_utok=reply["rest_utok"],
        limit_name=reply["limit_name"],
        limit_used=reply["limit_used"],
        limit_value=reply["limit_value"] if reply["limit_name"] or reply["limit_value"] else -1,
        resets_at_ms=reply["resets_at"],
    )


def refusal_of(key: Key, verdict: Verdict) -> QuotaExceeded:
    """Return the error that says what the guard knows of an account that may not go on."""
    short = (verdict.rule or verdict.reason) == "balance"
    top_up_utok = max(1, verdict.used - verdict.limit + 1) if short else 0
    return QuotaExceeded(**_known(key, verdict), top_up_utok=top_up_utok)


def cut_off_of(key: Key, verdict: Verdict) -> CutOff:
    """Return the error that ends a call whose account or subscriber was cut off."""
    return CutOff(**_known(key, verdict))


def _known(key: Key, verdict: Verdict) -> dict[str, Any]:
    return {
        "account": key.account,
        "reason": verdict.rule or verdict.reason,
        "subscriber": key.subscriber,
        "used": verdict.used,
        "limit": verdict.limit,
        "resets_at_ms": verdict.resets_at_ms,
    }
