"""Reserve units for calls whose size nobody knows yet, and settle them when usage tells.

    hold ──> update ──> ... ──> settle ─┬─> usage events draw it down ──> closed
      └─ usage events draw it down  ────┘
      └─ silence for 2 x validity ──> expired: charged or released, by the plan's policy

One rule sizes them all. A session has reported R used units of which U have arrived as usage, and
wants W more: after the answer it holds max(0, R - U) + W, or less where there is less. A hold is
W = its worst case with R = 0; an update moves R and asks for the next slice; settle and release are
W = 0. Usage is charged by usage events and by nothing else, so a settled hold keeps what its calls
have used until their events are here. RFC 8506 5.1.1, 5.4, 8.2, 13.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenline.quota.balance import Balance, Status
from tokenline.quota.books import BOUNDLESS, MOST_UTOK, Books
from tokenline.quota.buckets import rest_of
from tokenline.quota.counting import charge_expired, refund_expired
from tokenline.quota.covers import may_pay
from tokenline.quota.hold_parts import (
    charge_again,
    charge_ended,
    drop_empty,
    pays,
    refund,
    shrink,
    take,
    there_is,
    use_held,
)
from tokenline.quota.hold_rows import (
    PARTS_MAX,
    Hold,
    HoldAnswer,
    HoldStatus,
    Outcome,
    Reason,
    Session,
)
from tokenline.quota.limit_holds import Bound, bind, keep, said
from tokenline.quota.paying import Payer, burn_now, claimable_utok, payers
from tokenline.quota.standing import is_crumb, top_up_past_crumb
from tokenline.quota.terms import NEVER_MS, NOTHING, HoldExpiry, Terms, Use

LEASE_SHARE = 2
THRESHOLD_PERCENT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOrder:
    """Hold what a gateway asks; amounts in µtok.

    Less than `needed_utok` is of no use to it. Of what a lease wants `first_utok` is for the calls that
    run and the one that waits; only the rest, for calls to come, is shared out when it is scarce. Of
    what it holds `keep_utok` stays whatever is answered: calls run on it. `prompt_utok` and
    `output_utok` (a token) turn what was granted into `max_tokens`. `settles` ends the session: nothing
    more is wanted. What is `unpriced`, because no catalog has a rate for the model, is granted nothing;
    what is `zero_rated` costs nothing.
    """

    session: Session
    seq: int
    use: Use = NOTHING
    lease: bool = False
    reported_utok: int = 0
    wanted_utok: int = 0
    needed_utok: int = 0
    first_utok: int = 0
    keep_utok: int = 0
    prompt_utok: int = 0
    output_utok: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    settles: bool = False
    unpriced: bool = False
    zero_rated: bool = False
    catalog_version: int = 0


def answer_hold(books: Books, row: int, order: HoldOrder, now_ms: int) -> HoldAnswer:
    """Grant, enlarge, settle or refuse; the account was brought up to `now_ms` before.

    The last question of a session repeated gets its answer again, whatever has changed since. One
    that is older than the last is told so: its answer is gone, and granting anew could double it.
    """
    owner = books.get(row, Balance.OWNER)
    hold = books.holds.find(owner, order.session)
    if hold is not None and order.seq == hold.seq:
        return hold.answer
    if hold is not None and order.seq < hold.seq:
        return HoldAnswer(outcome=Outcome.REFUSED, reason=Reason.STALE_SEQ, at_ms=now_ms)
    if hold is None and order.reported_utok:
        # Who has used something was granted it: this session is over for so long that it is forgotten.
        reason = Reason.NONE if order.settles else Reason.UNKNOWN_HOLD
        outcome = Outcome.DONE if order.settles else Outcome.REFUSED
        return HoldAnswer(outcome=outcome, reason=reason, late=True, at_ms=now_ms)
    if hold is None:
        hold = Hold(owner=owner, session=order.session, lease=order.lease, opened_at_ms=now_ms)
    terms = books.terms(row)
    hold.seq = order.seq
    if _never_held(hold):
        hold.status, hold.opened_at_ms = HoldStatus.OPEN, now_ms
    hold.reported_utok = max(hold.reported_utok, order.reported_utok)
    ended = hold.status is not HoldStatus.OPEN
    if ended and not (order.settles and hold.status is HoldStatus.SETTLED):
        # One that was settled too: what it were granted now, its last usage would let go of.
        hold.answer = _answer_late(books, row, hold, order, now_ms)
    elif order.settles:
        hold.answer = _settle(books, hold, terms, now_ms)
    else:
        hold.answer = _grant(books, row, hold, order, terms, now_ms)
    keep(books, hold)
    return hold.answer


def draw(
    books: Books,
    row: int,
    hold: Hold,
    use: Use,
    amount_utok: int,
    occurred_ms: int,
    now_ms: int,
    pay: Payer = burn_now,
) -> bool:
    """Charge usage to what its session holds of buckets that cover it, and the rest like any usage.

    Say whether it is late. What was charged at the hold's expiry is not charged again: what of it does
    not cover the usage comes back for what is paid elsewhere. That is paid by what was valid when it
    occurred, as without a session; `pay` says how.
    """
    late = hold.status in (HoldStatus.EXPIRED, HoldStatus.CLOSED)
    hold.used_utok = min(hold.used_utok + amount_utok, MOST_UTOK)
    left = amount_utok
    for at, part in enumerate(hold.parts):
        taken = min(part.amount_utok, left)
        if not taken or not pays(books, part, use):
            continue
        left -= taken
        hold.parts[at] = part._replace(amount_utok=part.amount_utok - taken)
        (charge_again if late else use_held)(books, row, part, taken, now_ms)
        books.note_burn(row, part.number, taken)
    drop_empty(hold)
    if late:
        refund_expired(books, hold, amount_utok - left + refund(books, row, hold, left, now_ms))
    if left:
        pay(books, row, use, left, occurred_ms, now_ms)
    if hold.status is HoldStatus.SETTLED and not hold.owed_utok:
        shrink(books, row, hold, 0, now_ms)
        _close(hold, hold.expires_at_ms)
    keep(books, hold)
    return late


def expire(books: Books, row: int, hold: Hold, now_ms: int) -> None:
    """Close a hold nobody settled: charge what was reported, all that was granted, or nothing.

    One that was settled is charged what its calls have used, whatever the policy. It stays known
    as long as usage of a call that still runs may be reported; then what was charged here counts.
    """
    settled = hold.status is HoldStatus.SETTLED
    policy = HoldExpiry.CHARGE_REPORTED if settled else HoldExpiry(hold.expiry)
    if policy is not HoldExpiry.CHARGE_GRANTED:
        owed_utok = 0 if policy is HoldExpiry.RELEASE else hold.owed_utok
        shrink(books, row, hold, owed_utok, now_ms)
    charge_expired(books, hold, now_ms)
    for part in hold.parts:
        charge_ended(books, row, part, now_ms)
    hold.status = HoldStatus.EXPIRED
    hold.expires_at_ms = now_ms
    hold.kept_until_ms = now_ms + books.terms(row).priced_ahead_ms + books.linger_ms
    keep(books, hold)


def _grant(
    books: Books, row: int, hold: Hold, order: HoldOrder, terms: Terms, now_ms: int
) -> HoldAnswer:
    owed, before = hold.owed_utok, {part.number: part.amount_utok for part in hold.parts}
    # Usage may be here before its gateway reports it: what is asked for counts from the report.
    ahead = max(hold.reported_utok, hold.used_utok) - order.reported_utok
    kept = max(0, min(order.keep_utok - ahead, hold.held_utok - owed))
    reason = _barred(books, row, order)
    bound = Bound()
    # Refused anyhow, what holds nothing needs no limits: a subscriber nobody knows would get rows.
    if not reason or hold.parts or hold.owed_utok:
        bound = bind(books, row, hold, order, order.needed_utok - ahead, now_ms)
    if not reason and bound.reached is not None:
        reason = Reason.LIMIT_HELD if bound.waits else Reason.LIMIT_REACHED
    if not reason and order.needed_utok > ahead and is_crumb(books.balances.matrix[row].tolist()):
        # Its account is cut: granted, it were open again until the call has ended.
        reason = Reason.BALANCE_USED_UP
    if not reason and order.zero_rated and terms.zero_rated_needs_balance:
        reason = _needs_balance(books, row, order.use, now_ms)
    wanted = min(_slice(books, row, hold, order, ahead, bound.room_utok), bound.room_utok)
    wanted = 0 if reason else max(0, wanted)
    target = owed + max(kept, wanted)
    shrink(books, row, hold, target, now_ms)
    found = there_is(books, row, order.use, target - hold.held_utok, now_ms)
    granted = max(0, hold.held_utok + sum(part.amount_utok for part in found) - owed)
    if not reason and granted < order.needed_utok - ahead:
        reason = _shortage(books, row, order.use, order.needed_utok - ahead - kept, now_ms)
        granted = kept
        # What is too little for this call may be enough for another.
        shrink(books, row, hold, owed + kept, now_ms)
        found = there_is(books, row, order.use, owed + kept - hold.held_utok, now_ms)
    take(books, row, hold, found)
    _prolong(hold, terms, now_ms, keep=not reason)
    answer = HoldAnswer(
        outcome=Outcome.REFUSED if reason else Outcome.DONE,
        reason=reason,
        granted_utok=granted + ahead,
        max_tokens=0 if reason else min(_max_tokens(order, granted + ahead), bound.max_tokens),
        threshold_utok=granted * THRESHOLD_PERCENT // 100,
        validity_ms=terms.hold_validity_ms if granted or not reason else 0,
        final=not reason and granted < order.wanted_utok - ahead,
        catalog_version=order.catalog_version,
        rest_utok=_rest(books, row, order.use, now_ms),
        at_ms=now_ms,
        split=tuple(
            (part.number, more)
            for part in hold.parts
            if (more := part.amount_utok - before.get(part.number, 0)) > 0
        )[:PARTS_MAX],
    )
    if reason in (Reason.BALANCE_HELD, Reason.BALANCE_USED_UP):
        return _with_balance(books, row, answer, order.needed_utok - ahead - kept)
    return said(bound, answer) if reason in (Reason.LIMIT_HELD, Reason.LIMIT_REACHED) else answer


def _barred(books: Books, row: int, order: HoldOrder) -> Reason:
    if order.unpriced:
        return Reason.UNKNOWN_MODEL
    status = books.get(row, Balance.STATUS)
    if status == Status.SUSPENDED:
        return Reason.SUSPENDED
    return Reason.CLOSED if status == Status.CLOSED else Reason.NONE


def _slice(books: Books, row: int, hold: Hold, order: HoldOrder, ahead: int, room_utok: int) -> int:
    """Return how much to grant: all that is wanted, and of a scarce balance or limit only a fair part.

    Many leases must not lock away from each other what little is left (RFC 8506 5.1.2). How many share
    a limit nobody counts: each takes a part of what the others have left of it.
    """
    wanted = order.wanted_utok - ahead
    if not order.lease:
        return wanted
    left = max(0, books.get(row, Balance.LEFT)) + hold.held_utok
    sharers = LEASE_SHARE * max(1, books.holds.leases(hold.owner))
    fair = min(left // sharers, room_utok // LEASE_SHARE)
    return max(order.needed_utok - ahead, min(wanted, max(order.first_utok - ahead, fair)))


def _needs_balance(books: Books, row: int, use: Use, now_ms: int) -> Reason:
    """Refuse what costs nothing where nothing is left that could pay for it, and the plan stops."""
    rows = (books.buckets.matrix[one].tolist() for one in payers(books, row, use, now_ms))
    goes_on = not books.get(row, Balance.STOPS) or any(may_pay(values, now_ms) for values in rows)
    return Reason.NONE if goes_on else Reason.BALANCE_USED_UP


def _shortage(books: Books, row: int, use: Use, more_utok: int, now_ms: int) -> Reason:
    """Say whether waiting may help: what is held, by whomever, may come back."""
    rows = (books.buckets.matrix[one].tolist() for one in payers(books, row, use, now_ms))
    found = sum(rest_of(values) + claimable_utok(values) for values in rows)
    return Reason.BALANCE_HELD if found >= more_utok else Reason.BALANCE_USED_UP


def _with_balance(books: Books, row: int, answer: HoldAnswer, more_utok: int) -> HoldAnswer:
    """Return a refusal that says how the balance stands, as it does of a limit, and what would help."""
    top_up_utok = 0
    if answer.reason is Reason.BALANCE_USED_UP:
        past_crumb_utok = top_up_past_crumb(books.balances.matrix[row].tolist())
        top_up_utok = max(past_crumb_utok, more_utok - answer.rest_utok)
    total, left, held, opens_ms = (
        books.get(row, column)
        for column in (Balance.TOTAL, Balance.LEFT, Balance.HELD, Balance.OPENS_AT)
    )
    return replace(
        answer,
        limit_used=total - left - held,
        limit_held=held,
        limit_value=total,
        resets_at_ms=0 if opens_ms == NEVER_MS else opens_ms,
        top_up_utok=top_up_utok,
    )


def _rest(books: Books, row: int, use: Use, now_ms: int) -> int:
    # Returned transfers are taken however much there is: a sum may be more than an answer holds.
    return min(BOUNDLESS, sum(map(books.buckets.rest, payers(books, row, use, now_ms))))


def _max_tokens(order: HoldOrder, granted: int) -> int:
    if not order.output_utok and granted >= order.prompt_utok:
        return order.max_tokens
    if not (granted and order.output_utok):
        return 0
    return max(0, min(order.max_tokens, (granted - order.prompt_utok) // order.output_utok))


def _settle(books: Books, hold: Hold, terms: Terms, now_ms: int) -> HoldAnswer:
    row = books.row(hold.owner)
    shrink(books, row, hold, hold.owed_utok, now_ms)
    if hold.owed_utok:
        # Its usage is on the way: until then it holds what was used.
        hold.status = HoldStatus.SETTLED
        _prolong(hold, terms, now_ms, keep=True)
    else:
        _close(hold, now_ms + 2 * terms.hold_validity_ms)
    return HoldAnswer(at_ms=now_ms, rest_utok=hold.held_utok)


def _never_held(hold: Hold) -> bool:
    """Say whether a session was refused and is only remembered: it may ask anew."""
    refused = hold.status is HoldStatus.CLOSED and hold.answer.outcome is Outcome.REFUSED
    return refused and not hold.answer.late and not (hold.used_utok or hold.reported_utok)


def _answer_late(books: Books, row: int, hold: Hold, order: HoldOrder, now_ms: int) -> HoldAnswer:
    """Take a settlement that comes after the expiry: what was charged beyond the use is given back.

    A session that wants more is refused: it has ended, and needs another name.
    """
    surplus = hold.held_utok - hold.owed_utok
    if hold.status is HoldStatus.EXPIRED and surplus > 0:
        refund_expired(books, hold, surplus)
        refund(books, row, hold, surplus, now_ms)
    if order.wanted_utok and not order.settles:
        return HoldAnswer(
            outcome=Outcome.REFUSED, reason=Reason.UNKNOWN_HOLD, late=True, at_ms=now_ms
        )
    return HoldAnswer(at_ms=now_ms, late=True)


def _close(hold: Hold, kept_until_ms: int) -> None:
    hold.status, hold.kept_until_ms = HoldStatus.CLOSED, kept_until_ms


def _prolong(hold: Hold, terms: Terms, now_ms: int, *, keep: bool) -> None:
    """Let a hold live for two validities more; one that was refused from the start is only remembered."""
    hold.expiry = terms.hold_expiry
    hold.expires_at_ms = now_ms + 2 * terms.hold_validity_ms
    if not keep and not hold.parts and not hold.owed_utok:
        _close(hold, hold.expires_at_ms)
