"""Keep the subscribers whom a limit counts, by name, and what was last told of whom limits have cut.

A name is kept as numbers in the row itself, so it is journaled like all else; one that is too long
goes on in rows behind. An account without limits of subscribers has none here.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenline.quota.dues import Dues
from tokenline.quota.table import FREE, NONE, OWNER, Table
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Int64s = npt.NDArray[np.int64]

WORDS = 6
WORD_BYTES = 8
GOES_ON = -2  # as an owner: the rest of a name
# An account with more subscribers at once than this counts the further ones together, as OTHERS:
# made-up ids may not fill the memory of everybody. `forgetting` makes room again.
SUBSCRIBERS_MAX = 50_000
OTHERS = "(others)"


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

    SUBSCRIBER is its row, NONE for a whole account. STATE, SPEC (which limit cuts) and RESETS_AT were
    told by EPOCH; of all models, or of those of the limit that GROUP names (`Specs.first`).
    """

    OWNER = 0
    SUBSCRIBER = 1
    STATE = 2
    SPEC = 3
    RESETS_AT = 4
    EPOCH = 5
    GROUP = 6


WIDTH = Subscriber.TEXT + WORDS


class Subscribers(Table):
    """Hold the rows and find them by account and name; an account has `most`, and OTHERS."""

    def __init__(self, most: int = SUBSCRIBERS_MAX) -> None:
        super().__init__(WIDTH)
        self.most = most
        self._by_name: dict[tuple[int, str], int] = {}
        self._counts: Counter[int] = Counter()

    def find(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, NONE for one never seen."""
        return self._by_name.get((owner, name), NONE)

    def row(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, a new one for one never seen."""
        found = self._by_name.get((owner, name))
        if found is None:
            found = self._by_name[owner, name] = self._add_name(owner, name.encode())
            self._counts[owner] += 1
        return found

    def row_within(self, owner: int, name: str) -> int:
        """Return the row of a subscriber, the row of OTHERS where its account has too many for a new one."""
        full = self._counts[owner] >= self.most and (owner, name) not in self._by_name
        return self.row(owner, OTHERS if full else name)

    def name(self, row: int) -> str:
        """Return what a subscriber is called."""
        return b"".join(self._pieces(row)).decode()

    def owner(self, row: int) -> int:
        """Return the slot of the account a subscriber belongs to."""
        return int(self._matrix[row, OWNER])

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        for row in np.flatnonzero(self.matrix[:, OWNER] >= 0).tolist():
            owner = int(self._matrix[row, OWNER])
            self._by_name[owner, self.name(row)] = row
            self._counts[owner] += 1

    def forget(self, row: int) -> None:
        """Give the rows of a subscriber back."""
        owner = self.owner(row)
        del self._by_name[owner, self.name(row)]
        self._counts[owner] -= 1
        while row != NONE:
            following = self.get(row, Subscriber.NEXT)
            self.free(row)
            row = following

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


class Whom(NamedTuple):
    """Name whom a limit cuts: an account (by slot) or a subscriber of it, of all models or of a group's.

    `subscriber` is a row, NONE for the whole account; `group` a number of `Specs.first`, 0 for all models.
    """

    owner: int
    subscriber: int
    group: int = 0


class Told(Table):
    """Hold what was last told of whom limits cut: a row for each that was ever cut.

    It is no part of a balance: what is told depends on which commands were folded together.
    """

    def __init__(self) -> None:
        super().__init__(len(Telling))
        # Whose cut has ended by its clock.
        self.dues = Dues(self._due_of)
        # A subscriber's row is one account's; of many thousands most are found by that alone.
        self._by_subscriber: dict[int, int] = {}
        self._by_group: dict[Whom, int] = {}

    def find(self, whom: Whom) -> list[int]:
        """Return the columns; of one of whom nothing was told they are those of an open one."""
        row = self._row_of(whom)
        if row is None:
            return [0] * self.width
        found: list[int] = self._matrix[row].tolist()
        return found

    def tell(self, values: list[int]) -> None:
        """Keep what is told now, all columns of it."""
        whom = _whom(values)
        row = self._row_of(whom)
        if row is None:
            row = self.add(values)
            self._note(whom, row)
        else:
            self._matrix[row] = values
            self.touch(row)
        if values[Telling.STATE] and values[Telling.RESETS_AT]:
            self.dues.note(row, values[Telling.RESETS_AT])

    def forget(self, subscribers: Int64s) -> None:
        """Give back what was told of these subscribers."""
        named = (self.matrix[:, OWNER] >= 0) & np.isin(
            self.matrix[:, Telling.SUBSCRIBER], subscribers
        )
        for row in np.flatnonzero(named).tolist():
            whom = self.whom(row)
            if whom.group:
                del self._by_group[whom]
            else:
                del self._by_subscriber[whom.subscriber]
            self.free(row)

    def whom(self, row: int) -> Whom:
        """Return whom a row is about."""
        return _whom(self._matrix[row].tolist())

    def cut(self, subscribers: Iterable[int]) -> set[int]:
        """Return those of these that are cut for all models, as far as anybody was told."""
        found = self._by_subscriber
        return {one for one in found.keys() & subscribers if self._is_cut(found[one])}

    def cut_groups(self, whom: Iterable[Whom]) -> set[Whom]:
        """Return those of these that are cut for a group of models, as far as anybody was told."""
        found = self._by_group
        return {one for one in found.keys() & whom if self._is_cut(found[one])}

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        for row, values in enumerate(self.matrix.tolist()):
            if values[OWNER] != FREE:
                self._note(_whom(values), row)
        self.dues.note_everything(len(self))

    def _due_of(self, first: int, end: int) -> Int64s:
        found = self.matrix[first:end]
        ends = (found[:, Telling.STATE] != 0) & (found[:, Telling.RESETS_AT] > 0)
        dues: Int64s = np.where(ends, found[:, Telling.RESETS_AT], NEVER_MS)
        return dues

    def _row_of(self, whom: Whom) -> int | None:
        return self._by_group.get(whom) if whom.group else self._by_subscriber.get(whom.subscriber)

    def _is_cut(self, row: int) -> bool:
        return self.get(row, Telling.STATE) != 0

    def _note(self, whom: Whom, row: int) -> None:
        if whom.group:
            self._by_group[whom] = row
        else:
            self._by_subscriber[whom.subscriber] = row


def _whom(values: list[int]) -> Whom:
    return Whom(values[OWNER], values[Telling.SUBSCRIBER], values[Telling.GROUP])
