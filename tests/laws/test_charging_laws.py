"""Whatever happens to a log on its way, charging gives what counting by hand gives."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.reference import Reference
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import HOUR, MINUTE, NOON, Record, command, cuts, event, key_of, topics
from tokenline.quota.cells import Cell

law = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

ZONES = {"t/a": "Asia/Shanghai", "t/b": "UTC", "t/c": "America/St_Johns"}
COMMANDS = [
    command(0, account_id="a", time_zone="Asia/Shanghai", month_tokens=1000, minute_tokens=150),
    command(1, account_id="b", time_zone="UTC", month_tokens=3 * 10**9, day_requests=4),
    command(2, account_id="c", time_zone="America/St_Johns", hour_tokens=120, minute_requests=2),
]
STANDING = (Cell.STATE, Cell.RULE, Cell.RESETS_AT, Cell.THRESHOLD_PERCENT, Cell.THRESHOLD_MONTH)
PLANS = st.lists(st.sampled_from(["", "", "rest", "crash", "again"]), min_size=10, max_size=10)


def charged(records, bounds=None, plan=(), in_flight=0):
    """Charge the records cut at `bounds`; after each chunk do what the plan says, at last rest."""
    journal, books = Journal(), Books()
    line = PaperLine(journal, books, in_flight)
    line.command(COMMANDS)
    bounds = bounds or [0, len(records)]
    for turn, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        line.charge(records[lo:hi])
        event_after = plan[turn % len(plan)] if plan else ""
        if event_after == "rest":
            line.rest()
        elif event_after == "crash":
            line = PaperLine(journal, books, in_flight)
        elif event_after == "again":
            line = PaperLine(journal, books, in_flight)
            line.charge(records[: (lo + hi) // 2 + 1])
    line.rest()
    last = PaperLine(journal, books)
    last.rest()
    return books, last.state


def standing(state):
    rows = zip(state.cells.keys, state.cells.matrix, strict=True)
    return {key: [int(row[cell]) for cell in STANDING] for key, row in rows}


@law
@given(st.data(), topics(), st.sampled_from([0, 3, 8]))
def test_chunks_restarts_and_replays_give_what_counting_by_hand_gives(data, records, in_flight):
    bounds, plan = data.draw(cuts(len(records))), data.draw(PLANS)
    by_hand = Reference(ZONES).read(records)

    books, state = charged(records, bounds, plan, in_flight)

    assert books.verdicts == by_hand.verdicts
    assert books.dead_letters == by_hand.reasons
    assert books.window_totals() == by_hand.windows
    assert books.month_totals() == by_hand.months
    assert dataclasses.asdict(state.totals) == {
        "tokens": by_hand.tokens,
        **{kind: len(by_hand.offsets(kind)) for kind in ("counted", "late", "duplicate")},
        "rejected": len(by_hand.offsets("rejected")),
        "deleted": 0,
    }


@law
@given(st.data(), topics())
def test_decisions_stand_alike_however_the_log_was_cut(data, records):
    bounds, plan = data.draw(cuts(len(records))), data.draw(PLANS)
    _, whole = charged(records)
    books, state = charged(records, bounds, plan, in_flight=4)

    assert standing(state) == standing(whole)
    newest = {}
    for (account, version), said in sorted(books.decisions.items()):
        newest[account] = said
        assert version == 1 or (account, version - 1) in books.decisions
    assert {account: said["state"] for account, said in newest.items()} == {
        account: cells[0] for account, cells in standing(whole).items()
    }


@law
@given(st.data(), topics())
def test_each_threshold_is_told_at_most_once_a_month(data, records):
    books, _ = charged(records, data.draw(cuts(len(records))), data.draw(PLANS), in_flight=4)

    told = Counter(
        (said["account"], said["window_start_ms"], said["threshold_percent"])
        for said in books.decisions.values()
        if said["threshold_percent"]
    )
    assert set(told.values()) <= {1}
    # Only October and November are here; a window that is neither would be told for a minute.
    assert all(said["rule"] == 1 for said in books.decisions.values() if said["threshold_percent"])


@law
@given(topics(), st.integers(0, 2 * HOUR))
def test_a_log_sent_twice_counts_once(records, later_ms):
    once, _ = charged(records)
    end = records[-1].appended_ms + later_ms
    copies = [
        dataclasses.replace(one, offset=one.offset + len(records), appended_ms=end)
        for one in records
    ]
    # An event that was refused as too far ahead may be on time by now: that is its first time.
    ahead = [one for one in records if once.dead_letters.get(one.offset) == "future_time"]
    again = [one for one in copies if one.offset - len(records) not in {a.offset for a in ahead}]

    twice, _ = charged([*records, *_renumbered(again, len(records))])

    assert twice.window_totals() == once.window_totals()
    assert twice.month_totals() == once.month_totals()
    assert twice.offsets("counted") == once.offsets("counted")


@st.composite
def two_orders(draw):
    """Draw distinct events of several gateways within the horizon, in two orders."""
    count = draw(st.integers(1, 25))
    said = [
        event(
            event_id=f"e{number % 4}",
            source=f"gateway{number // 4}",
            account_id=draw(st.sampled_from("abc")),
            model=draw(st.sampled_from(["m1", "m2"])),
            occurred_at=NOON + draw(st.integers(-25 * MINUTE, 0)),
            input_tokens=draw(st.integers(0, 500)),
        )
        for number in range(count)
    ]
    moments = sorted(draw(st.lists(st.integers(0, HOUR // 2), min_size=count, max_size=count)))
    return tuple(
        [
            Record(offset, NOON + moment, key_of(one), one)
            for offset, (moment, one) in enumerate(zip(moments, order, strict=True))
        ]
        for order in (said, draw(st.permutations(said)))
    )


@law
@given(two_orders())
def test_the_order_in_which_gateways_report_changes_no_total(orders):
    (one, _), (other, _) = (charged(records) for records in orders)

    assert one.window_totals() == other.window_totals()
    assert one.month_totals() == other.month_totals()


@law
@given(st.data(), topics())
def test_windows_months_and_counted_tokens_are_one_number(data, records):
    books, state = charged(records, data.draw(cuts(len(records))), data.draw(PLANS), in_flight=8)
    for totals in (books.window_totals(), books.month_totals()):
        assert sum(events for events, _ in totals.values()) == state.totals.counted
        assert sum(tokens for _, tokens in totals.values()) == state.totals.tokens


def _renumbered(records, first):
    return [dataclasses.replace(one, offset=first + i) for i, one in enumerate(records)]
