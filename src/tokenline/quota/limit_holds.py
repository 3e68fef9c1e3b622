"""Hold units against limits too: what is granted fits into every limit and the buckets at once.

Against limits in µtok a hold reserves, so that what is used and what is held never exceed one
together. Limits in tokens and requests are compared with what was used so far: of a call nobody
knows more. A hold that names a subscriber is bound by the account's limits and by the subscriber's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tokenline.quota.books import BOUNDLESS, Balance
from tokenline.quota.hold_rows import HoldStatus
from tokenline.quota.limit_windows import resets_at, roll
from tokenline.quota.limits import Limit
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS, Unit

if TYPE_CHECKING:
    from tokenline.quota.books import Books
    from tokenline.quota.hold_rows import Hold, HoldAnswer
    from tokenline.quota.holds import HoldOrder
    from tokenline.quota.terms import Terms


@dataclass(frozen=True, slots=True)
class Bound:
    """Say what limits leave to a hold beyond what it owes: µtok, and tokens of an answer.

    `row` is the limit that leaves least of what is needed, NONE where all leave enough.
    """

    room_utok: int = BOUNDLESS
    max_tokens: int = BOUNDLESS
    row: int = NONE


def put_in_force(books: Books, row: int, terms: Terms, now_ms: int) -> None:
    """Give an account the limits of a plan; a hold forgets those that are gone."""
    books.set(row, Balance.LIMITED, bool(terms.limits))
    owner = books.get(row, Balance.OWNER)
    gone = books.limits.put_in_force(owner, terms.limits, now_ms)
    for hold in books.holds.of_owner(owner) if gone else ():
        kept = [limit for limit in hold.limits if limit not in gone]
        if kept != hold.limits:
            hold.limits = kept
            books.holds.save(hold)


def bind(books: Books, row: int, hold: Hold, order: HoldOrder, now_ms: int) -> Bound:
    """Let go of what a hold reserves, find the limits it now falls under, and say what they leave."""
    _reserve(books, hold, 0)
    hold.limits = []
    if not books.get(row, Balance.LIMITED):
        return Bound()
    bound, limits = Bound(), books.limits
    for limit in limits.matching(hold.owner, order.use):
        roll(books, limit, now_ms)
        if limits.get(limit, Limit.UNIT) == Unit.UTOK:
            hold.limits.append(limit)
        bound = _narrowed(bound, books, limit, hold, order)
    return bound


def keep(books: Books, hold: Hold) -> None:
    """Save a hold, and reserve of its limits what it holds of buckets."""
    holds = hold.status in (HoldStatus.OPEN, HoldStatus.SETTLED)
    _reserve(books, hold, hold.held_utok if holds else 0)
    books.holds.save(hold)


def said(books: Books, bound: Bound, answer: HoldAnswer) -> HoldAnswer:
    """Return an answer that names the limit which is reached."""
    if bound.row == NONE:
        return answer
    limits, ends_ms = books.limits, resets_at(books.limits.matrix[bound.row].tolist())
    return replace(
        answer,
        limit=limits.get(bound.row, Limit.SPEC),
        limit_used=limits.get(bound.row, Limit.USED) + limits.get(bound.row, Limit.HELD),
        limit_value=limits.get(bound.row, Limit.CEILING),
        resets_at_ms=0 if ends_ms == NEVER_MS else ends_ms,
    )


def _narrowed(bound: Bound, books: Books, limit: int, hold: Hold, order: HoldOrder) -> Bound:
    """Return a bound that also keeps one limit more."""
    used, held = (books.limits.get(limit, column) for column in (Limit.USED, Limit.HELD))
    left = books.limits.get(limit, Limit.CEILING) - used - held
    unit = Unit(books.limits.get(limit, Limit.UNIT))
    if unit is Unit.UTOK:
        room, most = left - hold.owed_utok, BOUNDLESS
        short = room < order.needed_utok
    elif unit is Unit.TOKENS and not order.lease:
        # An answer has at least one token, if it is to have any.
        most = left - order.prompt_tokens
        short = left <= 0 or most < min(1, order.max_tokens)
        room = order.prompt_utok + most * order.output_utok if order.output_utok else BOUNDLESS
    else:
        room, most, short = BOUNDLESS, BOUNDLESS, left <= 0
    return Bound(
        room_utok=max(0, min(bound.room_utok, room)),
        max_tokens=max(0, min(bound.max_tokens, most)),
        row=limit if short and bound.row == NONE else bound.row,
    )


def _reserve(books: Books, hold: Hold, amount_utok: int) -> None:
    more = amount_utok - hold.reserved_utok
    for limit in hold.limits if more else ():
        books.limits.set(limit, Limit.HELD, books.limits.get(limit, Limit.HELD) + more)
    hold.reserved_utok = amount_utok
