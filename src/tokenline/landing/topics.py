"""Turn micro-batches of the topics beside usage into rows; blocking, called in threads.

Only our workers write these topics, gateways the control totals. A record that is not theirs changes no
table and stops nothing: it goes into the quarantine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokenline.landing.quarantine import Quarantine
from tokenline.landing.ranges import Fault
from tokenline.landing.row import with_place
from tokenline.landing.rules import misfits, own_commands
from tokenline.metering.home import Home
from tokenline.wire.topics import HEARTBEAT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenline.landing.flow import Event
    from tokenline.landing.progress import LandingProgress
    from tokenline.landing.store import Store, Table
    from tokenline.wire.columns import ColumnCodec


@dataclass(frozen=True, slots=True)
class _Placed:
    """Hold a record and the micro-batch it came in: it does not know its place itself."""

    event: Event
    record: Any


class TopicLander:
    """Insert each topic's records into its table; a record landed twice is one row."""

    def __init__(
        self, store: Store, codec: ColumnCodec, progress: LandingProgress, partitions: int
    ) -> None:
        self._store = store
        self._codec = codec
        self._quarantine = Quarantine(store, progress)
        self._partitions = partitions

    def windows(self, events: Sequence[Event]) -> int:
        """Land absolute totals; the highest version of a window stays."""
        return self._own("windows", "account_window", _placed(events))

    def balances(self, events: Sequence[Event]) -> int:
        """Land entries of balances; the highest version of an entry stays."""
        return self._own("balance_changes", "balance_change", _placed(events))

    def decisions(self, events: Sequence[Event]) -> int:
        """Land verdicts; heartbeats and tombstones of older owners are not verdicts."""
        verdicts = [one for one in _placed(events) if is_verdict(one.record)]
        return self._own("decisions", "quota_decision", verdicts)

    def dead_letters(self, events: Sequence[Event]) -> int:
        """Land what charging could not use."""
        return self._own("dead_letters", "dead_letter", _placed(events))

    def accounts(self, events: Sequence[Event]) -> int:
        """Land account commands; one that charging refuses is its dead letter."""
        return sum(map(self._commands, events))

    def gateway_totals(self, events: Sequence[Event]) -> int:
        """Land control totals; the newest of each life of a gateway stays."""
        totals = [one for one in _placed(events) if one.record.value is not None]
        return self._own("gateway_totals", "gateway_total", totals, _versioned)

    def _own(
        self,
        table: Table,
        name: str,
        placed: Sequence[_Placed],
        complete: Callable[[pa.Table, Sequence[_Placed]], pa.Table] = lambda rows, _: rows,
    ) -> int:
        """Land records of one kind and put aside what is none; return the rows written."""
        decoded = self._codec.decode(name, [one.record.value for one in placed])
        bad: dict[int, tuple[str, str]] = {
            one.position: (one.reason, one.detail) for one in decoded.failures
        }
        kept = [placed[at] for at in decoded.kept]
        standing = np.array([one.event.partition for one in kept], np.int64)
        wrong = misfits(table, decoded.batch, standing, self._partitions)
        for row, why in wrong.items():
            bad[int(decoded.kept[row])] = ("misplaced", why)
        fit = np.array([row for row in range(len(kept)) if row not in wrong], np.int64)
        rows = pa.Table.from_batches([decoded.batch])
        if wrong:
            rows, kept = rows.take(pa.array(fit)), [kept[row] for row in fit]
        self._store.insert(table, complete(rows, kept))
        self._put_aside([(placed[at], *why) for at, why in sorted(bad.items())])
        return len(kept)

    def _put_aside(self, faults: Sequence[tuple[_Placed, str, str]]) -> None:
        by_place: dict[tuple[str, int], list[Fault]] = {}
        for one, reason, detail in faults:
            place = by_place.setdefault((one.event.topic, one.event.partition), [])
            place.append(Fault(record=one.record, reason=reason, detail=detail))
        for (topic, partition), found in by_place.items():
            self._quarantine.put(topic, partition, found)

    def _commands(self, event: Event) -> int:
        records = event.value
        decoded = self._codec.decode("account_command", [record.value for record in records])
        read = [records[at] for at in decoded.kept]
        home = Home(event.partition, self._partitions)
        fit = own_commands(decoded.batch, read, home)
        kept = [read[row] for row in fit]
        if not kept:
            return 0
        offsets = np.array([record.offset for record in kept], np.int64)
        appended = np.array([record.timestamp for record in kept], np.int64)
        own = decoded.batch.take(pa.array(fit))
        rows = with_place(own, event.topic, event.partition, offsets, appended)
        self._store.insert("accounts", rows)
        return len(kept)


def _placed(events: Sequence[Event]) -> list[_Placed]:
    return [_Placed(event, record) for event in events for record in event.value]


def _versioned(rows: pa.Table, placed: Sequence[_Placed]) -> pa.Table:
    """Add the version of control totals: where they stand."""
    offsets = np.array([one.record.offset for one in placed], np.int64)
    return rows.append_column("version", pa.array(offsets))


def is_verdict(record: Any) -> bool:  # noqa: ANN401  # aiokafka ships no types
    """Say whether a record of `decisions` is a decision, and no heartbeat."""
    return record.value is not None and not (record.key or b"").startswith(HEARTBEAT_PREFIX)
