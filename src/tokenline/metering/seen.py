"""Remember which identities were counted within the horizon, 16 bytes each plus free slots.

Generations by append time, each an open-addressing table worked on whole arrays at a time. The
newest grows; an older one is packed to LOAD_PACKED, about 21 bytes an event, and dropped when all
of it is older than the horizon. Growing and packing go on beside the work, a little with each
chunk. So an identity is remembered for at least the horizon and at most a generation longer. It
does not know what an event says, only its name.
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
GROWTH = 2
# The next table has room for as many names again: the outgrown one, 1 / LOAD_MAX slots a name, is gone by then.
MOVE_PER_NAME = 8
MOVE_SLOTS = 4096  # half a millisecond


class Table:
    """Be an open-addressing table of fixed size; a prime capacity has every name meet all slots.

    The first words lie apart: nearly every name asked for is new, and then they alone say so.
    """

    def __init__(self, capacity: int) -> None:
        self._words: UInt64s = np.zeros((2, _prime_from(capacity)), np.uint64)
        self._firsts, self._seconds = self._words
        # The same memory, quicker for one number at a time.
        self._cells = self._firsts.data, self._seconds.data

    def __len__(self) -> int:
        return len(self._firsts)

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return self._words.nbytes

    def find(self, names: UInt64s) -> Bools:
        """Say for each name whether it is here."""
        if len(names) < FEW_NAMES:
            where = self._where
            return np.array([where(first, second)[1] for first, second in names.tolist()], np.bool_)
        found = np.zeros(len(names), np.bool_)
        firsts, at, step = names[:, 0], *self._probe(names)
        left = np.arange(len(names))
        while left.size:
            held = self._firsts[at]
            same = held == firsts
            if same.any():
                same[same] = self._seconds[at[same]] == names[left[same], 1]
                found[left[same]] = True
            on = np.flatnonzero((held != 0) & ~same)
            left, firsts, step = left[on], firsts[on], step[on]
            at = self._next(at[on], step)
        return found

    def place(self, names: UInt64s) -> None:
        """Hold `names`, which must be distinct, not here yet, and fewer than the free slots."""
        if len(names) < FEW_NAMES:
            self._place_few(names)
            return
        firsts, seconds = np.ascontiguousarray(names.T)
        at, step = self._probe(names)
        while firsts.size:
            free = self._firsts[at] == 0
            self._firsts[at[free]] = firsts[free]
            self._seconds[at[free]] = seconds[free]
            # Several names may have claimed one slot: the one that reads itself back has it.
            on = np.flatnonzero((self._firsts[at] != firsts) | (self._seconds[at] != seconds))
            firsts, seconds, step = firsts[on], seconds[on], step[on]
            at = self._next(at[on], step)

    def names(self, first: int = 0, end: int | None = None) -> UInt64s:
        """Return the identities in slots `first` to `end`, in no order."""
        part = self._words[:, first:end]
        return np.ascontiguousarray(part[:, part[0] != 0].T)

    def _where(self, first: int, second: int) -> tuple[int, bool]:
        """Return the slot that holds a name, or the free one where it belongs, and which it is."""
        firsts, seconds = self._cells
        capacity = len(firsts)
        at, step = first % capacity, second % (capacity - 1) + 1
        while held := firsts[at]:
            if held == first and seconds[at] == second:
                return at, True
            at = (at + step) % capacity
        return at, False

    def _place_few(self, names: UInt64s) -> None:
        firsts, seconds = self._cells
        for first, second in names.tolist():
            at, _ = self._where(first, second)
            firsts[at], seconds[at] = first, second

    def _probe(self, names: UInt64s) -> tuple[Int64s, Int64s]:
        """Return where to look first and how far to go on."""
        capacity = len(self)
        home = (names[:, 0] % np.uint64(capacity)).astype(np.int64)
        return home, (names[:, 1] % np.uint64(capacity - 1)).astype(np.int64) + 1

    def _next(self, at: Int64s, step: Int64s) -> Int64s:
        at = at + step
        at[at >= len(self)] -= len(self)
        return at


class Generation:
    """Hold the identities counted in one stretch of append time.

    A table that was outgrown is moved to the next a few slots at a time, with each call of `move`:
    a million names at once would keep a cut-off waiting for a third of a second.
    """

    def __init__(self, capacity: int = CAPACITY_MIN) -> None:
        self._table = Table(capacity)
        self._outgrown: Table | None = None
        self._moved_slots = 0
        self._to_pack = False
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Return the bytes held."""
        return self._table.nbytes + (self._outgrown.nbytes if self._outgrown else 0)

    def find(self, names: UInt64s) -> Bools:
        """Say for each name whether it is here."""
        if not self.count:
            return np.zeros(len(names), np.bool_)
        found = self._table.find(names)
        return found | self._outgrown.find(names) if self._outgrown else found

    def add(self, names: UInt64s) -> None:
        """Hold `names`, which must be distinct and not here yet."""
        if self.count + len(names) > LOAD_MAX * len(self._table):
            self._begin_move(int((self.count + len(names)) * GROWTH / LOAD_MAX) + CAPACITY_MIN)
        self._table.place(names)
        self.count += len(names)

    def move(self, slots: int) -> None:
        """Move what the next `slots` slots of an outgrown table hold, if there is one."""
        if self._outgrown is None:
            return
        end = self._moved_slots + slots
        self._table.place(self._outgrown.names(self._moved_slots, end))
        self._moved_slots = end
        if end >= len(self._outgrown):
            self._outgrown = None
            self._begin_packing()

    def pack(self) -> None:
        """Begin to shrink to the packed load, now or when the move under way ends; few will be added."""
        self._to_pack = True
        self._begin_packing()

    def names(self) -> UInt64s:
        """Return all identities, in no order."""
        self._end_move()
        return self._table.names()

    def _begin_packing(self) -> None:
        if not self._to_pack or self._outgrown is not None:
            return
        self._to_pack = False
        capacity = _prime_from(max(int(self.count / LOAD_PACKED) + 1, 8))
        # One that is packed already is not copied again at each roll-over.
        if capacity < len(self._table):
            self._begin_move(capacity)

    def _begin_move(self, capacity: int) -> None:
        self._end_move()
        self._outgrown, self._table, self._moved_slots = self._table, Table(capacity), 0

    def _end_move(self) -> None:
        """Move all that is left; begins no packing: the caller has another table in hand."""
        if self._outgrown is not None:
            self._table.place(self._outgrown.names(self._moved_slots))
            self._outgrown = None


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

    @property
    def longest_ms(self) -> int:
        """Return for how long a name may be known: a generation more than the horizon."""
        return self._horizon_ms + self._span_ms

    def forget(self, now_ms: int) -> None:
        """Let go of what is too old by `now_ms`: which that is depends on both moments and nothing else."""
        oldest = (now_ms - self._horizon_ms) // self._span_ms
        if self._generations and min(self._generations) < oldest:
            self._generations = {n: g for n, g in self._generations.items() if n >= oldest}

    def find(self, names: UInt64s) -> Bools:
        """Say for each name whether it was counted before, in this chunk or an earlier one."""
        return repeats(names) | self.known(names)

    def known(self, names: UInt64s) -> Bools:
        """Say for each name whether it came in an earlier chunk."""
        found = np.zeros(len(names), np.bool_)
        for generation in self._generations.values():
            found |= generation.find(names)
        return found

    def remember(self, names: UInt64s, now_ms: int) -> None:
        """Hold `names`, all new, as counted at `now_ms`; forget what is older than the horizon."""
        number = now_ms // self._span_ms
        if number not in self._generations:
            self._open(number, now_ms)
        self._generations[number].add(names)
        for generation in self._generations.values():
            generation.move(max(MOVE_SLOTS, MOVE_PER_NAME * len(names)))

    def _open(self, number: int, now_ms: int) -> None:
        self.forget(now_ms)
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
