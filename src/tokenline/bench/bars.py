"""State what each figure of the bench must be, and hold a result against that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Bar:
    """State what a figure must be."""

    what: str
    value: Callable[[Mapping[str, Any]], float | None]
    bound: float
    at_most: bool = False

    def missed(self, result: Mapping[str, Any]) -> bool:
        """Say whether the figure was measured and is not good enough."""
        value = self.value(result)
        return value is not None and (value > self.bound if self.at_most else value < self.bound)


BARS = (
    Bar("charging events/s", lambda r: r.get("charging_events_per_s"), 60_000),
    Bar(
        "charging / stock Faust",
        lambda r: _ratio(r, "charging_events_per_s", "stock_faust_events_per_s"),
        35,
    ),
    Bar(
        "charging / bare aiokafka",
        lambda r: _ratio(r, "charging_events_per_s", "bare_consumer_events_per_s"),
        0.25,
    ),
    Bar(
        "charging with plans events/s",
        lambda r: r.get("charging_plans_events_per_s"),
        50_000,
    ),
    Bar(
        "charging with plans / stock Faust",
        lambda r: _ratio(r, "charging_plans_events_per_s", "stock_faust_events_per_s"),
        30,
    ),
    Bar("lease admission p99 us", lambda r: _of(r, "lease_admission_us", "p99"), 100, at_most=True),
    Bar("grant p50 ms at 500/s", lambda r: _of(r, "grant_latency_ms", "p50"), 15, at_most=True),
    Bar("grant p99 ms at 500/s", lambda r: _of(r, "grant_latency_ms", "p99"), 60, at_most=True),
    Bar("strict overshoot", lambda r: _of(r, "overshoot_tokens", "strict"), 0, at_most=True),
    Bar("spendable share", lambda r: r.get("spendable_share"), 0.99),
    Bar("landing events/s", lambda r: r.get("landing_events_per_s"), 120_000),
    Bar("recovery rows/s", lambda r: r.get("recovery_rows_per_s"), 100_000),
    Bar("event to decision p99 ms at 5,000/s", lambda r: _p99(r, "5000"), 100, at_most=True),
    Bar(
        "worker bytes at 1M accounts",
        lambda r: r.get("worker_rss_bytes_1m_accounts"),
        1.5e9,
        at_most=True,
    ),
    Bar(
        "one account with a quarter / zipf",
        lambda r: r.get("hot_account_per_base"),
        0.7,
    ),
    Bar(
        "10,000 subscribers of one / zipf",
        lambda r: r.get("subscribers_per_base"),
        0.7,
    ),
)


def bars_table(result: Mapping[str, Any]) -> Table:
    """Return a row for each bar whose figure was measured."""
    table = Table("bar", "measured", "must be", "", title="bars")
    for bar in BARS:
        value = bar.value(result)
        if value is not None:
            sign = "<=" if bar.at_most else ">="
            shown = f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
            table.add_row(
                bar.what, shown, f"{sign} {bar.bound:,g}", "missed" if bar.missed(result) else "met"
            )
    return table


def _ratio(result: Mapping[str, Any], name: str, base: str) -> float | None:
    return result[name] / result[base] if name in result and base in result else None


def _of(result: Mapping[str, Any], name: str, part: str) -> float | None:
    found: float | None = result.get(name, {}).get(part)
    return found


def _p99(result: Mapping[str, Any], rate: str) -> float | None:
    found = result.get("decision_latency_ms", {}).get(rate)
    return found["p99"] if found else None
