"""Plans, buckets and holds survive what the line survives, and their ledger explains them."""

from __future__ import annotations

import itertools
import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.orders import CATALOG, catalog_version, hold_order, order, tick
from tests.paper_line import Books, Journal, PaperLine, facts, topic_of
from tests.strategies import (
    BOUNDS,
    DAY,
    MINUTE,
    NOON,
    Record,
    chunk_of,
    command,
    event,
    key_of,
)
from tokenline.charging import journal as journal_module
from tokenline.charging.replay import OrdersBefore, replay
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import Cell
from tokenline.quota.decide import decide
from tokenline.quota.pseudo import COUNTERS
from tokenline.quota.subscribers import Telling
from tokenline.quota.usage import roll_rates
from tokenline.rating.catalog import Catalog

law = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
accounts = st.sampled_from(["a", "b", "c", "d", "d"])
subscribers = st.sampled_from(
    ["", "kid", "mother of all subscribers, with a name that needs two rows"]
)
models = st.sampled_from(["max", "max", "mini", "unheard-of"])
sessions = st.sampled_from(["s1", "s2"])
JUMPS_MS = (0, 500, 20_000, MINUTE, 3 * MINUTE)
FIRST = [
    catalog_version(0, NOON, CATALOG),
    order(1, NOON, kind="open", account_id="a", plan="strict"),
    order(2, NOON, kind="open", account_id="b", plan="postpaid"),
    order(3, NOON, kind="open", account_id="c", plan="small"),
    order(4, NOON, kind="open", account_id="d", plan="household", cycle_day=31),
]


ARRIVED = {
    "kind": "transfer_in",
    "from_account": "elsewhere",
    "amount_utok": 7_000_000,
    "source": "transfer",
}


@st.composite
def logs(draw, jumps=JUMPS_MS):
    """Return pieces of usage and commands in the order in which a worker takes them."""
    now_ms, usage, version, pieces = NOON, 0, 1, []
    offsets = {"commands": len(FIRST), "holds": 0}
    for _ in range(draw(st.integers(1, 12))):
        now_ms += draw(st.sampled_from(jumps))
        if draw(st.integers(0, 9)) == 0:
            version += 1
            pieces.append([draw(versions(offsets["commands"], now_ms, version))])
            offsets["commands"] += 1
        elif draw(st.integers(0, 9)) == 0:
            pieces.append([tick(offsets["commands"], now_ms)])
            offsets["commands"] += 1
        elif draw(st.booleans()):
            count = draw(st.integers(1, 6))
            pieces.append([draw(used(usage + i, now_ms)) for i in range(count)])
            usage += count
        else:
            topic = draw(st.sampled_from(["commands", "holds"]))
            asked = ordered if topic == "commands" else held
            pieces.append([draw(asked(offsets[topic], now_ms))])
            offsets[topic] += 1
    return pieces


