"""Transfers between two partitions of a real line: a kill -9 anywhere neither loses nor doubles a unit."""

from __future__ import annotations

import asyncio
import time

import charging_points
import pytest
from charging_helpers import Line, ended, line_settings, ready

from tests.orders import CATALOG
from tokenline.wire.kafka import account_key, partition_of
from tokenline.wire.orders import Orders

MILLION = 1_000_000
GIVEN = {"kind": "grant", "amount_utok": 30 * MILLION, "transferable": 1, "source": "gift"}


def named(partition):
    """Return the first account name that lives on a partition of two."""
    names = (f"acct-{number}" for number in range(100))
    return next(one for one in names if partition_of(account_key("default", one), 2) == partition)


GIVER, RECEIVER = named(0), named(1)
NOBODY = RECEIVER + "-never"  # whichever partition: it has no account


@pytest.fixture
def settings(kafka, tmp_path):
    return line_settings(kafka, tmp_path, partitions=2)


async def begin(orders):
    """Open both accounts; the giver has 40 to give, of two buckets, one of them scoped."""
    await orders.publish_catalog(CATALOG.version, CATALOG.effective_ms, CATALOG.to_json())
    for account in (GIVER, RECEIVER):
        await orders.order(account, kind="open", plan="strict")
    await orders.order(GIVER, command_id="g1", priority=5, models=["p/mini"], **GIVEN)
    await orders.order(GIVER, command_id="g2", **(GIVEN | {"amount_utok": 10 * MILLION}))


def transfer(orders, command_id, tokens, to=RECEIVER):
    return orders.order(
        GIVER,
        kind="transfer",
        to_account=to,
        amount_utok=tokens * MILLION,
        command_id=command_id,
        timeout_s=60,
    )


async def moved_to(orders, account):
    """Return (models, tokens) of each bucket that an account has of transfers."""
    found = (await orders.show(account, timeout_s=60))["buckets"]
    return sorted(
        (one["models"], one["total_utok"] // MILLION)
        for one in found
        if one["source"] == "transfer"
    )


async def until_moved(orders, account, wanted):
    """Wait until an account has what was moved to it: it arrives by a topic, not with the answer."""
    deadline = time.monotonic() + 20
    while (found := await moved_to(orders, account)) != wanted:
        assert time.monotonic() < deadline, f"{account} has {found}, not {wanted}"
        await asyncio.sleep(0.05)


async def left_to_give(orders):
    found = (await orders.show(GIVER, timeout_s=60))["buckets"]
    return [one["total_utok"] // MILLION for one in found if one["source"] == "gift"]


def told(line, kind):
    return [one for one in line.books.applied if one.get("kind") == kind]


async def killed_at(line, orders, point, to):
    """Ask for a transfer, let the worker end at the point, start another, return the answer."""
    victim = line.worker(point=point)
    victim.spawn()
    await ready(victim)
    await begin(orders)
    asking = asyncio.create_task(transfer(orders, "t1", 35, to))
    assert await ended(victim, 30) == charging_points.EXIT
    await line.started()
    return await asking


@pytest.mark.parametrize(
    "point", ["moved-appended", "moved-durable", "moved-sent", "taken-appended"]
)
async def test_a_kill_on_the_way_there_moves_it_once(settings, tmp_path, point):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        answer = await killed_at(line, orders, point, RECEIVER)
        assert (answer["outcome"], answer["amount_utok"]) == ("done", 35 * MILLION)
        await until_moved(orders, RECEIVER, [([], 5), (["p/mini"], 30)])
        # What comes behind a second copy shows that the copy was read, and did nothing.
        await transfer(orders, "t2", 5)
        await until_moved(orders, RECEIVER, [([], 5), ([], 5), (["p/mini"], 30)])
        assert await left_to_give(orders) == [0, 0]
        await line.follow()
        sent = told(line, "transfer_in")
        assert len({one["command_id"] for one in sent}) == 3
        if point == "moved-sent":
            assert len(sent) == 5, "the successor publishes both parts again"


@pytest.mark.parametrize("point", ["refused-durable", "return-sent", "returned-appended"])
async def test_a_kill_on_the_way_back_returns_it_once(settings, tmp_path, point):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        answer = await killed_at(line, orders, point, NOBODY)
        assert answer["outcome"] == "done"
        await until_moved(orders, GIVER, [([], 5), (["p/mini"], 30)])
        await transfer(orders, "t2", 40)
        await until_moved(orders, RECEIVER, [([], 5), ([], 5), (["p/mini"], 30)])
        assert await left_to_give(orders) == [0, 0]
        assert await moved_to(orders, GIVER) == [([], 0), (["p/mini"], 0)]
        await line.follow()
        assert len({one["command_id"] for one in told(line, "transfer_return")}) == 2
