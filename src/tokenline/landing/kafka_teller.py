"""Send what landing tells over Kafka, from the threads that land."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tokenline.errors import BrokerUnavailable
from tokenline.wire.kafka import account_key, client_options
from tokenline.wire.topics import COMMANDS, DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.teller import Fields
    from tokenline.settings import Settings
    from tokenline.wire.avro import Codec

ANSWER_TIMEOUT_S = 120.0


class KafkaTeller:
    """Be one producer for all flows of a worker; it connects when there is something to tell.

    Each record goes to the partition of the usage that caused it, which is its account's. The producer is
    idempotent: what is sent again after a lost answer stands once, and in its place.
    """

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings, self._codec = settings, codec
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None

    def start(self) -> None:
        """Note the loop that sends; called in it, before anything is told."""
        self._loop = asyncio.get_running_loop()

    def tell(self, letters: Sequence[Fields], orders: Sequence[Fields]) -> None:
        """Send letters and orders; blocking, from any thread but the loop's.

        Raises:
            BrokerUnavailable: some may have been sent; try again with the same.
        """
        if not (letters or orders):
            return
        records = [
            *(self._record(DEAD_LETTERS, "dead_letter", one, one["partition"]) for one in letters),
            *(self._record(COMMANDS, "usage_order", one, _partition_of(one)) for one in orders),
        ]
        assert self._loop is not None  # noqa: S101  # start() comes first
        sent = asyncio.run_coroutine_threadsafe(self._send(records), self._loop)
        try:
            sent.result(ANSWER_TIMEOUT_S)
        except (KafkaError, TimeoutError) as error:
            sent.cancel()
            raise BrokerUnavailable(f"telling charging what landed: {error!r}") from error

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    def _record(
        self, stem: str, name: str, fields: Fields, partition: int
    ) -> tuple[str, int, bytes, bytes]:
        key = account_key(fields["tenant_id"], fields["account_id"])
        return self._settings.topic(stem), partition, key, self._codec.encode(name, fields)

    async def _send(self, records: Sequence[tuple[str, int, bytes, bytes]]) -> None:
        producer = await self._connected()
        acks: list[Any] = [
            await producer.send(topic, value, key=key, partition=partition)
            for topic, partition, key, value in records
        ]
        await asyncio.gather(*acks)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self._settings),
                    acks="all",
                    enable_idempotence=True,
                    compression_type="snappy",
                    max_request_size=8 << 20,
                    request_timeout_ms=30_000,
                )
                try:
                    await producer.start()
                except KafkaError:
                    await producer.stop()
                    raise
                self._producer = producer
        return self._producer


def _partition_of(order: Fields) -> int:
    side = "original" if order["original_present"] else "replacement"
    return int(order[f"{side}_partition"])
