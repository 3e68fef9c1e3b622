"""100,000 bad records from one producer, or with random keys and schema ids: no worker ends, others go on."""

from __future__ import annotations

import os
import random

import pytest
from stand import Stand, event

BAD = 100_000


@pytest.fixture
def stand(line_settings, tmp_path):
    with Stand(line_settings(partitions=1, bad_records_per_minute=100), tmp_path) as one:
        one.apply()
        one.start()
        one.use(2)
        one.all_sealed()
        yield one


def random_frames(count):
    """Yield (key, frame): garbage of 12 bytes, each with a key and a schema id of its own."""
    dice = random.Random(7)
    for _ in range(count):
        number = dice.randrange(1 << 31)
        yield b"k%d" % number, b"\0" + number.to_bytes(4) + os.urandom(7)


def strange_events(count):
    """Yield (key, frame): events of accounts and sources that nobody knows, from gateways of random names."""
    for number in range(count):
        account = f"nobody-{number}"
        yield f"default/{account}".encode(), event(account, source=f"s{number}")


def rows_and_records(stand):
    query = "SELECT count(), sum(records), uniqExact(grouped_by) FROM {db}.v_dead_letters"
    return tuple(map(int, stand.ask(query)[0]))


@pytest.mark.parametrize("options", [{}, {"enable.idempotence": True}])
def test_a_flood_is_counted_and_ends_nothing(stand, options):
    producer = stand.producer(**options)
    stand.put("usage", random_frames(BAD), producer=producer)
    stand.use(5)
    stand.all_sealed(within_s=120)
    assert stand.seals("counted", "rejected") == (7, BAD)
    stand.until(lambda: rows_and_records(stand)[1] == BAD, what="letters")
    rows, _, groups = rows_and_records(stand)
    # Of each minute ten rates of letters at most, some samples, and a letter a group and step.
    assert rows <= 20_000
    assert groups <= 2 * 102
    assert "too many bad records" in stand.text("charging")
    assert "tokenline_grouped_bad_records_total" in stand.metrics()
    if options:
        assert groups == 2  # those with letters of their own, and one producer
    assert stand.reconcile().ok
    stand.restart()
    stand.use(1)
    stand.all_sealed()
    assert stand.reconcile().ok


def test_readable_records_of_nobody_are_counted_too(stand):
    stand.put("usage", strange_events(5_000))
    stand.use(5)
    stand.all_sealed(within_s=120)
    assert stand.seals("counted", "rejected") == (7, 5_000)
    stand.until(lambda: rows_and_records(stand)[1] == 5_000, what="letters")
    assert rows_and_records(stand)[0] <= 4_000
    assert stand.reconcile().ok
