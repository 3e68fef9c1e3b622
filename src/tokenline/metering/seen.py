"""Remember which identities were counted within the horizon, 16 bytes each plus free slots.

Generations by append time, each an open-addressing table worked on whole arrays at a time. The
newest grows; an older one is packed to LOAD_PACKED, about 21 bytes an event, and dropped when all
of it is older than the horizon. So an identity is remembered for at least the horizon and at most a
generation longer. It does not know what an event says, only its name.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

GENERATIONS = 4
LOAD_MAX = 0.6
LOAD_PACKED = 0.75
CAPACITY_MIN = 1031  # a prime
FEW_NAMES = 64  # fewer are quicker one by one


class Generation:
    """Hold the identities counted in one stretch of append time."""

    def __init__(self, capacity: int = CAPACITY_MIN) -> None:
        self._slots: UInt64s
        self._cells: memoryview  # the same memory, quicker for one number at a time
        self._clear(capacity)
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return self._slots.nbytes

    def find(self, names: UInt64s) -> Bools:
        """Say for each name whether it is here."""
        found = np.zeros(len(names), np.bool_)
        if not self.count:
            return found
        if len(names) < FEW_NAMES:
            found[:] = [self._where(*name)[1] for name in names.tolist()]
            return found
        left = np.arange(len(names))
        at, step = self._probe(names)
        while left.size:
            held = self._slots[at]
            same = (held == names[left]).all(axis=1)
            found[left[same]] = True
            on = np.flatnonzero(~same & (held[:, 0] != 0))
            left, step = left[on], step[on]
            at = self._next(at[on], step)
        return found

    def add(self, names: UInt64s) -> None:
        """Hold `names`, which must be distinct and not here yet."""
        if self.count + len(names) > LOAD_MAX * len(self._slots):
            self._resize(int((self.count + len(names)) * 1.5 / LOAD_MAX) + CAPACITY_MIN)
        if len(names) < FEW_NAMES:
            self._place_few(names)
        else:
            self._place(names)
        self.count += len(names)

    def pack(self) -> None:
        """Shrink to the packed load; nothing more is expected to be added."""
        self._resize(max(int(self.count / LOAD_PACKED) + 1, 8))

    def names(self) -> UInt64s:
        """Return all identities, in no order."""
        held: UInt64s = self._slots[self._slots[:, 0] != 0]
        return held

    def _where(self, first: int, second: int) -> tuple[int, bool]:
        """Return the slot that holds a name, or the free one where it belongs, and which it is."""
        capacity, slots = len(self._slots), self._cells
        at, step = first % capacity, second % (capacity - 1) + 1
        while held := slots[at, 0]:
            if held == first and slots[at, 1] == second:
                return at, True
            at = (at + step) % capacity
        return at, False

    def _place_few(self, names: UInt64s) -> None:
        for first, second in names.tolist():
            at, _ = self._where(first, second)
            self._cells[at, 0], self._cells[at, 1] = first, second

    def _probe(self, names: UInt64s) -> tuple[Int64s, Int64s]:
        """Return where to look first and how far to go on; a prime capacity has all slots met."""
        capacity = len(self._slots)
        home = (names[:, 0] % np.uint64(capacity)).astype(np.int64)
        return home, (names[:, 1] % np.uint64(capacity - 1)).astype(np.int64) + 1

    def _next(self, at: Int64s, step: Int64s) -> Int64s:
        at = at + step
        at[at >= len(self._slots)] -= len(self._slots)
        return at

    def _resize(self, capacity: int) -> None:
        names = self.names()
        self._clear(_prime_from(capacity))
        self._place(names)

    def _clear(self, capacity: int) -> None:
        self._slots = np.zeros((capacity, 2), np.uint64)
        self._cells = self._slots.data

    def _place(self, names: UInt64s) -> None:
        left = np.arange(len(names))
        at, step = self._probe(names)
        while left.size:
            free = self._slots[at, 0] == 0
            self._slots[at[free]] = names[left[free]]
            # Several names may have claimed one slot: the one that reads itself back has it.
            on = np.flatnonzero((self._slots[at] != names[left]).any(axis=1))
            left, step = left[on], step[on]
            at = self._next(at[on], step)


def _prime_from(number: int) -> int:
    while any(number % divisor == 0 for divisor in range(2, isqrt(number) + 1)):
        number += 1
    return number


class SeenEvents:
    """Answer "was this counted before?" for a stretch of append time of at least `horizon_ms`."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._span_ms = max(horizon_ms // GENERATIONS, 1)
        self._generations: dict[int, Generation] = {}

    def __len__(self) -> int:
        return sum(generation.count for generation in self._generations.values())

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(generation.nbytes for generation in self._generations.values())

    def find(self, names: UInt64s) -> Bools:
        """Say for each name whether it was counted before, in this chunk or an earlier one."""
        found = repeats(names)
        for generation in self._generations.values():
            found |= generation.find(names)
        return found

    def remember(self, names: UInt64s, now_ms: int) -> None:
        """Hold `names`, all new, as counted at `now_ms`; forget what is older than the horizon."""
        number = now_ms // self._span_ms
        if number not in self._generations:
            self._open(number, now_ms)
        self._generations[number].add(names)

    def _open(self, number: int, now_ms: int) -> None:
        oldest = (now_ms - self._horizon_ms) // self._span_ms
        self._generations = {n: g for n, g in self._generations.items() if n >= oldest}
        for generation in self._generations.values():
            generation.pack()
        self._generations[number] = Generation()


def repeats(names: UInt64s) -> Bools:
    """Say for each name whether it stands earlier in the same array."""
    repeated = np.zeros(len(names), np.bool_)
    halves = np.sort(names[:, 0])
    if not (halves[1:] == halves[:-1]).any():
        return repeated
    order = np.lexsort((np.arange(len(names)), names[:, 1], names[:, 0]))
    ordered = names[order]
    repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return repeated
