"""Carry out one order of an account, or one question of a session, and say what is answered.

Refusing is an answer. Only an order that cannot be read as one (no such kind, no such zone, an
amount that is no amount) is bad data, and becomes a dead letter.

What was done is remembered by its command id, so asking twice does once. A refusal is not: the same
order is judged again, and may be carried out when the cause is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tokenline.charging.balances import session_of
from tokenline.charging.grants import amount_of, pack_of
from tokenline.charging.show import shown_text
from tokenline.charging.transfers import ARRIVING, arrive, send
from tokenline.errors import BadData, Declined
from tokenline.metering.calendar import moment_text, zone_of
from tokenline.quota import orders
from tokenline.quota.answers import OrderAnswer
from tokenline.quota.balance import Balance
from tokenline.quota.books import MOST_UTOK
from tokenline.quota.cells import LIMITS, NO_LIMIT, AccountCells, Cell
from tokenline.quota.entries import Cause
from tokenline.quota.hold_rows import HoldAnswer, Outcome, Reason
from tokenline.quota.holds import HoldOrder
from tokenline.quota.limit_holds import named
from tokenline.quota.refusals import check_cycle_day
from tokenline.quota.table import NONE
from tokenline.quota.terms import Terms, Use
from tokenline.quota.zones import move_to
from tokenline.rating.tariff import dearest

if TYPE_CHECKING:
    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Commanded

Fields = Mapping[str, Any]
# Scopes are kept while a bucket has them, and all of them are in one record of the journal.
SCOPE_NAMES_MAX, SCOPE_CHARS_MAX = 1000, 16_000
# Who asks, and when, is no part of what is asked.
_UNASKED = frozenset(
    ("tenant_id", "account_id", "command_id", "reply_to", "reply_partition", "issued_at")
)
DETAIL_CHARS_MAX = 500
_ENDS = ("settle", "release")
_WHENS = ("", "now", "next_cycle")
_COUNTS = (
    *("seq", "prompt_tokens", "max_tokens", "wanted_utok"),
    *("reported_utok", "reserved_utok", "first_utok", "keep_utok"),
)
_ACTIONS = ("hold", "update", *_ENDS)
_BOUNDED = tuple(name for name in _COUNTS if name != "seq")


def carry_out_order(state: PartitionState, command: Commanded) -> tuple[int, OrderAnswer]:
    """Return the slot of the account (-1: there is none) and the answer.

    Raises:
        BadData: it is no order; the text says what is wrong.
    """
    fields, now_ms = command.fields, state.move_clock(command.appended_ms)
    key = key_of_order(fields)
    if fields["kind"] in ARRIVING:
        return arrive(state, key, fields, now_ms)
    slot = state.cells.slot(key)
    if slot is None:
        declined = _why_not(state, fields, now_ms)
        if declined is not None:
            return -1, _refusal(declined, now_ms)
        slot = _new_slot(state.cells, key, str(fields["time_zone"]))
    if fields["kind"] == "show":
        # Whoever folds commands has brought it up to the moment.
        return slot, OrderAnswer(at_ms=now_ms, detail=shown_text(state, slot))
    name, digest = session_of(str(fields["command_id"])), _digest(fields)
    answer = state.books.answers.find(slot, name)
    if answer is None:
        answer = _answer(state, slot, fields, now_ms)
        # A refusal changed nothing, and its cause may be gone when it is asked again.
        if answer.outcome is Outcome.DONE:
            state.books.answers.remember(slot, name, answer, digest)
    elif not state.books.answers.answers(slot, name, digest):
        detail = "another order was carried out under this command_id; give this one its own"
        answer = _refusal(Declined(Reason.COMMAND_ID_REUSED, detail), now_ms)
    return slot, answer


def _digest(fields: Fields) -> int:
    """Return what tells an order from another under its command id; never 0.

    All that is asked counts. Fields that say nothing are left out, as those of later schemas do.
    """
    said = sorted((name, one) for name, one in fields.items() if one and name not in _UNASKED)
    return session_of(json.dumps(said, ensure_ascii=False))[0] or 1


def key_of_order(fields: Fields) -> str:
    """Return `tenant/account` of an order.

    Raises:
        BadData: it is no order; the text says what is wrong.
    """
    key, kind = account_key_of(fields), str(fields["kind"])
    if kind not in _KINDS and kind not in ARRIVING:
        raise BadData(f"{key}: there is no order {kind!r}; known: {', '.join(_KINDS)}")
    if not -MOST_UTOK <= int(fields["amount_utok"]) <= MOST_UTOK:
        raise BadData(f"{key}: amount_utok {fields['amount_utok']} is beyond any balance")
    if not fields["command_id"] and kind not in ("show", *ARRIVING):
        raise BadData(f"{key}: an order without a command_id could not be told from another")
    return key


def carry_out_hold(state: PartitionState, slot: int, command: Commanded) -> HoldAnswer:
    """Return the answer to a question of the account of `slot`, NONE where there is no such account.

    Raises:
        BadData: it is no question of a session; the text says what is wrong.
    """
    fields, now_ms = command.fields, state.move_clock(command.appended_ms)
    if min(int(fields[name]) for name in _COUNTS) < 0:
        raise BadData("a question of a session has a count below zero")
    # What a caller or a faulty gateway names may be anything that a long holds.
    fields = {**fields, **{name: min(int(fields[name]), MOST_UTOK) for name in _BOUNDED}}
    if fields["action"] not in _ACTIONS:
        raise BadData(f"a session cannot ask {fields['action']!r}; known: {', '.join(_ACTIONS)}")
    if not fields["session"]:
        raise BadData("a question without a session could not be told from another's")
    row = state.books.row(slot)
    if row == NONE:
        return HoldAnswer(outcome=Outcome.REFUSED, reason=Reason.UNKNOWN_ACCOUNT, at_ms=now_ms)
    # Usage of others may be folded ahead of what waits here: a session that renewed in time is in time.
    now_ms = max(command.appended_ms, state.books.get(row, Balance.LOOKED_AT))
    orders.bring_up_to(state.books, slot, now_ms)
    order = _hold_order(state, state.books.terms(row), fields, now_ms)
    answer = orders.hold(state.books, slot, order, now_ms)
    return named(state.books, answer)


def account_key_of(fields: Fields) -> str:
    """Return `tenant/account` of a command.

    Raises:
        BadData: one is empty.
    """
    tenant, account = str(fields["tenant_id"]), str(fields["account_id"])
    if not (tenant and account):
        raise BadData("a command names no tenant_id or no account_id")
    return f"{tenant}/{account}"


def _why_not(state: PartitionState, fields: Fields, now_ms: int) -> Declined | None:
    """Say why an account that is not there cannot be made: an order that fails must leave none."""
    zone_of(str(fields["time_zone"]))
    if fields["kind"] != "open":
        return Declined(Reason.UNKNOWN_ACCOUNT)
    plan = str(fields["plan"])
    if state.terms_of(plan, now_ms) is None:
        return Declined(Reason.UNKNOWN_PLAN, f"no catalog in force has a plan {plan!r}")
    try:
        check_cycle_day(int(fields["cycle_day"]), 0)
    except Declined as declined:
        return declined
    return None


def _refusal(declined: Declined, now_ms: int) -> OrderAnswer:
    """Return the answer to what is declined; a name in its detail may be of any length."""
    return OrderAnswer(
        outcome=Outcome.REFUSED,
        reason=Reason(declined.reason),
        at_ms=now_ms,
        detail=declined.detail[:DETAIL_CHARS_MAX],
    )


def _new_slot(cells: AccountCells, key: str, zone: str) -> int:
    """Give an account that is opened its slot, without limits of its own."""
    slot = cells.open(key)
    row = cells.matrix[slot]
    row[Cell.ZONE] = cells.zone_code(zone)
    row[LIMITS] = NO_LIMIT
    return slot


def _answer(
    state: PartitionState,
    slot: int,
    fields: Fields,
    now_ms: int,
) -> OrderAnswer:
    try:
        with state.books.caused(Cause(str(fields["command_id"]))):
            bucket, amount = _KINDS[str(fields["kind"])](state, slot, fields, now_ms)
    except Declined as declined:
        return _refusal(declined, now_ms)
    row = state.books.row(slot)
    return OrderAnswer(
        bucket=bucket,
        amount_utok=amount,
        rest_utok=state.books.get(row, Balance.LEFT),
        at_ms=now_ms,
        detail=_pending_text(state, row) if fields["kind"] == "change_plan" else "",
    )


def _pending_text(state: PartitionState, row: int) -> str:
    """Say from when on a plan is in force that was chosen and is not yet."""
    pending, ends_ms = state.books.pending_plan(row), state.books.get(row, Balance.CYCLE_END)
    text = moment_text(state.books.zone(row), ends_ms)
    return f"{pending} is in force from {text} on" if pending else ""


def _open(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    day = int(fields["cycle_day"])
    check_cycle_day(day, 0)
    zone, plan = str(fields["time_zone"]), str(fields["plan"])
    zone_of(zone)
    if state.books.row(slot) == NONE and state.terms_of(plan, now_ms) is not None:
        # It may have been set before, with another.
        move_to(state.books, slot, zone, now_ms)
    orders.open_account(state.books, slot, plan, day, now_ms)
    return 0, 0


def _suspend(state: PartitionState, slot: int, _: Fields, now_ms: int) -> tuple[int, int]:
    orders.suspend(state.books, slot, now_ms)
    return 0, 0


def _resume(state: PartitionState, slot: int, _: Fields, now_ms: int) -> tuple[int, int]:
    orders.resume(state.books, slot, now_ms)
    return 0, 0


def _close(state: PartitionState, slot: int, _: Fields, now_ms: int) -> tuple[int, int]:
    orders.close_account(state.books, slot, now_ms)
    return 0, 0


def _change_plan(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    if fields["when"] not in _WHENS:
        raise BadData(f"a plan cannot be changed {fields['when']!r}; known: now, next_cycle")
    orders.change_plan(state.books, slot, str(fields["plan"]), now_ms, str(fields["when"]))
    return 0, 0


def _change_cycle(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    orders.change_cycle(state.books, slot, int(fields["cycle_day"]), now_ms)
    return 0, 0


def _grant(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    """Add what is named: a pack of the catalog, or an amount with its own terms."""
    _check_scope(fields)
    zone = state.cells.zones[state.cells.matrix.item(slot, +Cell.ZONE)]
    grants = pack_of if fields["pack"] else amount_of
    granted = grants(state, fields, zone, now_ms)
    return orders.grant(state.books, slot, granted, now_ms), granted.amount_utok


def _check_scope(fields: Fields) -> None:
    names = [*fields["models"], *fields["subscribers"]]
    if len(names) > SCOPE_NAMES_MAX or sum(map(len, names)) > SCOPE_CHARS_MAX:
        raise BadData(
            f"an order may name {SCOPE_NAMES_MAX} models and subscribers, of {SCOPE_CHARS_MAX} characters"
        )


def _adjust(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    bucket, amount = int(fields["bucket"]), int(fields["amount_utok"])
    orders.adjust(state.books, slot, bucket, amount, now_ms)
    return bucket, amount


def _cap(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    """Cap each subscriber that is named, or take its own cap off."""
    _check_scope(fields)
    names = [str(name) for name in fields["subscribers"]]
    if not names:
        raise BadData("a cap names the subscribers it is for")
    amount = 0 if fields["uncap"] else int(fields["amount_utok"])
    orders.cap_subscribers(state.books, slot, names, None if fields["uncap"] else amount, now_ms)
    return 0, amount


def _nothing(*_: object) -> tuple[int, int]:
    return 0, 0


_KINDS: dict[str, Callable[[PartitionState, int, Fields, int], tuple[int, int]]] = {
    "show": _nothing,
    "open": _open,
    "suspend": _suspend,
    "resume": _resume,
    "close": _close,
    "change_plan": _change_plan,
    "change_cycle": _change_cycle,
    "grant": _grant,
    "adjust": _adjust,
    "cap": _cap,
    "transfer": send,
}


def _hold_order(state: PartitionState, terms: Terms, fields: Fields, now_ms: int) -> HoldOrder:
    """Return what is asked in µtok, at the dearest price while its call may last."""
    settles = str(fields["action"]) in _ENDS
    use = Use(*(str(fields[name]) for name in ("provider", "model", "subscriber_id")))
    found = (
        (0, 0)
        if settles
        else dearest(state.catalogs, use.provider, use.model, now_ms, terms.priced_ahead_ms)
    )
    prices = found or (0, 0)
    prompt = int(fields["prompt_tokens"]) * prices[0]
    worst = prompt + int(fields["max_tokens"]) * prices[1]
    # One token of an answer, or a call is not worth making.
    needed = min(prompt + prices[1], worst)
    lease = bool(fields["lease"])
    if lease:
        # A lease serves many calls: those that run, and the next.
        needed += int(fields["reserved_utok"])
        worst = max(worst + int(fields["reserved_utok"]), int(fields["wanted_utok"]))
    catalog = state.catalogs.at(now_ms)
    return HoldOrder(
        session=session_of(str(fields["session"])),
        seq=int(fields["seq"]),
        use=use,
        lease=lease,
        reported_utok=int(fields["reported_utok"]),
        wanted_utok=min(worst, MOST_UTOK),
        needed_utok=min(needed, MOST_UTOK),
        first_utok=int(fields["first_utok"]) if lease else 0,
        # A call that runs on what has no price any more goes on by the price it was held at.
        keep_utok=int(fields["keep_utok"]) if lease else 0 if found else MOST_UTOK,
        prompt_utok=min(prompt, MOST_UTOK),
        output_utok=prices[1],
        prompt_tokens=int(fields["prompt_tokens"]),
        max_tokens=int(fields["max_tokens"]),
        settles=settles,
        unpriced=found is None,
        zero_rated=found == (0, 0) and not settles,
        catalog_version=0 if catalog is None else catalog.version,
    )
