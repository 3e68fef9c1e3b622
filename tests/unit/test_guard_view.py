"""The view keeps the newest word on each account, whatever comes late, and wakes who waits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tokenline.clock import FrozenClock
from tokenline.errors import RegistryUnavailable, StaleView, Undecodable
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.guard import Guard
from tokenline.wire.registry import FileRegistry
from tokenline.wire.topics import decision_key
from tokenline.wire.view import Served, View

NOW, HOUR = FrozenClock().wall_ms(), 3_600_000


def decision(account="a", *, subscriber="", state="open", version=1, epoch=1, **more):
    base = {
        "tenant_id": "default",
        "account_id": account,
        "subscriber_id": subscriber,
        "state": state,
        "rule": "month_tokens",
        "reason": "limit_reached",
        "used": 10,
        "limit": 9,
        "resets_at": NOW + 60_000,
        "as_of": NOW - 5,
        "epoch": epoch,
        "version": version,
        "model_group": "",
        "models": [],
    }
    return base | more


def group_decision(group="day_utok:minis", models=("p/mini",), **more):
    return decision(**{"state": "cut"} | more, model_group=group, models=list(models))


@pytest.fixture
def clock():
    return FrozenClock()


@pytest.fixture
def make(clock):
    """A guard that was never started: its view is fed by hand."""

    def maker(*decisions, heard_ms=NOW - 100, **options):
        guard = Guard(Settings(), clock=clock, **options)
        guard._positions = dict.fromkeys(range(4), 0)
        for partition in range(4):
            if heard_ms:
                guard._view.apply_heartbeat(partition, 1, heard_ms)
        for record in decisions:
            guard._view.apply_decision(0, record, clock.wall_ms())
        return guard

    return maker


def test_the_highest_version_counts_in_any_order():
    for order in ([1, 2, 3], [3, 1, 2], [2, 3, 1]):
        view = View()
        for version in order:
            view.apply_decision(0, decision(version=version, used=version), NOW)

        assert view.find(("default", "a", "")).used == 3


def test_a_newer_owner_counts_before_any_version_of_an_older_one():
    view = View()
    assert view.apply_decision(0, decision(epoch=2, version=1, state="cut"), NOW)
    assert not view.apply_decision(0, decision(epoch=1, version=9), NOW)

    assert view.find(("default", "a", "")).state == "cut"


def test_an_older_owners_row_counts_until_the_newer_one_speaks_of_that_account():
    """A worker that recovers re-publishes what its predecessor had decided."""
    view = View()
    view.apply_heartbeat(0, 2, NOW)
    assert view.apply_decision(0, decision(epoch=1, version=6, state="cut"), NOW)


def test_the_heartbeat_of_an_old_owner_makes_nothing_fresh():
    view = View()
    view.apply_heartbeat(0, 2, NOW - 1000)
    assert not view.apply_heartbeat(0, 1, NOW)
    assert view.heard_ms(0) == NOW - 1000
    view.apply_decision(1, decision(epoch=3), NOW)
    assert not view.apply_heartbeat(1, 2, NOW)


def test_a_tombstone_removes_its_own_row_only():
    view = View()
    view.apply_decision(0, decision(epoch=2), NOW)
    for key in (b"default/a#1", b"~heartbeat/0#2", b"rubbish", b"", b"default/b#2", b"default/a#x"):
        view.apply_tombstone(key)
    assert len(view) == 1
    view.apply_tombstone(b"default/a#2")

    assert len(view) == 0


def test_a_subscribers_tombstone_removes_its_row_and_leaves_the_accounts():
    view = View()
    view.apply_decision(0, decision(epoch=2), NOW)
    view.apply_decision(0, decision(subscriber="kid#2", epoch=2, state="cut"), NOW)
    key = decision_key("default", "a", 2, "kid#2")
    assert key == b"default/a\0kid#2#2"
    view.apply_tombstone(decision_key("default", "a", 1, "kid#2"))
    view.apply_tombstone(decision_key("default", "a", 2, "son"))
    assert len(view) == 2
    view.apply_tombstone(key)

    assert view.find(("default", "a", "kid#2")) is None
    assert view.find(("default", "a", "")) is not None


def test_accounts_with_slash_and_hash_have_tombstones_too():
    view = View()
    view.apply_decision(0, decision("sh/1#2", epoch=7), NOW)
    view.apply_tombstone(b"default/sh/1#2#7")

    assert len(view) == 0


def test_an_open_account_may_go_on_and_the_answer_says_how_fresh_it_is(make):
    verdict = make(decision(state="warned", used=8)).check("a")

    assert (verdict.allowed, verdict.state, verdict.used, verdict.limit) == (True, "warned", 8, 9)
    assert (verdict.fresh_ms, verdict.stale, verdict.as_of_ms) == (100, False, NOW - 5)


def test_a_cut_account_may_not_go_on(make):
    verdict = make(decision(state="cut")).check("a")

    assert (verdict.allowed, verdict.state, verdict.reason) == (False, "cut", "limit_reached")
    assert (verdict.rule, verdict.resets_at_ms) == ("month_tokens", NOW + 60_000)


def test_a_cut_ends_with_its_window_without_any_message(make, clock):
    guard = make(decision(state="cut"), stale_after_ms=10**9)
    clock.advance_ms(59_999)
    assert not guard.check("a").allowed
    clock.advance_ms(1)

    verdict = guard.check("a")
    assert (verdict.allowed, verdict.state, verdict.reason) == (True, "open", "window_reset")


def test_a_cut_without_a_reset_never_ends_by_itself(make, clock):
    guard = make(decision(state="cut", resets_at=0), stale_after_ms=10**15)
    clock.advance_ms(10**12)

    assert not guard.check("a").allowed


@pytest.mark.parametrize(("on_unknown", "allowed"), [("closed", False), ("open", True)])
def test_an_unknown_account_is_ruled_by_the_setting(make, on_unknown, allowed):
    verdict = make(on_unknown=on_unknown).check("nobody")

    assert (verdict.allowed, verdict.state, verdict.reason) == (
        allowed,
        "unknown",
        "unknown_account",
    )
    assert make().check("nobody").allowed is False


@pytest.mark.parametrize(("on_stale", "allowed"), [("closed", False), ("open", True)])
def test_a_stale_view_is_ruled_by_the_setting_and_says_so(make, clock, on_stale, allowed):
    guard = make(decision(), on_stale=on_stale, stale_after_ms=1000)
    clock.advance_ms(900)
    assert not guard.check("a").stale
    clock.advance_ms(1)

    verdict = guard.check("a")
    assert (verdict.allowed, verdict.stale, verdict.state) == (allowed, True, "open")


def test_a_known_cut_stays_a_cut_when_stale(make, clock):
    guard = make(decision(state="cut"), on_stale="open", stale_after_ms=1000)
    clock.advance_ms(30_000)

    assert not guard.check("a").allowed


def test_nothing_heard_at_all_is_stale(make):
    verdict = make(decision(), heard_ms=0).check("a")

    assert (verdict.allowed, verdict.stale, verdict.fresh_ms) == (False, True, -1)
    assert make(heard_ms=0, on_unknown="open").check("b").allowed is False


def test_a_broker_clock_ahead_of_ours_is_not_stale(make):
    verdict = make(decision(), heard_ms=NOW + 500).check("a")

    assert (verdict.allowed, verdict.stale, verdict.fresh_ms) == (True, False, 0)


async def hear(guard, as_of_ms, partitions=range(4)):
    """Let each partition say up to when all is decided."""
    codec = Codec(FileRegistry())
    for partition in partitions:
        said = {"partition": partition, "as_of": as_of_ms, "next_offset": 0, "epoch": 1}
        value = codec.encode("charging_heartbeat", said)
        record = SimpleNamespace(offset=7, value=value, key=b"k", timestamp=as_of_ms)
        await guard._apply(partition % 4, [record])


async def test_a_heartbeat_of_a_partition_that_is_none_makes_nothing_stale(make, clock):
    """It came once: every account nobody knows would be out of reach for ever, and every emergency."""
    guard = make(heard_ms=0, stale_after_ms=1000, on_unknown="open")
    await hear(guard, NOW, partitions=[7])
    clock.advance_ms(2000)
    await hear(guard, NOW + 2000)
    assert (guard.check("nobody").stale, guard.oldest_fresh_ms) == (False, 0)


async def test_a_heartbeat_in_anothers_partition_or_of_next_year_makes_nothing_fresh(make):
    """One such record, and silence of charging would never have been noticed again."""
    guard = make(heard_ms=0, on_unknown="open")
    codec = Codec(FileRegistry())
    for of, as_of_ms in ((1, NOW), (0, NOW + 400 * 24 * HOUR)):
        said = {"partition": of, "as_of": as_of_ms, "next_offset": 0, "epoch": 1}
        value = codec.encode("charging_heartbeat", said)
        await guard._apply(0, [SimpleNamespace(offset=7, value=value, key=b"k", timestamp=NOW)])

    assert (guard.stats.bad_records, guard.stats.heartbeats) == (2, 0)
    assert (guard._view.heard_ms(0), guard._view.heard_ms(1)) == (0, 0)


@pytest.mark.parametrize("account", ["a", "nobody"])
async def test_silence_is_stale_by_whatever_clock(make, clock, account):
    """The gateway's clock is an hour behind: what it hears lies in its future for an hour."""
    guard = make(decision(), heard_ms=0, stale_after_ms=1000, on_unknown="open")
    await hear(guard, NOW + HOUR)
    clock.advance_ms(500)
    assert (guard.check(account).stale, guard.oldest_fresh_ms) == (False, 500)
    clock.advance_ms(1000)
    verdict = guard.check(account)
    assert (verdict.stale, verdict.fresh_ms, guard.oldest_fresh_ms) == (True, 1500, 1500)
    await hear(guard, NOW + HOUR + 2000)
    assert not guard.check(account).stale


