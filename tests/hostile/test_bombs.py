"""A few kB on the wire that become gigabytes: the workers stay small, and what is real goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stand import ROLES, Stand

MIB = 1 << 20
# 30 records of 100 MiB of zeros took charging from 288 to 3,675 MB, for good.
BOMBS, BOMB_BYTES = 30, 100 * MIB


@pytest.fixture
def stand(line_settings, tmp_path):
    with Stand(line_settings(partitions=1), tmp_path) as one:
        one.apply()
        one.start()
        one.use(2)
        one.all_sealed()
        yield one


def mib_of(worker, name):
    """Return a figure of a worker's memory: `VmRSS` is now, `VmHWM` the most there ever was."""
    lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


def sizes(stand, name):
    return {role: mib_of(stand.workers[role], name) for role in ROLES}


def put_large(stand, stem, count, size, **options):
    """Write records of so many zeros, each a batch of its own."""
    own = {"compression.type": "zstd", "message.max.bytes": 1_000_000_000, "linger.ms": 0}
    producer = stand.producer(**own | options)
    for _ in range(count):
        stand.put(stem, [(b"k", bytes(size))], producer=producer)


def within(stand, before, more):
    """Say whether no worker holds more than so many MiB beyond what it held before."""
    now = sizes(stand, "VmRSS")
    return all(now[role] <= before[role] + more for role in ROLES)


def test_bombs_are_dead_letters_and_memory_is_given_back(stand):
    before = sizes(stand, "VmRSS")
    for stem in ("usage", "commands", "holds"):
        put_large(stand, stem, BOMBS // 3, BOMB_BYTES)
    stand.use(2)
    stand.all_sealed()
    stand.until(lambda: stand.letters() == {"unreadable_batch": BOMBS}, what="dead letters")
    peak = sizes(stand, "VmHWM")
    assert all(peak[role] <= before[role] + 300 for role in ROLES), (before, peak)
    stand.until(lambda: within(stand, before, 100), what=f"memory back to {before}")
    assert stand.seals("counted", "rejected") == (4, BOMBS // 3)
    assert stand.reconcile().ok


def test_many_large_batches_are_not_opened_at_once(stand):
    """Each is within the bound, and a fetch holds hundreds of them."""
    stand.stop()
    put_large(stand, "usage", 200, 12 * MIB)
    stand.use(2)
    stand.start()
    before = sizes(stand, "VmRSS")
    stand.all_sealed(within_s=120)
    peak = sizes(stand, "VmHWM")
    assert all(peak[role] <= before[role] + 500 for role in ROLES), (before, peak)
    assert stand.seals("counted", "rejected") == (4, 200)
    deadline = time.monotonic() + 30
    while not within(stand, before, 250) and time.monotonic() < deadline:
        time.sleep(1)
    assert within(stand, before, 250), (before, sizes(stand, "VmRSS"))
    assert stand.reconcile(wait_s=60).ok
