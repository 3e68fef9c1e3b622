"""Turn what a catalog says of a plan into the terms its accounts are charged by."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tokenline.quota.terms import HoldExpiry, Mode, Scope, Terms

if TYPE_CHECKING:
    from tokenline.rating.book import CatalogBook
    from tokenline.rating.catalog import Catalog


def terms_at(book: CatalogBook, plan: str, at_ms: int) -> Terms | None:
    """Return the terms of a plan by the version in force at a moment; None where it has no such plan."""
    catalog = book.at(at_ms)
    return None if catalog is None else _terms(catalog, plan)


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
        hold_expiry=HoldExpiry[plan.hold_expiry.upper()],
    )
