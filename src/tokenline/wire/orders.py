"""Ask something of accounts and wait for the answer: what a portal, a partner or a person does.

    async with Orders(settings) as orders:
        answer = await orders.order("acme", kind="grant", pack="coupon")

An order carries an id. Sent again with the same id, after a time-out or a crash, it is carried out
once and answered alike for a week. Answers come by the partition of `replies` that the name of the
asker falls on, so any number of askers share the topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.clock import Clock, SystemClock
from tokenline.errors import BadData, BrokerUnavailable, Unavailable
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.topics import CATALOG, COMMANDS, REPLIES

if TYPE_CHECKING:
    from types import TracebackType

    from tokenline.settings import Settings

Reply = dict[str, Any]

FETCH_WAIT_MS = 10
POLL_MS = 200
# What moves between accounts: it credits units, so only who took them out may say it.
CHARGING_ONLY = ("transfer_in", "transfer_return")
LINGER_MS = 3  # orders that come together travel together
RECONNECT_S = 0.5

_log = structlog.get_logger(__name__)


class Orders:
    """Send orders and hand out their answers; an async context manager, one event loop.

    Raises:
        BrokerUnavailable: Kafka did not answer; an order that was on its way may have been taken, so
            send it again with its id.
    """

    def __init__(
        self, settings: Settings, *, registry: Registry | None = None, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._codec = Codec(registry or open_registry(settings))
        self._clock = clock or SystemClock()
        self._name = f"orders-{uuid.uuid4()}"
        self._waiting: dict[tuple[str, int], asyncio.Future[Reply]] = {}
        self._seen: dict[str, list[Reply]] = {}
        self._task: asyncio.Task[None] | None = None
        number = partition_of(self._name.encode(), settings.partitions)
        self._replies = TopicPartition(settings.topic(REPLIES), number)
        self._position = -1
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> Self:
        """Stand at the end of the replies: an answer cannot come before its order."""
        try:
            # Not idempotent, and none the worse: whatever arrives twice is answered alike. An
            # idempotent producer that has lost its place is of no use any more.
            self._producer = AIOKafkaProducer(
                **client_options(self._settings), acks="all", linger_ms=LINGER_MS
            )
            await self._producer.start()
            self._consumer = await self._listen()
        except KafkaError as error:
            await self._stop()
            raise self._away(error) from error
        self._task = asyncio.create_task(self._follow(), name="tokenline-orders")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; who still waits is told so."""
        await self._stop()

    async def order(
        self,
        account: str,
        *,
        kind: str,
        tenant: str = "default",
        command_id: str = "",
        timeout_s: float = 30.0,
        **fields: Any,  # noqa: ANN401  the fields of `account_order`
    ) -> Reply:
        """Have an `account_order` carried out and return its `order_reply`.

        Raises:
            Unavailable: no charging worker answered in time; the order stands, and may still be taken.
            BadData: a field is unknown or of another type, or the kind is charging's own.
        """
        if kind in CHARGING_ONLY:
            raise BadData(f"{kind} is what charging itself sends; ask for a transfer")
        command_id = command_id or str(uuid.uuid4())
        known = {
            "tenant_id": tenant,
            "account_id": account,
            "command_id": command_id,
            "kind": kind,
            "reply_to": self._name,
            "issued_at": self._clock.wall_ms(),
        }
        value = self._codec.encode("account_order", known | fields)
        return await self._ask(account_key(tenant, account), value, (command_id, 0), timeout_s)

    async def hold(
        self,
        account: str,
        session: str,
        seq: int,
        *,
        action: str = "hold",
        tenant: str = "default",
        timeout_s: float = 30.0,
        **fields: Any,  # noqa: ANN401  the fields of `hold_order`
    ) -> Reply:
        """Ask one question of a session and return its `order_reply`; raises as `order` does."""
        known = {
            "tenant_id": tenant,
            "account_id": account,
            "session": session,
            "seq": seq,
            "action": action,
            "reply_to": self._name,
            "issued_at": self._clock.wall_ms(),
        }
        value = self._codec.encode("hold_order", known | fields)
        return await self._ask(account_key(tenant, account), value, (session, seq), timeout_s)

    async def publish_catalog(
        self, version: int, effective_ms: int, text: str, *, timeout_s: float = 30.0
    ) -> list[Reply]:
        """Bring a catalog to every partition and, when all have it, to the catalog topic.

        Raises:
            Unavailable: a partition did not answer in time; publishing it again is harmless.
            BadData: a partition refuses it; the text says why.
        """
        command_id = str(uuid.uuid4())
        fields = {
            "version": version,
            "effective_at": effective_ms,
            "catalog": text,
            "command_id": command_id,
            "reply_to": self._name,
            "issued_at": self._clock.wall_ms(),
        }
        value = self._codec.encode("catalog_version", fields)
        replies = self._seen[command_id] = []
        for partition in range(self._settings.partitions):
            await self._send(COMMANDS, b"~catalog", value, partition)
        await self._until_all(replies, timeout_s)
        refused = [reply["detail"] for reply in replies if reply["outcome"] == "refused"]
        if refused:
            raise BadData(str(refused[0]))
        await self._send(CATALOG, b"%d" % version, value, 0)
        return replies

    async def _until_all(self, replies: list[Reply], timeout_s: float) -> None:
        wanted, until_s = self._settings.partitions, self._clock.monotonic_s() + timeout_s
        while len(replies) < wanted:
            if self._clock.monotonic_s() > until_s:
                raise Unavailable(
                    f"{len(replies)} of {wanted} partitions have taken the catalog after "
                    f"{timeout_s:g} s; are all charging workers running? (tokenline status)"
                )
            await asyncio.sleep(POLL_MS / 10_000)

    async def _ask(
        self, key: bytes, value: bytes, name: tuple[str, int], timeout_s: float
    ) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[name] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(COMMANDS, key, value, partition_of(key, self._settings.partitions))
                return await answer
        except TimeoutError as error:
            raise Unavailable(
                f"no answer to {name[0]} within {timeout_s:g} s; is a charging worker running? "
                "(tokenline status)"
            ) from error
        finally:
            if self._waiting.get(name) is answer:
                del self._waiting[name]

    async def _send(self, stem: str, key: bytes, value: bytes, partition: int) -> None:
        if self._producer is None:
            raise Unavailable("orders can be sent within `async with` only")
        try:
            topic = self._settings.topic(stem)
            await self._producer.send_and_wait(topic, value, key=key, partition=partition)
        except KafkaError as error:
            raise self._away(error) from error

    async def _listen(self) -> AIOKafkaConsumer:
        """Return a consumer that stands where the last one was, at first at the end."""
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        consumer.assign([self._replies])
        if self._position < 0:
            await consumer.seek_to_end(self._replies)
            self._position = await consumer.position(self._replies)
        consumer.seek(self._replies, self._position)
        return consumer

    async def _follow(self) -> None:
        while True:
            try:
                self._consumer = self._consumer or await self._listen()
                await self._read(self._consumer)
            except (KafkaError, OSError, AssertionError) as error:
                _log.warning("orders_reconnect", error=repr(error), retry_s=RECONNECT_S)
                await self._mute()
                await asyncio.sleep(RECONNECT_S)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        me = self._name.encode()
        while True:
            for records in (await consumer.getmany(timeout_ms=POLL_MS)).values():
                for record in records:
                    self._position = record.offset + 1
                    if record.key == me:
                        self._take(record.value)

    async def _mute(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(KafkaError):
                await consumer.stop()

    def _take(self, value: bytes) -> None:
        _, reply = self._codec.decode(value)
        name = str(reply["command_id"] or reply["session"])
        if name in self._seen:
            self._seen[name].append(reply)
        answer = self._waiting.get((name, int(str(reply["seq"]))))
        if answer is not None and not answer.done():
            answer.set_result(reply)

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._mute()
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError):
                await producer.stop()

    def _away(self, error: KafkaError) -> BrokerUnavailable:
        return BrokerUnavailable(f"Kafka at {self._settings.kafka_bootstrap}: {error!r}")


async def read_catalogs(settings: Settings, *, registry: Registry | None = None) -> list[str]:
    """Return the JSON of every catalog published, oldest first.

    Raises:
        BrokerUnavailable: Kafka did not answer.
    """
    codec = Codec(registry or open_registry(settings))
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    tp = TopicPartition(settings.topic(CATALOG), 0)
    try:
        async with consumer:
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            found: dict[int, str] = {}
            while await consumer.position(tp) < end:
                records = (await consumer.getmany(tp, timeout_ms=POLL_MS)).get(tp, [])
                found.update(_catalogs(codec, [record.value for record in records]))
    except KafkaError as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka_bootstrap}: {error!r}") from error
    return [found[version] for version in sorted(found)]


def _catalogs(codec: Codec, values: Iterable[bytes | None]) -> dict[int, str]:
    said = [codec.decode(value)[1] for value in values if value is not None]
    return {int(str(one["version"])): str(one["catalog"]) for one in said}
