"""Use is added to the cells of its account, month and rate windows, and to no others."""

from __future__ import annotations

import numpy as np

from tests.strategies import DAY, HOUR, MINUTE, NOON
from tokenline.metering.calendar import spans_at
from tokenline.quota.cells import WIDTH, AccountCells, Cell, same_month
from tokenline.quota.ruling import month_used
from tokenline.quota.usage import Counted, add_usage

NOW = NOON // MINUTE * MINUTE
OCTOBER = spans_at("Asia/Shanghai", NOW).month[0]
NOVEMBER = spans_at("Asia/Shanghai", NOW).month[1]
DECEMBER = spans_at("Asia/Shanghai", NOVEMBER + 31 * DAY).month[0]
MONTHS = slice(Cell.MONTH_START, Cell.LAST_MONTH_VERSION + 1)


def cells_of(*names, zone="Asia/Shanghai"):
    cells = AccountCells()
    cells.extend([f"t/{name}" for name in names])
    cells.zone_code(zone)
    return cells


def add(cells, rows, now=NOW):
    """Add (slot, tokens, month) rows; offsets count from 10."""
    slots, tokens, months = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    offsets = np.arange(10, 10 + len(rows))
    counted = Counted(slots=slots, tokens=tokens, months_ms=months, versions=offsets)
    return add_usage(cells, counted, now)


def test_touched_slots_are_returned_once_and_ascending():
    cells = cells_of("a", "b", "c")
    assert add(cells, [(2, 1, OCTOBER), (0, 1, OCTOBER), (2, 1, OCTOBER)]).tolist() == [0, 2]


def test_each_account_gets_its_own():
    cells = cells_of("a", "b", "c")
    add(cells, [(2, 1, OCTOBER), (0, 10, OCTOBER), (2, 100, OCTOBER)])
    found = cells.matrix[:, [Cell.MONTH_TOKENS, Cell.MONTH_EVENTS, Cell.MONTH_VERSION]]
    assert found.tolist() == [[10, 1, 11], [0, 0, 0], [101, 2, 12]]
    assert cells.matrix[:, Cell.DAY_TOKENS].tolist() == [10, 0, 101]
    assert cells.matrix[:, Cell.DAY_REQUESTS].tolist() == [1, 0, 2]


def test_two_months_in_one_chunk_are_kept_apart():
    cells = cells_of("a")
    add(cells, [(0, 1, NOVEMBER), (0, 10, OCTOBER), (0, 100, NOVEMBER)])
    assert cells.matrix[0, MONTHS].tolist() == [NOVEMBER, 101, 2, 12, OCTOBER, 10, 1, 11]


def test_usage_of_the_month_before_still_reaches_it():
    cells = cells_of("a")
    add(cells, [(0, 10, OCTOBER)])
    add(cells, [(0, 100, NOVEMBER)], NOVEMBER)
    add(cells, [(0, 5, OCTOBER)], NOVEMBER)
    slots = np.array([0])
    assert month_used(cells, slots, OCTOBER).tolist() == [15]
    assert month_used(cells, slots, NOVEMBER).tolist() == [100]


def test_usage_of_next_month_reported_early_does_not_hide_this_one():
    cells = cells_of("a")
    add(cells, [(0, 10, OCTOBER), (0, 1, NOVEMBER)])
    add(cells, [(0, 20, OCTOBER)])
    assert month_used(cells, np.array([0]), OCTOBER).tolist() == [30]


def test_the_month_before_last_is_dropped():
    cells = cells_of("a")
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        add(cells, [(0, 7, month)], month)
    assert cells.matrix[0, [Cell.MONTH_START, Cell.LAST_MONTH_START]].tolist() == [
        DECEMBER,
        NOVEMBER,
    ]


def test_a_month_that_was_skipped_leaves_no_tokens_in_the_next():
    cells = cells_of("a")
    add(cells, [(0, 7, OCTOBER)])
    add(cells, [(0, 1, DECEMBER)], DECEMBER)
    add(cells, [(0, 2, NOVEMBER)], DECEMBER)
    slots = np.array([0])
    assert month_used(cells, slots, DECEMBER).tolist() == [1]
    assert month_used(cells, slots, NOVEMBER).tolist() == [2]


def test_rate_windows_roll_each_at_its_own_edge():
    cells = cells_of("a")
    rates = [Cell.MINUTE_TOKENS, Cell.HOUR_TOKENS, Cell.DAY_TOKENS]
    noon = NOW - 11 * HOUR - 30 * MINUTE
    add(cells, [(0, 1, OCTOBER)], noon)
    for now, expected in (
        (noon, [3, 3, 3]),
        (noon + MINUTE, [2, 5, 5]),
        (noon + HOUR, [2, 2, 7]),
        (noon + DAY, [2, 2, 2]),
    ):
        add(cells, [(0, 2, OCTOBER)], now)
        assert cells.matrix[0, rates].tolist() == expected


def test_accounts_of_different_zones_roll_at_different_moments():
    cells = cells_of("a", "b")
    cells.matrix[1, Cell.ZONE] = cells.zone_code("UTC")
    rows = [(0, 5, OCTOBER), (1, 5, OCTOBER)]
    add(cells, rows)
    add(cells, rows, NOVEMBER)
    assert cells.matrix[:, Cell.DAY_TOKENS].tolist() == [5, 10]


def test_versions_never_go_back():
    cells = cells_of("a")
    cells.matrix[0, Cell.MONTH_START], cells.matrix[0, Cell.MONTH_VERSION] = OCTOBER, 99
    add(cells, [(0, 1, OCTOBER)])
    assert int(cells.matrix[0, Cell.MONTH_VERSION]) == 99


def test_starts_a_zone_apart_are_one_month_and_neighbours_are_not():
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        start = spans_at(zone, NOW - 10 * DAY).month[0]
        assert same_month(np.array([start]), OCTOBER).tolist() == [True]
        assert same_month(np.array([start]), NOVEMBER).tolist() == [False]
    assert same_month(np.array([0]), OCTOBER).tolist() == [False]


def test_slots_are_given_in_order_and_kept_while_the_matrix_grows():
    cells = AccountCells()
    for number in range(3000):
        slot = cells.open(f"t/{number}")
        cells.matrix[slot, Cell.MONTH_TOKENS] = number
    cells.extend([f"t/x{number}" for number in range(5000)])

    assert cells.matrix.shape == (8000, WIDTH)
    assert cells.matrix[:3000, Cell.MONTH_TOKENS].tolist() == list(range(3000))
    assert cells.open("t/17") == 17 == cells.slot("t/17")
    assert cells.slots(["t/2", "nobody", None, "t/x0"]).tolist() == [2, -1, -1, 3000]
    assert cells.slot("nobody") is None


def test_a_zone_keeps_its_code():
    cells = AccountCells()
    assert [cells.zone_code(zone) for zone in ("UTC", "Asia/Shanghai", "UTC")] == [0, 1, 0]
