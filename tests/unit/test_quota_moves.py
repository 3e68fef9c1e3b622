"""An account that moves to another zone keeps the windows it has begun: nothing restarts early, nothing twice."""

from __future__ import annotations

import json
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tests.limits import LIMITS_CATALOG
from tests.orders import catalog_version, order, tick
from tests.paper_line import Books as Readers
from tests.paper_line import Journal, PaperLine
from tests.strategies import BOUNDS, DAY, HOUR, MINUTE, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.metering.calendar import spans_at
from tokenline.quota.cells import Cell
from tokenline.quota.limit_windows import rolled
from tokenline.quota.limits import Limit
from tokenline.rating.catalog import Catalog

SHANGHAI, UTC, NEW_YORK = "Asia/Shanghai", "UTC", "America/New_York"


def at(zone, *when):
    return int(datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()) * 1000


class Line:
    """A partition with account `t/a`, set by a file."""

    def __init__(self, now, zone, **limits):
        self.state, self.offset, self.now = PartitionState(BOUNDS), -1, now
        self.set(zone, **limits)

    def fold(self, make, **fields):
        self.offset += 1
        return fold_commands(self.state, [make(self.offset, self.now, **fields)], self.offset)

    def set(self, zone, **limits):
        return self.fold(command, time_zone=zone, **limits)

    def use(self, tokens, now=0):
        self.offset += 1
        self.now = now or self.now
        said = {"input_tokens": tokens, "event_id": f"e{self.offset}", "occurred_at": self.now}
        step = fold_usage(self.state, chunk_of([record(self.offset, self.now, **said)]))
        return [one.state.name for one in step.decisions]

    def used(self, limit, now):
        """Return what is used of a limit, and when it ends."""
        self.now = now
        fold_commands(self.state, [tick(self.offset, now)], self.offset)
        shown = json.loads(self.fold(order, kind="show").replies[0].answer.detail)
        (found,) = [one for one in shown["limits"] if one["limit"] == limit]
        return found["used"], found["resets_at_ms"]


