"""Draw the demo: rates, tokens, cut-offs, lag and latency while it runs, a table when it is over."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokenline import metric_names as names
from tokenline.clock import Clock
from tokenline.settings import Settings


class Picture:
    """Hold what the live view shows; rich asks for it at each refresh."""

    def __init__(self, settings: Settings, seconds: int, clock: Clock) -> None:
        self._settings = settings
        self._seconds = seconds
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._before: tuple[float, Mapping[str, int]] = (self._began_s, {})
        self._rates: dict[str, float] = {}
        self._counts: Mapping[str, int] = {}
        self._charging: Mapping[str, float] = {}
        self._landed = 0
        self.note = ""

    def update(self, counts: Mapping[str, int]) -> None:
        """Take the gateways' newest counts in and ask the workers for theirs."""
        now_s = self._clock.monotonic_s()
        then_s, before = self._before
        if now_s - then_s >= 2:
            passed_s = now_s - then_s
            self._rates = {name: (counts[name] - before.get(name, 0)) / passed_s for name in counts}
            self._before = (now_s, dict(counts))
        self._counts = counts
        self._charging = read_metrics(self._settings.charging_health_port)
        landing = read_metrics(self._settings.landing_health_port)
        self._landed = int(landing.get(f"{names.LANDED_ROWS}{{ledger}}", 0))

    def __rich__(self) -> RenderableType:
        """Return the picture as it is now."""
        elapsed_s = self._clock.monotonic_s() - self._began_s
        table = Table.grid(padding=(0, 3))
        for name, value in self._lines():
            table.add_row(Text(name, style="dim"), value)
        bar = ProgressBar(total=self._seconds, completed=min(elapsed_s, self._seconds), width=60)
        return Group(bar, table, Text(self.note, style="yellow"))

    def _lines(self) -> list[tuple[str, str]]:
        counts, charging = self._counts, self._charging

        def judged(kind: str) -> float:
            return charging.get(f"{names.EVENTS}{{{kind}}}", 0)

        count = charging.get(f"{names.DECISION_LATENCY}_count", 0)
        mean_ms = 1000 * charging.get(f"{names.DECISION_LATENCY}_sum", 0) / count if count else 0
        return [
            ("events", f"{counts.get('emitted', 0):,}  ({self._rates.get('emitted', 0):,.0f}/s)"),
            ("tokens", f"{counts.get('tokens', 0):,}  ({self._rates.get('tokens', 0):,.0f}/s)"),
            (
                "calls open / refused / stopped",
                f"{counts.get('open_calls', 0)} / {counts.get('refused', 0)} / {counts.get('stopped', 0)}",
            ),
            ("cut-offs decided", f"{charging.get(f'{names.DECISIONS}{{cut}}', 0):,.0f}"),
            (
                "duplicates / late",
                f"{judged('duplicate'):,.0f} / {judged('late'):,.0f}",
            ),
            ("dead letters", f"{charging.get(names.DEAD_LETTERS, 0):,.0f}"),
            ("charging lag", f"{charging.get(names.LAG, 0):,.0f} records"),
            ("event to published step", f"{mean_ms:,.1f} ms mean"),
            ("rows in the ledger", f"{self._landed:,}"),
        ]


def read_metrics(port: int) -> dict[str, float]:
    """Return a worker's metrics: sums by name, and by `name{first label}`; empty when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
            for label in list(sample.labels.values())[:1]:
                key = f"{sample.name}{{{label}}}"
                found[key] = found.get(key, 0) + sample.value
    return found


def stories_table(stories: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return what became of each account with a plan."""
    table = Table(
        *("account", "plan", "used", "beyond its balance", "cut by", "topped up", "resumed"),
        title="accounts with plans",
    )
    for story in stories:
        table.add_row(
            story["account"],
            story["plan"],
            f"{story['used_tokens']:,}",
            f"{story['overshoot_tokens']:,}",
            story["cut_by"] or "-",
            "yes" if story["topped_up"] else "no",
            "yes" if story["resumed"] else "no",
        )
    return table


def summary(result: Mapping[str, Any]) -> RenderableType:
    """Return the result as a table."""
    table = Table("what", "value", title="demo")
    for name, value in result.items():
        shown = (
            json.dumps(value)
            if isinstance(value, dict)
            else f"{value:,}"
            if isinstance(value, int) and not isinstance(value, bool)
            else str(value)
        )
        table.add_row(name.replace("_", " "), shown)
    return table
