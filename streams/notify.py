"""Tell endpoints what was decided: the Faust agents of the notify role, an app for each endpoint.

An endpoint is a consumer group of its own, so its offset says what it has been told, and one that is
slow or away holds back nobody else. Nothing is acknowledged before it was told or is a dead letter.
"""

from __future__ import annotations

import asyncio
import base64
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from streams.line_app import LineApp, position_of
from streams.metrics import NotifyMetrics
from streams.readiness import READY, UNASSIGNED, Readiness
from streams.servers import Server
from streams.topics import raw_topic
from streams.webhooks import Deliveries, Job, Letter
from tokenline.clock import SystemClock
from tokenline.errors import BadData, BrokerUnavailable, RegistryUnavailable, SettingsError
from tokenline.notify.endpoints import Endpoint, read_webhooks
from tokenline.notify.notification import Notification, notification_of
from tokenline.settings import variable
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import client_options
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import DEAD_LETTERS, DECISIONS, HEARTBEAT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from faust.types.tuples import TP

    from tokenline.notify.signing import Secret
    from tokenline.settings import Settings


_log = structlog.get_logger("tokenline.notify")


def group_of(settings: Settings, name: str) -> str:
    """Return the consumer group that keeps the progress of an endpoint."""
    return f"{settings.topic_prefix}notify.{name}"


def endpoints_of(settings: Settings) -> list[tuple[Endpoint, tuple[Secret, ...]]]:
    """Return who is to be told; nobody where no file is set.

    Raises:
        SettingsError: the file is wrong; the text names the variable.
    """
    if settings.webhooks_file is None:
        return []
    try:
        return read_webhooks(settings.webhooks_file, os.environ)
    except SettingsError as error:
        raise SettingsError(f"{variable('webhooks_file')}: {error}") from error


REGISTRY_RETRY_S = 1.0


class EndpointFollower:
    """Follow the decisions for one endpoint."""

    def __init__(
        self, app: LineApp, settings: Settings, deliveries: Deliveries, codec: Codec
    ) -> None:
        self.app = app
        self.deliveries = deliveries
        self._settings, self._codec = settings, codec
        self._generation = -1
        self._taken: dict[TP, int] = {}

    async def follow(self, stream: Any) -> None:
        """Hand micro-batches to the deliveries; a rebalance begins anew from what was committed."""
        async for event in stream.noack().events():
            message = event.message
            if message.generation_id > self._generation:
                await self.deliveries.drop()
                self._taken.clear()
                self._generation = message.generation_id
            if message.generation_id == self._generation:
                jobs = await self._read(event.value, message.partition)
                await self.deliveries.offer(event, message.partition, jobs)
                self._taken[message.tp] = message.offset + 1
            self.app.taken(message)

    async def disown(self, _: Any, revoked: set[TP], **__: Any) -> None:
        """Stop telling what another worker will tell."""
        if revoked:
            await self.deliveries.drop()

    def ready(self) -> Readiness:
        """Say whether the group has given us partitions."""
        standing = self.app.standing()
        return standing or (READY if self.app.consumer.assignment() else UNASSIGNED)

    def positions(self) -> dict[str, tuple[int, int]]:
        """Return for each partition the first offset not taken in hand, and what lies behind it.

        A receiver that is away is no stall of ours: what waits for it is a metric.
        """
        found = {}
        for tp in self.app.consumer.assignment() if self.app.joined else ():
            if position := position_of(self.app, tp, self._taken.get(tp)):
                name = f"{self.deliveries.endpoint.name}/{tp.topic}/{tp.partition}"
                found[name] = (position[0], 0 if self.deliveries.full else position[1])
        return found

    async def _read(self, records: Sequence[Any], partition: int) -> list[Job]:
        """Return what a micro-batch tells; a registry that is away says nothing of it, and is waited for."""
        while True:
            await self._codec.meet(record.value for record in records)
            try:
                return list(self._jobs(records, partition))
            except RegistryUnavailable as error:
                _log.warning("decisions wait for the schema registry", error=str(error))
                await asyncio.sleep(REGISTRY_RETRY_S)

    def _jobs(self, records: Sequence[Any], partition: int) -> Iterator[Job]:
        for record in records:
            if record.value is None or (record.key or b"").startswith(HEARTBEAT_PREFIX):
                continue
            note = self._note_of(record, partition)
            if note is not None and self.deliveries.endpoint.wants(note):
                yield Job(
                    notification=note,
                    partition=partition,
                    offset=record.offset,
                    appended_ms=record.timestamp,
                    key=record.key or b"",
                )

    def _note_of(self, record: Any, partition: int) -> Notification | None:
        """Return what a decision tells; a record that is none tells nothing, and is counted.

        Only charging writes decisions; landing keeps what it did not write.
        """
        try:
            return notification_of(self._codec.decode_as("quota_decision", record.value))
        except BadData as error:
            self.deliveries.counts.ignored += 1
            _log.error("a record of the decisions is not ours: nobody is told of it",
                       partition=partition, offset=record.offset, error=str(error))  # fmt: skip
            return None


