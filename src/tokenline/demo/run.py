"""Run the demo: start the stack, apply accounts, let gateways call, show it, prove it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from tokenline.accounts.apply import apply_accounts
from tokenline.clock import SystemClock
from tokenline.demo.crowd import Crowd
from tokenline.demo.plans import sample_accounts, topped_up
from tokenline.demo.stories import LOOK_S as STORY_LOOK_S
from tokenline.demo.stories import STORIES, Stories, open_stories
from tokenline.demo.view import Picture, stories_table, summary
from tokenline.landing.queries import sql
from tokenline.landing.reconcile import Report, reconcile, render
from tokenline.platform.kafka_config import as_role
from tokenline.platform.processes import remove_folder
from tokenline.platform.stack import Stack
from tokenline.settings import Settings

GATEWAYS = 3
LOOK_S = 0.5
TOP_UP_TOKENS = 5_000_000
TOP_UP_ACCOUNTS = 3
RECONCILE_WAIT_S = 45.0

# Accounts that were cut and then could go on again: by a new window, or because they were topped up.
RESUMED = """
SELECT count() FROM (
  SELECT state, lagInFrame(state) OVER (
    PARTITION BY tenant_id, account_id ORDER BY epoch, version ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before
  FROM v_decisions WHERE reason != 'threshold_reached')
WHERE before = 'cut' AND state != 'cut'
"""
CUTS = "SELECT count(), uniqExact(tenant_id, account_id) FROM v_decisions WHERE state = 'cut'"
# What accounts used beyond their month's allowance, as it stands at the end.
OVERSHOOT = """
SELECT sum(toInt128(greatest(toInt64(used.total_tokens) - accounts.month_tokens, 0))) FROM v_month_counters AS used
JOIN v_accounts AS accounts USING (tenant_id, account_id) WHERE accounts.month_tokens >= 0
"""
CUT_BY_MONTH = """
SELECT account_id FROM v_decisions WHERE state = 'cut' AND rule = 'month_tokens' ORDER BY account_id LIMIT 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Say how long and how hard."""

    seconds: int
    rate: int
    accounts: int
    keep: bool


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Play the demo and return its result, as `--json` writes it.

    Raises:
        PlatformError: the stack could not start, or a gateway ended by itself.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="tokenline-demo-"))
    settings = Settings.from_env().model_copy(update={"data_dir": data_dir})
    console.print(
        "[bold]tokenline demo[/]: a real Kafka, a real ClickHouse engine, two workers, three gateways"
    )
    try:
        with Stack(
            settings,
            data_dir,
            free_ports=True,
            say=lambda line: console.print(f"  {line}", style="dim", markup=False),
        ) as stack:
            return _play(options, stack.settings, console)
    finally:
        if options.keep:
            console.print(f"data kept in {data_dir}; look at it: tokenline up --data {data_dir}")
        else:
            remove_folder(data_dir)


def _play(options: DemoOptions, settings: Settings, console: Console) -> dict[str, Any]:
    file = sample_accounts(options.accounts)
    count = asyncio.run(apply_accounts(settings, file.commands()))
    asyncio.run(open_stories(settings))
    console.print(
        f"  {count} limited accounts, {len(STORIES)} with plans; gateways start", style="dim"
    )
    clock = SystemClock()
    stories, looked_s = Stories(settings), 0.0
    picture = Picture(settings, options.seconds, clock)
    topped: list[str] = []
    with (
        Crowd(settings, GATEWAYS, options) as crowd,
        Live(picture, console=console, refresh_per_second=4) as live,
    ):
        began_s = clock.monotonic_s()
        while crowd.running:
            picture.update(crowd.counts())
            live.refresh()
            now_s = clock.monotonic_s()
            if now_s - looked_s >= STORY_LOOK_S:
                picture.note = stories.look(now_s) or picture.note
                looked_s = now_s
            if not topped and clock.monotonic_s() - began_s > options.seconds * 0.6:
                topped = _top_up(settings, file)
                picture.note = f"topped up {', '.join(topped)}" if topped else ""
            crowd.wait(LOOK_S)
        picture.update(crowd.counts())
    stories.look(clock.monotonic_s())
    console.print("  gateways are done; reconciling", style="dim")
    report = reconcile(as_role(settings, "reader"), RECONCILE_WAIT_S)
    result = _result(settings, report, crowd.finals()) | {"stories": stories.result()}
    console.print(stories_table(result["stories"]))
    console.print(summary({name: each for name, each in result.items() if name != "stories"}))
    console.print(render(report))
    return result


def _top_up(settings: Settings, file: Any) -> list[str]:  # noqa: ANN401  an AccountsFile
    """Give accounts that were cut a larger allowance: they go on at once."""
    names = [row["account_id"] for row in _rows(settings, CUT_BY_MONTH)][:TOP_UP_ACCOUNTS]
    if names:
        asyncio.run(apply_accounts(settings, topped_up(file, names, TOP_UP_TOKENS).commands()))
    return names


def _result(settings: Settings, report: Report, finals: list[Mapping[str, Any]]) -> dict[str, Any]:
    latencies = sorted(value for final in finals for value in final["latency_ms"])
    cuts, cut_accounts = (int(value) for value in _rows(settings, CUTS)[0].values())
    totals = report.totals
    return {
        "emitted": sum(int(final["emitted"]) + int(final["bad"]) for final in finals),
        "ledger": totals["ledger"],
        "duplicates": totals["duplicates"],
        "dead_letters": totals["dead_letters"],
        "late": totals["late"],
        "cut_offs": cuts,
        "accounts_cut": cut_accounts,
        "resumed": _number(settings, RESUMED),
        "tokens": totals["tokens"],
        "calls": sum(int(final["calls"]) for final in finals),
        "refused": sum(int(final["refused"]) for final in finals),
        "stopped_mid_stream": sum(int(final["stopped"]) for final in finals),
        "decision_latency_ms": {
            "p50": _percentile(latencies, 50),
            "p99": _percentile(latencies, 99),
        },
        "overshoot_tokens": _number(settings, OVERSHOOT),
        "conservation": report.ok,
    }


def _rows(settings: Settings, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(sql(settings, query, "json"))["data"]
    return rows


def _number(settings: Settings, query: str) -> int:
    return int(next(iter(_rows(settings, query)[0].values())) or 0)


def _percentile(ordered: list[int], percent: int) -> int:
    """Return the value that `percent` of the sorted values do not exceed; 0 for none."""
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else 0
