"""Turn what callers, the guard and the line say into what the others need to hear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.errors import ChargingUnavailable, CutOff, QuotaExceeded
from tokenline.gateway.call import STEP_TOKENS
from tokenline.gateway.lease import MOST_UTOK, Granted, Need
from tokenline.rating.exact import UTOK

if TYPE_CHECKING:
    from tokenline.gateway.admission import Asked
    from tokenline.gateway.lease import Key
    from tokenline.gateway.prices import Price, Prices
    from tokenline.wire.orders import Reply
    from tokenline.wire.plan_terms import PlanTerms
    from tokenline.wire.view import Verdict

# Where a plan says no `least_call_tokens`, charging takes no more than this for too little.
USUAL_CALL_UTOK = 100 * UTOK


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


def refusal_of(asked: Asked, verdict: Verdict, prices: Prices, now_ms: int) -> QuotaExceeded:
    """Return the error that says what the guard knows of an account that may not go on."""
    top_up_utok = 0
    if (verdict.rule or verdict.reason) == "balance":
        rest_utok = verdict.limit - verdict.used
        top_up_utok = max(1, _least_rest(asked, verdict.terms, prices, now_ms) - rest_utok)
    return QuotaExceeded(**_known(asked.key, verdict), top_up_utok=top_up_utok)


def cut_off_of(key: Key, verdict: Verdict) -> CutOff:
    """Return the error that ends a call whose account or subscriber was cut off."""
    return CutOff(**_known(key, verdict))


def _least_rest(asked: Asked, terms: PlanTerms, prices: Prices, now_ms: int) -> int:
    """Return how much an account must have left for a call to pass; µtok."""
    try:
        rules = prices.rules(terms, asked.key.provider, asked.key.model, now_ms)
    except ChargingUnavailable:
        return 1
    if rules is None or rules.mode == "postpaid":
        return 1
    said_utok = terms.least_call_utok
    too_little_utok = USUAL_CALL_UTOK if said_utok is None else said_utok
    return max(too_little_utok + 1, need_of(asked, whole=False, price=rules.price).least_utok)


def _known(key: Key, verdict: Verdict) -> dict[str, Any]:
    return {
        "account": key.account,
        "reason": verdict.rule or verdict.reason,
        "subscriber": key.subscriber,
        "used": verdict.used,
        "limit": verdict.limit,
        "resets_at_ms": verdict.resets_at_ms,
    }
