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

from tokenline.quota.books import BOUNDLESS, MOST_UTOK, Balance, Books, Status
from tokenline.quota.buckets import Bucket, Part
from tokenline.quota.counting import charge_expired, refund_expired
from tokenline.quota.entries import ChangeKind
from tokenline.quota.hold_rows import (
    PARTS_MAX,
    Hold,
    HoldAnswer,
    HoldStatus,
    Outcome,
    Reason,
    Session,
)
from tokenline.quota.limit_holds import bind, keep, said
from tokenline.quota.standing import is_crumb
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
    more is wanted. What is `unpriced`, because no catalog has a rate for the model, is granted nothing.
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
) -> bool:
    """Charge usage to what its session holds, and the rest like any usage; say whether it is late.

    What was charged at the hold's expiry is not charged again. The rest is paid by what was valid
    when it occurred, as without a session.
    """
    late = hold.status in (HoldStatus.EXPIRED, HoldStatus.CLOSED)
    hold.used_utok = min(hold.used_utok + amount_utok, MOST_UTOK)
    left = amount_utok
    for at, part in enumerate(hold.parts):
        taken = min(part.amount_utok, left)
        if not taken:
            continue
        left -= taken
        hold.parts[at] = part._replace(amount_utok=part.amount_utok - taken)
        if late:
            _give_back(books, row, part, taken, now_ms)
        else:
            books.buckets.change(part.row, Bucket.HELD, -taken)
        books.buckets.change(part.row, Bucket.USED, taken)
        books.note_burn(row, part.number, taken)
    hold.parts = [part for part in hold.parts if part.amount_utok]
    if late:
        refund_expired(books, hold, amount_utok - left)
    if left:
        books.burn(row, use, left, min(occurred_ms, now_ms))
    if hold.status is HoldStatus.SETTLED and not hold.owed_utok:
        _resize(books, row, hold, 0)
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
        _resize(books, row, hold, 0 if policy is HoldExpiry.RELEASE else hold.owed_utok)
    charge_expired(books, hold, now_ms)
    for part in hold.parts:
        books.buckets.change(part.row, Bucket.HELD, -part.amount_utok)
        books.buckets.change(part.row, Bucket.USED, part.amount_utok)
        if part.amount_utok:
            books.enter(row, part.row, ChangeKind.HOLD_CHARGE, -part.amount_utok, now_ms)
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
    bound = bind(books, row, hold, order, order.needed_utok - ahead, now_ms)
    reason = _barred(books, row, order)
    if not reason and bound.reached is not None:
        reason = Reason.LIMIT_HELD if bound.waits else Reason.LIMIT_REACHED
    if not reason and order.needed_utok > ahead and is_crumb(books.balances.matrix[row].tolist()):
        # Its account is cut: granted, it were open again until the call has ended.
        reason = Reason.BALANCE_USED_UP
    wanted = min(_slice(books, row, hold, order, ahead, bound.room_utok), bound.room_utok)
    wanted = 0 if reason else max(0, wanted)
    target = owed + max(kept, wanted)
    _resize(
        books,
        row,
        hold,
        target,
        use=order.use,
        at_ms=now_ms,
        overage=not books.get(row, Balance.STOPS),
    )
    granted = max(0, hold.held_utok - owed)
    if not reason and granted < order.needed_utok - ahead:
        reason = _shortage(books, row, order.use, order.needed_utok - ahead - kept, now_ms)
        granted = kept
        # What is too little for this call may be enough for another.
        _resize(books, row, hold, owed + kept)
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
        return _with_balance(books, row, answer)
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


def _shortage(books: Books, row: int, use: Use, more_utok: int, now_ms: int) -> Reason:
    """Say whether waiting may help: what is held, by whomever, may come back."""
    payers, buckets = books.payers(row, use, now_ms), books.buckets
    found = sum(buckets.rest(bucket) + buckets.get(bucket, Bucket.HELD) for bucket in payers)
    return Reason.BALANCE_HELD if found >= more_utok else Reason.BALANCE_USED_UP


