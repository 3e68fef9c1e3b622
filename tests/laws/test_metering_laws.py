"""The parts of the fold keep their laws alone: memory, sums and journal records."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.strategies import NOON, batch_of, event, numbers_of
from tokenline.charging.packs import (
    Message,
    pack_out,
    pack_part,
    pack_rows,
    pack_seen,
    unpack_out,
    unpack_part,
    unpack_rows,
    unpack_seen,
)
from tokenline.metering.identity import identities
from tokenline.metering.seen import SeenEvents
from tokenline.metering.tally import KEY, Tally, lines_of
from tokenline.quota.cells import WIDTH

law = settings(max_examples=100, deadline=None, derandomize=True)
HORIZON = 400
# Few words, so that names share slots, and a word in common.
NAMES = st.tuples(st.integers(1, 40).map(lambda n: n * 1031), st.integers(0, 3))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.sampled_from(
    ["", "a", "b", "ab", "\0", "a\0", "1", "1 ", "é"]
)


@law
@given(st.lists(st.tuples(st.integers(0, 300), st.lists(NAMES, max_size=30)), max_size=15))
def test_memory_finds_all_of_the_horizon_and_nothing_it_was_never_told(chunks):
    seen, told, now = SeenEvents(HORIZON), {}, 0
    for pause, names in chunks:
        now += pause
        array = np.array(names, np.uint64).reshape(-1, 2)
        earlier = set()
        for name, found in zip(names, seen.find(array).tolist(), strict=True):
            recent = name in earlier or now - told.get(name, -HORIZON - 1) <= HORIZON
            assert found or not recent
            assert not found or name in earlier or name in told
            earlier.add(name)
        fresh = array[~seen.find(array)]
        if len(fresh):
            seen.remember(fresh, now)
            told |= {tuple(name): now for name in fresh.tolist()}


@law
@given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), max_size=12))
def test_two_events_have_one_identity_exactly_when_all_four_parts_agree(events):
    names = identities(*(list(part) for part in zip(*events, strict=True))) if events else []
    for one, name in zip(events, names, strict=True):
        for other, its in zip(events, names, strict=True):
            assert (one == other) == (name.tolist() == its.tolist())


LINES = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["", "s"]),
        st.integers(0, 3 * 60_000),
        st.integers(0, 10**9),
    ),
    min_size=1,
    max_size=12,
)


@law
@given(st.data(), LINES)
def test_a_tally_is_the_same_for_any_parts_in_any_order(data, said):
    def rows(order):
        tally = Tally(NOON)
        for i in order:
            slot, subscriber, ago, tokens = said[i]
            one = event(subscriber_id=subscriber, occurred_at=NOON - ago, input_tokens=tokens)
            batch = batch_of([one])
            tally.add(lines_of(batch, numbers_of(batch, [slot], [i])))
            if data.draw(st.booleans()):
                tally.rows()
        return tally.rows().sort(KEY).to_dicts()

    assert rows(range(len(said))) == rows(data.draw(st.permutations(range(len(said)))))


@law
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.text(max_size=5), max_size=4),
    st.integers(0, 5).flatmap(lambda n: arrays.arrays(np.int64, (n, WIDTH))),
)
def test_account_rows_come_back_from_the_journal(first_new, names, rows):
    slots = np.arange(len(rows))
    first, found_names, found_slots, found = unpack_rows(pack_rows(first_new, names, slots, rows))

    assert (found_names, found_slots.tolist()) == (names, slots.tolist())
    assert first == first_new
    assert (found == rows).all()


@law
@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.builds(Message, st.text(max_size=9), st.binary(), st.none() | st.binary())),
)
def test_messages_come_back_from_the_journal(seq, messages):
    assert unpack_out(pack_out(seq, messages)) == (seq, messages)


@law
@given(st.integers(0, 2**62), st.integers(0, 9).flatmap(lambda n: arrays.arrays("u8", (n, 2))))
def test_names_come_back_from_the_journal(minute_ms, names):
    minute, found = unpack_seen(pack_seen(minute_ms, names))
    assert (minute, found.tolist()) == (minute_ms, names.tolist())


@law
@given(LINES)
def test_lines_come_back_from_the_journal(said):
    batch = batch_of([event(subscriber_id=who, input_tokens=n) for _, who, _, n in said])
    slots = np.array([slot for slot, *_ in said])
    lines = lines_of(batch, numbers_of(batch, slots, np.arange(len(said))))
    minute_ms, found = unpack_part(pack_part(NOON, lines))

    assert minute_ms == NOON
    assert found.equals(lines)
