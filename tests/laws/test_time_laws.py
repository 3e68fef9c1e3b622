"""Looking changes nothing: books are a function of what happened and when, not of who asked in between."""

from __future__ import annotations

import itertools
from collections import defaultdict
from operator import itemgetter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.said_books import books_as_said
from tests.laws.test_charging_balance_laws import FIRST, accounts, asked, used, versions
from tests.orders import order, tick
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, NOON, Record, chunk_of
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.partition import PartitionState

law = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
WAITS = (0, 500, 20_000, MINUTE, 3 * MINUTE, HOUR, HOUR + MINUTE, DAY, 9 * DAY, 31 * DAY, 70 * DAY)
FINAL_WAIT = 40 * DAY


@st.composite
def walks(draw):
    """Return what happens and when, one thing after the other."""
    now_ms, usage, commands, version, found = NOON, 0, len(FIRST), 1, []
    for _ in range(draw(st.integers(1, 10))):
        now_ms += draw(st.sampled_from(WAITS))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            version += 1
            found.append((now_ms, [draw(versions(version, now_ms, version))]))
        elif kind < 3:
            found.append((now_ms, [draw(used(usage, now_ms))]))
            usage += 1
        else:
            found.append((now_ms, [draw(asked(commands, now_ms))]))
            commands += 1
    return found


@st.composite
def walks_with_looks(draw):
    """Return a walk and, of moments in it, which account is looked at."""
    walk = draw(walks())
    end_ms = walk[-1][0] + FINAL_WAIT
    gaps = [NOON, *(when for when, _ in walk), end_ms]
    looks = []
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(gaps) - 2))
        # Anywhere between two things that happen, and at their very moments.
        share = draw(st.integers(0, 8))
        moment = gaps[at] + (gaps[at + 1] - gaps[at]) * share // 8
        # An account is shown, or a tick comes.
        whom = draw(st.one_of(accounts, st.none()))
        looks.append((moment + draw(st.sampled_from([0, 0, 1])), whom))
    return walk, sorted((one for one in looks if one[0] <= end_ms), key=itemgetter(0)), end_ms


class Line:
    """Charge on paper; keep every entry."""

    def __init__(self):
        self.state, self.commands = PartitionState(BOUNDS), 0
        self.entries = defaultdict(list)
        self.burns = defaultdict(int)
        self.do(FIRST)

    def do(self, piece):
        if isinstance(piece[0], Record):
            steps = [fold_usage(self.state, part) for part in by_minute(chunk_of(piece))]
        else:
            self.commands += len(piece)
            steps = [fold_commands(self.state, piece, self.commands)]
        keys = self.state.cells.keys
        for step in steps:
            for one in step.changes:
                self.entries[keys[one.slot]].append(one)
            for slot, bucket, amount in step.burns.tolist():
                self.burns[keys[slot], bucket] += amount

    def look(self, now_ms, account):
        shows = order(0, now_ms, account_id=account, kind="show")
        self.do([tick(0, now_ms) if account is None else shows])

    def end(self, now_ms):
        for account in "abcd":
            self.look(now_ms, account)
        return books_as_said(self.state), self.entries, dict(self.burns)


def run(walk, looks, end_ms):
    line, looks = Line(), list(looks)
    for when, piece in walk:
        while looks and looks[0][0] < when:
            line.look(*looks.pop(0))
        line.do(piece)
    for look in looks:
        line.look(*look)
    return line.end(end_ms)


@law
@given(walks_with_looks())
def test_looks_and_ticks_at_any_moments_change_no_book_and_no_entry(said):
    walk, looks, end_ms = said
    assert run(walk, looks, end_ms) == run(walk, [], end_ms)


@st.composite
def crowded_minutes(draw):
    """Return usage of a few minutes, and two ways in which it may be fetched."""
    now_ms, records = NOON - 31 * MINUTE, []
    for offset in range(draw(st.integers(2, 14))):
        now_ms += draw(st.sampled_from([0, 1, 400, 5000, 29_000, MINUTE, 30 * MINUTE]))
        records.append(draw(used(offset, now_ms)))
    cuts = st.sets(st.integers(1, len(records) - 1))
    return records, draw(cuts), draw(cuts)


def fetched(records, cuts, opening):
    line = Line()
    line.do(opening)
    bounds = [0, *sorted(cuts), len(records)]
    for first, end in itertools.pairwise(bounds):
        line.do(records[first:end])
    return line.end(records[-1].appended_ms + FINAL_WAIT)


@law
@given(crowded_minutes(), st.data())
def test_where_a_fetch_is_cut_changes_no_book_and_no_entry(said, data):
    records, one_way, other_way = said
    asks = [data.draw(asked(9 + at, NOON - 31 * MINUTE)) for at in range(4)]
    assert fetched(records, one_way, asks) == fetched(records, other_way, asks)
