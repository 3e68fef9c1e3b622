"""Read named ranges of one partition of the usage topic, in order, with no consumer group.

A range of 100,000 offsets is read at once and nobody looks at single records, so this asks the
broker for fetches through aiokafka's own client and opens whole record batches: a third of the time
that `AIOKafkaConsumer` takes, which makes an object and a dozen of Python calls for each record.

A fetch of 8 MiB may become any amount of memory, so its batches are opened one by one, no further than
a range needs, each within bounds (see `wire.inflate`), and only values that the ledger takes are kept.

What Kafka no longer has is not waited for, and no state of the topic is an error: a range comes back
with the records of it that there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from tokenline.errors import BrokerUnavailable
from tokenline.landing.verdicts import NO_OFFSETS
from tokenline.wire.inflate import opened
from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
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
    """Hold records of one partition in offset order; an offset without a record is not here.

    A value that nobody asked for may be None.
    """

    offsets: Int64s
    appended_ms: Int64s
    values: list[bytes | None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Hold the first offset that the broker has of a partition, and the one behind its last."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Fetched:
    """Hold record batches, and the first offset behind what was asked for and answered."""

    batches: Sequence[Any]
    next_lo: int


NO_RUN = Run(offsets=np.zeros(0, np.int64), appended_ms=np.zeros(0, np.int64), values=[])


class UsageReader:
    """Follow one partition; while one fetch is worked on, the next one is under way."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._settings = settings
        self._at = TopicPartition(topic, partition)
        self._client: AIOKafkaClient | None = None
        self._fetching: asyncio.Task[_Fetched] | None = None
        self._fetch_lo = -1
        self._closed: deque[Any] = deque()  # batches that were fetched and not opened yet
        self._ready: deque[Run] = deque()
        self._ready_lo = self._ready_hi = -1
        self._highwater = 0

    async def start(self) -> Bounds:
        """Connect and return what the broker has.

        Raises:
            BrokerUnavailable: no broker answers; try again.
        """
        client = AIOKafkaClient(**client_options(self._settings))
        try:
            bounds = await self.bounds()
            await client.bootstrap()
            await client.set_topics([self._at.topic])
        except KafkaError as error:
            await client.close()
            raise BrokerUnavailable(f"reading {self._at.topic}: {error}") from error
        self._client = client
        return bounds

    async def bounds(self) -> Bounds:
        """Ask the broker what it has now.

        Raises:
            KafkaError: it does not answer.
        """
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False
        )
        await consumer.start()
        try:
            begin = (await consumer.beginning_offsets([self._at]))[self._at]
            end = (await consumer.end_offsets([self._at]))[self._at]
        finally:
            await consumer.stop()
        self._highwater = int(end)
        return Bounds(int(begin), int(end))

    async def ask_bounds(self) -> Bounds:
        """Ask the broker what it has now; waits for as long as it needs to answer."""
        while True:
            try:
                return await self.bounds()
            except KafkaError as error:
                _log.warning("usage cannot be read now", error=str(error)[:300])
                await asyncio.sleep(RETRY_S)

    async def has(self, offset: int) -> bool:
        """Say whether the topic was ever as long as this offset; asks the broker only when it must.

        A leader that was just chosen may not know the end yet: ask again before you believe it.

        Raises:
            KafkaError: the broker does not answer.
        """
        return offset < self._highwater or offset < (await self.bounds()).end

    async def read(self, lo: int, hi: int, unused: Int64s = NO_OFFSETS) -> Run:
        """Return what records there are from `lo` to `hi`; wait for as long as the broker needs.

        `hi` must be an offset that the topic `has`. `unused` are offsets whose values nobody asks for.
        """
        if lo != self._ready_lo:
            await self._seek(lo)
        while self._ready_hi < hi:
            if not self._closed:
                await self._fetch_more()
            await asyncio.to_thread(self._open, hi, unused)
        self._ready_lo = hi + 1
        return _taken(self._ready, lo, hi)

    async def _fetch_more(self) -> None:
        fetched = await self._next_batches()
        self._closed.extend(fetched.batches)
        if not self._closed:
            self._ready_hi = fetched.next_lo - 1

    def _open(self, hi: int, unused: Int64s) -> None:
        """Open what was fetched, up to the batch that `hi` is in."""
        while self._closed and self._ready_hi < hi:
            batch = self._closed.popleft()
            if not batch.is_control_batch:
                self._ready.append(_opened(batch, unused))
            self._ready_hi = batch.next_offset - 1

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
        self._closed.clear()
        self._ready.clear()
        self._fetch_lo = self._ready_lo = lo
        self._ready_hi = lo - 1

    async def _cancel_fetch(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
            self._fetching = None

    async def _next_batches(self) -> _Fetched:
        """Return the record batches of the fetch under way, and have the next one started."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(self._fetch_lo))
        fetched = await self._fetching
        self._fetch_lo = fetched.next_lo
        self._fetching = asyncio.create_task(self._fetch(self._fetch_lo))
        return fetched

    async def _fetch(self, lo: int) -> _Fetched:
        """Return batches that end at or above `lo`, or none and where Kafka's own begin now."""
        while True:
            try:
                batches = await self._ask(lo)
                if batches:
                    return _Fetched(batches, batches[-1].next_offset)
            except OffsetOutOfRangeError:
                if begin := await self._begins_behind(lo):
                    return _Fetched((), begin)
            except KafkaError as error:
                _log.warning("usage cannot be read now", error=str(error)[:300])
                await asyncio.sleep(RETRY_S)

    async def _begins_behind(self, lo: int) -> int:
        """Return the first offset that Kafka still has, if that is above `lo`; else 0, after a while."""
        where = {"topic": self._at.topic, "partition": self._at.partition, "offset": lo}
        found = await self.ask_bounds()
        if found.begin > lo:
            _log.error("usage was deleted before it landed", **where, first=found.begin)
            return found.begin
        # It was shorter all of a sudden: made again, or cut by an election.
        _log.error("usage ends before the offset to be read", **where, end=found.end)
        await asyncio.sleep(RETRY_S)
        return 0

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
        _, code, highwater, *rest = response.topics[0][1][0]
        if code:
            error = for_code(code)
            if error is not OffsetOutOfRangeError:
                await self._client.force_metadata_update()
            raise error(self._at)
        self._highwater = highwater
        return [batch for batch in _batches(rest[-1]) if batch.next_offset > lo]


def _opened(batch: Any, unused: Int64s) -> Run:  # noqa: ANN401  # aiokafka ships no types
    """Return the records of a batch; one that is damaged or unreadable has none that are believed."""
    if not batch.validate_crc():
        _log.error(
            "a record batch has a wrong checksum: the broker's disk has damaged it",
            offset=batch.base_offset,
            last=batch.next_offset - 1,
        )
        return NO_RUN
    records: list[Any] = []
    try:
        records.extend(opened(batch).records)
    except Exception as error:  # noqa: BLE001  bytes that are wrong raise whatever the parser trips over
        # Charging has made a dead letter of what lies behind those that were read.
        _log.warning("a batch is unreadable", offset=batch.base_offset, error=str(error)[:300])
    rows = len(records)
    if batch.next_offset - batch.base_offset == rows:
        offsets = np.arange(batch.base_offset, batch.next_offset, dtype=np.int64)
    else:
        offsets = np.fromiter((one.offset for one in records), np.int64, rows)
    if batch.timestamp_type == LOG_APPEND_TIME:
        appended_ms = np.full(rows, batch.max_timestamp, np.int64)
    else:
        appended_ms = np.fromiter((one.timestamp for one in records), np.int64, rows)
    values = [one.value for one in records]
    for at in np.flatnonzero(np.isin(offsets, unused)).tolist() if len(unused) else ():
        values[at] = None
    return Run(offsets=offsets, appended_ms=appended_ms, values=values)


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
