"""Remember in which order commands and holds were folded between two runs of usage.

They are two topics, so their offsets do not tell it. A charged range says how far each was applied
before it, and, where holds were followed by commands, how far both were then: with that whoever charges
a partition again meets everything in the order in which it was met.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenline.errors import BrokenLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COMMANDS, HOLDS = "commands", "holds"
# The head of each step holds them. Only a partition without usage gathers many.
PAIRS_MAX = 256
NOT_KEPT = -1


@dataclass(slots=True)
class Turns:
    """Gather pairs (next command, next hold), one for each time that commands came after holds.

    `holds_from` is how far holds were applied at the last pair, or at the last usage.
    """

    holds_from: int = 0
    pairs: list[int] = field(default_factory=list)

    def before_commands(self, next_offsets: Mapping[str, int]) -> None:
        """Note how far both topics are, if holds were applied since that was last noted."""
        if next_offsets[HOLDS] == self.holds_from:
            return
        self.holds_from = next_offsets[HOLDS]
        if len(self.pairs) < 2 * PAIRS_MAX and NOT_KEPT not in self.pairs:
            self.pairs += [next_offsets[COMMANDS], next_offsets[HOLDS]]
        else:
            self.pairs = [NOT_KEPT, NOT_KEPT]

    def take(self, next_offsets: Mapping[str, int]) -> list[int]:
        """Return the pairs and begin anew: usage comes now."""
        pairs, self.pairs = self.pairs, []
        self.holds_from = next_offsets[HOLDS]
        return pairs


def stages(pairs: Sequence[int], commands_next: int, holds_next: int) -> Iterator[tuple[str, int]]:
    """Yield (topic, first offset not to be applied) in order: what was folded before one usage range.

    Raises:
        BrokenLog: the order was not kept.
    """
    ends = [*zip(pairs[::2], pairs[1::2], strict=True), (commands_next, holds_next)]
    for commands_end, holds_end in ends:
        if min(commands_end, holds_end) < 0:
            raise BrokenLog("the order of commands and holds before a charged range was not kept")
        yield COMMANDS, commands_end
        yield HOLDS, holds_end
