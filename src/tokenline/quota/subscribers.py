"""Keep the subscribers whom a limit counts: by name, and what was last told of each.

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

    STATE, SPEC (which limit cuts) and RESETS_AT are what was last told, by EPOCH; 0 is nobody yet.
    TEXT and the columns behind it are the name, of which BYTES are in this row.
    """

    OWNER = 0
    NEXT = 1
    STATE = 2
    SPEC = 3
    RESETS_AT = 4
    EPOCH = 5
    BYTES = 6
    TEXT = 7


WIDTH = Subscriber.TEXT + WORDS


class Subscribers(Table):
    """Hold the rows and find them by account and name."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self._by_name: dict[tuple[int, str], int] = {}

    def row(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, a new one for one never seen."""
        found = self._by_name.get((owner, name))
        if found is None:
            found = self._by_name[owner, name] = self._add_name(owner, name.encode())
        return found

    def name(self, row: int) -> str:
        """Return what a subscriber is called."""
        return b"".join(self._pieces(row)).decode()

    def get(self, row: int, column: Subscriber) -> int:
        """Return one column of a subscriber."""
        return int(self._matrix[row, column])

    def set(self, row: int, column: Subscriber, value: int) -> None:
        """Change one column of a subscriber."""
        self._matrix[row, column] = value
        self.touch(row)

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
        return self.add((owner, following, 0, 0, 0, 0, len(piece), *words))

    def _pieces(self, row: int) -> Iterator[bytes]:
        while row != NONE:
            values = self._matrix[row]
            words = np.ascontiguousarray(values[Subscriber.TEXT :], "<i8").tobytes()
            yield words[: int(values[Subscriber.BYTES])]
            row = int(values[Subscriber.NEXT])
