"""Fold what waits on the topics of commands and holds into the state of its partition, in its order.

    account_command    limits set, the newest of an account wins      -> decision
    account_order      plan, buckets, life of an account              -> reply, ledger, decision, and
                                                                         what a transfer moves: orders
    hold_order         a session asks, reports or settles             -> reply, decision if it changes
    usage_order        a late copy, a correction: landing found it    -> ledger, windows, decision
    catalog_version    what is sold and what a token costs            -> rates usage from its moment on
    clock_tick         it is so late                                  -> ledger, decision: what is due

A command that cannot be read as one is a dead letter and changes nothing; one that the rules do not
allow is answered so. Who waits is told of either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.carry import (
    account_key_of,
    carry_out_hold,
    carry_out_order,
    key_of_order,
)
from tokenline.charging.step import Commanded, Refused, Replied, Step
from tokenline.charging.usage_orders import carry_out_usage_order
from tokenline.errors import BadData
from tokenline.metering.calendar import zone_of
from tokenline.names import bad_names
from tokenline.quota.answers import OrderAnswer
from tokenline.quota.books import Balance
from tokenline.quota.cells import NO_LIMIT, Cell
from tokenline.quota.cycle import advance
from tokenline.quota.decide import decide
from tokenline.quota.decided import Decided, Rule
from tokenline.quota.hold_rows import Outcome, Reason
from tokenline.quota.limit_decisions import limit_decisions
from tokenline.quota.orders import bring_up_to
from tokenline.quota.standing import rests_on
from tokenline.quota.table import NONE
from tokenline.quota.zones import move_to
from tokenline.rating.catalog import Catalog
from tokenline.rating.succession import check_succession

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenline.charging.partition import PartitionState

Int64s = npt.NDArray[np.int64]

# How many accounts one tick brings up to its moment: a few milliseconds of work.
TICK_ACCOUNTS = 50
NAMES_TOLD = 3  # of those that are wrong
# So long after an event was appended its correction may be carried out at the latest: usage is kept a week
# less (`wire.topics`), and until then landing may be away.
CORRECTED_WITHIN_MS = 21 * 86_400_000
LIMIT_FIELDS = {
    "month_tokens": Cell.MONTH_TOKENS_LIMIT,
    "minute_tokens": Cell.MINUTE_TOKENS_LIMIT,
    "hour_tokens": Cell.HOUR_TOKENS_LIMIT,
    "day_tokens": Cell.DAY_TOKENS_LIMIT,
    "minute_requests": Cell.MINUTE_REQUESTS_LIMIT,
    "hour_requests": Cell.HOUR_REQUESTS_LIMIT,
    "day_requests": Cell.DAY_REQUESTS_LIMIT,
}


@dataclass(slots=True)
class _Touched:
    """Gather the accounts of a step: those whose decision is told anew, and those only looked at."""

    told: set[int] = field(default_factory=set)
    looked_at: set[int] = field(default_factory=set)


def fold_commands(
    state: PartitionState, commands: Sequence[Commanded], hi: int, topic: str = "commands"
) -> Step:
    """Apply what a topic, `commands` or `holds`, has up to `hi`, and decide anew.

    Only usage moves the minute in hand, and ticks that of decisions. Usage may be waiting that was appended
    hours before the command: it belongs into the minutes, rate windows and horizon of its own time.
    """
    newest_ms = max((command.appended_ms for command in commands), default=state.minute_ms)
    step = state.begin_step(state.minute_ms)
    step.as_of_ms, step.cause = newest_ms, (topic, hi)
    if topic == "commands":
        state.turns.before_commands(state.next_offsets)
    known, touched = len(state.cells), _Touched()
    strays = _strays(state, commands)
    for command in commands:
        if bad := list(islice(bad_names(command.fields), NAMES_TOLD)):
            step.refused.append(_refused_command(command, "; ".join(bad), "bad_name"))
            continue
        if command.offset in strays:
            detail = state.home.detail(_key_of(command))
            step.refused.append(_refused_command(command, detail, "wrong_partition"))
            continue
        try:
            _apply(state, step, command, touched)
        except BadData as error:
            step.refused.append(_refused_command(command, str(error)))
    step.new_keys = state.cells.keys[known:]
    step.changes, step.burns = state.books.take()
    step.alarms = state.books.take_alarms()
    step.sent, state.sent = state.sent, []
    state.tally.add_burns(step.burns)
    _decide(state, step, touched)
    state.next_offsets[topic] = hi + 1
    return step


def _strays(state: PartitionState, commands: Sequence[Commanded]) -> set[int]:
    """Return the offsets of commands whose account belongs into another partition.

    There it would be opened a second time, and each half would know nothing of the other. Only accounts
    without a row are looked at: one has a row because it belongs here.
    """
    asked = [one for one in commands if "account_id" in one.fields]
    unknown = [one for one in asked if state.cells.slot(_key_of(one)) is None]
    found = state.home.strays([_key_of(one) for one in unknown]) if unknown else []
    return {unknown[at].offset for at in found}


def _key_of(command: Commanded) -> str:
    """Return the key of what a command is about, right or wrong."""
    return f"{command.fields['tenant_id']}/{command.fields['account_id']}"


def _apply(state: PartitionState, step: Step, command: Commanded, touched: _Touched) -> None:
    if command.name == "account_command":
        touched.told.add(_set_account(state, command))
    elif command.name == "account_order":
        shows = command.fields["kind"] == "show"
        if shows:
            _look(state, step, command)
        slot, answer = carry_out_order(state, command)
        step.replies.append(Replied(command, answer))
        # What is answered from memory was told when it was done.
        done = answer.outcome is Outcome.DONE and answer.at_ms == state.clock_ms
        (touched.told if done and not shows else touched.looked_at).add(slot)
    elif command.name == "hold_order":
        _ask(state, step, command, touched)
    elif command.name == "catalog_version":
        step.replies.append(Replied(command, _take_catalog(state, command)))
    elif command.name == "clock_tick":
        _tick(state, command, touched)
    elif command.name == "usage_order":
        touched.looked_at.add(carry_out_usage_order(state, step, command))
    else:
        raise BadData(f"{command.name} does not belong on the commands topic")


def _ask(state: PartitionState, step: Step, command: Commanded, touched: _Touched) -> None:
    """Answer a session, and look at its account's decision anew where the answer may have changed it.

    What a hold takes it takes from what is left, so most answers change nothing a decision rests on.
    Time alone ends a cut-off; and it makes one, where usage ahead of its month was counted before.
    """
    known = state.cells.slot(account_key_of(command.fields))
    slot = NONE if known is None else known
    row = state.books.row(slot)
    before = None if row == NONE else rests_on(state.books, row)
    step.replies.append(Replied(command, carry_out_hold(state, slot, command)))
    if row == NONE:
        return
    cells = state.cells.matrix[slot].tolist()
    turns = cells[Cell.RULE] != Rule.NONE or cells[Cell.MONTH_TOKENS_LIMIT] != NO_LIMIT
    # A catalog that begins may price what costs nothing.
    turns |= cells[Cell.COVERS] != 0
    if turns or rests_on(state.books, row) != before:
        touched.looked_at.add(slot)


def _look(state: PartitionState, step: Step, command: Commanded) -> None:
    """Bring an account and its decision up to date before it is shown."""
    # What is no order is a dead letter, and its account is not written: it must stay as it is.
    slot = state.cells.slot(key_of_order(command.fields))
    if slot is not None:
        bring_up_to(state.books, slot, state.move_clock(command.appended_ms))
        _decide_slots(state, step, _slots([slot]), announce=False)


def _tick(state: PartitionState, command: Commanded, touched: _Touched) -> None:
    """Let happen what is due by now, a slice of it: calls wait for answers meanwhile.

    Which accounts are taken is settled by the books alone, so that a replay takes the same.
    """
    now_ms, books = state.move_clock(command.appended_ms), state.books
    state.ticked_ms = max(state.ticked_ms, command.appended_ms)
    rows = books.dues.due(now_ms, TICK_ACCOUNTS)
    for row in rows:
        advance(books, row, now_ms)
        touched.looked_at.add(books.get(row, Balance.OWNER))
    ended = books.told.dues.due(now_ms, TICK_ACCOUNTS)
    for row in ended:
        books.limits.look_at_one(books.told.whom(row))
    slots = state.told_dues.due(now_ms, TICK_ACCOUNTS)
    for slot in slots:
        bring_up_to(books, slot, now_ms)
        touched.looked_at.add(slot)
    state.tick_took = max(len(rows), len(ended), len(slots))


def _take_catalog(state: PartitionState, command: Commanded) -> OrderAnswer:
    """Take a version in; let go of those that rate no usage and that no account has to go by any more."""
    now_ms = state.move_clock(command.appended_ms)
    try:
        catalog = Catalog.from_json(str(command.fields["catalog"]))
        if catalog not in state.catalogs.versions:
            check_succession(state.catalogs.versions, catalog, now_ms)
        state.catalogs.add(catalog)
    except BadData as error:
        reason = Reason.BAD_CATALOG
        return OrderAnswer(outcome=Outcome.REFUSED, reason=reason, at_ms=now_ms, detail=str(error))
    rates_ms = now_ms - state.bounds.max_age_ms - CORRECTED_WITHIN_MS
    state.catalogs.prune(min(rates_ms, state.books.dues.earliest_ms()))
    state.books.dues.note_new_terms()
    return OrderAnswer(at_ms=now_ms)


def _decide(state: PartitionState, step: Step, touched: _Touched) -> None:
    # Whoever admits calls goes by what was told of an account's terms.
    told = _slots(touched.told | state.books.take_retermed())
    quiet = _slots(touched.looked_at - touched.told)
    step.touched = np.union1d(told, quiet)
    _decide_slots(state, step, told, announce=True)
    _decide_slots(state, step, quiet, announce=False)


def _decide_slots(state: PartitionState, step: Step, slots: Int64s, *, announce: bool) -> None:
    decided: list[Decided] = []
    if slots.size:
        minute_ms = state.decision_minute(state.minute_ms) or step.as_of_ms // 60_000 * 60_000
        decided = decide(
            state.cells,
            slots,
            minute_ms,
            state.epoch,
            books=state.books,
            announce=announce,
            rolls=True,
        )
    state.note_told(decided)
    step.decisions += limit_decisions(state.books, decided, state.clock_ms, state.epoch)
    # The versions of subscribers' decisions are in the rows of their accounts.
    step.touched = np.union1d(step.touched, _slots(one.slot for one in step.decisions))


def _slots(found: Iterable[int]) -> Int64s:
    return np.array(sorted(slot for slot in found if slot >= 0), np.int64)


def _set_account(state: PartitionState, said: Commanded) -> int:
    cells, command = state.cells, said.fields
    zone = str(command["time_zone"])
    zone_of(zone)
    limits = {name: int(str(command[name])) for name in LIMIT_FIELDS}
    key = account_key_of(command)
    if wrong := next((name for name, value in limits.items() if value < NO_LIMIT), None):
        raise BadData(f"{key}: {wrong} is {limits[wrong]}; it is -1 for none, or 0 and more")
    known, slot = cells.slot(key), cells.open(key)
    # First what was due under the old limits and in the old zone.
    bring_up_to(state.books, slot, state.move_clock(said.appended_ms))
    if known is None:
        cells.matrix[slot, Cell.ZONE] = cells.zone_code(zone)
    else:
        move_to(state.books, slot, zone, said.appended_ms)
    row = cells.matrix[slot]
    row[list(LIMIT_FIELDS.values())] = list(limits.values())
    return slot


def _refused_command(command: Commanded, detail: str, reason: str = "bad_command") -> Refused:
    names = ("tenant_id", "account_id")
    return Refused(
        offset=command.offset,
        appended_ms=command.appended_ms,
        reason=reason,
        detail=detail,
        identity={name: str(command.fields.get(name, "")) for name in names},
        command=command,
    )
