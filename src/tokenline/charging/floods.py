"""Keep bad records of one producer from becoming a flood of dead letters.

Each bad record belongs to a group: what one producer, one schema or one source sent. Up to a rate that
the operator sets a record has a letter of its own, with its bytes. Beyond it the records of a group are
counted in letters of many: how many, why, and which offsets. No number of bad records ends a worker.

The minute is that of the broker's append time. A worker that starts counts from nothing: some more letters
are then of one record. Each bad record is in exactly one letter, because letters are journaled with their step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenline.charging.step import Refused

MINUTE_MS = 60_000
# Random names make a group each; of a minute and partition so many are kept apart.
GROUPS_MAX = 100
OTHERS = "(others)"
# What a partition has of letters of one record in a minute, whatever the groups, in rates of a group.
RATES_MAX = 10
# Of each group some are kept in any case.
SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Name what bad records have in common; what has numbers of a gateway is never mixed with another's."""

    name: str
    gateway_id: str = ""
    gateway_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Lot:
    """Hold bad records of one group and reason that share a letter, in offset order."""

    group: Group
    reason: str
    refused: Sequence[Refused]


@dataclass(frozen=True, slots=True)
class Sorted:
    """Hold the records that have a letter of their own, the lots, and groups that reached their rate now."""

    alone: Sequence[Refused]
    lots: Sequence[Lot]
    begun: Sequence[str]


class Floods:
    """Count the bad records of one partition by group and minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._minute = -1
        self._counts: dict[str, int] = {}
        self._alone = 0

    def sort(self, found: Iterable[tuple[Group, Refused]]) -> Sorted:
        """Sort the bad records of one step, in offset order."""
        alone: list[Refused] = []
        lots: dict[tuple[Group, str], list[Refused]] = {}
        begun: list[str] = []
        for group, refused in found:
            kept = self._kept(group, refused)
            nth = self._counts[kept.name] = self._counts.get(kept.name, 0) + 1
            if nth == self._per_minute + 1:
                begun.append(kept.name)
            if nth <= SAMPLES or (nth <= self._per_minute and self._has_room()):
                self._alone += 1
                alone.append(refused)
            else:
                lots.setdefault((kept, refused.reason), []).append(refused)
        return Sorted(alone, [Lot(*key, some) for key, some in lots.items()], begun)

    def _has_room(self) -> bool:
        return self._alone < RATES_MAX * self._per_minute

    def _kept(self, group: Group, refused: Refused) -> Group:
        """Return the group itself, or the others when there are too many."""
        minute = refused.appended_ms // MINUTE_MS
        if minute > self._minute:
            self._minute, self._alone = minute, 0
            self._counts.clear()
        if group.name in self._counts or len(self._counts) < GROUPS_MAX:
            return group
        return Group(OTHERS, group.gateway_id, group.gateway_epoch)


def runs_of(numbers: Iterable[int]) -> list[int]:
    """Return ascending numbers as runs, flat: first, last and again first, last; each number once."""
    runs: list[int] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1] + 1:
            runs[-1] = number
        else:
            runs += [number, number]
    return runs