@st.composite
def versions(draw, offset, now_ms, number):
    """Return another version of the catalog: what plans give, and from when on they do."""
    said = json.loads(CATALOG.to_json())
    begins_ms = now_ms + draw(st.sampled_from([MINUTE, 11 * MINUTE, 3 * DAY, 40 * DAY]))
    said |= {"version": number, "effective_ms": begins_ms // MINUTE * MINUTE}
    for name in draw(st.sets(st.sampled_from(sorted(said["plans"])))):
        said["plans"][name] |= {
            "tokens": draw(st.sampled_from([0, 62, 500])),
            "rollover_tokens": draw(st.sampled_from([0, 30])),
            "proration": draw(st.sampled_from(["prorate", "full"])),
            "running_accounts": draw(st.sampled_from(["now", "next_cycle"])),
        }
    if draw(st.integers(0, 3)) == 0:
        del said["plans"][draw(st.sampled_from(["strict", "household"]))]
    return catalog_version(offset, now_ms, Catalog.model_validate(said))


@st.composite
def used(draw, offset, now_ms):
    said = event(
        event_id=f"e{offset}",
        account_id=draw(accounts),
        model=draw(models),
        subscriber_id=draw(subscribers),
        hold_id=draw(st.sampled_from(["", "", "s1", "s2"])),
        occurred_at=now_ms - draw(st.sampled_from([0, 300])),
        input_tokens=draw(st.integers(0, 40)),
        output_tokens=draw(st.integers(0, 40)),
    )
    return Record(offset, now_ms, key_of(said), said)


@st.composite
def held(draw, offset, now_ms):
    return hold_order(
        offset,
        now_ms,
        account_id=draw(accounts),
        session=draw(sessions),
        seq=draw(st.integers(0, 3)),
        action=draw(st.sampled_from(["hold", "update", "settle"])),
        subscriber_id=draw(subscribers),
        model=draw(models),
        prompt_tokens=draw(st.integers(0, 30)),
        max_tokens=draw(st.integers(1, 30)),
        reported_utok=draw(st.sampled_from([0, 5_000_000])),
        lease=draw(st.booleans()),
    )


@st.composite
def ordered(draw, offset, now_ms):
    account = draw(accounts)
    if draw(st.integers(0, 9)) == 0:
        zone = draw(st.sampled_from(["Asia/Shanghai", "UTC", "America/New_York", "Asia/Kolkata"]))
        limits = draw(st.sampled_from([{}, {"day_tokens": 50}, {"hour_requests": 3}]))
        return command(offset, now_ms, account_id=account, time_zone=zone, **limits)
    said = draw(
        st.sampled_from(
            [
                {"kind": "grant", "amount_utok": 30_000_000, "source": "top_up"},
                {"kind": "grant", "pack": "coupon"},
                {"kind": "grant", "pack": "never-sold"},
                {"kind": "adjust", "bucket": 1, "amount_utok": -3_000_000},
                {"kind": "suspend"},
                {"kind": "resume"},
                {"kind": "change_plan", "plan": "small"},
                {"kind": "change_plan", "plan": "household"},
                {"kind": "change_cycle", "cycle_day": 9},
                {"kind": "cap", "subscribers": ["kid"], "amount_utok": 12_000_000},
                {"kind": "cap", "subscribers": ["kid"], "uncap": 1},
                {"kind": "dance"},
                {"kind": "open", "plan": "strict"},
                {"kind": "grant", "amount_utok": 20_000_000, "transferable": 1},
                {"kind": "transfer", "to_account": "elsewhere", "amount_utok": 9_000_000},
                ARRIVED,
                ARRIVED | {"valid_to": 1},
            ]
        )
    )
    # Every part is another entry of its giver.
    said |= {"command_id": draw(st.sampled_from(["x", "y", f"c{offset}"])), "from_entry": offset}
    return order(offset, now_ms, account_id=account, **said)


def asked(offset, now_ms):
    """Draw an order or a question, for who does not care on which topic it stands."""
    return st.one_of(held(offset, now_ms), ordered(offset, now_ms))


def run(pieces, plan=(), in_flight=0):
    """Take the pieces one by one; after each do what the plan says, at last rest."""
    journal, books = Journal(), Books()
    line = PaperLine(journal, books, in_flight)
    line.command(FIRST)
    for turn, piece in enumerate(pieces):
        (line.charge if isinstance(piece[0], Record) else line.command)(piece)
        if plan and plan[turn % len(plan)]:
            line = PaperLine(journal, books, in_flight)
    line.rest()
    line = PaperLine(journal, books)
    line.rest()
    return books, line.state


def without_epoch(told):
    return [value for column, value in enumerate(told) if column != Telling.EPOCH]


@law
@given(logs(), st.lists(st.booleans(), min_size=3, max_size=3), st.sampled_from([0, 4]))
def test_crashes_change_no_balance_no_reply_and_no_entry(pieces, plan, in_flight):
    small_pages = journal_module.PAGE_ROWS, journal_module.LEAF_ROWS
    journal_module.PAGE_ROWS = journal_module.LEAF_ROWS = 2
    try:
        books, state = run(pieces)
        other_books, other = run(pieces, plan, in_flight)
    finally:
        journal_module.PAGE_ROWS, journal_module.LEAF_ROWS = small_pages

    def untimed(one):
        found = facts(one)
        return found | {
            "head": {k: v for k, v in found["head"].items() if k != "seq"},
            "windows": 0,
            # As of the accounts, a column of what was told names the owner's epoch.
            "tables": found["tables"] | {"told": list(map(without_epoch, found["tables"]["told"]))},
        }

    for (key, row), (_, again) in zip(
        facts(state)["cells"].items(), facts(other)["cells"].items(), strict=True
    ):
        differ = [Cell(at).name for at, one in enumerate(row) if one != again[at]]
        assert set(differ) <= {"DECISION_EPOCH"}, key
    assert untimed(other) | {"cells": 0} == untimed(state) | {"cells": 0}
    assert other_books.replies == books.replies
    assert other_books.changes == books.changes
    assert other_books.burns == books.burns


@law
@given(logs(), st.lists(st.booleans(), min_size=3, max_size=3), st.sampled_from([0, 4]))
def test_a_replay_gives_the_rows_of_the_first_run(pieces, plan, in_flight):
    """In whatever turns commands and holds came. What was told is no balance: it depends on which
    commands were folded together.
    """
    books, state = run(pieces, plan, in_flight)
    usage = [one for piece in pieces if isinstance(piece[0], Record) for one in piece]
    asked = [*FIRST, *(one for piece in pieces for one in piece if not isinstance(one, Record))]
    orders = {
        topic: [one for one in asked if topic_of(one) == topic] for topic in ("commands", "holds")
    }
    last = OrdersBefore(
        state.next_offsets["commands"], state.next_offsets["holds"], tuple(state.turns.pairs)
    )
    again = replay(
        BOUNDS, books.ranges.values(), lambda lo, hi: chunk_of(usage[lo : hi + 1]), orders, last
    )
    for name, theirs in state.books.named_tables.items():
        mine = again.books.named_tables[name]
        assert name == "told" or mine.matrix.tobytes() == theirs.matrix.tobytes(), name


@law
@given(logs())
def test_entries_and_usage_explain_every_balance_to_the_last_utok(pieces):
    books, state = run(pieces)
    found = {}
    for slot, key in enumerate(state.cells.keys):
        row = state.books.row(slot)
        for pseudo, counter in COUNTERS.items():
            found[key, +pseudo] = -state.books.get(row, counter)
        for bucket in state.books.chain(row):
            total, used, held = state.books.buckets.matrix[bucket, Bucket.TOTAL : Bucket.SCOPE]
            assert used + held <= total
            found[key, state.books.buckets.get(bucket, Bucket.NUMBER)] = int(total - used)

    assert books.balances() == {name: amount for name, amount in found.items() if amount}


@law
@given(logs())
def test_what_buckets_paid_is_what_the_windows_cost(pieces):
    books, _state = run(pieces)
    paid = sum(books.burns.values())

    assert paid == sum(row["charge_utok"] for _, row in books.windows.values())
    reasons = list(books.dead_letters.values())
    unheard = [
        one
        for piece in pieces
        for one in piece
        if isinstance(one, Record) and one.event["model"] == "unheard-of"
    ]
    assert reasons.count("unknown_model") == len(unheard)
    assert set(itertools.chain(reasons)) <= {"unknown_model"}


@law
@given(logs((500, 20_000, 2 * MINUTE, DAY, 35 * DAY)))
def test_an_answer_leaves_no_decision_untaken(pieces):
    """Most answers are given without a look at the decision: looking would have found nothing."""
    line = PaperLine(Journal(), Books())
    line.command(FIRST)
    for piece in pieces:
        if isinstance(piece[0], Record):
            line.charge(piece)
            continue
        line.command(piece)
        state, asked = line.state, piece[0].fields
        if piece[0].name in ("catalog_version", "clock_tick"):
            continue
        slot = state.cells.slot(f"{asked['tenant_id']}/{asked['account_id']}")
        minute_ms = state.minute_ms or NOON // MINUTE * MINUTE
        roll_rates(state.cells, np.array([slot]), minute_ms)
        assert not decide(state.cells, np.array([slot]), minute_ms, state.epoch, books=state.books)
