"""The memory of counted events knows what it was told, for the horizon, in few bytes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tokenline.metering.identity import FEW_ROWS, identities
from tokenline.metering.seen import (
    FEW_NAMES,
    GENERATIONS,
    MOVE_PER_NAME,
    Generation,
    SeenEvents,
    Table,
    repeats,
)

HORIZON = 4000
SPAN = HORIZON // GENERATIONS


def names_of(numbers):
    return identities(
        *(["t"] * len(numbers), ["a"] * len(numbers), ["s"] * len(numbers)),
        [f"e{n}" for n in numbers],
    )


def test_what_was_remembered_is_found_and_nothing_else():
    seen = SeenEvents(HORIZON)
    assert not seen.find(names_of(range(100))).any()
    seen.remember(names_of(range(100)), 0)

    assert seen.find(names_of(range(200))).tolist() == [True] * 100 + [False] * 100
    assert len(seen) == 100


def test_a_name_that_stands_twice_in_a_chunk_is_found_the_second_time():
    names = names_of([1, 2, 1, 3, 2, 1])
    assert repeats(names).tolist() == [False, False, True, False, True, True]
    assert SeenEvents(HORIZON).find(names).tolist() == repeats(names).tolist()


def test_no_names_are_no_repeats():
    assert repeats(names_of([])).tolist() == []
    assert SeenEvents(HORIZON).find(names_of([])).tolist() == []


def test_names_that_share_one_word_are_different():
    names = np.array([[5, 1], [5, 2], [6, 1]], np.uint64)
    generation = Generation(11)
    generation.add(names[:1])
    assert generation.find(names).tolist() == [True, False, False]
    assert repeats(names).tolist() == [False, False, False]


def test_names_that_all_want_one_slot_are_all_held():
    capacity = 1031
    names = np.array([[7 + capacity * i, 3 + i] for i in range(400)], np.uint64)
    generation = Generation(capacity)
    generation.add(names)

    assert generation.find(names).all()
    assert len(generation.names()) == 400


def test_names_survive_growing_and_packing():
    generation = Generation()
    for start in range(0, 20_000, 700):
        generation.add(names_of(range(start, start + 700)))
    generation.pack()

    assert generation.count == 20_300
    assert generation.find(names_of(range(20_300))).all()
    assert not generation.find(names_of(range(30_000, 30_500))).any()


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_a_packed_generation_takes_at_most_24_bytes_an_event(count):
    generation = Generation()
    generation.add(names_of(range(count)))
    generation.pack()
    for _ in "grown", "packed":
        generation.move(2 * 24 * count)
    assert generation.nbytes <= 24 * count
    generation.pack()
    assert generation.nbytes <= 24 * count  # nothing is copied again


def test_while_a_table_is_moved_every_name_is_found_once_and_new_ones_can_come():
    generation = Generation()
    generation.add(names_of(range(600)))
    generation.add(names_of(range(600, 700)))  # outgrows 1,031 slots
    for turn in range(12):
        end = 700 + 10 * turn
        assert generation.find(names_of(range(end + 100))).tolist() == [True] * end + [False] * 100
        assert all(generation.find(names_of(range(i, i + 7))).all() for i in range(0, end - 7, 7))
        generation.move(100)
        generation.add(names_of(range(end, end + 10)))
    assert generation.nbytes < 1031 * 16 * 5  # the outgrown table is gone
    assert len(np.unique(generation.names(), axis=0)) == len(generation.names()) == 820


def test_a_generation_that_grows_again_while_it_waits_to_be_packed_loses_nothing():
    generation = Generation()
    generation.add(names_of(range(600)))
    generation.add(names_of(range(600, 1300)))  # outgrows its table
    generation.pack()
    generation.add(names_of(range(1300, 9000)))  # outgrows the next before all is moved
    assert generation.find(names_of(range(9000))).all()
    for _ in "grown", "packed":
        generation.move(1 << 20)
    assert len(generation.names()) == generation.count == 9000
    assert generation.nbytes <= 24 * 9000


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_in_whatever_order_a_generation_knows_what_it_was_told(seed):
    luck, generation, count = random.Random(seed), Generation(), 0
    for _ in range(60):
        match luck.randrange(4):
            case 0:
                generation.pack()
            case 1:
                generation.move(luck.choice((50, 500, 5000)))
            case _:
                more = luck.choice((1, 20, 63, 64, 300, 2000))
                generation.add(names_of(range(count, count + more)))
                count += more
        asked = names_of(luck.choices(range(count + 50), k=luck.choice((5, 200))))
        known = {tuple(name) for name in names_of(range(count)).tolist()}
        assert generation.find(asked).tolist() == [tuple(one) in known for one in asked.tolist()]


def test_no_chunk_waits_for_a_whole_table_to_be_moved(monkeypatch):
    """A million names placed at once took a third of a second, and a cut-off waited for it."""
    placed = []
    place = Table.place
    monkeypatch.setattr(
        Table, "place", lambda table, names: (placed.append(len(names)), place(table, names))
    )
    seen = SeenEvents(HORIZON)
    seen.remember(names_of(range(100_000)), 0)
    for turn in range(100):
        seen.remember(names_of(range(100_000 + 1000 * turn, 101_000 + 1000 * turn)), SPAN // 2)
    seen.remember(names_of([-1]), SPAN)
    assert len(seen) == 200_001
    assert max(placed[1:]) <= MOVE_PER_NAME * 1000


def test_an_outgrown_table_is_let_go_of_long_before_the_next_is_full():
    seen, count = SeenEvents(HORIZON), 0
    for size in (50_000, 20, 63, 64, 900, *[300] * 240):
        seen.remember(names_of(range(count, count + size)), 0)
        count += size
    (generation,) = seen._generations.values()
    assert generation._outgrown is None
    assert seen.find(names_of(range(count))).all()


def test_an_empty_generation_can_be_packed_and_used():
    generation = Generation()
    generation.pack()
    generation.add(names_of([1, 2]))
    assert generation.find(names_of([1, 2, 3])).tolist() == [True, True, False]


def test_all_but_the_newest_generation_are_packed():
    seen = SeenEvents(HORIZON)
    for turn in range(4):
        seen.remember(names_of(range(turn * 10_000, turn * 10_000 + 10_000)), turn * SPAN)
    grown = Generation()
    grown.add(names_of(range(10_000)))
    assert seen.nbytes <= 30_000 * 24 + grown.nbytes


#   time  0        1000       2000 ...  4000       5000       6000
#         |remember|                    |                     |
#                   <------ horizon ---->  may be forgotten   is forgotten
def test_a_name_is_known_for_the_horizon_and_forgotten_a_generation_later():
    seen = SeenEvents(HORIZON)
    seen.remember(names_of([1]), 999)
    for now in range(SPAN, 999 + HORIZON, SPAN):
        seen.remember(names_of([now]), now)
        assert seen.find(names_of([1])).all()
    seen.remember(names_of([2]), 999 + HORIZON)
    assert seen.find(names_of([1])).all()
    seen.remember(names_of([3]), 999 + HORIZON + SPAN + 1)

    assert not seen.find(names_of([1])).any()
    assert seen.find(names_of([2])).all()


def test_a_long_silence_forgets_everything_older():
    seen = SeenEvents(HORIZON)
    seen.remember(names_of(range(50)), 0)
    seen.remember(names_of([99]), 100 * HORIZON)
    assert len(seen) == 1


def test_a_clock_that_goes_back_a_little_loses_nothing():
    seen = SeenEvents(HORIZON)
    seen.remember(names_of([1]), 5 * SPAN)
    seen.remember(names_of([2]), 5 * SPAN - 1)
    seen.remember(names_of([3]), 5 * SPAN + 1)
    assert seen.find(names_of([1, 2, 3])).all()


def test_identities_differ_when_any_part_does():
    tenants, accounts = ["t", "u", "t", "t", "t"], ["a", "a", "b", "a", "a"]
    sources, ids = ["s", "s", "s", "r", "s"], ["1", "1", "1", "1", "2"]
    assert len(np.unique(identities(tenants, accounts, sources, ids), axis=0)) == 5


def test_identities_do_not_mix_up_where_one_part_ends():
    two = ["t"] * 2
    assert len(np.unique(identities(two, two, ["a\0b", "a"], ["c", "b\0c"]), axis=0)) == 2
    assert len(np.unique(identities(["t1", "t"], ["a", "1a"], two, ["c", "c"]), axis=0)) == 2
    assert len(np.unique(identities(two, ["t1", "t"], ["a", "1a"], ["c", "c"]), axis=0)) == 2


def test_identities_are_the_same_for_ever():
    """Written to journals: another value here is a lost memory after an upgrade."""
    (words,) = identities(["default"], ["acme"], ["gateway"], ["0198-é"]).tolist()
    assert words == [17325014026346297085, 12241396880403436492]


def test_no_identity_looks_like_a_free_slot(monkeypatch):
    zero_first = bytes(8) + bytes([9]) + bytes(7)
    monkeypatch.setattr("tokenline.metering.identity.xxh3_128_digest", lambda _: zero_first)
    assert names_of([1]).tolist() == [[1, 9]]


def test_no_events_have_no_identities():
    assert identities([], [], [], []).shape == (0, 2)


def test_few_and_many_events_get_the_same_names():
    """Few rows are named one by one and many as columns; a restart must not see a difference."""
    ids = [f"e{number}-é" for number in range(FEW_ROWS + 5)]
    many = identities(["t/1"] * len(ids), ["账户"] * len(ids), ["größe"] * len(ids), ids)
    few = np.concatenate([identities(["t/1"], ["账户"], ["größe"], [one]) for one in ids])

    assert (many == few).all()


def test_few_names_and_many_find_each_other():
    generation, sizes = Generation(), (3, FEW_NAMES * 5, FEW_NAMES - 1, 1, FEW_NAMES)
    end = 0
    for turn in range(20):
        size = sizes[turn % len(sizes)]
        generation.add(names_of(range(end, end + size)))
        end += size
        asked = names_of(range(end + 50))
        few = np.concatenate([generation.find(asked[i : i + 7]) for i in range(0, len(asked), 7)])
        assert few.tolist() == generation.find(asked).tolist() == [True] * end + [False] * 50
    generation.pack()
    assert all(generation.find(names_of(range(i, i + 9))).all() for i in range(0, end - 9, 9))


def test_few_names_that_claim_one_slot_are_all_found():
    capacity = 1031
    names = np.array([[7 + capacity * i, 3 + i % 3] for i in range(400)], np.uint64)
    generation = Generation(capacity)
    for i in range(0, 400, 5):
        generation.add(names[i : i + 5])
    assert generation.find(names).all()
    assert not generation.find(names + np.uint64(capacity * 1000)).any()
