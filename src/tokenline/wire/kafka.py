"""Say how every aiokafka client connects, and where a key lives."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerClosed
from aiokafka.partitioner import murmur2

from tokenline.errors import SettingsError
from tokenline.texts import read_text
from tokenline.wire.tasks import drop, try_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenline.settings import Settings

STOP_TIMEOUT_S = 3.0
STOP_TRIES = 6


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments that each aiokafka producer, consumer and admin client takes.

    Raises:
        SettingsError: a certificate file or the file of the password cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.kafka_bootstrap.split(",")],
        "security_protocol": settings.kafka_security,
    }
    if settings.kafka_security.endswith("SSL"):
        options["ssl_context"] = _tls(settings)
    if settings.kafka_security.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = _password(settings)
    return options


def librdkafka_options(settings: Settings) -> dict[str, str | int]:
    """Return the same for clients made of librdkafka, such as confluent-kafka; raises as `client_options`.

    Keys find their partition by Kafka's own hash (murmur2), which is not librdkafka's default.
    """
    options: dict[str, str | int] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "security.protocol": settings.kafka_security,
        "partitioner": "murmur2_random",
    }
    files = {
        "ssl.ca.location": settings.kafka_ca_file,
        "ssl.certificate.location": settings.kafka_cert_file,
        "ssl.key.location": settings.kafka_key_file,
    }
    options |= {name: str(path) for name, path in files.items() if path is not None}
    if settings.kafka_security.startswith("SASL"):
        options["sasl.mechanism"] = settings.kafka_sasl_mechanism
        options["sasl.username"] = settings.kafka_username
        options["sasl.password"] = _password(settings)
    return options


async def start_reader(
    settings: Settings,
    tp: TopicPartition,
    **options: Any,  # noqa: ANN401  those of aiokafka
) -> AIOKafkaConsumer:
    """Return a consumer of one partition that belongs to no group and commits nothing.

    Raises:
        KafkaError: the broker does not answer; nothing is left running.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False, **options)
    try:
        await consumer.start()
    except BaseException:
        await stop_consumer(consumer)
        raise
    consumer.assign([tp])
    return consumer


async def places_in(
    consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition], known: Mapping[int, int]
) -> tuple[dict[Any, int], dict[Any, int]]:
    """Return where to read each partition on from, and its end.

    A remembered place outside the log is no place: then it is read from its beginning.
    """
    begins = await consumer.beginning_offsets(tps)
    ends: dict[Any, int] = await consumer.end_offsets(tps)
    places = {tp: known.get(tp.partition, -1) for tp in tps}
    return {
        tp: at if begins[tp] <= at <= ends[tp] else begins[tp] for tp, at in places.items()
    }, ends


async def deliver(
    producer: AIOKafkaProducer, topic: str, value: bytes, *, key: bytes, partition: int
) -> None:
    """Send one record and wait for its ack.

    Raises:
        KafkaError: the broker does not take it, or the producer was stopped.
    """
    sent = await producer.send(topic, value, key=key, partition=partition)
    # Where nobody waits any more, nobody else reads what became of it, and asyncio would complain.
    sent.add_done_callback(drop)
    await sent


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer within seconds, even when its broker is gone; it raises nothing."""
    await try_for(consumer.stop(), STOP_TIMEOUT_S)


async def stop_producer(producer: AIOKafkaProducer) -> None:
    """Stop a producer within seconds, even when its broker is gone.

    aiokafka's own `stop` waits for its batches, for ever when no broker answers; ours are safe in
    the outbox, or asked for again. So: fail them first, then close the sockets, then the tasks (aiokafka 0.14, pinned).
    """
    await try_for(_stop(producer), STOP_TIMEOUT_S * 3)


async def _stop(producer: AIOKafkaProducer) -> None:
    producer._message_accumulator.fail_all(ProducerClosed())
    await try_for(producer.client.close(), STOP_TIMEOUT_S)
    sender = producer._sender.sender_task
    for _ in range(STOP_TRIES):
        if sender is None or sender.done():
            break
        # The first cancel makes it wait for requests in flight, the second ends those.
        sender.cancel()
        await asyncio.wait((sender,), timeout=STOP_TIMEOUT_S / STOP_TRIES)
    await try_for(producer.stop(), STOP_TIMEOUT_S)


def account_key(tenant: str, account: str) -> bytes:
    """Return the Kafka key of everything an account owns; a tenant has no slash, an account may."""
    return f"{tenant}/{account}".encode()


async def check_partitions(producer: AIOKafkaProducer, settings: Settings, topic: str) -> None:
    """Check that a topic has as many partitions as the settings say: a key's partition depends on it.

    Raises:
        SettingsError: it has not, so what is sent would never be found.
        KafkaError: the broker does not answer, or has no such topic.
    """
    found = len(await producer.partitions_for(topic))
    if found != settings.partitions:
        raise SettingsError(
            f"topic {topic} has {found} partitions and TOKENLINE_PARTITIONS says "
            f"{settings.partitions}: what is sent would go to the wrong one"
        )


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, n: int) -> int:
    """Return the partition Kafka's default partitioner gives this key among `n`."""
    # The hash is Python: about 8 µs for an account key, hence the cache.
    return int(murmur2(key) & 0x7FFFFFFF) % n


def _password(settings: Settings) -> str:
    """Return the password; from a file each time, so that a new one is taken without a restart."""
    path = settings.kafka_password_file
    if path is None:
        return settings.kafka_password
    try:
        password = read_text(path, SettingsError).strip()
    except SettingsError as error:
        raise SettingsError(f"TOKENLINE_KAFKA_PASSWORD_FILE={error}") from error
    if not password:
        raise SettingsError(f"TOKENLINE_KAFKA_PASSWORD_FILE={path} is empty")
    return password


def _tls(settings: Settings) -> ssl.SSLContext:
    for file in (settings.kafka_ca_file, settings.kafka_cert_file, settings.kafka_key_file):
        if file is not None:
            _require_text(file)
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file)
        if settings.kafka_cert_file:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file)
    except OSError as error:
        raise SettingsError(f"TLS to Kafka: cannot use the certificate files: {error}") from error
    return context


def _require_text(file: Path) -> None:
    """Read a certificate file: OpenSSL says neither which one it was, nor what is wrong."""
    try:
        read_text(file, SettingsError)
    except SettingsError as error:
        raise SettingsError(f"TLS to Kafka: {error}") from error