class NotifyWorker:
    """Own the followers of one process and the producer of its dead letters."""

    TOPICS: ClassVar = (DECISIONS, DEAD_LETTERS)

    def __init__(self, settings: Settings, fatal: Callable[[BaseException], None]) -> None:
        self.followers: list[EndpointFollower] = []
        self.metrics = NotifyMetrics(self.followers)
        self.fatal = fatal
        self.codec = Codec(open_registry(settings))
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect, and let each new endpoint begin at the end of the decisions."""
        self._producer = AIOKafkaProducer(
            **client_options(self._settings), acks="all", enable_idempotence=True,
            max_request_size=2 << 20,
        )  # fmt: skip
        await self._producer.start()
        if not self.followers:
            _log.info("no webhooks file is set: nobody is told", variable=variable("webhooks_file"))
        for follower in self.followers:
            await begin_at_end(self._settings, follower.deliveries.endpoint.name)

    async def stop(self) -> None:
        """Let go of all; what was not told comes again."""
        for follower in self.followers:
            await follower.deliveries.close()
        if self._producer is not None:
            await self._producer.stop()

    async def watch(self) -> None:
        """Do nothing: deliveries report their own end."""

    def ready(self, _: LineApp) -> Readiness:
        """Say whether every endpoint is followed; with none there is nothing to wait for."""
        found = [follower.ready() for follower in self.followers]
        return next((one for one in found if not one.ready), found[0] if found else READY)

    def servers(self) -> list[Server]:
        """Return what this worker needs before it begins, beside Kafka: the schemas."""
        warm = partial(asyncio.to_thread, self.codec.warm, "dead_letter")
        return [Server("the schema registry", warm)]

    def astray(self) -> list[str]:
        """Return nothing: what was told is remembered by the group, and a topic made again is new."""
        return []

    def positions(self, _: LineApp) -> dict[str, tuple[int, int]]:
        """Return the progress of all endpoints."""
        return {name: at for one in self.followers for name, at in one.positions().items()}

    async def bury(self, letter: Letter) -> None:
        """Write a dead letter and return when the broker has it.

        Raises:
            BrokerUnavailable: it does not take it.
        """
        assert self._producer is not None  # noqa: S101  deliveries begin after the start
        job = letter.job
        fields = dead_letter_of(self._settings, letter)
        value = self.codec.encode("dead_letter", fields)
        try:
            await self._producer.send_and_wait(
                self._settings.topic(DEAD_LETTERS), value, key=job.key, partition=job.partition
            )
        except KafkaError as error:
            raise BrokerUnavailable(f"a dead letter was not taken: {error!r}") from error
        _log.warning("webhook is a dead letter", reason=letter.reason, detail=letter.detail,
                     id=job.notification.message_id)  # fmt: skip


def dead_letter_of(settings: Settings, letter: Letter) -> dict[str, object]:
    """Return the fields of a dead letter: its value is the webhook's body.

    (topic, partition, offset) names a letter for ever, so the topic is the endpoint's own group: two
    endpoints may both miss one decision. No account of usage looks at it.
    """
    job = letter.job
    return {
        "topic": group_of(settings, letter.endpoint),
        "partition": job.partition,
        "offset": job.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "tenant_id": job.notification.key[0],
        "account_id": job.notification.key[1],
        "source": letter.endpoint,
        "event_id": job.notification.message_id,
        "appended_at": job.appended_ms,
        "key_base64": base64.b64encode(job.key).decode(),
        "value_base64": base64.b64encode(job.notification.body).decode(),
    }


async def _idle(stream: Any) -> None:
    async for event in stream.noack().events():
        event.ack()
        event.app.taken(event.message)


async def begin_at_end(settings: Settings, name: str) -> None:
    """Let an endpoint that was never followed hear of what is decided from now on.

    Else its first words would be last month's. Another worker may do the same at this moment: whoever
    finds the group at work leaves it alone.

    Raises:
        BrokerUnavailable: Kafka does not answer.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=group_of(settings, name), enable_auto_commit=False
    )
    topic = settings.topic(DECISIONS)
    try:
        await consumer.start()
        places = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(places)
        new = [place for place in places if await consumer.committed(place) is None]
        if new:
            await consumer.commit(await consumer.end_offsets(new))
            _log.info("a new endpoint begins at the end of the decisions", endpoint=name)
    except CommitFailedError:
        _log.info("another worker follows this endpoint already", endpoint=name)
    except KafkaError as error:
        raise BrokerUnavailable(f"asking for the progress of {name}: {error!r}") from error
    finally:
        await consumer.stop()


def register(
    app: LineApp,
    settings: Settings,
    fatal: Callable[[BaseException], None],
    *,
    companion: Callable[[str], LineApp],
    step: Callable[[str], None] = lambda _: None,
) -> NotifyWorker:
    """Follow each endpoint with an app of its own, which `companion` makes and `app` starts and stops.

    `step` is called with the name of each finished step (attempt, told, buried, ack); tests end the
    process there.
    """
    worker = NotifyWorker(settings, fatal)
    clock = SystemClock()
    app.run_beside(worker.start, worker.stop, worker.watch)
    # Faust runs no app without an agent; this one keeps the process alive when there is nobody to tell.
    app.take_by(raw_topic(app, settings, DECISIONS), "notify-idle", _idle)
    for endpoint, secrets in endpoints_of(settings):
        deliveries = Deliveries(settings, endpoint, secrets, clock, worker.bury, fatal, step)
        own = companion(f"notify.{endpoint.name}")
        follower = EndpointFollower(own, settings, deliveries, worker.codec)
        own.take_by(raw_topic(own, settings, DECISIONS), "notify-decisions", follower.follow)
        # Faust keeps only a weak reference to a receiver.
        own.keep(follower.disown)
        own.on_partitions_revoked.connect(follower.disown)
        app.run_beside(own.maybe_start, own.stop, worker.watch)
        worker.followers.append(follower)
    return worker
