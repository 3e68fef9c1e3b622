"""Fill batches from charged ranges and say when to land one; no I/O, time is handed in.

Ranges come in order, each behind the last, but may come again (charging or landing died). What lies
below the next expected offset has landed and is dropped. A range that starts above it comes too early:
it waits a while for those before it. If they do not come, their records of the charged topic are lost:
the offsets between are sealed as judged by nobody, and landing goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokenline.landing.verdicts import Verdicts, joined
from tokenline.metering.spans import span

if TYPE_CHECKING:
    from tokenline.landing.charges import RangeCharges

AckT = TypeVar("AckT")

# So long a range that comes too early waits for those before it.
EARLY_WAIT_S = 5.0
# An owner's epoch follows that of the owner before it, or those of a few who opened and died.
EPOCHS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargedRange:
    """Hold one charged range: what became of each offset from `lo` to `hi`, both ends included.

    `record` is the record that says so, for the quarantine.
    """

    lo: int
    hi: int
    verdicts: Verdicts
    as_of_ms: int
    charges: RangeCharges | None = None
    epoch: int = 0
    deleted_since_ms: int = 0
    deleted_until_ms: int = 0
    record: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Generic[AckT]):
    """Hold what to land at once; `acks` may be given when it has landed, in this order.

    It has no rows when every range had landed before: then only the acks are due.
    """

    lo: int
    hi: int
    verdicts: Verdicts
    as_of_ms: int
    acks: list[AckT]
    charges: tuple[RangeCharges, ...] = ()
    deleted_since_ms: int = 0
    deleted_until_ms: int = 0

    @property
    def rows(self) -> int:
        """Return the number of offsets."""
        return self.hi - self.lo + 1

    @property
    def has_records(self) -> bool:
        """Say whether there is anything of it to be read."""
        return self.verdicts.without_record < self.rows


@dataclass(slots=True, kw_only=True)
class Filling(Generic[AckT]):
    """Gather ranges of one partition until there are enough or they have waited long enough.

    Nothing is sealed below `next_lo`, if it is `fresh`: then the first range says where to begin.
    """

    next_lo: int
    max_rows: int
    max_wait_s: float
    fresh: bool = False
    _ranges: list[ChargedRange] = field(default_factory=list)
    _acks: list[AckT] = field(default_factory=list)
    _rows: int = 0
    _since_s: float | None = None
    _epoch: int = 0
    _early: list[ChargedRange] = field(default_factory=list)
    _early_acks: list[AckT] = field(default_factory=list)
    _early_since_s: float = 0.0
    _refused: list[tuple[ChargedRange, str]] = field(default_factory=list)

    def offer(self, charged: ChargedRange, now_s: float) -> None:
        """Take a range, keep it for later, drop it if it has landed, or refuse it (see `take_refused`)."""
        if self.fresh:
            self.next_lo, self.fresh = min(self.next_lo, charged.lo), False
        if charged.hi < self.next_lo:
            return
        if why := self._why_not(charged):
            self._refused.append((charged, why))
        elif charged.lo > self.next_lo:
            self._early_since_s = self._early_since_s if self._early else now_s
            self._early.append(charged)
        else:
            self._take(charged, now_s)
            self._take_early(now_s)

    def take_refused(self) -> list[tuple[ChargedRange, str]]:
        """Return the ranges that contradict what was said before, each with the reason."""
        refused, self._refused = self._refused, []
        return refused

    def give_up_waiting(self, now_s: float) -> tuple[int, int] | None:
        """Return first and last of the offsets that no range speaks of, once those behind waited enough.

        They are part of the next batch, as judged by nobody, and so are the ranges that waited.
        """
        if not self._early or self._early_wait_s(now_s) > 0:
            return None
        first = min(self._early, key=lambda one: one.lo)
        lo, hi = self.next_lo, first.lo - 1
        verdicts = Verdicts(unjudged=span(lo, hi))
        lost = ChargedRange(lo=lo, hi=hi, verdicts=verdicts, as_of_ms=first.as_of_ms)
        self._take(lost, now_s)
        self._take_early(now_s)
        return lo, hi

    def ack_after(self, ack: AckT, now_s: float) -> None:
        """Hand out `ack` with the batch that holds everything offered so far."""
        if self._early:
            self._early_acks.append(ack)
            return
        self._acks.append(ack)
        if self._since_s is None:
            self._since_s = now_s

    @property
    def full(self) -> bool:
        """Say whether a batch has enough rows."""
        return self._rows >= self.max_rows

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait for more: 0 when something is due, None when there is nothing."""
        waits = [self._early_wait_s(now_s)] if self._early else []
        if self._since_s is not None:
            # Acks without new rows wait for nothing.
            due = self.full or not self._ranges
            waits.append(0.0 if due else max(0.0, self._since_s + self.max_wait_s - now_s))
        return min(waits, default=None)

    def take(self) -> Batch[AckT]:
        """Return everything gathered and start afresh."""
        lo, ranges = self.next_lo - self._rows, self._ranges
        gone = [one for one in ranges if len(one.verdicts.deleted)]
        batch = Batch(
            lo=lo,
            hi=self.next_lo - 1,
            verdicts=joined([one.verdicts for one in ranges]) if ranges else Verdicts(),
            as_of_ms=ranges[-1].as_of_ms if ranges else 0,
            acks=self._acks,
            charges=tuple(one.charges for one in ranges if one.charges is not None),
            deleted_since_ms=min((one.deleted_since_ms for one in gone), default=0),
            deleted_until_ms=max((one.deleted_until_ms for one in gone), default=0),
        )
        self._ranges, self._acks, self._rows, self._since_s = [], [], 0, None
        return batch

    def _why_not(self, charged: ChargedRange) -> str:
        """Say why a range is not believed; empty when it is."""
        if charged.lo < self.next_lo:
            return f"offsets below {self.next_lo} have landed, with another range"
        if charged.epoch < self._epoch:
            return f"it is of epoch {charged.epoch}, and one before it of epoch {self._epoch}"
        if self._epoch and charged.epoch > self._epoch + EPOCHS_AT_ONCE:
            return f"no owner of epoch {charged.epoch} can follow one of epoch {self._epoch}"
        return ""

    def _take(self, charged: ChargedRange, now_s: float) -> None:
        self._ranges.append(charged)
        self._rows += charged.hi - charged.lo + 1
        self.next_lo = charged.hi + 1
        self._epoch = max(self._epoch, charged.epoch)
        if self._since_s is None:
            self._since_s = now_s

    def _take_early(self, now_s: float) -> None:
        """Take those that waited and whose turn it is; refuse those that turn out to be wrong."""
        early, self._early = sorted(self._early, key=lambda one: one.lo), []
        for charged in early:
            if charged.lo > self.next_lo:
                self._early.append(charged)
            elif charged.hi >= self.next_lo:
                why = self._why_not(charged)
                self._refused.extend([(charged, why)] if why else [])
                if not why:
                    self._take(charged, now_s)
        if not self._early:
            self._acks, self._early_acks = [*self._acks, *self._early_acks], []

    def _early_wait_s(self, now_s: float) -> float:
        rows = sum(one.hi - one.lo + 1 for one in self._early)
        if rows >= self.max_rows:
            return 0.0
        return max(0.0, self._early_since_s + EARLY_WAIT_S - now_s)
