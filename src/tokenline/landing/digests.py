"""Compute again what seals say of the rows they cover, and read them in their order."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.evidence import shared_events, view_differences
from tokenline.landing.migrate import views
from tokenline.landing.queries import Asker
from tokenline.landing.row import DUPLICATES_SCHEMA
from tokenline.landing.seal import Seal, Walk, digest_of, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from tokenline.settings import Settings

# Digests are checked over this many rows at a time.
DIGEST_ROWS_MAX = 200_000


def walks_of(store: ClickHouseStore, topic: str) -> dict[int, Walk]:
    """Return the seals of each partition of a topic, in their order, and what is wrong with them."""
    by_partition: dict[int, list[Seal]] = defaultdict(list)
    for seal in store.seals(topic):
        by_partition[seal.partition].append(seal)
    return {partition: walk(seals) for partition, seals in sorted(by_partition.items())}


def digest_faults(settings: Settings) -> Iterator[str]:
    """Yield each seal whose digest does not follow from the ledger rows of its range."""
    store = ClickHouseStore(settings)
    for partition, found in walks_of(store, settings.topic("usage")).items():
        for seals in _groups(found.kept):
            place = seals[0].topic, partition, seals[0].lo, seals[-1].hi
            ledger, copies = store.ledger_between(*place), store.duplicates_between(*place)
            for seal in seals:
                if digest_of(_within(ledger, seal)) != seal.digest:
                    yield _broken(seal, "the ledger")
                if digest_of(_within(copies, seal), DUPLICATES_SCHEMA) != seal.copies_digest:
                    yield _broken(seal, "duplicates")
    store.close()


def view_faults(settings: Settings) -> list[str]:
    """Return the views that are not those of the migrations: whoever replaced one shows what he likes."""
    asker = Asker(settings)
    try:
        return view_differences(asker, views(settings))
    finally:
        asker.close()


def shared_identities(settings: Settings) -> list[str]:
    """Return, a line each, some of the events that the ledger has more than once."""
    asker = Asker(settings)
    try:
        return shared_events(asker)
    finally:
        asker.close()


def _within(rows: pa.Table, seal: Seal) -> pa.Table:
    """Return the rows at the offsets of a seal, of rows in offset order."""
    offsets = rows.column("offset").to_numpy()
    start, end = (int(at) for at in np.searchsorted(offsets, [seal.lo, seal.hi + 1]))
    return rows.slice(start, end - start)


def _broken(seal: Seal, table: str) -> str:
    return (
        f"{seal.topic}[{seal.partition}] seal {seal.lo}..{seal.hi}: its digest does not follow from "
        f"{table}; rows were changed, added or removed"
    )


def _groups(seals: list[Seal]) -> Iterator[list[Seal]]:
    """Yield runs of seals of not many more than `DIGEST_ROWS_MAX` offsets."""
    group: list[Seal] = []
    for seal in seals:
        group.append(seal)
        if seal.hi - group[0].lo >= DIGEST_ROWS_MAX:
            yield group
            group = []
    if group:
        yield group
