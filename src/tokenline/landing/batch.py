"""Fill batches from charged ranges and say when to land one; no I/O, time is handed in.

Ranges come in order but may come again, with the same or other bounds (charging or landing died).
What lies below the next expected offset has landed and is cut away; a range that starts above it
means that the log has a hole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from tokenline.errors import BrokenLog

if TYPE_CHECKING:
    from tokenline.landing.row import Codes

AckT = TypeVar("AckT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedRange:
    """Hold one charged range: the verdict of each offset from `lo`, both ends included."""

    lo: int
    hi: int
    codes: Codes
    as_of_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[AckT]):
    """Hold what to land at once; `acks` may be given when it has landed, in this order.

    It has no rows when every range had landed before: then only the acks are due.
    """

    lo: int
    hi: int
    codes: Codes
    as_of_ms: int
    acks: list[AckT]

    @property
    def rows(self) -> int:
        """Return the number of offsets."""
        return self.hi - self.lo + 1


@dataclass(slots=True, kw_only=True)
class Filling(Generic[AckT]):
    """Gather ranges of one partition until there are enough or they have waited long enough."""

    next_lo: int
    max_rows: int
    max_wait_s: float
    _ranges: list[ChargedRange] = field(default_factory=list)
    _acks: list[AckT] = field(default_factory=list)
    _rows: int = 0
    _since_s: float | None = None

    def offer(self, charged: ChargedRange, now_s: float) -> None:
        """Take what is new of a range.

        Raises:
            BrokenLog: the range starts above the next expected offset.
        """
        if charged.hi < self.next_lo:
            return
        if charged.lo > self.next_lo:
            raise BrokenLog(
                f"the next charged range starts at {charged.lo}, but only offsets below "
                f"{self.next_lo} have landed: the warehouse lost what was acknowledged, "
                "or the charged topic lost records"
            )
        cut = self.next_lo - charged.lo
        self._ranges.append(
            ChargedRange(
                lo=self.next_lo, hi=charged.hi, codes=charged.codes[cut:], as_of_ms=charged.as_of_ms
            )
        )
        self._rows += charged.hi - self.next_lo + 1
        self.next_lo = charged.hi + 1
        if self._since_s is None:
            self._since_s = now_s

    def ack_after(self, ack: AckT, now_s: float) -> None:
        """Hand out `ack` with the batch that holds everything offered so far."""
        self._acks.append(ack)
        if self._since_s is None:
            self._since_s = now_s

    @property
    def full(self) -> bool:
        """Say whether a batch has enough rows."""
        return self._rows >= self.max_rows

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait for more: 0 when a batch is due, None when there is none."""
        if self._since_s is None:
            return None
        # Acks without new rows wait for nothing.
        if self.full or not self._ranges:
            return 0.0
        return max(0.0, self._since_s + self.max_wait_s - now_s)

    def take(self) -> Batch[AckT]:
        """Return everything gathered and start anew."""
        lo = self.next_lo - self._rows
        codes = np.concatenate([np.zeros(0, np.int8), *(one.codes for one in self._ranges)])
        as_of_ms = self._ranges[-1].as_of_ms if self._ranges else 0
        batch = Batch(lo=lo, hi=self.next_lo - 1, codes=codes, as_of_ms=as_of_ms, acks=self._acks)
        self._ranges, self._acks, self._rows, self._since_s = [], [], 0, None
        return batch
