"""Run all measurements on one embedded broker and warehouse, and hold them against the bars."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from tokenline import metric_names as names
from tokenline.bench import gateway, latency, measure
from tokenline.bench import load as loads
from tokenline.bench.attack import Attack, catalog_of, run_attack
from tokenline.bench.bars import BARS, bars_table
from tokenline.errors import SettingsError
from tokenline.landing.migrate import apply as migrate
from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.warehouse_process import EmbeddedWarehouse
from tokenline.platform.worker_process import WorkerProcess
from tokenline.settings import Settings
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.orders import Orders
from tokenline.wire.registry import open_registry

MEMORY_ACCOUNTS = 1_000_000
LATENCY_RATES = (1_000, 5_000)
LATENCY_S = 12.0
LATENCY_TURNS = 3
STOCK_S = 15.0
SKEW_EVENTS = 400_000
SKEW_TURNS = 3
ATTACK_TOKENS = 5_000_000
# Who dies when which share is used; the broker dies in `tests/e2e/test_attack.py`.
ATTACK_KILLS = ((0.2, "gateway"), (0.4, "charging"), (0.6, "gateway"))
PLENTY_TOKENS = 1_000_000_000_000
BASE_SPREAD = "skew_base"
SPREADS = {BASE_SPREAD: "zipf", "hot_account": "hot", "subscribers": "subscribers"}


Window = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Say how much, and which parts; no parts means all."""

    events: int
    accounts: int
    only: tuple[str, ...] = ()


@dataclass(slots=True)
class Room:
    """Hold the servers all parts share; each part has topics of its own."""

    settings: Settings
    options: BenchOptions
    console: Console
    result: dict[str, Any] = field(default_factory=dict)

    def line(self, part: str) -> Settings:
        """Return settings of a line of the part's own."""
        name = part.replace("-", "_")
        return self.settings.model_copy(
            update={"topic_prefix": f"{part}.", "clickhouse_database": f"bench_{name}"}
        )

    def log(self, part: str) -> Path:
        """Return where the workers of a part log."""
        return self.settings.data_dir / f"{part}.log"

    async def produce(self, settings: Settings, load: loads.Load) -> None:
        """Put a load on the part's usage topic."""
        await loads.produce_usage(
            settings, ColumnCodec(open_registry(settings)), load, measure.CLOCK.wall_ms()
        )

    def tell(self, name: str, value: float) -> None:
        """Keep a figure and show it."""
        self.result[name] = round(value, 1) if value < 1000 else int(value)
        self.console.print(f"  {name.replace('_', ' '):<34} {self.result[name]:>14,}")


