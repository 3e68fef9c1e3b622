"""Keep what a worker tells Prometheus; names and remedies are in tokenline.metric_names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokenline import metric_names as names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import Metric

    from streams.notify import EndpointFollower
    from tokenline.charging.step import Step

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ChargingMetrics:
    """Count what one charging process does."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            names.EVENTS, "usage events, by judgement", ["judgement"], registry=self.registry
        )
        self.tokens = Counter(names.TOKENS, "tokens counted", registry=self.registry)
        self.dead_letters = Counter(
            names.DEAD_LETTERS, "records refused", ["reason"], registry=self.registry
        )
        self.grouped_bad = Counter(
            names.GROUPED_BAD, "bad records that share dead letters", registry=self.registry
        )
        self.decisions = Counter(
            names.DECISIONS, "decisions published", ["state"], registry=self.registry
        )
        self.unpaid_alarms = Counter(
            names.UNPAID_ALARMS, "accounts that used absurdly much unpaid", registry=self.registry
        )
        self.latency = Histogram(
            names.DECISION_LATENCY,
            "append to published step",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.lag = Gauge(
            names.LAG, "records behind the end", ["topic", "partition"], registry=self.registry
        )
        self.next_offset = Gauge(
            names.NEXT_OFFSET,
            "first offset not yet done",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.deleted_records = Counter(
            names.DELETED, "records deleted unread", ["topic"], registry=self.registry
        )
        self.ignored = Counter(
            names.IGNORED, "records that are not ours", ["topic"], registry=self.registry
        )
        self.astray = Gauge(
            names.ASTRAY, "1 while positions are none", ["partition"], registry=self.registry
        )
        self.freshness = Gauge(
            names.FRESHNESS, "age of the newest record charged", registry=self.registry
        )
        self.state_rows = Gauge(names.STATE_ROWS, "accounts held", registry=self.registry)
        self.recovery_rows = Counter(
            names.RECOVERY_ROWS, "journal rows read back", registry=self.registry
        )
        self.recovery_span = Gauge(
            names.RECOVERY_SPAN, "first start to last end", registry=self.registry
        )
        self._recovery_began_s = 0.0
        self.flushed_rows = Counter(
            names.FLUSHED_ROWS, "window rows published", registry=self.registry
        )

    def charged(self, step: Step, wall_ms: int) -> None:
        """Take in one published step."""
        age_s = max(wall_ms - step.as_of_ms, 0) / 1000
        self.latency.observe(age_s)
        self.freshness.set(age_s)
        self.events.labels("counted").inc(step.counted)
        self.tokens.inc(step.tokens)
        if step.judged is not None:
            self.events.labels("late").inc(len(step.judged.late_usage))
            self.events.labels("duplicate").inc(len(step.judged.duplicate))
            self.events.labels("correction").inc(len(step.judged.correction))
        self.unpaid_alarms.inc(len(step.alarms))
        for refused in step.refused:
            self.dead_letters.labels(refused.reason).inc()
        for decided in step.decisions:
            self.decisions.labels(decided.state.name.lower()).inc()

    def deleted(self, topic: str, count: int) -> None:
        """Take in records that were deleted before they were read."""
        self.deleted_records.labels(topic).inc(count)

    def stands(self, partition: int, *, astray: bool) -> None:
        """Take in whether a partition's positions can be those of its topics."""
        self.astray.labels(str(partition)).set(int(astray))

    def progress(self, partition: int, next_offset: int, lag: int) -> None:
        """Take in how far a partition is."""
        self.next_offset.labels("usage", str(partition)).set(next_offset)
        self.lag.labels("usage", str(partition)).set(lag)

    def recovered(self, rows: int, began_s: float, ended_s: float) -> None:
        """Take in one partition's recovery; partitions recover at the same time."""
        self.recovery_rows.inc(rows)
        self._recovery_began_s = min(self._recovery_began_s or began_s, began_s)
        self.recovery_span.set(ended_s - self._recovery_began_s)


class NotifyMetrics(Collector):
    """Read what became of webhooks each time the page is asked for."""

    def __init__(self, followers: Sequence[EndpointFollower]) -> None:
        self._followers = followers
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of a notify worker."""
        total = CounterMetricFamily(names.WEBHOOKS, "webhooks", labels=["endpoint", "outcome"])
        waiting = GaugeMetricFamily(names.WEBHOOKS_WAITING, "not told yet", labels=["endpoint"])
        up = GaugeMetricFamily(names.WEBHOOK_ENDPOINT_UP, "0 when gone", labels=["endpoint"])
        ignored = CounterMetricFamily(names.IGNORED, "not ours", labels=["topic"])
        # Each endpoint reads all decisions.
        seen = (follower.deliveries.counts.ignored for follower in self._followers)
        ignored.add_metric(["decisions"], max(seen, default=0))
        for follower in self._followers:
            name, counts = follower.deliveries.endpoint.name, follower.deliveries.counts
            for outcome in ("delivered", "failed", "dead"):
                total.add_metric([name, outcome], getattr(counts, outcome))
            waiting.add_metric([name], follower.deliveries.waiting)
            up.add_metric([name], float(not counts.gone))
        yield from (total, waiting, up, ignored)
