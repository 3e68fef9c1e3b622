"""A key has one home, by the hash that every producer must take."""

from __future__ import annotations

import os

import numpy as np
import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.strategies import BOUNDS, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.metering.home import MOST_KEY_BYTES, NOWHERE, Home, murmur2s, partitions_of
from tokenline.wire.kafka import partition_of

# t/a is of partition 0 of 2, t/b of 1.
HERE, ELSEWHERE = Home(0, 2), Home(1, 2)


@given(st.lists(st.binary(max_size=90)))
def test_the_hash_of_many_keys_is_that_of_each(keys):
    assert murmur2s(keys).tolist() == [murmur2(key) for key in keys]


@pytest.mark.parametrize("partitions", [1, 2, 12, 16, 4096])
def test_charging_and_all_who_send_agree_on_the_partition_of_a_key(partitions):
    keys = [f"default/账户-{number}".encode() for number in range(300)] + [b"", os.urandom(300)]
    found = partitions_of(keys, partitions)

    assert found.tolist() == [partition_of(key, partitions) for key in keys]
    assert set(found.tolist()) <= set(range(partitions))


def test_a_key_that_is_no_name_is_at_home_nowhere_and_costs_nothing():
    assert partitions_of([b"x" * (MOST_KEY_BYTES + 1), b"x"], 2)[0] == NOWHERE
    assert Home(0, 2).strays(["x" * 10**6, "x"]) == [0]


def test_of_a_line_with_one_partition_nobody_is_a_stray():
    assert Home().strays(["t/a", None, "x" * 10**6]) == []


@pytest.mark.parametrize(
    "said",
    [
        command(0),
        order(0, NOON, kind="open", plan="strict"),
        order(0, NOON, kind="show"),
        order(0, NOON, kind="transfer_in", amount_utok=5, from_account="x", from_entry=1),
        hold_order(0, NOON),
    ],
    ids=lambda one: f"{one.name}-{one.fields.get('kind', '')}",
)
def test_a_command_in_the_wrong_partition_makes_no_account_and_says_where_it_belongs(said):
    """It made a second account of the same name: each had the whole allowance, and limits held for neither."""
    state = PartitionState(BOUNDS, ELSEWHERE)
    fold_commands(state, [catalog_version(0, NOON, CATALOG)], 0)
    step = fold_commands(state, [said], said.offset)
    (refused,) = step.refused

    assert (refused.reason, refused.command) == ("wrong_partition", said)
    assert "stands in partition 1 and belongs into 0 of 2" in refused.detail
    assert "murmur2" in refused.detail
    assert "murmur2_random" in refused.detail
    assert (state.cells.keys, step.replies, step.changes) == ([], [], [])


def test_at_home_a_command_is_taken_and_a_stray_beside_it_is_not():
    state = PartitionState(BOUNDS, HERE)
    step = fold_commands(state, [command(0), command(1, account_id="b"), command(2)], 2)

    assert state.cells.keys == ["t/a"]
    assert [(one.offset, one.reason) for one in step.refused] == [(1, "wrong_partition")]


def test_usage_in_the_wrong_partition_is_refused_with_both_partitions_named():
    """It said `unknown_account`, and the sender looked for an account that was there."""
    state = PartitionState(BOUNDS, HERE)
    fold_commands(state, [command(0)], 0)
    records = [
        record(0, event_id="1"),
        record(1, event_id="2", account_id="b"),
        record(2, event_id="3", account_id="x-1"),
        record(3, event_id="4", account_id="x-3"),
    ]
    homes = {one.key: partition_of(one.key.encode(), 2) for one in records}
    step = fold_usage(state, chunk_of(records))
    said = {one.offset: one for one in step.refused}

    assert step.counted == 1
    for one in records[1:]:
        stray = homes[one.key] != 0
        assert said[one.offset].reason == ("wrong_partition" if stray else "unknown_account")
        assert ("belongs into 1 of 2" in said[one.offset].detail) is stray
    assert 0 < sum(home == 0 for home in homes.values()) < len(homes)


def test_late_usage_in_the_wrong_partition_is_refused_too():
    state = PartitionState(BOUNDS, ELSEWHERE)
    late = record(0, occurred_at=NOON - 2 * 3_600_000)
    step = fold_usage(state, chunk_of([late]))

    assert [one.reason for one in step.refused] == ["wrong_partition"]
    assert step.judged.late == []


def test_ten_thousand_strays_of_one_key_are_hashed_once():
    state = PartitionState(BOUNDS, ELSEWHERE)
    records = [record(at, event_id=str(at)) for at in range(50)]
    step = fold_usage(state, chunk_of(records))

    assert {one.reason for one in step.refused} == {"wrong_partition"}
    assert np.array_equal(step.judged.rejected, range(50))
