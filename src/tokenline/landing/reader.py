"""Read named ranges of one partition of the usage topic, in order, with no consumer group.

A range of 100,000 offsets is read at once and nobody looks at single records, so this asks the
broker for fetches through aiokafka's own client and opens whole record batches: a third of the time
that `AIOKafkaConsumer` takes, which makes an object and a dozen of Python calls for each record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from tokenline.errors import BrokenLog, BrokerUnavailable
from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.row import Int64s
    from tokenline.settings import Settings

FETCH_BYTES_MAX = 8 * 1024 * 1024
FETCH_WAIT_MS = 500
RETRY_S = 0.5
LOG_APPEND_TIME = 1  # the broker's clock: one time for all records of a batch
READ_UNCOMMITTED = 0  # as Faust reads, so charging and landing see the same records

_log = structlog.get_logger("tokenline.landing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Hold records of one partition in offset order; an offset without a record is not here."""

    offsets: Int64s
    appended_ms: Int64s
    values: list[bytes | None]


class UsageReader:
    """Follow one partition; while one fetch is worked on, the next one is under way."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._settings = settings
        self._at = TopicPartition(topic, partition)
        self._client: AIOKafkaClient | None = None
        self._fetching: asyncio.Task[list[Any]] | None = None
        self._fetch_lo = -1
        self._ready: deque[Run] = deque()
        self._ready_lo = self._ready_hi = -1
        self._highwater = 0

    async def start(self) -> int:
        """Connect and return the first offset that the broker still has.

        Raises:
            BrokerUnavailable: no broker answers; try again.
        """
        options = client_options(self._settings)
        client = AIOKafkaClient(**options)
        try:
            first = await _first_offset(options, self._at)
            await client.bootstrap()
            await client.set_topics([self._at.topic])
        except KafkaError as error:
            await client.close()
            raise BrokerUnavailable(f"reading {self._at.topic}: {error}") from error
        self._client = client
        return first

    async def read(self, lo: int, hi: int) -> Run:
        """Return the records from `lo` to `hi`; wait for as long as the broker needs to give them.

        Raises:
            BrokenLog: retention has taken some of them away.
        """
        if lo != self._ready_lo:
            await self._seek(lo)
        while self._ready_hi < hi:
            batches = await self._next_batches()
            self._ready.extend(await asyncio.to_thread(opened, batches))
            self._ready_hi = self._fetch_lo - 1
        self._ready_lo = hi + 1
        return _taken(self._ready, lo, hi)

    def lag(self) -> int:
        """Return how many offsets lie behind the last one that was read, as of the last fetch."""
        return max(0, self._highwater - self._ready_lo)

    async def stop(self) -> None:
        """Disconnect."""
        await self._cancel_fetch()
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _seek(self, lo: int) -> None:
        await self._cancel_fetch()
        self._ready.clear()
        self._fetch_lo = self._ready_lo = lo
        self._ready_hi = lo - 1

    async def _cancel_fetch(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
            self._fetching = None

    async def _next_batches(self) -> list[Any]:
        """Return the record batches of the fetch under way, and have the next one started."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(self._fetch_lo))
        batches = await self._fetching
        self._fetch_lo = max([self._fetch_lo, *(batch.next_offset for batch in batches[-1:])])
        self._fetching = asyncio.create_task(self._fetch(self._fetch_lo))
        return batches

    async def _fetch(self, lo: int) -> list[Any]:
        """Return at least one batch that ends at or above `lo`; ask again while there is none."""
        while True:
            try:
                batches = await self._ask(lo)
            except OffsetOutOfRangeError as error:
                raise BrokenLog(
                    f"{self._at.topic}[{self._at.partition}] offset {lo} was charged but is not in "
                    "Kafka: landing was away for longer than the topic's retention"
                ) from error
            except KafkaError as error:
                _log.warning("usage cannot be read now", error=str(error)[:300])
                await asyncio.sleep(RETRY_S)
            else:
                if batches:
                    return batches

    async def _ask(self, lo: int) -> list[Any]:
        assert self._client is not None  # noqa: S101  # start() comes first
        leader = self._client.cluster.leader_for_partition(self._at)
        if leader is None or leader == -1:
            await self._client.force_metadata_update()
            await asyncio.sleep(RETRY_S)
            return []
        where = [(self._at.topic, [(self._at.partition, lo, FETCH_BYTES_MAX)])]
        request = FetchRequest(FETCH_WAIT_MS, 1, FETCH_BYTES_MAX, READ_UNCOMMITTED, where)
        response = await self._client.send(leader, request)
        _, code, self._highwater, *rest = response.topics[0][1][0]
        if code:
            error = for_code(code)
            if error is not OffsetOutOfRangeError:
                await self._client.force_metadata_update()
            raise error(self._at)
        return [batch for batch in _batches(rest[-1]) if batch.next_offset > lo]


def opened(batches: Sequence[Any]) -> list[Run]:
    """Return the records of each batch; control batches hold none.

    Raises:
        BrokenLog: a checksum is wrong.
    """
    return [_opened(batch) for batch in batches if not batch.is_control_batch]


def _opened(batch: Any) -> Run:  # noqa: ANN401  # aiokafka ships no types
    if not batch.validate_crc():
        raise BrokenLog(f"the record batch at offset {batch.base_offset} has a wrong checksum")
    records = list(batch)
    rows = len(records)
    if batch.next_offset - batch.base_offset == rows:
        offsets = np.arange(batch.base_offset, batch.next_offset, dtype=np.int64)
    else:
        offsets = np.fromiter((one.offset for one in records), np.int64, rows)
    if batch.timestamp_type == LOG_APPEND_TIME:
        appended_ms = np.full(rows, batch.max_timestamp, np.int64)
    else:
        appended_ms = np.fromiter((one.timestamp for one in records), np.int64, rows)
    return Run(offsets=offsets, appended_ms=appended_ms, values=[one.value for one in records])


def _batches(data: bytes) -> list[Any]:
    records = MemoryRecords(data)
    found = []
    while records.has_next():
        found.append(records.next_batch())
    return found


def _taken(ready: deque[Run], lo: int, hi: int) -> Run:
    """Take the records from `lo` to `hi` out of what is ready; leave what lies behind."""
    parts: list[Run] = []
    while ready and (not len(ready[0].offsets) or ready[0].offsets[0] <= hi):
        run = ready.popleft()
        start, end = np.searchsorted(run.offsets, [lo, hi + 1])
        parts.append(_cut(run, start, end))
        if end < len(run.offsets):
            ready.appendleft(_cut(run, end, len(run.offsets)))
    return Run(
        offsets=np.concatenate([np.zeros(0, np.int64), *(part.offsets for part in parts)]),
        appended_ms=np.concatenate([np.zeros(0, np.int64), *(part.appended_ms for part in parts)]),
        values=[value for part in parts for value in part.values],
    )


def _cut(run: Run, start: int, end: int) -> Run:
    return Run(
        offsets=run.offsets[start:end],
        appended_ms=run.appended_ms[start:end],
        values=run.values[start:end],
    )


async def _first_offset(options: dict[str, Any], at: TopicPartition) -> int:
    consumer = AIOKafkaConsumer(**options, group_id=None, enable_auto_commit=False)
    await consumer.start()
    try:
        return int((await consumer.beginning_offsets([at]))[at])
    finally:
        await consumer.stop()