def test_a_subscriber_is_cut_by_itself_or_with_its_account(make):
    guard = make(
        decision("a"),
        decision("a", subscriber="kid", state="cut"),
        decision("b", state="cut"),
        decision("b", subscriber="kid"),
    )

    assert guard.check("a").allowed
    assert guard.check("a", "mum").allowed
    assert not guard.check("a", "kid").allowed
    assert not guard.check("b", "kid").allowed


def test_a_group_of_models_is_cut_alone_for_all_or_for_one_subscriber(make):
    guard = make(
        decision("a"),
        group_decision(version=2),
        group_decision("hour_utok:all", ["q/*"], version=3, subscriber="kid"),
    )

    assert guard.check("a").allowed
    assert guard.check("a", "kid").allowed
    assert guard.check("a", provider="p", model="max").allowed
    assert not guard.check("a", provider="p", model="mini").allowed
    assert not guard.check("a", "mum", provider="p", model="mini").allowed
    assert guard.check("a", provider="q", model="any").allowed
    assert guard.check("a", "mum", provider="q", model="any").allowed
    assert not guard.check("a", "kid", provider="q", model="any").allowed
    assert guard.check("b", provider="p", model="mini").state == "unknown"


def test_of_several_groups_the_cut_that_ends_last_is_told(make):
    ends = {"one": NOW + 5, "never": 0, "over": NOW - 1, "two": NOW + 9}
    cuts = [group_decision(group, rule=group, resets_at=at) for group, at in ends.items()]
    assert make(decision(), *cuts).check("a", provider="p", model="mini").rule == "never"
    del cuts[1]
    assert make(decision(), *cuts).check("a", provider="p", model="mini").rule == "two"
    assert make(decision(), cuts[1]).check("a", provider="p", model="mini").allowed


