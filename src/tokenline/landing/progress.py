"""Count what landing does, for health and metrics; plain numbers, read while they change."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TableProgress:
    """Count what went into one table; `moved_at_s` is monotonic time of the last batch, or 0."""

    rows: int = 0
    batches: int = 0
    moved_at_s: float = 0.0


@dataclass(slots=True)
class LandingProgress:
    """Hold the state of a landing worker.

    `next_offset` and `lag` are by partition of the usage topic, in offsets of it; `lag` counts what
    lies in Kafka behind the last sealed batch, charged or not. `acked` is the offset behind the
    last acknowledged record of each followed topic and partition. `quarantined` counts records by
    topic. `astray` says of partitions why their last seal cannot be of the topic there is. `unlanded`
    and `unjudged` count offsets of usage that did not land (see the seals).
    `away_since_s` is monotonic time since when the warehouse has not
    answered, None while it does.
    """

    tables: dict[str, TableProgress] = field(default_factory=dict)
    next_offset: dict[int, int] = field(default_factory=dict)
    lag: dict[int, int] = field(default_factory=dict)
    as_of_ms: dict[int, int] = field(default_factory=dict)
    acked: dict[tuple[str, int], int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    astray: dict[int, str] = field(default_factory=dict)
    unlanded: int = 0
    unjudged: int = 0
    retries: int = 0
    away_since_s: float | None = None
    last_error: str = ""

    def landed(self, table: str, rows: int, now_s: float) -> None:
        """Count one batch."""
        one = self.tables.setdefault(table, TableProgress())
        one.rows += rows
        one.batches += 1
        one.moved_at_s = now_s

    def forget(self, partition: int) -> None:
        """Drop a partition that another worker has now."""
        self.astray.pop(partition, None)
        for by_partition in (self.next_offset, self.lag, self.as_of_ms):
            by_partition.pop(partition, None)
