"""Keep the subscribers whom a limit counts, by name, and what was last told of those that were cut.

A name is kept as numbers in the row itself, so it is journaled like all else; one that is too long
goes on in rows behind. An account without limits of subscribers has none here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from tokenline.quota.table import NONE, OWNER, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = 6
WORD_BYTES = 8
GOES_ON = -2  # as an owner: the rest of a name


class Subscriber(IntEnum):
    """Name the columns; the order is part of the journal's format.

    TEXT and the columns behind it are the name, of which BYTES are in this row.
    """

    OWNER = 0
    NEXT = 1
    BYTES = 2
    TEXT = 3


class Telling(IntEnum):
    """Name the columns; the order is part of the journal's format.

    SUBSCRIBER is its row. STATE, SPEC (which limit cuts) and RESETS_AT were told by EPOCH.
    """

    OWNER = 0
    SUBSCRIBER = 1
    STATE = 2
    SPEC = 3
    RESETS_AT = 4
    EPOCH = 5


WIDTH = Subscriber.TEXT + WORDS


class Subscribers(Table):
    """Hold the rows and find them by account and name."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self._by_name: dict[tuple[int, str], int] = {}

    def find(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, NONE for one never seen."""
        return self._by_name.get((owner, name), NONE)

    def row(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, a new one for one never seen."""
        found = self._by_name.get((owner, name))
        if found is None:
            found = self._by_name[owner, name] = self._add_name(owner, name.encode())
        return found

    def name(self, row: int) -> str:
        """Return what a subscriber is called."""
        return b"".join(self._pieces(row)).decode()

    def owner(self, row: int) -> int:
        """Return the slot of the account a subscriber belongs to."""
        return int(self._matrix[row, OWNER])

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        for row in np.flatnonzero(self.matrix[:, OWNER] >= 0).tolist():
            self._by_name[int(self._matrix[row, OWNER]), self.name(row)] = row

    def _add_name(self, owner: int, text: bytes) -> int:
        most = WORDS * WORD_BYTES
        following = NONE
        for start in reversed(range(most, len(text), most)):
            following = self._add_piece(GOES_ON, following, text[start : start + most])
        return self._add_piece(owner, following, text[:most])

    def _add_piece(self, owner: int, following: int, piece: bytes) -> int:
        words = np.frombuffer(piece.ljust(WORDS * WORD_BYTES, b"\0"), "<i8").tolist()
        return self.add((owner, following, len(piece), *words))

    def _pieces(self, row: int) -> Iterator[bytes]:
        while row != NONE:
            values = self._matrix[row]
            words = np.ascontiguousarray(values[Subscriber.TEXT :], "<i8").tobytes()
            yield words[: int(values[Subscriber.BYTES])]
            row = int(values[Subscriber.NEXT])


class Told(Table):
    """Hold what was last told of a subscriber: a row for each that was ever cut.

    It is no part of a balance: what is told depends on which commands were folded together.
    """

    def __init__(self) -> None:
        super().__init__(len(Telling))
        self._rows: dict[int, int] = {}

    def find(self, subscriber: int) -> list[int]:
        """Return the columns; of one of whom nothing was told they are those of an open one."""
        row = self._rows.get(subscriber)
        if row is None:
            return [0] * self.width
        found: list[int] = self._matrix[row].tolist()
        return found

    def tell(self, values: list[int]) -> None:
        """Keep what is told now, all columns of it."""
        subscriber = values[Telling.SUBSCRIBER]
        row = self._rows.get(subscriber)
        if row is None:
            self._rows[subscriber] = self.add(values)
        else:
            self._matrix[row] = values
            self.touch(row)

    def cut(self, subscribers: list[int]) -> set[int]:
        """Return those of these that are cut as far as anybody was told."""
        known = self._rows.keys() & subscribers
        return {one for one in known if self.find(one)[Telling.STATE]}

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        self._rows = {subscriber: row for row, subscriber in enumerate(self.matrix[:, 1].tolist())}