def test_of_one_group_the_newest_word_counts_and_its_own_key_takes_it_away(make):
    guard = make(decision())
    take = guard._view.apply_decision
    assert take(0, group_decision(version=5), NOW)
    assert not take(0, group_decision(version=4, state="open"), NOW)
    assert not guard.check("a", provider="p", model="mini").allowed
    assert take(0, group_decision(version=6, models=["p/max"]), NOW)
    assert guard.check("a", provider="p", model="mini").allowed
    assert not guard.check("a", provider="p", model="max").allowed
    for key in (
        decision_key("default", "a", 2, "", "day_utok:minis"),
        decision_key("default", "a", 1, "", "another"),
        decision_key("default", "a", 1, "kid", "day_utok:minis"),
    ):
        guard._view.apply_tombstone(key)
    assert not guard.check("a", provider="p", model="max").allowed
    guard._view.apply_tombstone(decision_key("default", "a", 1, "", "day_utok:minis"))
    assert guard.check("a", provider="p", model="max").allowed
    assert guard.check("a").state == "open"


async def test_a_groups_cut_wakes_who_is_served_by_its_models_and_nobody_else(make):
    guard = make(decision())
    wait = {"provider": "p", "model": "mini"}
    woken = [asyncio.create_task(guard.wait_cut("a", who, **wait)) for who in (None, "kid")]
    others = [
        asyncio.create_task(guard.wait_cut("a")),
        asyncio.create_task(guard.wait_cut("a", provider="p", model="max")),
        asyncio.create_task(guard.wait_cut("b", **wait)),
    ]
    await asyncio.sleep(0)
    guard._view.apply_decision(0, group_decision(resets_at=NOW - 1, version=2), NOW)
    guard._view.apply_decision(0, group_decision(subscriber="mum", version=3), NOW)
    await asyncio.sleep(0)
    assert not any(task.done() for task in woken)
    guard._view.apply_decision(0, group_decision(version=4), NOW)
    cuts = await asyncio.wait_for(asyncio.gather(*woken), 5)
    assert [cut.version for cut in cuts] == [4, 4]
    assert (await asyncio.wait_for(guard.wait_cut("a", **wait), 1)).version == 4
    assert not any(task.done() for task in others)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert not guard._view._waiters
    assert [list(one.waiters) for one in guard._view._groups.values()] == [[]]


