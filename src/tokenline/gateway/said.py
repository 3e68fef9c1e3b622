"""Turn what callers, the guard and the line say into what the others need to hear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.errors import CallRefused, ChargingUnavailable, CutOff
from tokenline.gateway.call import STEP_TOKENS
from tokenline.gateway.lease import MOST_UTOK, Granted, Need
from tokenline.quota.crumbs import least_top_up
from tokenline.reasons import Facts, refusal
from tokenline.wire.view import NOT_COVERED

if TYPE_CHECKING:
    from tokenline.gateway.admission import Asked
    from tokenline.gateway.lease import Key
    from tokenline.gateway.prices import Price, Prices
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
        limit_unit=reply["limit_unit"],
        limit_used=reply["limit_used"],
        limit_held=reply["limit_held"],
        limit_value=reply["limit_value"] if reply["limit_name"] or reply["limit_value"] else -1,
        resets_at_ms=reply["resets_at"],
        top_up_utok=reply["top_up_utok"],
    )


def refusal_of(asked: Asked, verdict: Verdict, prices: Prices, now_ms: int) -> CallRefused:
    """Return the error that says what the guard knows of an account that may not go on."""
    top_up_utok = 0
    if (verdict.rule or verdict.reason) == "balance":
        top_up_utok = _top_up(asked, verdict, prices, now_ms)
    facts = _facts(asked.key, verdict, top_up_utok)
    return refusal(_word_of(verdict), asked.key.account, facts, now_ms)


def refusal_by(
    key: Key, need: Need, reason: str, answer: Granted, in_hand_utok: int, now_ms: int
) -> CallRefused:
    """Return the error of a call that the line refused, or that waited in vain.

    `in_hand_utok` is what is left for it, here and there.
    """
    top_up_utok = 0
    if reason == "balance_used_up":
        # What was asked for was the smallest need in line.
        top_up_utok = max(1, answer.top_up_utok, need.least_utok - in_hand_utok)
    facts = Facts(
        subscriber=key.subscriber,
        limit_name=answer.limit_name,
        unit=answer.limit_unit,
        used=answer.limit_used,
        held=answer.limit_held,
        limit=answer.limit_value,
        resets_at_ms=answer.resets_at_ms,
        top_up_utok=top_up_utok,
    )
    return refusal(reason, key.account, facts, now_ms)


def cut_off_of(key: Key, verdict: Verdict, now_ms: int) -> CallRefused:
    """Return the error that ends a call whose account or subscriber was cut off."""
    facts = _facts(key, verdict)
    return refusal(_word_of(verdict), key.account, facts, now_ms, CutOff)


def cut_by(error: CallRefused) -> CutOff:
    """Return the error that ends a call that runs, for what refuses it more."""
    facts = {
        name: value for name, value in vars(error).items() if name not in ("account", "reason")
    }
    return CutOff(error.account, error.reason, **facts)


def _word_of(verdict: Verdict) -> str:
    return verdict.reason if verdict.reason == NOT_COVERED else verdict.rule or verdict.reason


def _top_up(asked: Asked, verdict: Verdict, prices: Prices, now_ms: int) -> int:
    """Return the smallest top-up that lets a call pass, as of the decision; µtok."""
    rest_utok = verdict.limit - verdict.used
    try:
        rules = prices.rules(verdict.terms, asked.key.provider, asked.key.model, now_ms)
    except ChargingUnavailable:
        rules = None
    if rules is None or rules.mode == "postpaid":
        return max(1, 1 - rest_utok)
    said_utok = verdict.terms.least_call_utok
    least_utok = need_of(asked, whole=False, price=rules.price).least_utok
    past_crumb_utok = least_top_up(said_utok, verdict.limit, rest_utok)
    # What is left does not pay for this use where it is not covered.
    pays_utok = 0 if verdict.reason == NOT_COVERED else rest_utok
    return max(1, past_crumb_utok, least_utok - pays_utok)


def _facts(key: Key, verdict: Verdict, top_up_utok: int = 0) -> Facts:
    return Facts(
        subscriber=key.subscriber,
        unit=verdict.unit,
        used=verdict.used,
        limit=verdict.limit,
        resets_at_ms=verdict.resets_at_ms,
        top_up_utok=top_up_utok,
    )
