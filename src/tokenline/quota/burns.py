"""Note what usage took from buckets, by account and number: rows of buckets are used again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Burns:
    """Gather what usage took from buckets, named by account and number: rows are used again."""

    arrays: list[Int64s] = field(default_factory=list)
    singles: list[tuple[int, int, int]] = field(default_factory=list)

    def note(self, slots: Int64s, numbers: Int64s, amounts_utok: Int64s) -> None:
        """Note what usage took from many buckets."""
        self.arrays.append(np.stack((slots, numbers, amounts_utok), axis=1))

    def move(self, before: int, to: Burns) -> None:
        """Note what was noted one by one behind the first `before` in `to` instead."""
        to.singles += self.singles[before:]
        del self.singles[before:]

    def since(self, before: int) -> list[tuple[int, int]]:
        """Return what was noted one by one behind the first `before`: each bucket's number and µtok, once."""
        sums: dict[int, int] = {}
        for _, number, amount_utok in self.singles[before:]:
            sums[number] = sums.get(number, 0) + amount_utok
        return [(number, amount_utok) for number, amount_utok in sums.items() if amount_utok]

    def rows(self) -> Int64s:
        """Return a row a burn: the account's slot, the bucket's number, µtok; what took nothing has none."""
        singles = np.array(self.singles, np.int64).reshape(-1, 3)
        rows: Int64s = np.concatenate((*self.arrays, singles))
        burnt: Int64s = rows[rows[:, 2] != 0]
        return burnt