def run_bench(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Run the parts and return what `--json` writes; `missed` names the bars that were not met.

    Raises:
        SettingsError: a part is unknown.
        PlatformError: a worker or rival failed.
    """
    parts = {
        # First, on a rested machine: many hosts take the processors from who has just used them up.
        "latency": _latency,
        "gateway": _gateway,
        "charging": _charging,
        "plans": _plans,
        "limits": _limits,
        "landing": _landing,
        "skew": _skew,
        "memory": _memory,
    }
    unknown = [part for part in options.only if part not in parts]
    if unknown:
        raise SettingsError(f"there is no part {unknown[0]!r}; parts: {', '.join(parts)}")
    with _room(options, console) as room:
        for name, part in parts.items():
            if not options.only or name in options.only:
                console.print(f"[bold]{name}[/]")
                with _stolen(room, name):
                    asyncio.run(part(room))
        result = room.result
    result["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    result["missed"] = [bar.what for bar in BARS if bar.missed(result)]
    console.print(bars_table(result))
    return result


@dataclass(slots=True)
class Host:
    """Hold the share of the processors that the host took away: figures are to be read beside it."""

    steal_percent: float = 0.0


@contextmanager
def _host() -> Iterator[Host]:
    host, before = Host(), psutil.cpu_times()
    yield host
    after = psutil.cpu_times()
    taken = getattr(after, "steal", 0) - getattr(before, "steal", 0)
    spent = sum(after) - sum(before)
    host.steal_percent = round(100 * taken / spent, 1) if spent else 0.0


@contextmanager
def _stolen(room: Room, part: str) -> Iterator[None]:
    with _host() as host:
        yield
    room.result.setdefault("host_steal_percent", {})[part] = host.steal_percent
    room.console.print(f"  {'taken by the host meanwhile':<34} {host.steal_percent:>12} %")


async def _charging(room: Room) -> None:
    settings, options = room.line("bench-charging"), room.options
    await measure.prepare(settings, options.accounts, room.log("charging"))
    await room.produce(settings, loads.Load(events=options.events, accounts=options.accounts))
    # The rival runs on either side of the worker: what the host takes changes within seconds.
    before = measure.rival_rate(settings, "bare", str(options.events))
    rate = await measure.charging_rate(settings, options.events, room.log("charging"))
    after = measure.rival_rate(settings, "bare", str(options.events))
    room.tell("charging_events_per_s", rate.per_s)
    room.tell("bare_consumer_events_per_s", statistics.harmonic_mean([before, after]))
    room.tell("stock_faust_events_per_s", measure.rival_rate(settings, "stock", str(STOCK_S)))


async def _plans(room: Room) -> None:
    """Charge the same load with every account on a plan: rated, burnt from buckets, under limits."""
    room.tell("charging_plans_events_per_s", await _plan_rate(room, "plans", "bench"))


async def _limits(room: Room) -> None:
    """Charge it with limits of every other kind, which no bar is for: they are looked at one by one."""
    room.tell("charging_limits_events_per_s", await _plan_rate(room, "limits", "pool"))


async def _plan_rate(room: Room, part: str, plan: str) -> float:
    settings, options = room.line(f"bench-{part}"), room.options
    await measure.prepare_plans(settings, options.accounts, plan, room.log(part))
    await room.produce(settings, loads.Load(events=options.events, accounts=options.accounts))
    return (await measure.charging_rate(settings, options.events, room.log(part))).per_s


async def _gateway(room: Room) -> None:
    """Measure admissions and grants, then attack an account in each mode."""
    settings = room.line("bench-gateway").model_copy(update={"session_timeout_ms": 4000})
    catalog = catalog_of(ATTACK_TOKENS, plenty_tokens=PLENTY_TOKENS)
    await measure.make_topics(settings)
    with measure.worker("charging", settings, room.log("gateway")) as process:
        process.await_ready(60)
        async with Orders(settings) as orders:
            await orders.publish_catalog(catalog.version, catalog.effective_ms, catalog.to_json())
        names = gateway.grant_accounts()
        await gateway.open_accounts(settings, "plenty", names)
        grants = []
        for turn in range(LATENCY_TURNS):
            warm_s = 0.0 if turn else gateway.WARM_S
            grants.append(await _window(gateway.grants_ms(settings, names, warm_s)))
        _tell_median(room, "grant_latency_ms", grants)
        turns = [await _admissions(settings, names[0]) for _ in range(LATENCY_TURNS)]
        _tell_median(room, "lease_admission_us", turns)
        room.result["overshoot_tokens"] = {}
        for mode in ("strict", "prepaid", "postpaid"):
            attack = Attack(mode=mode, tokens=ATTACK_TOKENS, kills=ATTACK_KILLS)
            outcome = await run_attack(settings, attack, {"charging": partial(_revive, process)})
            overshoot = -(-outcome.overshoot_utok // 1_000_000)
            room.result["overshoot_tokens"][mode] = overshoot
            room.console.print(
                f"  8 gateways, 1,600 callers, {mode:<9} spent {outcome.spendable_share:.4%} of "
                f"{ATTACK_TOKENS:,} tokens in {outcome.seconds} s, beyond it {overshoot:,}; "
                f"kill -9: {', '.join(outcome.killed)}"
            )
            if mode == "strict":
                room.result["spendable_share"] = round(outcome.spendable_share, 6)


def _revive(process: WorkerProcess) -> None:
    process.kill()
    process.start()


async def _admissions(settings: Settings, account: str) -> Window:
    with _host() as host:
        found = await gateway.admissions(settings, account)
    cpu_p99 = _percentile(found.cpu_us, 99)
    return _window_of(found.took_us, host) | {"cpu_p99": cpu_p99}


async def _window(measured: Awaitable[list[float]]) -> Window:
    with _host() as host:
        found = await measured
    return _window_of(sorted(found), host)


def _window_of(ordered: list[float], host: Host) -> Window:
    return {
        "p50": _percentile(ordered, 50),
        "p99": _percentile(ordered, 99),
        "samples": len(ordered),
        "steal_percent": host.steal_percent,
    }


def _tell_median(room: Room, name: str, windows: list[Window]) -> None:
    room.result[name] = told = _median(windows)
    room.console.print(
        f"  {name.replace('_', ' '):<34} p50 {told['p50']}, p99 {told['p99']}; {_each(windows)}"
    )


def _median(windows: list[Window]) -> dict[str, Any]:
    """Return the window with the median p99, and all of them beside it."""
    return sorted(windows, key=itemgetter("p99"))[len(windows) // 2] | {"windows": windows}


def _each(windows: list[Window]) -> str:
    each = ", ".join(f"{window['p99']} ({window['steal_percent']} %)" for window in windows)
    return f"p99 of each window (taken by the host): {each}"


async def _landing(room: Room) -> None:
    settings = room.line("bench-charging")
    if "charging_events_per_s" not in room.result:
        await measure.prepare(settings, room.options.accounts, room.log("charging"))
        await room.produce(
            settings, loads.Load(events=room.options.events, accounts=room.options.accounts)
        )
        await measure.charging_rate(settings, room.options.events, room.log("charging"))
    await asyncio.to_thread(migrate, settings)
    room.tell(
        "landing_events_per_s",
        (await measure.landing_rate(settings, room.options.events, room.log("landing"))).per_s,
    )


async def _latency(room: Room) -> None:
    """Tell the median one of three windows at each rate, and keep all three with what the host took.

    The rates take turns, so that a bad minute of the host does not fall on all windows of one.
    """
    settings = room.line("bench-latency")
    await measure.prepare(settings, 1_000, room.log("latency"))
    probes = {rate: latency.probes_of(rate, LATENCY_S) for rate in LATENCY_RATES}
    await measure.prepare_probes(
        settings, LATENCY_TURNS * sum(probes.values()), room.log("latency")
    )
    room.result["decision_latency_ms"] = {}
    first = 0
    windows: dict[int, list[Window]] = {rate: [] for rate in LATENCY_RATES}
    with measure.worker("charging", settings, room.log("latency")) as process:
        process.await_ready(60)
        for rate in LATENCY_RATES * LATENCY_TURNS:
            found = latency.latencies_ms(settings, rate, LATENCY_S, first)
            windows[rate].append(await _window(found))
            first += probes[rate]
    for rate, measured in windows.items():
        room.result["decision_latency_ms"][str(rate)] = told = _median(measured)
        room.console.print(
            f"  event to decision at {rate:,}/s          p50 {told['p50']} ms, p99 {told['p99']} ms; "
            f"{_each(measured)}"
        )


async def _skew(room: Room) -> None:
    """Charge the spreads in turn, several times, and compare within a turn only.

    Two runs a minute apart differ by more than a half on a host that others use; the median of
    the turns' ratios does not.
    """
    turns = [
        {name: await _spread_rate(room, name, turn) for name in SPREADS}
        for turn in range(SKEW_TURNS)
    ]
    for name in SPREADS:
        room.tell(f"{name}_events_per_s", statistics.median(turn[name] for turn in turns))
    for name in SPREADS.keys() - {BASE_SPREAD}:
        ratios = [turn[name] / turn[BASE_SPREAD] for turn in turns]
        room.result[f"{name}_per_base"] = round(statistics.median(ratios), 2)


async def _spread_rate(room: Room, name: str, turn: int) -> float:
    part = f"bench-{name.replace('_', '-')}-{turn}"
    settings = room.line(part).model_copy(update={"partitions": 1})
    accounts = 1 if SPREADS[name] == "subscribers" else 20_000
    await measure.prepare(settings, accounts, room.log(name))
    load = loads.Load(events=SKEW_EVENTS, accounts=accounts, spread=SPREADS[name])
    await room.produce(settings, load)
    return (await measure.charging_rate(settings, SKEW_EVENTS, room.log(name))).per_s


async def _memory(room: Room) -> None:
    settings = room.line("bench-memory")
    await measure.prepare(settings, MEMORY_ACCOUNTS, room.log("memory"))
    await room.produce(settings, loads.Load(events=200_000, accounts=MEMORY_ACCOUNTS))
    with measure.worker("charging", settings, room.log("memory")) as process:
        await measure.until(process, lambda: measure.judged(process) >= 200_000)
        rows, span_s = (
            measure.metric(process, name) for name in (names.RECOVERY_ROWS, names.RECOVERY_SPAN)
        )
        room.tell("worker_rss_bytes_1m_accounts", measure.rss_bytes(process))
        room.tell("recovery_rows_per_s", rows / span_s)


@contextmanager
def _room(options: BenchOptions, console: Console) -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="tokenline-bench-", ignore_cleanup_errors=True) as name:
        data_dir = Path(name)
        broker, warehouse = (
            EmbeddedKafka(data_dir / "kafka", secrets_dir=data_dir),
            EmbeddedWarehouse(data_dir / "warehouse"),
        )
        try:
            broker.start()
            warehouse.start()
            given = {
                **broker.access(),
                "clickhouse_url": warehouse.dsn(),
                "data_dir": data_dir,
            }
            yield Room(Settings.from_env().model_copy(update=given), options, console)
        finally:
            warehouse.stop()
            broker.stop()


def _percentile(ordered: list[float], percent: int) -> float:
    return (
        round(ordered[min(len(ordered) * percent // 100, len(ordered) - 1)], 1)
        if ordered
        else float("inf")
    )
