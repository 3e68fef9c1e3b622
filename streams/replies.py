"""Say in Avro what an order or a session is answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tokenline.charging.packs import Message
from tokenline.names import why_bad
from tokenline.quota.answers import OrderAnswer
from tokenline.quota.hold_rows import HoldAnswer
from tokenline.wire.topics import REPLIES

if TYPE_CHECKING:
    from tokenline.charging.step import Refused, Replied
    from tokenline.wire.avro import Codec


MOST_DETAIL_CHARS = 1024
MOST_NAMES_CHARS = 8192
NAMES = ("tenant_id", "account_id", "reply_to", "command_id", "session")


def replies_of(codec: Codec, replies: Iterable[Replied]) -> Iterator[Message]:
    """Yield a message for each answer that somebody waits for."""
    for replied in replies:
        asked = replied.command.fields
        if asked["reply_to"]:
            yield _reply(codec, asked, replied.command.offset, _said(replied.answer))


def refusals_of(codec: Codec, refusals: Iterable[Refused]) -> Iterator[Message]:
    """Yield a message for each order that is a dead letter, where it could be read who waits."""
    for refused in refusals:
        asked = refused.command.fields if refused.command else {}
        if _can_be_told(asked):
            said = {
                "outcome": "refused",
                "reason": refused.reason,
                "detail": refused.detail[:MOST_DETAIL_CHARS],
                "as_of": refused.appended_ms,
            }
            yield _reply(codec, asked, refused.offset, said)


def _can_be_told(asked: Mapping[str, Any]) -> bool:
    """Say whether somebody waits, by a name that can be a key; what is asked may be of any length."""
    waits = not why_bad(str(asked.get("reply_to", "")))
    return waits and sum(len(str(asked.get(name, ""))) for name in NAMES) <= MOST_NAMES_CHARS


def _reply(codec: Codec, asked: Mapping[str, Any], offset: int, said: dict[str, Any]) -> Message:
    names = {name: asked.get(name, "") for name in NAMES}
    fields = said | names | {"seq": asked.get("seq", 0), "cause_offset": offset}
    return Message(REPLIES, str(asked["reply_to"]).encode(), codec.encode("order_reply", fields))


def _said(answer: OrderAnswer | HoldAnswer) -> dict[str, Any]:
    common: dict[str, Any] = {
        "outcome": answer.outcome.name.lower(),
        "reason": answer.reason.name.lower(),
        "rest_utok": answer.rest_utok,
        "as_of": answer.at_ms,
    }
    if isinstance(answer, OrderAnswer):
        return common | {
            "bucket": answer.bucket,
            "amount_utok": answer.amount_utok,
            "detail": answer.detail,
        }
    return common | {
        "granted_utok": answer.granted_utok,
        "max_tokens": answer.max_tokens,
        "threshold_utok": answer.threshold_utok,
        "validity_ms": answer.validity_ms,
        "final": int(answer.final),
        "late": int(answer.late),
        "catalog_version": answer.catalog_version,
        "limit_name": answer.limit_name,
        "limit_unit": answer.limit_unit,
        "limit_used": answer.limit_used,
        "limit_held": answer.limit_held,
        "limit_value": answer.limit_value,
        "resets_at": answer.resets_at_ms,
        "top_up_utok": answer.top_up_utok,
        "split": {str(number): amount for number, amount in answer.split},
    }
