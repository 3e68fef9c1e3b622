"""Move units from one account to another, which may be another partition's.

    giver                                    receiver
    transfer  -> TRANSFER_OUT, answer
                 a transfer_in a part  --->  TRANSFER_IN, or it cannot take it:
    TRANSFER_RETURN  <------ transfer_return

What is sent is an output of the step that moved it: published when that is durable, and again by a
successor. So a part may come twice, and late. Its command id names the giver's entry, and what became
of it is remembered for a week. A part that comes later than that, and is not remembered, may have been
taken and forgotten: nobody can say, so it becomes a dead letter and stays on the way in the books
until a person has looked (`tokenline reconcile` names it). Nothing is doubled, and nothing gets lost
unseen.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tokenline.charging.balances import session_of
from tokenline.charging.step import Sent
from tokenline.charging.terms import grant_of
from tokenline.errors import BadData, Declined
from tokenline.names import NAME_MAX_BYTES
from tokenline.quota import orders
from tokenline.quota.answers import ARRIVALS, REMEMBERED_MS, OrderAnswer
from tokenline.quota.balance import Balance
from tokenline.quota.entries import Cause
from tokenline.quota.hold_rows import Outcome, Reason
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS, Grant, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenline.charging.partition import PartitionState

    Fields = Mapping[str, Any]

IN, RETURN = "transfer_in", "transfer_return"
ARRIVING = (IN, RETURN)
# A day less than what is remembered: clocks of two partitions may differ, never by that much.
TAKEN_WITHIN_MS = REMEMBERED_MS - 86_400_000


def send(state: PartitionState, slot: int, fields: Fields, now_ms: int) -> tuple[int, int]:
    """Take an amount out of an account and send it on its way; return bucket 0 and the amount.

    Raises:
        Declined: the giver may not, or has not as much that is transferable; nothing is moved.
    """
    giver, receiver = str(fields["account_id"]), str(fields["to_account"])
    if receiver in ("", giver):
        detail = "an account cannot give to itself" if receiver else "it names nobody to give to"
        raise Declined(Reason.BAD_RECEIVER, detail)
    amount_utok, cause = int(fields["amount_utok"]), Cause(str(fields["command_id"]), receiver)
    with state.books.caused(cause):
        parts = orders.transfer_out(state.books, slot, amount_utok, now_ms)
    for moved in parts:
        said = {
            "account_id": receiver,
            "from_account": giver,
            "from_entry": moved.entry,
            "transfer_id": str(fields["command_id"]),
        }
        state.sent.append(_sent(IN, str(fields["tenant_id"]), said, moved.granted, now_ms))
    return 0, amount_utok


def arrive(state: PartitionState, key: str, fields: Fields, now_ms: int) -> tuple[int, OrderAnswer]:
    """Take in a part, or what came back of one; return the slot (-1: no account) and the answer.

    Raises:
        BadData: it comes so late that nobody knows whether it came before, or nobody gave it.
    """
    slot, name = state.cells.slot(key), session_of(str(fields["command_id"]))
    slot = NONE if slot is None else slot
    answer = state.books.answers.find(ARRIVALS, name)
    if answer is None:
        _check_age(key, fields, now_ms)
        answer = _taken(state, slot, key, fields, now_ms)
        state.books.answers.remember(ARRIVALS, name, answer)
    return slot, answer


def _taken(state: PartitionState, slot: int, key: str, fields: Fields, now_ms: int) -> OrderAnswer:
    granted, giver = grant_of(fields, Source.TRANSFER), str(fields["from_account"])
    take = orders.transfer_in if fields["kind"] == IN else orders.transfer_return
    cause = Cause(str(fields["transfer_id"]), giver, int(fields["from_entry"]))
    try:
        # A slot of no account has no balance either: the order says so.
        with state.books.caused(cause):
            bucket = take(state.books, slot, granted, now_ms)
    except Declined as declined:
        if fields["kind"] == RETURN:
            raise BadData(f"{key}: a part of a transfer comes back to who never gave it") from None
        state.sent.append(_returned(fields, granted, now_ms))
        reason = Reason(declined.reason)
        return OrderAnswer(outcome=Outcome.REFUSED, reason=reason, at_ms=now_ms)
    rest = state.books.get(state.books.row(slot), Balance.LEFT)
    return OrderAnswer(bucket=bucket, amount_utok=granted.amount_utok, rest_utok=rest, at_ms=now_ms)


def _check_age(key: str, fields: Fields, now_ms: int) -> None:
    if int(fields["amount_utok"]) <= 0 or not fields["from_account"]:
        raise BadData(f"{key}: a {fields['kind']} that moves nothing or comes from nobody")
    if now_ms - int(fields["issued_at"]) > TAKEN_WITHIN_MS:
        raise BadData(
            f"{key}: a {fields['kind']} of entry {fields['from_entry']} comes more than "
            f"{TAKEN_WITHIN_MS // 86_400_000} days late; it may have been taken before: look into the "
            "ledger, and grant it by hand if it was not"
        )


def _returned(fields: Fields, granted: Grant, now_ms: int) -> Sent:
    said = {
        "account_id": fields["from_account"],
        "from_account": fields["account_id"],
        "from_entry": fields["from_entry"],
        "transfer_id": fields["transfer_id"],
    }
    return _sent(RETURN, str(fields["tenant_id"]), said, granted, now_ms)


def _part_id(kind: str, tenant: str, giver: str, entry: int) -> str:
    """Return the command id of a part; of long names their hash, because an id is a name too."""
    whole = json.dumps([kind, tenant, giver, entry], ensure_ascii=False)
    said = whole.encode()
    return whole if len(said) <= NAME_MAX_BYTES else f"{kind} {sha256(said).hexdigest()}"


def _sent(kind: str, tenant: str, said: Fields, granted: Grant, now_ms: int) -> Sent:
    giver = said["from_account"] if kind == IN else said["account_id"]
    ends_ms = granted.valid_to_ms
    return Sent(
        {
            "tenant_id": tenant,
            **said,
            "command_id": _part_id(kind, tenant, str(giver), int(said["from_entry"])),
            "kind": kind,
            "amount_utok": granted.amount_utok,
            "source": "transfer",
            "priority": granted.priority,
            "valid_from": granted.valid_from_ms,
            "valid_to": 0 if ends_ms == NEVER_MS else ends_ms,
            "models": list(granted.scope.models),
            "subscribers": list(granted.scope.subscribers),
            # Who gave it may give it again; who received it may not.
            "transferable": int(kind == RETURN),
            "issued_at": now_ms,
        }
    )
