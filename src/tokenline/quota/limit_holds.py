"""Hold units against limits too: what is granted fits into every limit and the buckets at once.

Against limits in µtok a hold reserves, so that what is used and what is held never exceed one
together. Limits in tokens and requests are compared with what was used so far: of a call nobody
knows more. A hold that names a subscriber is bound by the account's limits and by the subscriber's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from tokenline.quota.balance import Balance
from tokenline.quota.books import BOUNDLESS
from tokenline.quota.cell_limits import cell_limits
from tokenline.quota.decided import Rule, unit_of
from tokenline.quota.hold_rows import HoldStatus, Reason
from tokenline.quota.limit_windows import resets_at, roll
from tokenline.quota.limits import Limit
from tokenline.quota.terms import NEVER_MS, Unit

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenline.quota.books import Books
    from tokenline.quota.hold_rows import Hold, HoldAnswer
    from tokenline.quota.holds import HoldOrder
    from tokenline.quota.terms import Terms


class Facts(NamedTuple):
    """Say how a limit stands: its number as of `HoldAnswer`, what is used and held of it, 0 for no reset."""

    limit: int
    used: int
    held: int
    ceiling: int
    resets_at_ms: int


@dataclass(frozen=True, slots=True)
class Bound:
    """Say what limits leave to a hold beyond what it owes: µtok, and tokens of an answer.

    `reached` is the first limit that leaves less than is needed, None where all leave enough. It
    `waits` when each would leave enough if others gave back what they hold against it.
    """

    room_utok: int = BOUNDLESS
    max_tokens: int = BOUNDLESS
    reached: Facts | None = None
    waits: bool = False


def put_in_force(books: Books, row: int, terms: Terms, now_ms: int) -> None:
    """Give an account the limits of a plan beside its own; a hold forgets those that are gone."""
    owner = books.get(row, Balance.OWNER)
    changed(books, row, books.limits.put_in_force(owner, terms.limits, now_ms))


def changed(books: Books, row: int, gone: Collection[int]) -> None:
    """Note that an account has other limits now; its holds forget those whose rows were given back."""
    owner = books.get(row, Balance.OWNER)
    books.set(row, Balance.LIMITED, books.limits.any_in_force(owner))
    for hold in books.holds.of_owner(owner) if gone else ():
        kept = [limit for limit in hold.limits if limit not in gone]
        if kept != hold.limits:
            hold.limits = kept
            books.holds.save(hold)


def bind(
    books: Books, row: int, hold: Hold, order: HoldOrder, needed_utok: int, now_ms: int
) -> Bound:
    """Let go of what a hold reserves, find the limits it now falls under, and say what they leave.

    Less than `needed_utok`, beyond what the hold owes, is of no use.
    """
    _reserve(books, hold, 0)
    hold.limits = []
    bound = Bound()
    for cell in cell_limits(books.cells, hold.owner, now_ms):
        facts = Facts(-cell.rule, cell.used, 0, cell.ceiling, cell.resets_at_ms)
        bound = _narrowed(bound, cell.unit, facts, hold, order, needed_utok)
    if not books.get(row, Balance.LIMITED):
        return bound
    limits = books.limits
    for limit in limits.matching(hold.owner, order.use):
        roll(books, limit, now_ms)
        unit = Unit(limits.get(limit, Limit.UNIT))
        if unit is Unit.UTOK:
            hold.limits.append(limit)
        bound = _narrowed(bound, unit, _facts(books, limit), hold, order, needed_utok)
    return bound


def keep(books: Books, hold: Hold) -> None:
    """Save a hold, and reserve of its limits what it holds of buckets."""
    holds = hold.status in (HoldStatus.OPEN, HoldStatus.SETTLED)
    _reserve(books, hold, hold.held_utok if holds else 0)
    books.holds.save(hold)


def said(bound: Bound, answer: HoldAnswer) -> HoldAnswer:
    """Return an answer that names the limit which is reached."""
    if bound.reached is None:
        return answer
    limit, used, held, ceiling, resets_at_ms = bound.reached
    return replace(
        answer,
        limit=limit,
        limit_used=used,
        limit_held=held,
        limit_value=ceiling,
        resets_at_ms=resets_at_ms,
    )


def named(books: Books, answer: HoldAnswer) -> HoldAnswer:
    """Return an answer that says how the limit which it names by its number is called, and its unit."""
    if answer.limit < 0:
        rule = Rule(-answer.limit)
        return replace(answer, limit_name=rule.name.lower(), limit_unit=unit_of(rule).name.lower())
    if answer.limit:
        spec = books.limits.specs[answer.limit]
        return replace(answer, limit_name=spec.name, limit_unit=spec.unit.name.lower())
    short = answer.reason in (Reason.BALANCE_HELD, Reason.BALANCE_USED_UP)
    return replace(answer, limit_unit=Unit.UTOK.name.lower()) if short else answer


def _facts(books: Books, limit: int) -> Facts:
    values: list[int] = books.limits.matrix[limit].tolist()
    ends_ms = resets_at(values)
    return Facts(
        values[Limit.SPEC],
        values[Limit.USED],
        values[Limit.HELD],
        values[Limit.CEILING],
        0 if ends_ms == NEVER_MS else ends_ms,
    )


def _narrowed(
    bound: Bound,
    unit: Unit,
    facts: Facts,
    hold: Hold,
    order: HoldOrder,
    needed_utok: int,
) -> Bound:
    """Return a bound that also keeps one limit more."""
    left, waits = facts.ceiling - facts.used - facts.held, False
    if unit is Unit.UTOK:
        room, most = left - hold.owed_utok, BOUNDLESS
        short, waits = room < needed_utok, room + facts.held >= needed_utok
        # What its own calls used is used, though no usage event has told yet.
        facts = facts._replace(used=facts.used + hold.owed_utok)
    elif unit is Unit.TOKENS and not order.lease:
        # An answer has at least one token, if it is to have any.
        most = left - order.prompt_tokens
        short = left <= 0 or most < min(1, order.max_tokens)
        room = order.prompt_utok + most * order.output_utok if order.output_utok else BOUNDLESS
    else:
        room, most, short = BOUNDLESS, BOUNDLESS, left <= 0
    # What is used up counts for more than what is only held.
    names = short and (bound.reached is None or (bound.waits and not waits))
    return Bound(
        room_utok=max(0, min(bound.room_utok, room)),
        max_tokens=max(0, min(bound.max_tokens, most)),
        reached=facts if names else bound.reached,
        waits=waits if names else bound.waits,
    )


def _reserve(books: Books, hold: Hold, amount_utok: int) -> None:
    more = amount_utok - hold.reserved_utok
    for limit in hold.limits if more else ():
        books.limits.set(limit, Limit.HELD, books.limits.get(limit, Limit.HELD) + more)
    hold.reserved_utok = amount_utok