def _with_balance(books: Books, row: int, answer: HoldAnswer) -> HoldAnswer:
    """Return a refusal that says how the balance stands, as it does of a limit."""
    total, opens_ms = books.get(row, Balance.TOTAL), books.get(row, Balance.OPENS_AT)
    return replace(
        answer,
        limit_used=total - books.get(row, Balance.LEFT),
        limit_value=total,
        resets_at_ms=0 if opens_ms == NEVER_MS else opens_ms,
    )


def _rest(books: Books, row: int, use: Use, now_ms: int) -> int:
    # Returned transfers are taken however much there is: a sum may be more than an answer holds.
    return min(BOUNDLESS, sum(map(books.buckets.rest, books.payers(row, use, now_ms))))


def _max_tokens(order: HoldOrder, granted: int) -> int:
    if not order.output_utok and granted >= order.prompt_utok:
        return order.max_tokens
    if not (granted and order.output_utok):
        return 0
    return max(0, min(order.max_tokens, (granted - order.prompt_utok) // order.output_utok))


def _settle(books: Books, hold: Hold, terms: Terms, now_ms: int) -> HoldAnswer:
    row = books.row(hold.owner)
    _resize(books, row, hold, hold.owed_utok)
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
        for at, part in reversed(list(enumerate(hold.parts))):
            taken = min(part.amount_utok, surplus)
            surplus -= taken
            hold.parts[at] = part._replace(amount_utok=part.amount_utok - taken)
            _give_back(books, row, part, taken, now_ms)
        hold.parts = [part for part in hold.parts if part.amount_utok]
    if order.wanted_utok and not order.settles:
        return HoldAnswer(
            outcome=Outcome.REFUSED, reason=Reason.UNKNOWN_HOLD, late=True, at_ms=now_ms
        )
    return HoldAnswer(at_ms=now_ms, late=True)


def _give_back(books: Books, row: int, part: Part, amount_utok: int, now_ms: int) -> None:
    if amount_utok:
        books.buckets.change(part.row, Bucket.USED, -amount_utok)
        books.enter(row, part.row, ChangeKind.HOLD_REFUND, amount_utok, now_ms)


def _close(hold: Hold, kept_until_ms: int) -> None:
    hold.status, hold.kept_until_ms = HoldStatus.CLOSED, kept_until_ms


def _prolong(hold: Hold, terms: Terms, now_ms: int, *, keep: bool) -> None:
    """Let a hold live for two validities more; one that was refused from the start is only remembered."""
    hold.expiry = terms.hold_expiry
    hold.expires_at_ms = now_ms + 2 * terms.hold_validity_ms
    if not keep and not hold.parts and not hold.owed_utok:
        _close(hold, hold.expires_at_ms)


def _resize(
    books: Books,
    row: int,
    hold: Hold,
    target_utok: int,
    *,
    use: Use | None = None,
    at_ms: int = 0,
    overage: bool = False,
) -> None:
    """Hold `target_utok`, or as much as there is; without `use` it only gives back.

    What was taken last is given back first, so what stays is what burns first.
    """
    surplus = hold.held_utok - target_utok
    for part in reversed(hold.parts) if surplus > 0 else ():
        taken = min(part.amount_utok, surplus)
        surplus -= taken
        _put(books, hold, part._replace(amount_utok=-taken))
    if surplus < 0 and use is not None:
        for part in books.split(row, use, -surplus, at_ms):
            surplus += part.amount_utok
            _put(books, hold, part)
        if surplus < 0 and overage:
            over = min(-surplus, books.uncovered_room(row))
            _put(books, hold, Part(books.get(row, Balance.UNCOVERED), 0, over))
    hold.parts = [part for part in hold.parts if part.amount_utok]


def _put(books: Books, hold: Hold, part: Part) -> None:
    """Add to what is held of one bucket."""
    for at, old in enumerate(hold.parts):
        if old.row == part.row:
            hold.parts[at] = old._replace(amount_utok=old.amount_utok + part.amount_utok)
            break
    else:
        hold.parts.append(part)
    books.buckets.change(part.row, Bucket.HELD, part.amount_utok)