@pytest.mark.parametrize(
    ("per", "old", "new", "moves", "ends"),
    [
        # The day of Shanghai ends at 16:00 UTC, that of UTC at midnight: the later counts.
        ("day", SHANGHAI, UTC, (2026, 11, 10, 10), (2026, 11, 11, 0)),
        # Of New York's day four hours are left when that of Shanghai has begun; it ends at 16:00 UTC.
        ("day", NEW_YORK, SHANGHAI, (2026, 11, 11, 1), (2026, 11, 11, 16)),
        ("hour", UTC, "Asia/Kolkata", (2026, 11, 10, 10, 10), (2026, 11, 10, 11)),
        ("hour", UTC, "Asia/Kolkata", (2026, 11, 10, 10, 40), (2026, 11, 10, 11, 30)),
        ("hour", "Asia/Kolkata", UTC, (2026, 11, 10, 10, 40), (2026, 11, 10, 11, 30)),
        # November has begun in Shanghai and not in UTC; it is November until it is over there too.
        ("month", SHANGHAI, UTC, (2026, 10, 31, 16, 30), (2026, 12, 1)),
        # November is over in Shanghai and not in New York.
        ("month", NEW_YORK, SHANGHAI, (2026, 11, 10), (2026, 12, 1, 5)),
        # The last evening of November in New York is December in Shanghai.
        ("month", NEW_YORK, SHANGHAI, (2026, 12, 1, 4), (2026, 12, 1, 5)),
        ("month", SHANGHAI, UTC, (2026, 11, 10), (2026, 12, 1)),
    ],
)
def test_what_was_used_of_a_window_counts_until_it_is_over_in_both_zones(
    per, old, new, moves, ends
):
    moves, ends = at(UTC, *moves), at(UTC, *ends)
    line = Line(moves - MINUTE, old, **{f"{per}_tokens": 1000})
    assert line.use(1200) == (["WARNED", "WARNED", "CUT"] if per == "month" else ["CUT"])
    line.now = moves
    line.set(new, **{f"{per}_tokens": 1000})
    for moment in (moves, (moves + ends) // 2, ends - 1):
        assert line.used(f"{per}_tokens", moment) == (1200, ends)
    assert line.used(f"{per}_tokens", ends)[0] == 0
    assert line.state.cells.matrix[0, Cell.STATE] == 0


def test_windows_of_the_new_zone_follow_those_that_were_kept():
    moves = at(UTC, 2026, 11, 11, 1)
    line = Line(moves - MINUTE, NEW_YORK, day_tokens=10)
    line.use(7)
    line.now = moves
    line.set(SHANGHAI, day_tokens=10)
    kept_until = at(SHANGHAI, 2026, 11, 12)
    line.use(2, kept_until - MINUTE)
    assert line.used("day_tokens", kept_until - 1) == (9, kept_until)
    line.use(4, kept_until)
    assert line.used("day_tokens", kept_until + DAY - 1) == (4, kept_until + DAY)
    assert line.used("day_tokens", kept_until + DAY)[0] == 0


def test_what_is_left_of_the_new_zones_day_behind_a_longer_one_is_a_day_of_its_own():
    moves = at(UTC, 2026, 11, 10, 3)
    line = Line(moves - MINUTE, UTC, day_tokens=10)
    line.use(7)
    line.now = moves
    # Its day ends at 16:00, that of UTC at midnight.
    line.set(SHANGHAI, day_tokens=10)
    over, end = at(UTC, 2026, 11, 11), at(UTC, 2026, 11, 11, 16)
    assert line.used("day_tokens", over - 1) == (7, over)
    line.use(3, over)
    assert line.used("day_tokens", end - 1) == (3, end)
    assert line.used("day_tokens", end)[0] == 0


def test_an_account_that_moves_there_and_back_gains_nothing():
    begins = at(UTC, 2026, 11, 10)
    line = Line(begins, UTC, day_tokens=1000)
    line.use(600)
    for hour in range(1, 24, 2):
        line.now = begins + hour * HOUR
        line.set(SHANGHAI if hour % 4 == 1 else UTC, day_tokens=1000)
        line.use(10)
    used, ends = line.used("day_tokens", begins + 23 * HOUR + 1)
    assert used == 600 + 12 * 10
    assert ends >= begins + DAY


@pytest.mark.parametrize("per", ["day", "week", "month"])
def test_limits_of_a_plan_keep_their_windows_too(per):
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["loose"]["limits"] = [{"utok": 50_000_000, "per": per, "of": "subscriber"}]
    moves = at(UTC, 2026, 11, 10, 10)
    line = Line(moves - MINUTE, SHANGHAI)
    catalog = catalog_version(1, line.now, Catalog.model_validate(said))
    fold_commands(line.state, [catalog], 1)
    line.fold(order, kind="open", plan="loose")
    fold_usage(
        line.state,
        chunk_of(
            [
                record(
                    0,
                    line.now,
                    model="max",
                    input_tokens=20,
                    subscriber_id="kid",
                    occurred_at=line.now,
                )
            ]
        ),
    )
    line.now = moves
    line.set(UTC)
    ends = {"day": (2026, 11, 11), "week": (2026, 11, 16), "month": (2026, 12, 1)}[per]
    limits, row = line.state.books.limits, 1

    (row,) = [one for one in limits.of_owner(0) if limits.get(one, Limit.SUBSCRIBER) >= 0]
    ends = at(UTC, *ends)
    for moment, used in ((moves, 20_000_000), (ends - 1, 20_000_000), (ends, 0)):
        values = rolled(line.state.books, row, moment)
        assert (values[Limit.USED], values[Limit.END] > moment) == (used, True)


def test_what_was_kept_outlives_the_worker():
    journal, books = Journal(), Readers()
    line = PaperLine(journal, books)
    moves = at(UTC, 2026, 11, 10, 10)
    line.command([command(0, moves - HOUR, day_tokens=10)])
    line.charge([record(0, moves - MINUTE, occurred_at=moves - MINUTE)])
    line.command([command(1, moves, time_zone=UTC, day_tokens=10)])
    line.rest()
    again = PaperLine(journal, books).state
    for state in (line.state, again):
        found = state.cells.spans_of(0, moves)
        assert found.day == (at(SHANGHAI, 2026, 11, 10), at(UTC, 2026, 11, 11))
    assert again.cells.moves.matrix.tolist() == line.state.cells.moves.matrix.tolist()


def test_moves_of_long_ago_are_forgotten():
    now = at(UTC, 2026, 11, 10)
    line = Line(now, SHANGHAI)
    for turn in range(6):
        line.now = now + turn * 40 * DAY
        line.set(UTC if turn % 2 == 0 else SHANGHAI)
        line.fold(command, account_id=f"b{turn}")
        line.fold(command, account_id=f"b{turn}", time_zone=UTC)
    assert len(line.state.cells.moves) <= 4


def test_an_account_that_never_moved_has_the_windows_of_its_zone():
    line = Line(at(UTC, 2026, 11, 10), SHANGHAI)
    line.set(SHANGHAI)
    minute = line.now // MINUTE * MINUTE
    assert line.state.cells.spans_of(0, minute) == spans_at(SHANGHAI, minute)
    assert len(line.state.cells.moves) == 0
