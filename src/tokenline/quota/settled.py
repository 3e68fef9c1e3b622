"""Remember what the last corrections were charged, for those that correct them.

A correction is charged when landing has found what it replaces, so no row of the ledger says what. Landing
asks the warehouse; what is not there yet was charged a moment ago, and is here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from tokenline.quota.table import FREE, OWNER, Table

KEPT_MAX = 20_000  # corrections; of a partition, some megabytes


class _Column(IntEnum):
    """Name the columns; the order is part of the journal's format."""

    OWNER = 0
    PLACE = 1
    PART = 2
    AT = 3
    CHARGE = 4
    VERSION = 5
    NUMBER = 6
    AMOUNT = 7


@dataclass(frozen=True, slots=True)
class Charged:
    """Hold what was charged, by which catalog, when, and which buckets paid how much."""

    charge_utok: int
    catalog_version: int
    at_ms: int
    parts: list[tuple[int, int]]


class Settled(Table):
    """Hold a row for each part that a bucket paid, and one where there was nothing to pay."""

    def __init__(self) -> None:
        super().__init__(len(_Column))
        self._rows: dict[int, list[int]] = {}
        self._order: deque[int] = deque()

    def find(self, owner: int, place: int) -> Charged | None:
        """Return what the order at a place came to, if it was of this account; None when it is forgotten."""
        rows = [self._matrix[row].tolist() for row in self._rows.get(place, ())]
        if not rows or rows[0][_Column.OWNER] != owner:
            return None
        parts = [(row[_Column.NUMBER], row[_Column.AMOUNT]) for row in rows if row[_Column.AMOUNT]]
        _, _, _, at_ms, charge, version, *_ = rows[0]
        return Charged(charge, version, at_ms, parts)

    def remember(self, owner: int, place: int, charged: Charged) -> None:
        """Keep what an order came to, and forget the oldest of too many."""
        said = (charged.at_ms, charged.charge_utok, charged.catalog_version)
        for at, part in enumerate(charged.parts or [(0, 0)]):
            self._note(place, self.add((owner, place, at, *said, *part)))
        while len(self._order) > KEPT_MAX:
            for row in self._rows.pop(self._order.popleft()):
                self.free(row)

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        rows = [row for row in range(len(self)) if self._matrix[row, OWNER] != FREE]

        def rank(row: int) -> tuple[int, int]:
            return self._matrix.item(row, +_Column.PLACE), self._matrix.item(row, +_Column.PART)

        for row in sorted(rows, key=rank):
            self._note(self._matrix.item(row, +_Column.PLACE), row)

    def _note(self, place: int, row: int) -> None:
        if place not in self._rows:
            self._rows[place] = []
            self._order.append(place)
        self._rows[place].append(row)
