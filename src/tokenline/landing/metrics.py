"""Show landing's progress to Prometheus; names and remedies are in `tokenline.metric_names`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tokenline import metric_names as names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from tokenline.landing.progress import LandingProgress


class LandingMetrics(Collector):
    """Read the progress each time the page is asked for; nothing is counted twice."""

    def __init__(self, progress: LandingProgress) -> None:
        self._progress = progress
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of a landing worker."""
        progress = self._progress
        rows = CounterMetricFamily(names.LANDED_ROWS, "rows in ClickHouse", labels=["table"])
        batches = CounterMetricFamily(names.LANDED_BATCHES, "inserts", labels=["table"])
        for table, one in list(progress.tables.items()):
            rows.add_metric([table], one.rows)
            batches.add_metric([table], one.batches)
        yield rows
        yield batches
        labels = ["topic", "partition"]
        lag = GaugeMetricFamily(names.LAG, "records behind the end", labels=labels)
        for partition, behind in list(progress.lag.items()):
            lag.add_metric(["usage", str(partition)], behind)
        yield lag
        offsets = GaugeMetricFamily(names.NEXT_OFFSET, "first offset not landed", labels=labels)
        for partition, offset in list(progress.next_offset.items()):
            offsets.add_metric(["usage", str(partition)], offset)
        yield offsets
        quarantined = CounterMetricFamily(names.QUARANTINED, "not believed", labels=["topic"])
        for topic, count in list(progress.quarantined.items()):
            quarantined.add_metric([topic], count)
        yield quarantined
        lost = CounterMetricFamily(names.NOT_LANDED, "offsets of usage", labels=["class"])
        lost.add_metric(["unlanded"], progress.unlanded)
        lost.add_metric(["unjudged"], progress.unjudged)
        yield lost
        astray = GaugeMetricFamily(names.ASTRAY, "1 while a seal is astray", labels=["partition"])
        for partition in list(progress.next_offset):
            astray.add_metric([str(partition)], float(partition in progress.astray))
        yield astray
        up = float(progress.away_since_s is None)
        yield GaugeMetricFamily(names.WAREHOUSE_UP, "1 while ClickHouse answers", value=up)
