"""What a worker does while its group deals partitions out: joining, waiting as a spare, catching up."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest
from charging_helpers import Line, Load, ended, line_settings, prepared, ready
from charging_oracle import charged_to

from tokenline.platform.processes import wait_for
from tokenline.platform.worker_process import ask_health

HELD_S = 22  # longer than a guard believes what it heard (`guard_stale_ms`)


async def test_a_worker_that_joins_a_quiet_group_ends_nobody(kafka, tmp_path):
    """The first to know of the new member waited for the others, and sought what it had read to.

    The coordinator tells what is committed only behind the answer to the joining: by then some of the
    partitions were another worker's, and the seek ended the process.
    """
    settings = line_settings(kafka, tmp_path, partitions=8)
    async with Line(settings, tmp_path) as line:
        workers = [await prepared(line), await line.started(point="slow-rest")]
        async with Load(line):
            await line.charging()
        await line.settled()
        joining = await line.started()
        logs = [worker.log.read_text()[-3000:] for worker in workers]
        assert not any("No current assignment" in log for log in logs), logs
        await line.charging()
        assert [worker.running for worker in workers] == [True, True], logs
        joining.stop()
        assert joining.process.returncode == 0


async def test_a_worker_more_than_partitions_is_a_ready_spare_and_takes_over(kafka, tmp_path):
    settings = line_settings(kafka, tmp_path, partitions=2)
    async with Line(settings, tmp_path) as line:
        workers = [await prepared(line), await line.started(), await line.started()]
        said = [json.loads(ask_health(worker.port, "/readyz")[1]) for worker in workers]
        spares = [
            one for one, says in zip(workers, said, strict=True) if "spare" in says.get("why", "")
        ]
        assert ([says["ready"] for says in said], len(spares)) == ([True] * 3, 1)
        async with Load(line):
            await line.charging()
            owner = next(worker for worker in workers if worker not in spares)
            owner.kill()
            until = settings.session_timeout_ms / 1000 + 3
            assert await line.charging(within_s=until) < until
        await line.settled()


@pytest.mark.parametrize("who", ["resting", "waiting"])
async def test_who_is_asked_to_stop_while_the_group_deals_out_ends_with_0(kafka, tmp_path, who):
    """`resting` still ends its steps in flight, `waiting` has done so and waits for the others."""
    settings = line_settings(kafka, tmp_path, partitions=4)
    async with Line(settings, tmp_path) as line:
        waiting, resting = await prepared(line), await line.started(point="slow-rest")
        async with Load(line):
            await line.charging()
            before = resting.log.read_text().count("Revoking previously assigned")
            joining = line.worker()
            joining.spawn()
            asked = {"resting": resting, "waiting": waiting}[who]
            await asyncio.to_thread(
                wait_for,
                lambda: (
                    resting.log.read_text().count("Revoking previously assigned") > before
                    and "(Re-)joining group" in waiting.log.read_text().rpartition("Revoking")[2]
                ),
                timeout_s=20,
            )
            asked.process.send_signal(signal.SIGTERM)
            assert await ended(asked, within_s=20) == 0, asked.log.read_text()[-3000:]
            await ready(joining)
        await line.settled()


async def test_a_partition_that_catches_up_stalls_no_other(kafka, tmp_path):
    """Its inbox filled, the one agent of usage waited before it, and nobody fetched for the other."""
    settings = line_settings(kafka, tmp_path, partitions=2)
    async with Line(settings, tmp_path) as line:
        (await prepared(line)).stop()
        began_ms = time.time_ns() // 1_000_000
        worker = line.worker(point="slow-catch-up")
        worker.spawn()
        async with Load(line, pause_s=0.1):
            await line.until(lambda: heard_of(line.books, began_ms, partition=1), what="1 is open")
            slowest_s, until = 0.0, time.monotonic() + HELD_S
            while time.monotonic() < until:
                slowest_s = max(slowest_s, await seconds_to_charge(line, partition=1))
                await asyncio.sleep(0.1)
            assert not heard_of(line.books, began_ms, partition=0), "0 is held"
            assert slowest_s < 2
            assert stalest_s(line.books, began_ms, partition=1) < 3
        await ready(worker)
        await line.settled()


def heartbeats(books, since_ms, partition):
    """Return the heartbeats of a partition that were sent since a moment."""
    said = [one for one in books.heartbeats if one["partition"] == partition]
    return [one for one in said if books.moments[id(one)] >= since_ms]


def heard_of(books, since_ms, partition):
    return bool(heartbeats(books, since_ms, partition))


def stalest_s(books, since_ms, partition):
    """Return how old the newest heartbeat of a partition became, at most, since a moment."""
    moments = [one["as_of"] for one in heartbeats(books, since_ms, partition)]
    ends = [*moments[1:], time.time_ns() // 1_000_000]
    return max(end - begin for begin, end in zip(moments, ends, strict=True)) / 1000


async def seconds_to_charge(line, partition):
    """Return how long it takes until all that a partition has now is charged."""
    began = time.monotonic()
    (end,) = [end for tp, end in (await line._ends("usage")).items() if tp.partition == partition]
    await line.until(lambda: charged_to(line.books, partition) >= end, what=f"{partition} charged")
    return time.monotonic() - began
