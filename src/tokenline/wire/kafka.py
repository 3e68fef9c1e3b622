"""Say how every aiokafka client connects, and where a key lives."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

from tokenline.errors import SettingsError
from tokenline.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenline.settings import Settings


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
        await consumer.stop()
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
