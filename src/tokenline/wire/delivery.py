"""Carry accepted events to Kafka in the background, in order within a partition, until acked.

One producer (idempotent, acks=all), one batch in flight a partition. While the broker is away the
producer itself retries, with the same sequence numbers. An error that it reports, or a minute
without an ack, ends that producer: its sequence numbers cannot be trusted any more, so a new one
sends all that is not acknowledged again. That may put an event on the topic twice; charging counts
it once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from tokenline.errors import RegistryUnavailable, SettingsError, TokenlineError, Unavailable
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import (
    check_partitions,
    client_options,
    deliver,
    partition_of,
    stop_producer,
)
from tokenline.wire.line import Line, read_line
from tokenline.wire.tasks import end_tasks
from tokenline.wire.topics import CONTROL, USAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import RecordMetadata

    from tokenline.settings import Settings
    from tokenline.wire.registry import Registry

BATCH_MAX_BYTES = 256 * 1024
# Under load a batch waits this long for company; a lone event never waits.
LINGER_S = 0.005
LINGER_FROM_RECORDS = 8
# A producer that moves nothing for so long is replaced; harmless when the broker is simply away.
STALL_S = 60.0
START_TIMEOUT_S = 10.0
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Parcel:
    """Hold one accepted event on its way; `position` is its place in the outbox."""

    position: int
    key: bytes
    value: bytes


class Delivery:
    """Send parcels and report each batch that the broker acknowledged.

    `on_acked(parcels, partition, base_offset)` is called once a batch, parcels in offset order;
    `on_refused(parcel, text)` when the broker will never take a parcel (larger than it allows), `on_line`
    at each connection, before anything is sent, with the line that is there; it may refuse it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_acked: Callable[[list[Parcel], int, int], None],
        on_refused: Callable[[Parcel, str], None],
        on_line: Callable[[Line], None],
        registry: Registry,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._on_line = on_line
        self._topic = settings.topic(USAGE)
        self._on_acked = on_acked
        self._on_refused = on_refused
        self._lanes = [_Lane(partition) for partition in range(settings.partitions)]
        self._producer: AIOKafkaProducer | None = None
        self._connected = asyncio.Event()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._closing = False
        self.waiting = 0
        self.producers_started = 0
        self.last_error = ""
        # A fault that no retry heals (another partition count): from then on every call raises it.
        self.fatal: TokenlineError | None = None

    def start(self) -> None:
        """Begin to connect and send in the background; returns at once."""
        self._wanted.set()
        self._tasks = [asyncio.create_task(self._keep_connected(), name="tokenline-connect")]
        self._tasks += [asyncio.create_task(self._run(lane)) for lane in self._lanes]
        for task in self._tasks:
            task.add_done_callback(self.note_end)

    async def connected(self, within_s: float) -> bool:
        """Wait until a producer is up; False when it is not within the time.

        Raises:
            SettingsError: the broker answered, but the topic does not fit the settings.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._connected.wait()
        if self.fatal:
            raise self.fatal
        return self._connected.is_set()

    def submit(self, parcel: Parcel) -> None:
        """Queue one parcel; never blocks. The bound is the outbox's."""
        lane = self._lanes[partition_of(parcel.key, len(self._lanes))]
        lane.queue.append(parcel)
        self.waiting += 1
        lane.filled.set()

    async def publish_control(self, key: bytes, value: bytes) -> bool:
        """Send one control record and wait for its ack; False when there is no broker now."""
        producer = self._producer
        if producer is None:
            return False
        try:
            topic = self._settings.topic(CONTROL)
            async with asyncio.timeout(START_TIMEOUT_S):
                await deliver(producer, topic, value, key=key, partition=0)
        except TimeoutError:
            # The broker is away; a total that arrives late is as true as ever.
            return False
        except (KafkaError, AssertionError) as error:
            self._retire(producer, error)
            return False
        return True

    async def stop(self) -> None:
        """End all tasks and the producer; what is not acknowledged stays with the outbox."""
        self._closing = True
        await end_tasks(self._tasks)
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)
        await asyncio.gather(*self._stopping, return_exceptions=True)

    async def _keep_connected(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while not self._closing:
            await self._wanted.wait()
            try:
                self._producer = await self._connect()
            except (KafkaError, OSError, TimeoutError, Unavailable) as error:
                self.last_error = await self._said(error)
                _log.warning("broker_unreachable", error=self.last_error, retry_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
            except SettingsError as error:
                self._give_up(error)
                return
            else:
                backoff_s = BACKOFF_MIN_S
                self._wanted.clear()
                self._connected.set()

    async def _said(self, error: Exception) -> str:
        ours = isinstance(error, Unavailable)
        return str(error if ours else await fault_of(self._settings, error))

    def note_end(self, task: asyncio.Task[None]) -> None:
        """Let no task die unnoticed: from then on every call says why."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(TokenlineError(f"{task.get_name()} stopped: {error!r}"))

    def _give_up(self, error: TokenlineError) -> None:
        self.fatal = error
        self.last_error = str(error)
        self._connected.set()
        _log.error("delivery_stopped", error=str(error))

    async def _connect(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_batch_size=BATCH_MAX_BYTES,
            linger_ms=0,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await producer.start()
            async with asyncio.timeout(START_TIMEOUT_S):
                await check_partitions(producer, self._settings, self._topic)
                await producer.partitions_for(self._settings.topic(CONTROL))
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._meet_line()
        except BaseException:
            await stop_producer(producer)
            raise
        self.producers_started += 1
        return producer

    async def _meet_line(self) -> None:
        """Look which line is there; a registry that is away just now keeps no event back."""
        with contextlib.suppress(RegistryUnavailable):
            self._on_line(await read_line(self._settings, registry=self._registry))

    async def _run(self, lane: _Lane) -> None:
        """Send the parcels of one partition, batch by batch, for as long as the emitter lives."""
        while not self._closing:
            if not lane.queue:
                lane.filled.clear()
                await lane.filled.wait()
            await self._connected.wait()
            producer = self._producer
            if producer is None:
                await asyncio.sleep(BACKOFF_MAX_S)
                continue
            if lane.last_records > LINGER_FROM_RECORDS:
                await asyncio.sleep(LINGER_S)
            await self._send(producer, lane)

    async def _send(self, producer: AIOKafkaProducer, lane: _Lane) -> None:
        batch = producer.create_batch()
        parcels = lane.fill(batch.append)
        lane.last_records = len(parcels)
        try:
            sent = await producer.send_batch(batch, self._topic, partition=lane.partition)
            async with asyncio.timeout(STALL_S):
                metadata: RecordMetadata = await sent
        except MessageSizeTooLargeError as error:
            self._too_large(lane, parcels, error)
            self._retire(producer, error)
        except (KafkaError, TimeoutError, AssertionError) as error:
            lane.put_back(parcels)
            self._retire(producer, error)
        except asyncio.CancelledError:
            lane.put_back(parcels)
            raise
        else:
            lane.singly = max(0, lane.singly - len(parcels))
            self.waiting -= len(parcels)
            self._on_acked(parcels, lane.partition, metadata.offset)
            if lane.went_back(metadata.offset, len(parcels)):
                # Kafka was made again under us: look which line it holds before more is sent.
                self._retire(producer, KafkaError(f"offsets of {lane.partition} went back"))

    def _too_large(self, lane: _Lane, parcels: list[Parcel], error: Exception) -> None:
        """Find the one that the broker will not take by sending them one by one."""
        if len(parcels) > 1:
            lane.singly = len(parcels)
            lane.put_back(parcels)
            return
        self.waiting -= 1
        self._on_refused(parcels[0], f"the broker refuses the event as too large: {error!r}")

    def _retire(self, producer: AIOKafkaProducer, error: BaseException) -> None:
        """Replace a producer whose state is in doubt; several lanes may report the same one."""
        self.last_error = repr(error)
        if self._producer is not producer:
            return
        _log.warning("producer_replaced", error=repr(error))
        self._producer = None
        self._connected.clear()
        self._wanted.set()
        stopping = asyncio.create_task(stop_producer(producer))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)


class _Lane:
    """Hold the parcels of one partition that are not acknowledged, in order."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.queue: deque[Parcel] = deque()
        self.filled = asyncio.Event()
        self.last_records = 0
        self.singly = 0
        self._next_offset = 0

    def fill(self, append: Callable[..., object]) -> list[Parcel]:
        """Move parcels into a batch until it is full; at least one."""
        parcels: list[Parcel] = []
        while self.queue:
            parcel = self.queue[0]
            if append(timestamp=None, key=parcel.key, value=parcel.value) is None:
                break
            parcels.append(self.queue.popleft())
            if self.singly:
                break
        if not parcels:
            raise TokenlineError("a batch took not even one event; the size check is wrong")
        return parcels

    def went_back(self, offset: int, count: int) -> bool:
        """Note where a batch landed, and say whether the log was longer before."""
        back = 0 <= offset < self._next_offset
        self._next_offset = offset + count
        return back

    def put_back(self, parcels: list[Parcel]) -> None:
        """Return parcels to the front, in their order."""
        self.queue.extendleft(reversed(parcels))
