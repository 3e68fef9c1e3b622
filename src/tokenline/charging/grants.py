"""Turn what an order grants into a bucket: a pack of the catalog, or an amount with its own terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenline.charging.terms import grant_of
from tokenline.errors import BadData, Declined
from tokenline.metering.calendar import days_end
from tokenline.quota.hold_rows import Reason
from tokenline.quota.terms import Grant, Scope, Source

if TYPE_CHECKING:
    from tokenline.charging.partition import PartitionState

MOST_DAYS = 365_000
# What a pack decides, and what an order says that says nothing of it.
_PACK_SAYS: dict[str, object] = {
    "amount_utok": 0,
    "source": "top_up",
    "priority": 100,
    "valid_from": 0,
    "valid_to": 0,
    "valid_days": 0,
    "models": [],
    "transferable": 0,
}
_SOURCES = {
    one.name.lower(): one
    for one in (Source.TOP_UP, Source.GIFT, Source.FREE, Source.PACK, Source.REFUND)
}


def amount_of(_: PartitionState, fields: Mapping[str, Any], zone: str, now_ms: int) -> Grant:
    """Return the bucket that an order names by an amount; its days end with a day of `zone`.

    Raises:
        BadData: it names no such source.
        Declined: its days are none, or it says its end twice.
    """
    source = _SOURCES.get(str(fields["source"]))
    if source is None:
        raise BadData(f"a grant cannot be of source {fields['source']!r}: {', '.join(_SOURCES)}")
    if not (days := int(fields["valid_days"])):
        return grant_of(fields, source)
    if not 1 <= days <= MOST_DAYS:
        detail = f"a grant is valid for 1 to {MOST_DAYS:,} days, not for {days:,}"
        raise Declined(Reason.BAD_AMOUNT, detail)
    if fields["valid_to"]:
        detail = "say either valid_to or valid_days: both say when it ends"
        raise Declined(Reason.BAD_AMOUNT, detail)
    return grant_of({**fields, "valid_to": days_end(zone, now_ms, days)}, source)


def pack_of(state: PartitionState, fields: Mapping[str, Any], zone: str, now_ms: int) -> Grant:
    """Return the bucket of a pack, whose days end with a day of `zone`; the order says only for whom it is.

    Raises:
        Declined: there is no such pack, or the order says what the pack decides.
    """
    catalog = state.catalogs.at(now_ms)
    name = str(fields["pack"])
    pack = None if catalog is None else catalog.packs.get(name)
    if catalog is None or pack is None:
        raise Declined(Reason.UNKNOWN_PACK, f"no catalog in force has a pack {name!r}")
    if said := [one for one, unsaid in _PACK_SAYS.items() if fields[one] != unsaid]:
        detail = f"the pack itself says {', '.join(said)}: leave it out"
        raise Declined(Reason.BAD_AMOUNT, detail)
    if not pack.shared and not any(fields["subscribers"]):
        # A scope that names nobody is everybody's.
        detail = f"pack {name} is not shared: name the subscribers that it is for"
        raise Declined(Reason.BAD_AMOUNT, detail)
    if pack.shared and fields["subscribers"]:
        # It would pay for everybody, and whoever named some would think it does not.
        raise Declined(Reason.BAD_AMOUNT, f"pack {name} is shared: name no subscribers for it")
    return Grant(
        amount_utok=pack.allowance_utok,
        source=_SOURCES[pack.source],
        priority=pack.priority,
        valid_to_ms=days_end(zone, now_ms, pack.valid_days),
        scope=Scope(
            models=catalog.models_in(pack.groups), subscribers=tuple(fields["subscribers"])
        ),
        transferable=pack.transferable,
    )
