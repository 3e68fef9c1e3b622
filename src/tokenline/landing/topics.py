"""Turn micro-batches of the topics beside usage into rows; blocking, called in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokenline.errors import BrokenLog
from tokenline.landing.row import with_place
from tokenline.wire.topics import HEARTBEAT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenline.landing.flow import Event
    from tokenline.landing.progress import LandingProgress
    from tokenline.landing.store import Store, Table
    from tokenline.wire.columns import ColumnCodec


class TopicLander:
    """Insert each topic's records into its table; a record landed twice is one row."""

    def __init__(self, store: Store, codec: ColumnCodec, progress: LandingProgress) -> None:
        self._store = store
        self._codec = codec
        self._progress = progress

    def windows(self, events: Sequence[Event]) -> int:
        """Land absolute totals; the highest version of a window stays."""
        return self._own("windows", "account_window", events)

    def balances(self, events: Sequence[Event]) -> int:
        """Land entries of balances; the highest version of an entry stays."""
        return self._own("balance_changes", "balance_change", events)

    def decisions(self, events: Sequence[Event]) -> int:
        """Land verdicts; heartbeats and tombstones of older owners are not verdicts."""
        return self._own("decisions", "quota_decision", events, _is_verdict)

    def dead_letters(self, events: Sequence[Event]) -> int:
        """Land what charging could not use."""
        return self._own("dead_letters", "dead_letter", events)

    def accounts(self, events: Sequence[Event]) -> int:
        """Land account commands; one that cannot be decoded is charging's dead letter."""
        return sum(map(self._commands, events))

    def gateway_totals(self, events: Sequence[Event]) -> int:
        """Land control totals; one that cannot be decoded is only counted: it proves nothing."""
        records = [record for record in _records(events) if record.value is not None]
        decoded = self._codec.decode("gateway_total", [record.value for record in records])
        self._progress.skipped += len(decoded.failures)
        offsets = np.array([records[at].offset for at in decoded.kept], np.int64)
        rows = pa.Table.from_batches([decoded.batch]).append_column("version", pa.array(offsets))
        self._store.insert("gateway_totals", rows)
        return int(rows.num_rows)

    def _own(
        self,
        table: Table,
        name: str,
        events: Sequence[Event],
        wanted: Callable[[Any], bool] | None = None,
    ) -> int:
        """Land records that only our workers write: a bad one means that something is broken."""
        kept = [
            (event, event.value if wanted is None else list(filter(wanted, event.value)))
            for event in events
        ]
        decoded = self._codec.decode(name, [record.value for _, part in kept for record in part])
        if decoded.failures:
            first = decoded.failures[0]
            places = [(event, record.offset) for event, part in kept for record in part]
            event, offset = places[first.position]
            raise BrokenLog(
                f"{event.topic}[{event.partition}] offset {offset} is not a {name}: {first.detail}"
            )
        self._store.insert(table, pa.Table.from_batches([decoded.batch]))
        return int(decoded.batch.num_rows)

    def _commands(self, event: Event) -> int:
        records = event.value
        decoded = self._codec.decode("account_command", [record.value for record in records])
        kept = [records[at] for at in decoded.kept]
        if not kept:
            return 0
        offsets = np.array([record.offset for record in kept], np.int64)
        appended = np.array([record.timestamp for record in kept], np.int64)
        rows = with_place(decoded.batch, event.topic, event.partition, offsets, appended)
        self._store.insert("accounts", rows)
        return len(kept)


def _is_verdict(record: Any) -> bool:  # noqa: ANN401  # aiokafka ships no types
    return record.value is not None and not (record.key or b"").startswith(HEARTBEAT_PREFIX)


def _records(events: Sequence[Event]) -> list[Any]:
    return [record for event in events for record in event.value]
