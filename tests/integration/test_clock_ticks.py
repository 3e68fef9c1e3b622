"""What ends by time is told by time on a partition in which nothing happens, also by a worker that came back."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from charging_helpers import Line, command, line_settings, usage
from notify_helpers import SECRET, Receiver
from notify_helpers import line as with_webhooks
from notify_helpers import worker as notify_worker

from tests.limits import LIMITS_CATALOG
from tokenline.rating.catalog import Catalog
from tokenline.wire.orders import Orders

MINUTE = 60_000
TOLD_WITHIN_MS = 2000
# Setting up, cutting and killing take some of the minute; the rest of it is waited for.
LEFT_OF_MINUTE_MS = 15_000
PLAN = {
    "title": "All kinds of limits a minute",
    "fee": "1",
    "tokens": 1_000_000,
    "mode": "postpaid",
    "limits": [
        {"requests": 1, "per": "minute", "of": "subscriber"},
        {"utok": 1_000_000, "per": "minute", "group": "minis"},
    ],
}


def catalog():
    said = json.loads(LIMITS_CATALOG.to_json())
    said["plans"]["minutes"] = PLAN
    return Catalog.model_validate(said)


def wall_ms():
    return time.time_ns() // 1_000_000


async def early_in_a_minute():
    left_ms = MINUTE - wall_ms() % MINUTE
    if left_ms < LEFT_OF_MINUTE_MS:
        await asyncio.sleep(left_ms / 1000)
    return wall_ms() // MINUTE * MINUTE + MINUTE


async def cut_in_a_minute(line):
    """Cut an account, a subscriber and a group in one minute; return when it ends."""
    async with Orders(line.settings) as orders:
        known = catalog()
        await orders.publish_catalog(known.version, known.effective_ms, known.to_json())
        await orders.order("home", kind="open", plan="minutes", cycle_day=0)
        await line.apply(command("acme", minute_requests=1))
        await line.until(
            lambda: {"acme", "home"} <= {one["account_id"] for one in line.books.decisions},
            what="accounts known",
        )
        ends_ms = await early_in_a_minute()
        said = {"model": "mini", "input_tokens": 100}
        await line.send([usage("acme", **said), usage("home", subscriber_id="kid", **said)])
    await line.until(lambda: len(states(line, "cut")) == 3, what="all three are cut")
    assert {one["resets_at"] for one in line.books.decisions if one["state"] == "cut"} == {ends_ms}
    return ends_ms


def whom(one):
    return one["account_id"], one["subscriber_id"], one["model_group"]


def states(line, state):
    """Return who stands so by the newest decision."""
    newest = {
        whom(one): one for one in sorted(line.books.decisions, key=lambda one: one["version"])
    }
    return {name for name, one in newest.items() if one["state"] == state}


async def opened_in_time(line, ends_ms):
    cut = {("acme", "", ""), ("home", "kid", ""), ("home", "", "minute_utok:minis")}
    await line.until(lambda: cut <= states(line, "open"), 75, "all three are told open")
    told = [
        line.books.moments[id(one)]
        for one in line.books.decisions
        if whom(one) in cut and one["reason"] == "resumed"
    ]
    assert len(told) == 3
    assert max(told) - ends_ms < TOLD_WITHIN_MS
    assert min(told) >= ends_ms


async def resting(line):
    """Return when nothing is written any more; until then one tick or two may be on their way."""
    await line.follow()
    ticks_before = sum("written_at" in one for one in line.books.applied)
    await asyncio.sleep(1.5)
    await line.follow()
    assert sum("written_at" in one for one in line.books.applied) == ticks_before
    return ticks_before


async def told_by_itself(settings, tmp_path):
    async with Receiver() as receiver:
        settings = await with_webhooks(settings, tmp_path, receiver, {"all": ""})
        hooks = notify_worker(settings, tmp_path)
        hooks.start()
        try:
            async with Line(settings, tmp_path) as line:
                await line.started()
                ends_ms = await cut_in_a_minute(line)
                assert await resting(line) == 0
                await opened_in_time(line, ends_ms)
                # One slice does it; a second may come when the broker's clock is behind.
                assert 1 <= await resting(line) <= 5
            await receiver.until(
                lambda: (
                    {"acme", "home"}
                    <= {
                        said["data"]["account_id"]
                        for _, said in receiver.taken["all"]
                        if said["type"] == "account.resumed"
                    }
                )
            )
        finally:
            hooks.stop()


async def told_by_a_worker_that_came_back(settings, tmp_path):
    async with Line(settings, tmp_path) as line:
        worker = await line.started()
        ends_ms = await cut_in_a_minute(line)
        worker.kill()
        await line.started()
        await opened_in_time(line, ends_ms)


@pytest.mark.timeout(200)
async def test_a_minutes_cut_is_told_open_within_two_seconds_though_nobody_asks(
    kafka, tmp_path, monkeypatch
):
    """Of an account, a subscriber and a group; side by side with a worker that is killed in between."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    runs = []
    for name, run in (("idle", told_by_itself), ("back", told_by_a_worker_that_came_back)):
        folder = tmp_path / f"{tmp_path.name[:20]}{name}"
        folder.mkdir()
        runs.append(run(line_settings(kafka, folder, partitions=1), folder))
    await asyncio.gather(*runs)
