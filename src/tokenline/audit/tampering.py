"""Hold what tables say against what is sealed or in Kafka: rows that agree with each other may be false; pure.

    rows of ledger, duplicates     lie under a topic and partition that have seals
    ledger without late            = minute windows        per subscriber, model and column
    what events say a bucket paid  = entries of usage      per bucket
    Kafka's control totals         = gateway_totals        per life of a gateway

Accounts whose usage was corrected, or which share a subscriber, are left out of the second, and those with
corrected or late usage of the third: their windows and entries have rows that no event of the ledger has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenline.audit.reconcile import Difference, unequal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Life = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSides:
    """Hold the sums of one column over what a subscriber used of a model, from the ledger and from windows."""

    tenant_id: str
    account_id: str
    subscriber_id: str
    provider: str
    model: str
    column: str
    ledger: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidSides:
    """Hold what events say a bucket paid for them, and what entries of usage took from it."""

    tenant_id: str
    account_id: str
    bucket: int
    ledger_utok: int
    entries_utok: int


def foreign_differences(rows: Mapping[tuple[str, str, int], int]) -> Iterator[Difference]:
    """Yield rows of what no seal covers: of another topic, or of a partition that has none."""
    for (table, topic, partition), count in sorted(rows.items()):
        what = f"rows of {table} that no seal covers"
        yield from unequal("foreign", f"{topic}[{partition}]", what, count, 0)


def kind_differences(sides: Iterable[KindSides]) -> Iterator[Difference]:
    """Yield where the windows of a subscriber and model say another sum of a column than the ledger."""
    for one in sides:
        where = f"{one.tenant_id}/{one.account_id} {one.subscriber_id} {one.provider}/{one.model}"
        what = f"{one.column} in ledger and windows"
        yield from unequal("window", where, what, one.ledger, one.windows)


def paid_differences(sides: Iterable[PaidSides]) -> Iterator[Difference]:
    """Yield where usage took another amount from a bucket than its events say."""
    for one in sides:
        where = f"{one.tenant_id}/{one.account_id} bucket {one.bucket}"
        what = "µtok that events say and entries of usage took"
        yield from unequal("bucket", where, what, one.ledger_utok, one.entries_utok)


def total_differences(stated: Mapping[Life, int], kept: Mapping[Life, int]) -> Iterator[Difference]:
    """Yield where Kafka's newest control total of a gateway's life is not the one that landed."""
    for life in sorted(stated):
        where = f"{life[0]}/{life[1]}"
        what = "events in its control total in Kafka and in gateway_totals"
        yield from unequal("total", where, what, stated[life], kept.get(life, 0))
