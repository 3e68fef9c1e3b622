"""Turn a decision into what receivers are told: the same decision gives the same bytes and id.

| kind | when |
| --- | --- |
| threshold | a part of the allowance is used: `threshold_percent` says which |
| cut | the account, or a subscriber or a group of models alone, may not go on |
| resumed | a cut is over: a window began, or something was granted |

An announcement (`account_set`) tells who just set the account nothing new, unless a threshold is
reached by it for the first time. That other uses can be paid than before (`covers_changed`) is no cut.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

from tokenline.quota.terms import LAST_DATE_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Kind(Enum):
    """Name what may be told."""

    THRESHOLD = "threshold"
    CUT = "cut"
    RESUMED = "resumed"


_TYPES = {
    Kind.THRESHOLD: "account.threshold_reached",
    Kind.CUT: "account.cut",
    Kind.RESUMED: "account.resumed",
}
_PLAIN = ("tenant_id", "account_id", "subscriber_id", "state", "rule", "reason")
_COUNTS = (
    *("threshold_percent", "used", "limit", "unit", "overage_utok", "written_off_utok"),
    *("version", "epoch"),
)
_NAMED_BY = ("tenant_id", "account_id", "subscriber_id", "epoch", "version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """Hold one message to a receiver; `key` is the account whose order it keeps."""

    message_id: str
    kind: Kind
    tenant_id: str
    key: tuple[str, str]
    body: bytes


def notification_of(decision: Mapping[str, object]) -> Notification | None:
    """Return what a `quota_decision` tells; None when there is nothing to tell."""
    kind = kind_of(decision)
    if kind is None:
        return None
    tenant = str(decision["tenant_id"])
    return Notification(
        message_id=message_id_of(decision),
        kind=kind,
        tenant_id=tenant,
        key=(tenant, str(decision["account_id"])),
        body=_body(kind, decision),
    )


def kind_of(decision: Mapping[str, object]) -> Kind | None:
    """Return what kind of message a decision makes."""
    reason, reached = decision["reason"], decision["threshold_percent"] != 0
    if reason in ("account_set", "covers_changed") and not reached:
        return None
    if decision["state"] == "cut":
        return Kind.CUT
    if reached:
        return Kind.THRESHOLD
    return Kind.RESUMED if reason == "resumed" else None


def message_id_of(decision: Mapping[str, object]) -> str:
    """Return the id that names this decision for ever: of a tenant's account, an epoch and a version."""
    named = json.dumps([decision[field] for field in _NAMED_BY], ensure_ascii=True)
    return "msg_" + hashlib.sha256(named.encode()).hexdigest()[:40]


def iso_of(moment_ms: int) -> str:
    """Return a moment as ISO 8601 in UTC, to the millisecond; after the year 9999 its last."""
    moment = _EPOCH + timedelta(milliseconds=max(0, min(moment_ms, LAST_DATE_MS)))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _body(kind: Kind, decision: Mapping[str, object]) -> bytes:
    data: dict[str, object] = {name: decision[name] for name in (*_PLAIN, *_COUNTS)}
    if decision["model_group"]:
        data |= {name: decision[name] for name in ("model_group", "models")}
    for name in ("window_start", "resets_at"):
        moment_ms = int(str(decision[name]))
        data[name] = iso_of(moment_ms) if moment_ms else None
    said = {
        "type": _TYPES[kind],
        "timestamp": iso_of(int(str(decision["as_of"]))),
        "data": data,
    }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
