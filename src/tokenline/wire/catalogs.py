"""Follow the catalogs that are published: what a gateway prices calls by, and which plan says what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Self

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.errors import BadData, Unavailable
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import start_reader, stop_consumer
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.tasks import end_tasks
from tokenline.wire.topics import CATALOG

if TYPE_CHECKING:
    from types import TracebackType

    from tokenline.settings import Settings

POLL_MS = 200
RETRY_S = 1.0

_log = structlog.get_logger(__name__)


class Catalogs:
    """Hold every version published; an async context manager whose start returns when all are read.

    `on_new` is called for each version once it is in the book. The topic is compacted and small.

    Raises:
        BrokerUnavailable: at the start, when Kafka does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_new: Callable[[], None] | None = None,
        registry: Registry | None = None,
    ) -> None:
        self._settings = settings
        self._codec = Codec(registry or open_registry(settings))
        self._on_new = on_new
        self._partition = TopicPartition(settings.topic(CATALOG), 0)
        self._position = -1
        self._task: asyncio.Task[None] | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self.book = CatalogBook()

    async def __aenter__(self) -> Self:
        """Read all versions."""
        try:
            await self._read_all()
        except KafkaError as error:
            raise await fault_of(self._settings, error) from error
        self._task = asyncio.create_task(self._follow(), name="tokenline-catalogs")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop following; what is known stays known."""
        if self._task is not None:
            await end_tasks([self._task])
        # A task that is cancelled before its first turn has cleaned nothing up.
        await self._close()

    async def _read_all(self) -> None:
        """Read to the end and stay there."""
        self._consumer = await self._open()
        try:
            async for record in _records_to_end(self._consumer, self._partition):
                self._take(record)
        except BaseException:
            await self._close()
            raise

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)

    async def _open(self) -> AIOKafkaConsumer:
        consumer = await start_reader(self._settings, self._partition, auto_offset_reset="earliest")
        if self._position >= 0:
            consumer.seek(self._partition, self._position)
        return consumer

    async def _follow(self) -> None:
        while True:
            try:
                consumer = self._consumer = self._consumer or await self._open()
                while True:
                    await self._read(consumer)
            except (KafkaError, Unavailable, OSError) as error:
                _log.warning("catalogs_reconnect", error=repr(error), retry_s=RETRY_S)
            await self._close()
            await asyncio.sleep(RETRY_S)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        found = await consumer.getmany(self._partition, timeout_ms=POLL_MS)
        records = found.get(self._partition, [])
        await self._codec.meet(record.value for record in records)
        for record in records:
            self._take(record)

    def _take(self, record: ConsumerRecord) -> None:
        """Tell of a new version at once: the record after it may not be readable yet."""
        new = self._add(record)
        self._position = record.offset + 1
        if new and self._on_new is not None:
            self._on_new()

    def _add(self, record: ConsumerRecord) -> bool:
        said = _version_of(self._codec, record)
        try:
            return said is not None and self.book.add(Catalog.from_json(str(said["catalog"])))
        except BadData as error:
            _log.error("catalog_refused", offset=record.offset, error=str(error))
            return False


async def read_catalogs(settings: Settings, *, registry: Registry | None = None) -> list[str]:
    """Return the JSON of every catalog published, oldest first; whoever reads it sees what is wrong.

    A record that is none is left out, and the log says so.

    Raises:
        BrokerUnavailable: Kafka did not answer.
    """
    codec, tp = (
        Codec(registry or open_registry(settings)),
        TopicPartition(settings.topic(CATALOG), 0),
    )
    found: dict[int, str] = {}
    try:
        consumer = await start_reader(settings, tp, auto_offset_reset="earliest")
        try:
            async for record in _records_to_end(consumer, tp):
                await codec.meet([record.value])
                if (said := _version_of(codec, record)) is not None:
                    found[int(str(said["version"]))] = str(said["catalog"])
        finally:
            await stop_consumer(consumer)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    return [found[version] for version in sorted(found)]


def _version_of(codec: Codec, record: ConsumerRecord) -> dict[str, object] | None:
    """Return the fields of a `catalog_version`; None of a record that is none."""
    if record.value is None:
        return None
    try:
        return codec.decode_as("catalog_version", record.value)
    except BadData as error:
        _log.warning("catalog_skips_record", offset=record.offset, error=str(error))
        return None


async def _records_to_end(
    consumer: AIOKafkaConsumer, tp: TopicPartition
) -> AsyncGenerator[ConsumerRecord, None]:
    """Yield what is there now."""
    end = (await consumer.end_offsets([tp]))[tp]
    while await consumer.position(tp) < end:
        for record in (await consumer.getmany(tp, timeout_ms=POLL_MS)).get(tp, []):
            yield record
