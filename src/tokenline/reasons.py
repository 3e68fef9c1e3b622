"""List why a call may be refused, and what a gateway does about each: a closed list; pure.

    402  money or a bigger plan helps now      403  nobody but an operator can help
    404  there is no such model                429  waiting helps: see `retry_after_ms`
    503  nobody can say just now

README has it as a table, which a test holds to this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenline.errors import (
    RETRY_AFTER_MS,
    AccountClosed,
    AccountSuspended,
    BackPressure,
    BadData,
    CallRefused,
    CutOff,
    InvalidSignature,
    QuotaExceeded,
    StaleView,
    Unavailable,
    UnknownAccount,
    UnknownModel,
)

Helps = Literal["top_up", "wait", "resume", "none"]
UTOK, TOKENS, REQUESTS = "utok", "tokens", "requests"
OF_THE_LIMIT = "the limit's"
# What takes no time to come back is told by nobody: what others hold, a lease that ended.
_SOON = ("balance_held", "limit_held", "lease_ended")
SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Meaning:
    """Say what a reason means to who gets the answer: its error, status, unit, and what helps."""

    error: type[CallRefused]
    status: int
    unit: str
    helps: Helps
    retryable: bool
    text: str


REASONS: dict[str, Meaning] = {
    "balance_used_up": Meaning(
        QuotaExceeded, 402, UTOK, "top_up", False, "the balance has too little for the call"
    ),
    "not_covered": Meaning(
        QuotaExceeded, 402, UTOK, "top_up", False, "what is left does not pay for this model"
    ),
    "reserved_used_up": Meaning(
        CutOff, 402, "", "top_up", False, "a call that runs used all that was held for it"
    ),
    "balance_held": Meaning(
        QuotaExceeded, 429, UTOK, "wait", True, "other calls hold what is left of the balance"
    ),
    "limit_reached": Meaning(
        QuotaExceeded, 429, OF_THE_LIMIT, "wait", True, "a limit is used up until it resets"
    ),
    "limit_held": Meaning(
        QuotaExceeded, 429, OF_THE_LIMIT, "wait", True, "other calls hold what is left of a limit"
    ),
    "not_allowed": Meaning(
        QuotaExceeded, 403, OF_THE_LIMIT, "none", False, "a limit of 0, which never resets"
    ),
    "suspended": Meaning(
        AccountSuspended, 403, "", "resume", False, "somebody has suspended the account"
    ),
    "closed": Meaning(AccountClosed, 403, "", "none", False, "the account is closed"),
    "unknown_account": Meaning(
        UnknownAccount, 403, "", "none", False, "the line knows no such account"
    ),
    "unknown_model": Meaning(
        UnknownModel, 404, "", "none", False, "no catalog has a price for the model"
    ),
    "lease_ended": Meaning(
        CutOff, 503, "", "wait", True, "the line heard nothing of a call that runs for too long"
    ),
    "refused": Meaning(
        CallRefused, 500, "", "none", False, "the line takes no such question: see the text"
    ),
}
# What decisions and answers say of it, in their own words.
_WORDS = {"balance": "balance_used_up", "limit": "limit_reached"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Hold what a decision or an answer says beside the reason, as `CallRefused` has it."""

    subscriber: str = ""
    limit_name: str = ""
    unit: str = ""
    used: int = 0
    held: int = 0
    limit: int = -1
    resets_at_ms: int = 0
    top_up_utok: int = 0


def http_status(error: BaseException) -> int:
    """Return the HTTP status to answer with when a call failed by `error`; 500 for what is none of ours."""
    if isinstance(error, CallRefused):
        return REASONS[error.reason].status if error.reason in REASONS else SERVER_ERROR
    if isinstance(error, Unavailable | BackPressure | StaleView):
        return 503
    if isinstance(error, InvalidSignature):
        return 401
    return 400 if isinstance(error, BadData) else SERVER_ERROR


def refusal(
    word: str,
    account: str,
    facts: Facts,
    now_ms: int,
    kind: type[CallRefused] | None = None,
) -> CallRefused:
    """Return the error for what a decision or an answer says; `kind` of another class, for a call that runs.

    `word` is a reason, or the name of a limit that is reached.
    """
    reason = _reason_of(word, facts)
    meaning = REASONS[reason]
    name, unit = "", meaning.unit
    if unit == OF_THE_LIMIT:
        name = facts.limit_name or (word if word not in REASONS else "")
        unit = facts.unit or unit_of(name)
    retry_after_ms = RETRY_AFTER_MS if reason in _SOON else max(0, facts.resets_at_ms - now_ms)
    return (kind or meaning.error)(
        account,
        reason,
        subscriber=facts.subscriber,
        limit_name=word if reason == "refused" else name,
        unit=unit,
        used=facts.used,
        held=facts.held,
        limit=facts.limit,
        resets_at_ms=facts.resets_at_ms,
        retry_after_ms=retry_after_ms,
        top_up_utok=facts.top_up_utok,
    )


def unit_of(limit_name: str) -> str:
    """Return what a limit counts, by its name; empty where that does not say."""
    what = limit_name.partition(":")[0].partition("@")[0]
    if what == "subscriber_tokens":
        # The cap of a subscriber is named as the plan has it, in standard tokens.
        return UTOK
    return next((unit for unit in (TOKENS, UTOK, REQUESTS) if what.endswith(f"_{unit}")), "")


def _reason_of(word: str, facts: Facts) -> str:
    reason = _WORDS.get(word, word)
    if reason not in REASONS:
        reason = "limit_reached" if unit_of(word) else "refused"
    return "not_allowed" if reason == "limit_reached" and facts.limit == 0 else reason
