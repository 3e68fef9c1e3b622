"""Charge a partition again from its first offset, in the order in which it was charged.

Usage and commands are two topics: which came first is what the workers met, not what the topics say.
It is on record. Each charged range names the first command that was not applied before it, so ranges
in order, each behind its commands, are the order; what a fetch held at once does not matter.
For tests and auditors: no command calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.errors import BrokenLog
from tokenline.metering.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenline.charging.step import Commanded, UsageChunk
    from tokenline.metering.judge import Bounds


@dataclass(frozen=True, slots=True, order=True)
class ChargedRange:
    """Name usage that was charged in one step, and how far commands were applied before it."""

    lo: int
    hi: int
    commands_next: int


def replay(
    bounds: Bounds,
    ranges: Iterable[ChargedRange],
    usage: Callable[[int, int], UsageChunk],
    commands: Sequence[Commanded],
    home: Home | None = None,
) -> PartitionState:
    """Return the state that the ranges leave; `usage` decodes one, `commands` are all, in order.

    `home` is the partition that it is of; without it, it is the only one.

    Balances come out byte for byte as the workers had them. The numbers of decisions may not: they
    depend on which commands were folded together.

    Raises:
        BrokenLog: a range is missing, or was charged before its order was kept.
    """
    state, waiting = PartitionState(bounds, home or Home()), list(commands)
    for one in sorted(set(ranges)):
        if one.lo != state.next_offsets["usage"] or one.commands_next < 0:
            raise BrokenLog(
                f"usage {one.lo}..{one.hi} does not follow {state.next_offsets['usage']}, or its order "
                "among commands was not kept"
            )
        _apply(state, [each for each in waiting if each.offset < one.commands_next])
        waiting = [each for each in waiting if each.offset >= one.commands_next]
        fold_usage(state, usage(one.lo, one.hi))
    _apply(state, waiting)
    return state


def _apply(state: PartitionState, commands: Sequence[Commanded]) -> None:
    if commands:
        fold_commands(state, commands, commands[-1].offset)
