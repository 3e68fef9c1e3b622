"""Turn what a catalog says of a plan into the terms its accounts are charged by."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenline.quota.buckets import text_digest
from tokenline.quota.cells import Cell
from tokenline.quota.table import NONE
from tokenline.quota.terms import (
    NEVER_MS,
    NO_FREE_MODELS,
    SUBSCRIBER_CAP,
    FreeModels,
    GatewayTerms,
    Grant,
    HoldExpiry,
    LimitSpec,
    Mode,
    Per,
    Scope,
    Source,
    Terms,
    Unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenline.charging.partition import PartitionState
    from tokenline.rating.book import CatalogBook
    from tokenline.rating.catalog import Catalog
    from tokenline.rating.offers import Plan, PlanLimit

# By what a plan calls the window (`PlanLimit.window`): those of a whole account, all models, by the calendar.
# The cells' tokens a month are for files: they count since the month began, and a plan's limit since it is in force.
_CEILINGS: dict[tuple[str, ...], Cell] = {
    (unit, per, "calendar", "account", "", ""): Cell[f"{per}_{unit}_limit".upper()]
    for unit, per in (
        ("tokens", "minute"),
        ("tokens", "hour"),
        ("tokens", "day"),
        ("requests", "minute"),
        ("requests", "hour"),
        ("requests", "day"),
    )
}


def grant_of(fields: Mapping[str, Any], source: Source) -> Grant:
    """Return the bucket that an order names by an amount and its own terms."""
    return Grant(
        amount_utok=int(fields["amount_utok"]),
        source=source,
        priority=int(fields["priority"]),
        valid_from_ms=int(fields["valid_from"]),
        valid_to_ms=int(fields["valid_to"]) or NEVER_MS,
        scope=Scope(models=tuple(fields["models"]), subscribers=tuple(fields["subscribers"])),
        transferable=bool(fields["transferable"]),
    )


def terms_at(book: CatalogBook, plan: str, at_ms: int) -> Terms | None:
    """Return the terms of a plan by the version in force at a moment; None where it has no such plan."""
    catalog = book.at(at_ms)
    return None if catalog is None else _terms(catalog, plan)


def free_models_at(book: CatalogBook, at_ms: int) -> FreeModels:
    """Return the models that cost nothing by the version in force at a moment, whatever the hour."""
    catalog = book.at(at_ms)
    return NO_FREE_MODELS if catalog is None else _free_models(catalog)


@lru_cache(maxsize=64)
def _free_models(catalog: Catalog) -> FreeModels:
    models = catalog.zero_rated
    return FreeModels(models, text_digest("\n".join(models))) if models else NO_FREE_MODELS


def begins_at(book: CatalogBook, plan: str, version: int) -> int:
    """Return when the first version after `version` begins that brings its terms to running accounts.

    NEVER_MS when none that is known does.
    """
    for catalog in book.versions:
        sold = catalog.plans.get(plan)
        brings = sold is not None and sold.running_accounts == "now"
        # Of versions that begin at one moment only the newest is ever in force.
        if brings and catalog.version > version and book.at(catalog.effective_ms) == catalog:
            return catalog.effective_ms
    return NEVER_MS


@lru_cache(maxsize=4096)
def _terms(catalog: Catalog, name: str) -> Terms | None:
    plan = catalog.plans.get(name)
    if plan is None:
        return None
    return Terms(
        mode=Mode[plan.mode.upper()],
        allowance_utok=plan.allowance_utok,
        rollover_utok=plan.rollover_utok,
        priority=plan.priority,
        scope=Scope(models=catalog.models_in(plan.groups)),
        overage=plan.used_up == "overage",
        prorated=plan.proration == "prorate",
        hold_validity_ms=plan.hold_validity_s * 1000,
        priced_ahead_ms=plan.priced_ahead_s * 1000,
        least_call_utok=plan.least_call_utok,
        hold_expiry=HoldExpiry[plan.hold_expiry.upper()],
        zero_rated_needs_balance=plan.zero_rated_needs_balance,
        gateway=GatewayTerms(
            unreachable=plan.unreachable,
            emergency_utok=plan.emergency_utok,
            abort=plan.abort,
            longest_call_ms=plan.longest_call_s * 1000,
        ),
        ceilings=tuple(
            (cell, limit.ceiling)
            for limit in plan.limits
            if (cell := _CEILINGS.get(limit.window)) is not None
        ),
        thresholds=plan.thresholds,
        limits=tuple(_limits(catalog, plan)),
        change=plan.change,
        plan=name,
        version=catalog.version,
    )


def _limits(catalog: Catalog, plan: Plan) -> Iterator[tuple[LimitSpec, int]]:
    """Yield the limits that are not in the cells, each with its ceiling."""
    if plan.subscriber_utok is not None:
        yield SUBSCRIBER_CAP, plan.subscriber_utok
    for limit in plan.limits:
        if limit.window not in _CEILINGS:
            yield _spec(catalog, limit), limit.ceiling


def _spec(catalog: Catalog, limit: PlanLimit) -> LimitSpec:
    each = limit.of == "subscriber"
    words = ["subscriber"] * each + ["rolling"] * limit.rolling + [limit.per, limit.unit]
    return LimitSpec(
        name="_".join(words) + (f":{limit.group}" if limit.group else ""),
        unit=Unit[limit.unit.upper()],
        per=Per[limit.per.upper()],
        rolling=limit.rolling,
        each=each,
        subscriber=limit.subscriber or "",
        models=catalog.models_in((limit.group,)) if limit.group else (),
    )


def decision_terms(state: PartitionState, slot: int) -> dict[str, object]:
    """Return the fields of a decision that say the terms of its account; none without a plan."""
    row = state.books.row(slot)
    if row == NONE:
        return {}
    terms = state.books.terms(row)
    least_utok = terms.least_call_utok
    return {
        **asdict(terms.gateway),
        "terms_version": terms.version,
        "mode": terms.mode.name.lower(),
        "hold_validity_ms": terms.hold_validity_ms,
        "least_call_utok": -1 if least_utok is None else least_utok,
        "zero_rated_needs_balance": int(terms.zero_rated_needs_balance),
    }


def not_enforced(catalog: Catalog) -> list[str]:
    """Return what plans say that this version of the line reads and does not enforce yet."""
    return [
        f"plans.{name}: {said}"
        for name, plan in catalog.plans.items()
        for said in _not_enforced(plan)
    ]


def _not_enforced(plan: Plan) -> Iterator[str]:
    if plan.mode == "postpaid" and plan.unreachable == "leases":
        yield "unreachable = leases: a postpaid plan has none, so its calls stop"
