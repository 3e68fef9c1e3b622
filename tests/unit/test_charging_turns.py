"""The order of commands and holds between two runs of usage is kept, within a bound, and never guessed."""

from __future__ import annotations

import pytest

from tokenline.charging.turns import PAIRS_MAX, Turns, stages
from tokenline.errors import BrokenLog


def after(*topics):
    """Return the turns and the next offsets once one record of each topic was applied, in that order."""
    turns, nexts = Turns(), {"commands": 0, "holds": 0}
    for topic in topics:
        if topic == "commands":
            turns.before_commands(nexts)
        nexts[topic] += 1
    return turns, nexts


@pytest.mark.parametrize(
    ("topics", "pairs"),
    [
        ("", []),
        ("cc", []),
        ("cch", []),
        ("hhc", [0, 2]),
        ("chchc", [1, 1, 2, 2]),
        ("hch", [0, 1]),
    ],
)
def test_a_pair_is_noted_where_commands_come_after_holds(topics, pairs):
    names = {"c": "commands", "h": "holds"}
    turns, nexts = after(*(names[one] for one in topics))
    assert turns.take(nexts) == pairs
    applied, found = {"commands": 0, "holds": 0}, ""
    for topic, end in stages(pairs, nexts["commands"], nexts["holds"]):
        found += topic[0] * (end - applied[topic])
        applied[topic] = end
    assert found == topics


def test_usage_begins_the_count_anew():
    turns, nexts = after("holds")
    assert turns.take(nexts) == []
    turns.before_commands(nexts)
    assert turns.pairs == []


def test_more_turns_than_a_head_may_hold_are_told_as_not_kept():
    turns, nexts = after(*("holds", "commands") * (PAIRS_MAX + 5))
    assert turns.pairs == [-1, -1]
    with pytest.raises(BrokenLog, match="was not kept"):
        list(stages(turns.take(nexts), 1, 1))
    assert turns.pairs == []


def test_a_range_charged_before_its_order_was_kept_is_refused():
    with pytest.raises(BrokenLog, match="was not kept"):
        list(stages([], 5, -1))
