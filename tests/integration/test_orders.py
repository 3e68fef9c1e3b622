"""Plans, orders and holds on a real broker: asked once, answered alike, and no kill changes a balance."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from charging_helpers import Line, line_settings, usage

from streams.charging import ChargingWorker
from streams.intake import decode_commands, decode_usage
from streams.state import JournalLog
from streams.stretch import Stretch
from tests.orders import CATALOG
from tokenline.accounts.apply import apply_accounts
from tokenline.accounts.file import LIMITS
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovery
from tokenline.charging.replay import ChargedRange, OrdersBefore, replay
from tokenline.clock import SystemClock
from tokenline.errors import BadData, SettingsError
from tokenline.metering.home import Home
from tokenline.rating.catalog import Catalog
from tokenline.rating.succession import renewed
from tokenline.wire.avro import Codec
from tokenline.wire.catalogs import read_catalogs
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.guard import Guard
from tokenline.wire.kafka import client_options
from tokenline.wire.orders import Orders
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import ensure_topics

MILLION = 1_000_000
ACCOUNTS = [f"acct-{i}" for i in range(6)]


@pytest.fixture
def settings(kafka, tmp_path):
    return line_settings(kafka, tmp_path, partitions=2)


def publish(orders, catalog=CATALOG):
    return orders.publish_catalog(catalog.version, catalog.effective_ms, catalog.to_json())


async def test_an_account_is_opened_used_up_cut_and_topped_up(settings, tmp_path):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        assert len(await publish(orders)) == 2
        assert await read_catalogs(settings) == [CATALOG.to_json()]

        opened = await orders.order("acme", kind="open", plan="strict", cycle_day=0)
        assert (opened["outcome"], opened["rest_utok"]) == ("done", 310 * MILLION)
        again = await orders.order("acme", kind="open", plan="strict")
        assert (again["outcome"], again["reason"]) == ("refused", "already_open")

        await line.send([usage("acme", model="max", event_id="e1", input_tokens=400)])
        await line.until(
            lambda: line.books.decisions[-1:] and line.books.decisions[-1]["state"] == "cut"
        )
        assert line.books.decisions[-1]["rule"] == "balance"

        granted = await orders.order("acme", kind="grant", pack="coupon", command_id="g1")
        assert granted["rest_utok"] == 20 * MILLION
        assert await orders.order("acme", kind="grant", pack="coupon", command_id="g1") == {
            **granted,
            "cause_offset": granted["cause_offset"] + 1,
        }
        await line.until(lambda: line.books.decisions[-1]["state"] != "cut")
        buckets = {one["bucket"]: one for one in (await orders.show("acme"))["buckets"]}
        assert {number: one["used_utok"] // MILLION for number, one in buckets.items()} == {
            -1: 90,
            1: 310,
            2: 0,
        }


async def test_a_hold_keeps_its_units_until_its_usage_arrives(settings, tmp_path):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        await publish(orders)
        await orders.order("acme", kind="open", plan="strict", cycle_day=0)
        asked = {"provider": "p", "model": "max", "prompt_tokens": 10, "max_tokens": 1000}

        first = await orders.hold("acme", "call-1", 0, **asked)
        assert (first["granted_utok"], first["max_tokens"]) == (310 * MILLION, 150)
        assert first["final"]
        second = await orders.hold("acme", "call-2", 0, **asked)
        assert (second["outcome"], second["reason"]) == ("refused", "balance_held")

        await line.send(
            [usage("acme", model="max", hold_id="call-1", input_tokens=10, output_tokens=20)]
        )
        settled = await orders.hold(
            "acme", "call-1", 1, action="settle", reported_utok=50 * MILLION
        )
        assert settled["outcome"] == "done"
        await line.until(
            lambda: any(one["hi_offset"] >= 0 for one in line.books.charged), what="charged"
        )
        found = await orders.show("acme")
        assert (found["held_utok"], found["rest_utok"]) == (0, 260 * MILLION)


async def test_a_subscriber_or_a_group_of_models_is_cut_alone_for_every_gateway(settings, tmp_path):
    """The cap survives a kill -9 of the worker, and another plan takes the cut away."""
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        worker = await line.started()
        await publish(orders)
        await orders.order("home", kind="open", plan="household", cycle_day=0)
        async with Guard(settings) as guard:
            held = {"provider": "p", "model": "max", "subscriber_id": "kid", "max_tokens": 10}
            first = await orders.hold("home", "call-1", 0, **held)
            assert first["granted_utok"] == 20 * MILLION
            second = await orders.hold("home", "call-2", 0, **held)
            assert (second["reason"], second["limit_name"]) == (
                "limit_held",
                "subscriber_rolling_minute_utok",
            )
            await line.send([usage("home", model="max", subscriber_id="kid", input_tokens=60)])
            await asyncio.wait_for(guard.wait_cut("home", "kid"), 30)
            # A guard that came up just now may not have heard the line's first heartbeat.
            await line.until(lambda: not guard.check("home").stale, what="the line was heard")
            assert not guard.check("home", "kid").allowed
            assert guard.check("home", "mum").allowed
            assert guard.check("home").allowed

            cap = {"kind": "cap", "subscribers": ["mum"]}
            await orders.order("home", **cap, amount_utok=0)
            await asyncio.wait_for(guard.wait_cut("home", "mum"), 30)
            await line.send([usage("home", model="mini", input_tokens=300)])
            mini = {"provider": "p", "model": "mini"}
            cut = await asyncio.wait_for(guard.wait_cut("home", **mini), 30)
            assert (cut.rule, cut.models) == ("hour_utok:minis", {"p/mini"})
            assert not guard.check("home", **mini).allowed
            assert guard.check("home", provider="p", model="max").allowed

            worker.kill()
            await line.started()
            found = (await orders.show("home"))["limits"]
            caps = {one["subscriber"]: one for one in found if one["limit"] == "subscriber_tokens"}
            assert (caps["kid"]["used"], caps["kid"]["ceiling"]) == (60 * MILLION, 60 * MILLION)
            assert (caps["mum"]["own"], caps["mum"]["ceiling"]) == (True, 0)
            assert not guard.check("home", "mum").allowed
            await orders.order("home", **cap, uncap=1)
            await line.until(lambda: guard.check("home", "mum").allowed, what="mum is open again")
            await orders.order("home", kind="change_plan", plan="strict", when="now")
            await line.until(lambda: guard.check("home", "kid").allowed, what="kid is open again")
            await line.until(lambda: guard.check("home", **mini).allowed, what="minis are open")
        await line.settled()
        for partition in range(settings.partitions):
            await replays_to_the_same_rows(settings, partition, least=0)


async def test_a_catalog_that_goes_back_is_refused_by_name(settings, tmp_path):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        await publish(orders)
        changed = CATALOG.to_json().replace('"Strict"', '"Stricter"')
        with pytest.raises(BadData, match="version 1 is not greater than 1"):
            await orders.publish_catalog(1, CATALOG.effective_ms, changed)


async def test_a_version_that_was_announced_is_withdrawn_before_it_begins(settings, tmp_path):
    """A version of the year 2926 was taken, and nothing could be published after it."""
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        await publish(orders)
        minute_ms = SystemClock().wall_ms() // 60_000 * 60_000

        def version(number, days):
            at_ms = minute_ms + days * 86_400_000
            return renewed(CATALOG, number, at_ms)

        with pytest.raises(BadData, match="more than 400 days ahead"):
            await publish(orders, version(2, 900 * 365))
        await publish(orders, version(2, 300))
        await publish(orders, version(3, 10))
        await publish(orders, version(4, 20))
        known = [Catalog.from_json(text).version for text in await read_catalogs(settings)]
        assert known == [1, 2, 3, 4]
        # Past the library, as any program could: charging judges too.
        mad = version(2**31 - 1, 30)
        fields = {
            "version": mad.version, "effective_at": mad.effective_ms, "catalog": mad.to_json(),
            "command_id": "mad", "issued_at": minute_ms, "reply_to": orders._name,
        }  # fmt: skip
        answers = await orders._ask_everywhere(fields, 10)
        assert {answer["reason"] for answer in answers} == {"bad_catalog"}
        assert "more than 1000000 above 4" in answers[0]["detail"]


async def test_one_id_serves_many_accounts_and_what_is_no_order_is_told_so(settings, tmp_path):
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        await line.started()
        await publish(orders)
        opened = {"kind": "open", "plan": "strict", "command_id": "2026-10"}
        answers = await asyncio.gather(*(orders.order(one, **opened) for one in ACCOUNTS * 2))
        assert [one["account_id"] for one in answers] == ACCOUNTS * 2
        assert {one["outcome"] for one in answers} == {"done"}

        for account in ("acct-0", "nobody"):
            refused = await orders.order(account, kind="opne")
            assert (refused["outcome"], refused["reason"]) == ("refused", "bad_command")
            assert "there is no order 'opne'" in refused["detail"]
        asked = {"provider": "p", "model": "max", "max_tokens": -1}
        assert (await orders.hold("acct-0", "s", 0, **asked))["reason"] == "bad_command"


async def test_kills_change_no_balance_and_no_answer(settings, tmp_path):
    """Usage, grants and holds go on while the worker is killed; at the end every µtok is explained."""
    luck = random.Random(5)
    async with Line(settings, tmp_path) as line, Orders(settings) as orders:
        worker = await line.started()
        await publish(orders)
        for account in ACCOUNTS:
            await orders.order(account, kind="open", plan="strict", cycle_day=0)
        used, granted, answers = dict.fromkeys(ACCOUNTS, 0), dict.fromkeys(ACCOUNTS, 0), {}

        async def work(round_number):
            for turn in range(20):
                account, name = luck.choice(ACCOUNTS), f"{round_number}-{turn}"
                tokens = luck.randrange(1, 9)
                await line.send([usage(account, model="max", event_id=name, input_tokens=tokens)])
                used[account] += tokens
                if turn % 4 == 0:
                    order = {"kind": "grant", "amount_utok": 5 * MILLION, "command_id": name}
                    answers[account, name] = await orders.order(account, **order)
                    granted[account] += 5
                if turn % 5 == 0:
                    await orders.hold(
                        account, f"s-{name}", 0, provider="p", model="max", max_tokens=2
                    )

        for round_number in range(3):
            task = asyncio.create_task(work(round_number))
            await asyncio.sleep(luck.uniform(0.05, 0.3))
            worker.kill()
            worker = await line.started()
            await asyncio.wait_for(task, 60)

        for (account, name), answer in answers.items():
            order = {"kind": "grant", "amount_utok": 5 * MILLION, "command_id": name}
            again = await orders.order(account, **order)
            assert again | {"cause_offset": 0} == answer | {"cause_offset": 0}
        found = await spent_as(orders, used)
        for account in ACCOUNTS:
            total = sum(one["total_utok"] for one in found[account]["buckets"]) // MILLION
            assert total == 310 + granted[account]
            for one in found[account]["buckets"]:
                assert one["used_utok"] + one["held_utok"] <= one["total_utok"] or not one["bucket"]
        await line.settled()
        for partition in range(settings.partitions):
            await replays_to_the_same_rows(settings, partition)


async def spent_as(orders, used):
    """Return all accounts as they are shown, once each has spent what was used."""
    deadline = time.monotonic() + 30
    while True:
        found = {account: await orders.show(account) for account in ACCOUNTS}
        spent = {
            account: sum(one["used_utok"] for one in found[account]["buckets"]) // MILLION
            for account in ACCOUNTS
        }
        if spent == used or time.monotonic() > deadline:
            assert spent == used
            return found
        await asyncio.sleep(0.2)


async def replays_to_the_same_rows(settings, partition, least=3):
    """Charge the partition again from offset 0 and compare with what its journal holds."""
    bounds = ChargingWorker(settings, None).bounds
    columns = ColumnCodec(open_registry(settings))
    codec = Codec(open_registry(settings))
    usage_records, charged = [
        await all_of(settings, stem, partition) for stem in ("usage", "charged")
    ]
    ranges = [charged_range(codec.decode(record.value)[1]) for record in charged]
    orders = {}
    for stem in ("commands", "holds"):
        records = await all_of(settings, stem, partition)
        orders[stem], refused = decode_commands(columns, codec, records, stem)
        assert not refused

    def usage(lo, hi):
        return decode_usage(columns, Stretch(lo=lo, hi=hi, records=usage_records[lo : hi + 1]))

    home = Home(partition, settings.partitions)
    kept = PartitionState(bounds, home)
    recovery = Recovery(kept)
    await JournalLog(settings, None, partition).read(recovery.take)
    recovery.finish()
    ends = kept.next_offsets["commands"], kept.next_offsets["holds"]
    again = replay(
        bounds,
        ranges,
        usage,
        orders,
        OrdersBefore(*ends, tuple(kept.turns.pairs)),
        home,
    )
    assert len(again.books.buckets) >= least
    for name, mine in again.books.named_tables.items():
        # What was published of subscribers is no balance.
        if name != "told":
            assert mine.matrix.tobytes() == kept.books.named_tables[name].matrix.tobytes(), name


def charged_range(said):
    before = OrdersBefore(said["commands_next"], said["holds_next"], tuple(said["order_turns"]))
    return ChargedRange(said["lo_offset"], said["hi_offset"], before)


async def all_of(settings, stem, partition):
    tp = TopicPartition(settings.topic(stem), partition)
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest")
    records = []
    async with consumer:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            records += (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
    return records


async def test_who_counts_other_partitions_than_the_line_has_is_told_before_an_order_is_lost(
    settings,
):
    """Its accounts would be made where no usage of theirs ever comes."""
    await ensure_topics(settings)
    other = settings.model_copy(update={"partitions": settings.partitions + 1})
    with pytest.raises(SettingsError, match="TOKENLINE_PARTITIONS says"):
        async with Orders(other):
            pass
    with pytest.raises(SettingsError, match="TOKENLINE_PARTITIONS says"):
        await apply_accounts(other, [])


async def test_what_charging_refuses_of_an_accounts_file_is_told_as_refused(settings, tmp_path):
    """Not as a worker that does not run."""

    def account(name, **fields):
        limits = dict.fromkeys(LIMITS, -1)
        return (
            {"tenant_id": "t", "account_id": name, "plan": "", "time_zone": "UTC"} | limits | fields
        )

    async with Line(settings, tmp_path) as line:
        await line.started()
        with pytest.raises(
            BadData, match=r"1 of 2 accounts are refused: t/bad \(bad_command: .*minute_tokens"
        ):
            await apply_accounts(
                settings, [account("good"), account("bad", minute_tokens=-7)], wait_s=20
            )