async def test_of_ten_thousand_members_a_call_looks_at_its_own_decisions_and_the_accounts(
    make, monkeypatch
):
    looks, is_of = [], Served.is_of
    monkeypatch.setattr(Served, "is_of", lambda *said: looks.append(said) or is_of(*said))
    members = [f"m{number}" for number in range(50)]
    said = [group_decision(subscriber=who, version=2) for who in members]
    guard = make(decision(), group_decision(models=["p/max"], version=3), *said)
    wait = {"provider": "p", "model": "nano"}
    waiting = [asyncio.create_task(guard.wait_cut("a", who, **wait)) for who in members]
    await asyncio.sleep(0)
    looks.clear()
    assert not guard.check("a", "m7", provider="p", model="mini").allowed
    assert guard.check("a", "mum", provider="p", model="mini").allowed
    assert len(looks) == 3
    looks.clear()
    guard._view.apply_decision(0, group_decision(subscriber="m7", version=4), NOW)
    assert len(looks) == 1
    guard._view.apply_decision(0, group_decision(models=["p/nano"], version=5), NOW)
    assert {cut.version for cut in await asyncio.wait_for(asyncio.gather(*waiting), 5)} == {5}


def test_what_is_taken_away_leaves_nothing_and_equal_groups_are_kept_once(make):
    guard = make(decision(), *(group_decision(subscriber=who) for who in ("kid", "mum")))
    kid, mum = (guard._view._groups["default", "a"].rows[who] for who in ("kid", "mum"))
    assert kid["day_utok:minis"].models is mum["day_utok:minis"].models
    for who in ("kid", "mum"):
        guard._view.apply_tombstone(decision_key("default", "a", 1, who, "day_utok:minis"))
    assert not guard._view._groups


def test_tenants_are_apart(make):
    guard = make(decision(tenant_id="north", state="cut"), decision(tenant_id="south"))

    assert not guard.check("a", tenant="north").allowed
    assert guard.check("a", tenant="south").allowed
    assert guard.check("a").state == "unknown"


def test_require_raises_only_when_staleness_alone_denies(make):
    assert make(decision()).require("a").allowed
    assert not make(decision(state="cut"), heard_ms=0).require("a").allowed
    with pytest.raises(StaleView, match="default/a"):
        make(decision(), heard_ms=0).require("a")


async def test_waiting_for_a_cut_ends_at_once_when_it_is_cut(make):
    guard = make(decision(state="cut", used=77))

    assert (await asyncio.wait_for(guard.wait_cut("a"), 1)).used == 77


async def test_a_cut_wakes_everybody_who_waits_for_it_and_nobody_else(make):
    guard = make(decision(), decision("b"))
    waiting = [asyncio.create_task(guard.wait_cut("a")) for _ in range(1000)]
    waiting += [asyncio.create_task(guard.wait_cut("a", f"s{at}")) for at in range(1000)]
    other = asyncio.create_task(guard.wait_cut("b", "a"))
    await asyncio.sleep(0)
    guard._view.apply_decision(0, decision(version=2, state="warned"), NOW)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    guard._view.apply_decision(0, decision(version=3, state="cut"), NOW)

    cuts = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert {cut.version for cut in cuts} == {3}
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert not guard._view._waiters


async def test_a_subscribers_cut_wakes_its_own_calls_only(make):
    guard = make(decision())
    kid = asyncio.create_task(guard.wait_cut("a", "kid"))
    mum = asyncio.create_task(guard.wait_cut("a", "mum"))
    await asyncio.sleep(0)
    guard._view.apply_decision(0, decision(subscriber="kid", state="cut"), NOW)

    assert (await asyncio.wait_for(kid, 1)).state == "cut"
    assert not mum.done()
    mum.cancel()


async def test_an_old_or_ended_cut_wakes_nobody(make):
    guard = make(decision(version=5))
    task = asyncio.create_task(guard.wait_cut("a"))
    await asyncio.sleep(0)
    guard._view.apply_decision(0, decision(version=4, state="cut"), NOW)
    guard._view.apply_decision(0, decision(version=6, state="cut", resets_at=NOW - 1), NOW)
    await asyncio.sleep(0)

    assert not task.done()
    task.cancel()


async def test_a_record_is_read_again_when_its_schema_could_not_be_asked_for(make):
    """The registry is away: skipping the record would let a cut account go on for good."""
    guard = make()

    def away(_):
        raise RegistryUnavailable("away")

    guard._codec.decode = away
    record = SimpleNamespace(offset=7, value=b"x", key=b"k", timestamp=NOW)
    with pytest.raises(RegistryUnavailable):
        await guard._apply(0, [record])
    assert guard._positions[0] == 0

    guard._codec.decode = lambda _: (_ for _ in ()).throw(Undecodable("torn"))
    await guard._apply(0, [record])
    assert (guard._positions[0], guard.stats.bad_records) == (8, 1)
