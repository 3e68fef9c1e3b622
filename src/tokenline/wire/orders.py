"""Ask something of accounts and wait for the answer: what a portal, a partner or a person does.

    async with Orders(settings) as orders:
        answer = await orders.order("acme", kind="grant", pack="coupon")

An order carries an id. Sent again with the same id, after a time-out or a crash, it is carried out
once and answered alike for a week. Answers come by the partition of `replies` that the name of the
asker falls on, so any number of askers share the topic. Orders and questions of sessions go to topics of
their own, and an asker needs the right to write to those that it uses.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.clock import Clock, SystemClock
from tokenline.counts import duration_of
from tokenline.errors import BadData, Unavailable
from tokenline.names import bad_names
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog
from tokenline.rating.succession import check_succession, lead_ms_of
from tokenline.wire.avro import Codec
from tokenline.wire.catalogs import read_catalogs
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import (
    account_key,
    check_partitions,
    client_options,
    deliver,
    partition_of,
    start_reader,
    stop_consumer,
    stop_producer,
)
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.tasks import end_tasks
from tokenline.wire.topics import CATALOG, COMMANDS, HOLDS, REPLIES

if TYPE_CHECKING:
    from types import TracebackType

    from tokenline.settings import Settings

Reply = dict[str, Any]

# Ids are unique within their account only: what it was (order or session), tenant, account, id, seq.
Name = tuple[str, str, str, str, int]

FETCH_WAIT_MS = 10
POLL_MS = 200
# What moves between accounts: it credits units, so only who took them out may say it.
CHARGING_ONLY = ("transfer_in", "transfer_return")
RECONNECT_S = 0.5

_log = structlog.get_logger(__name__)


class Orders:
    """Send orders and hand out their answers; an async context manager, one event loop.

    Raises:
        SettingsError: the line has another number of partitions.
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
        self._waiting: dict[Name, list[asyncio.Future[Reply]]] = {}
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
            # idempotent producer that has lost its place is of no use any more. It lingers for nothing:
            # what comes while one request is out travels with the next.
            self._producer = AIOKafkaProducer(**client_options(self._settings), acks="all")
            await self._producer.start()
            # As many as `commands` and `holds` have, and whoever asks anything may look at it.
            await check_partitions(self._producer, self._settings, self._settings.topic(REPLIES))
            self._consumer = await self._listen()
        except KafkaError as error:
            await self._stop()
            raise await fault_of(self._settings, error) from error
        except BaseException:
            await self._stop()
            raise
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
            BadData: a field is unknown, of another type or no name, or the kind is charging's own.
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
        said = _fit(known | fields)
        key, name = account_key(tenant, account), ("order", tenant, account, command_id, 0)
        value = self._codec.encode("account_order", said)
        return await self._ask(COMMANDS, key, value, name, timeout_s)

    async def show(
        self, account: str, *, tenant: str = "default", timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Return all that charging knows of an account at this moment, amounts in µtok; raises as `order`.

        Raises:
            BadData: there is no such account.
        """
        reply = await self.order(account, kind="show", tenant=tenant, timeout_s=timeout_s)
        if reply["outcome"] == "refused":
            raise BadData(f"{tenant}/{account}: {reply['reason']}")
        found: dict[str, Any] = json.loads(reply["detail"])
        return found

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
        said = _fit(known | fields)
        key, name = account_key(tenant, account), ("session", tenant, account, session, seq)
        value = self._codec.encode("hold_order", said)
        return await self._ask(HOLDS, key, value, name, timeout_s)

    async def publish_catalog(
        self, version: int, effective_ms: int, text: str, *, timeout_s: float = 30.0
    ) -> list[Reply]:
        """Bring a catalog to every partition and, when all have it, to the catalog topic.

        It is checked as `tokenline catalog apply` does. Publishing the same again is harmless.

        Raises:
            Unavailable: a partition did not answer in time; publish it again.
            BadData: it is no catalog or may not follow those published (`rating.succession`), or a
                partition refuses it; the text says why.
        """
        timeout_s = duration_of("timeout_s", timeout_s)
        await self._check_catalog(version, effective_ms, text)
        command_id = str(uuid.uuid4())
        fields = {
            "version": version,
            "effective_at": effective_ms,
            "catalog": text,
            "command_id": command_id,
            "reply_to": self._name,
            "issued_at": self._clock.wall_ms(),
        }
        replies = await self._ask_everywhere(fields, timeout_s)
        refused = [reply["detail"] for reply in replies if reply["outcome"] == "refused"]
        if refused:
            raise BadData(str(refused[0]))
        wanted = self._settings.partitions
        if len(replies) < wanted:
            raise Unavailable(
                f"{len(replies)} of {wanted} partitions have taken the catalog after "
                f"{timeout_s:g} s; are all charging workers running? (tokenline status)"
            )
        await self._send(CATALOG, b"%d" % version, self._codec.encode("catalog_version", fields), 0)
        return replies

    async def _check_catalog(self, version: int, effective_ms: int, text: str) -> None:
        catalog, book = Catalog.from_json(text), CatalogBook()
        if (catalog.version, catalog.effective_ms) != (version, effective_ms):
            raise BadData(
                f"the catalog is version {catalog.version} from {catalog.effective_ms} on, not {version} "
                f"from {effective_ms} on"
            )
        for known in await read_catalogs(self._settings):
            book.add(Catalog.from_json(known))
        if catalog not in book.versions:
            lead_ms = lead_ms_of(book.versions)
            check_succession(book.versions, catalog, self._clock.wall_ms(), lead_ms)

    async def _ask_everywhere(self, fields: Reply, timeout_s: float) -> list[Reply]:
        """Return what was answered in time; each partition is asked under an id of its own.

        An answer does not say which partition gave it, and may come twice.
        """
        asks = []
        for partition in range(self._settings.partitions):
            command_id = f"{fields['command_id']}/{partition}"
            value = self._codec.encode("catalog_version", fields | {"command_id": command_id})
            name = ("order", "", "", command_id, 0)
            asks.append(self._ask(COMMANDS, b"~catalog", value, name, timeout_s, partition))
        found = await asyncio.gather(*asks, return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, _NoAnswer):
                raise error
        return [reply for reply in found if not isinstance(reply, BaseException)]

    async def _ask(
        self, stem: str, key: bytes, value: bytes, name: Name, timeout_s: float, partition: int = -1
    ) -> Reply:
        timeout_s = duration_of("timeout_s", timeout_s)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(answer)
        if partition < 0:
            partition = partition_of(key, self._settings.partitions)
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(stem, key, value, partition)
                return await answer
        except TimeoutError as error:
            raise _NoAnswer(
                f"no answer to {name[3]} within {timeout_s:g} s; is a charging worker running? "
                "(tokenline status)"
            ) from error
        finally:
            self._forget(name, answer)

    def _forget(self, name: Name, answer: asyncio.Future[Reply]) -> None:
        waiting = self._waiting[name]
        waiting.remove(answer)
        if not waiting:
            del self._waiting[name]
        if answer.done() and not answer.cancelled():
            answer.exception()  # Else asyncio complains of one that nobody came to read.

    async def _send(self, stem: str, key: bytes, value: bytes, partition: int) -> None:
        if self._producer is None:
            raise Unavailable("orders can be sent within `async with` only")
        try:
            topic = self._settings.topic(stem)
            await deliver(self._producer, topic, value, key=key, partition=partition)
        except KafkaError as error:
            raise await fault_of(self._settings, error) from error

    async def _listen(self) -> AIOKafkaConsumer:
        """Return a consumer that stands where the last one was, at first at the end."""
        consumer = await start_reader(
            self._settings,
            self._replies,
            auto_offset_reset="latest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
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
                await self._codec.meet(record.value for record in records if record.key == me)
                for record in records:
                    self._position = record.offset + 1
                    if record.key == me:
                        self._take(record)

    async def _mute(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)

    def _take(self, record: Any) -> None:  # noqa: ANN401  aiokafka has no types
        """Hand an answer to all who wait for it; one that cannot be read ends nobody's waiting."""
        try:
            schema, reply = self._codec.decode(record.value)
        except (BadData, Unavailable) as error:
            _log.warning("orders_unreadable_reply", offset=record.offset, error=repr(error))
            return
        waiting = self._waiting.get(_name_of(reply), ()) if schema == "order_reply" else ()
        for answer in waiting:
            if not answer.done():
                answer.set_result(reply)

    async def _stop(self) -> None:
        try:
            if self._task is not None:
                await end_tasks([self._task])
            await self._mute()
            producer, self._producer = self._producer, None
            if producer is not None:
                await stop_producer(producer)
        finally:
            self._tell_who_waits()

    def _tell_who_waits(self) -> None:
        text = (
            "stopped before the answer came; the order may be taken, so send it again with its id"
        )
        for answer in [answer for waiting in self._waiting.values() for answer in waiting]:
            if not answer.done():
                answer.set_exception(Unavailable(text))


class _NoAnswer(Unavailable):
    """Say that nobody answered in time."""


def _fit(fields: Reply) -> Reply:
    """Return an order that a worker can answer.

    Raises:
        BadData: a name in it is none.
    """
    if bad := next(bad_names(fields), ""):
        raise BadData(bad)
    return fields


def _name_of(reply: Reply) -> Name:
    what = "order" if reply["command_id"] else "session"
    whose = str(reply["tenant_id"]), str(reply["account_id"])
    return what, *whose, str(reply["command_id"] or reply["session"]), int(reply["seq"])
