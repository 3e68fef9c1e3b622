"""Charging under load while its processes are killed, stopped and joined: totals stay exact."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import asynccontextmanager

import charging_points
import pytest
from charging_helpers import Line, Load, command, ended, line_settings, prepared, ready

from streams.state import JournalLog, journal_producer
from tests.paper_line import facts
from tests.strategies import BOUNDS, NOON
from tokenline.charging.commands import fold_commands
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovery
from tokenline.charging.step import Commanded
from tokenline.errors import FencedOut
from tokenline.wire.topics import ensure_topics

BACK_WITHIN_S = 15


@pytest.fixture
def settings(kafka, tmp_path):
    return line_settings(kafka, tmp_path, partitions=4)


async def test_kill_9_again_and_again_under_load(settings, tmp_path):
    rng, took = random.Random(3), []
    async with Line(settings, tmp_path) as line:
        worker = await prepared(line, month_tokens=300_000)
        async with Load(line):
            for _ in range(5):
                await asyncio.sleep(rng.uniform(0.05, 1.0))
                worker.kill()
                killed = time.monotonic()
                worker = line.worker()
                worker.spawn()
                await line.charging(BACK_WITHIN_S)
                took.append(round(time.monotonic() - killed, 1))
        await line.settled()
    print(f"seconds from kill -9 to charging again: {took}")


async def test_a_worker_stopped_past_its_session_cannot_change_a_total(settings, tmp_path):
    async with Line(settings, tmp_path) as line:
        zombie = await prepared(line, month_tokens=300_000)
        replacement = line.worker()
        async with Load(line):
            await line.charging(BACK_WITHIN_S)
            os.kill(zombie.pid, signal.SIGSTOP)
            replacement.spawn()
            await line.charging(BACK_WITHIN_S)
            os.kill(zombie.pid, signal.SIGCONT)
            await asyncio.sleep(2)  # load for both, if both still work
            await line.charging(BACK_WITHIN_S)
        await line.settled()
        assert zombie.running or zombie.process.returncode == 75
        assert replacement.running


async def test_an_opening_that_lands_behind_a_step_ends_its_writer_and_loses_nothing(settings):
    """The old owner writes between the new one's reading and its opening, and once more behind it."""
    async with charging_journal(settings) as (old, new):
        state = PartitionState(BOUNDS)
        writer = (await recovered(old, state)).writer()
        assert await old.open_epoch(writer.opening("old"))

        async def step(offset):
            fields = command(f"acct-{offset}", month_tokens=1000)
            order = Commanded(offset=offset, appended_ms=NOON, fields=fields)
            records = writer.records(state, fold_commands(state, [order], offset), [])
            return await old.append(records), len(records), state.epoch

        await old.settle(*await step(0))
        stale = (await recovered(new, PartitionState(BOUNDS))).writer()
        await old.settle(*await step(1))
        known = facts(state)
        assert not await new.open_epoch(stale.opening("new"))
        with pytest.raises(FencedOut, match="in epoch 2"):
            await old.settle(*await step(2))

        again = PartitionState(BOUNDS)
        found = await recovered(new, again)
        assert (facts(again), again.epoch) == (known, 3)
        assert await new.open_epoch(found.writer().opening("new"))


@asynccontextmanager
async def charging_journal(settings):
    """Give one partition of the state topic, as two owners hold it."""
    await ensure_topics(settings)
    producers = [journal_producer(settings) for _ in range(2)]
    async with producers[0], producers[1]:
        yield [JournalLog(settings, producer, 0) for producer in producers]


async def recovered(log, state):
    recovery = Recovery(state)
    await log.read(recovery.take)
    return recovery.finish()


async def test_workers_join_and_die_under_load(settings, tmp_path):
    async with Line(settings, tmp_path) as line:
        first, second = await prepared(line, 200, month_tokens=300_000), line.worker()
        async with Load(line, accounts=200):
            second.spawn()
            await ready(second)
            await line.charging(BACK_WITHIN_S)
            third = await line.started()
            await line.charging(BACK_WITHIN_S)
            first.kill()
            await line.charging(BACK_WITHIN_S)
        await line.settled()
        assert second.running
        assert third.running


async def test_a_crash_at_each_exact_point_changes_nothing(settings, tmp_path):
    points = [name for name in charging_points.POINTS if name not in charging_points.HINDRANCES]
    async with Line(settings, tmp_path) as line:
        worker = await prepared(line, 20, month_tokens=300_000)
        async with Load(line, accounts=20) as load:
            victims = [line.worker(point=f"{point}@{tmp_path / point}") for point in points]
            victims[0].spawn()
            worker.kill()
            for point, victim, following in zip(
                points, victims, [*victims[1:], line.worker()], strict=True
            ):
                (tmp_path / point).touch()
                # A flush comes when the line is quiet, or else with the minute.
                load.pause_s = 1.0 if point == "half-flushed" else 0.02
                following.spawn()  # it loads meanwhile
                assert await ended(victim, 60) == charging_points.EXIT, point
            await line.charging(BACK_WITHIN_S)
        await line.settled()
