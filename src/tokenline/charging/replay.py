"""Charge a partition again from its first offset, in the order in which it was charged.

Usage, commands and holds are topics of their own: which came first is what the workers met, not what the
topics say. It is on record. Each charged range names the first command and the first hold that were not
applied before it, and the turns these two took, so ranges in order, each behind its commands and holds,
are the order; what a fetch held at once does not matter.
For tests and auditors: no command calls it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.turns import stages
from tokenline.errors import BrokenLog
from tokenline.metering.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tokenline.charging.step import Commanded, UsageChunk
    from tokenline.metering.judge import Bounds


@dataclass(frozen=True, slots=True)
class OrdersBefore:
    """Say how far commands and holds were applied, and in which turns (see `charging.turns`)."""

    commands_next: int
    holds_next: int = 0
    turns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChargedRange:
    """Name usage that was charged in one step, and what was applied before it."""

    lo: int
    hi: int
    before: OrdersBefore


def replay(
    bounds: Bounds,
    ranges: Iterable[ChargedRange],
    usage: Callable[[int, int], UsageChunk],
    orders: Mapping[str, Sequence[Commanded]],
    last: OrdersBefore,
    home: Home | None = None,
) -> PartitionState:
    """Return the state that the ranges leave, and what was applied behind them.

    `usage` decodes one range; `orders` are all commands and all holds, by topic and in order; `last` says
    how far both were applied in the end, as the journal's head has it. `home` is the partition that it
    is of; without it, it is the only one.

    Balances come out byte for byte as the workers had them. The numbers of decisions may not: they
    depend on which commands were folded together.

    Raises:
        BrokenLog: a range is missing, or was charged before its order was kept.
    """
    state = PartitionState(bounds, home or Home())
    waiting = {topic: list(all_) for topic, all_ in orders.items()}
    for one in sorted(set(ranges), key=attrgetter("lo")):
        if one.lo != state.next_offsets["usage"]:
            raise BrokenLog(
                f"usage {one.lo}..{one.hi} does not follow {state.next_offsets['usage']}"
            )
        _apply(state, waiting, one.before)
        fold_usage(state, usage(one.lo, one.hi))
    _apply(state, waiting, last)
    return state


def _apply(
    state: PartitionState, waiting: Mapping[str, list[Commanded]], before: OrdersBefore
) -> None:
    for topic, end in stages(before.turns, before.commands_next, before.holds_next):
        due = [one for one in waiting.get(topic, ()) if one.offset < end]
        if due:
            fold_commands(state, due, due[-1].offset, topic)
            del waiting[topic][: len(due)]
