"""Publish account commands and wait until charging has taken them in."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.clock import Clock, SystemClock
from tokenline.errors import Unavailable
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import account_key, check_partitions, client_options, partition_of
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import COMMANDS, DECISIONS

Fields = Mapping[str, str | int]
SEND_AT_ONCE = 500


async def apply_accounts(
    settings: Settings,
    commands: Sequence[Fields],
    *,
    wait_s: float = 30.0,
    progress: Callable[[int], None] = lambda _: None,
    clock: Clock | None = None,
) -> int:
    """Publish the commands and return how many there were, once every one is decided upon.

    `progress` is called with the number decided so far. `wait_s` 0 returns after the broker's ack.

    Raises:
        BrokerUnavailable: Kafka did not take them; applying the file again is harmless.
        SettingsError: the line has another number of partitions.
        Unavailable: they were published, but no charging worker took them in time.
    """
    clock = clock or SystemClock()
    codec = Codec(open_registry(settings))
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="latest")
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    try:
        async with consumer, producer:
            await check_partitions(producer, settings, settings.topic(COMMANDS))
            await _stand_at_end(consumer, settings)
            due = await _publish(producer, settings, codec, commands, clock.wall_ms())
            if wait_s > 0:
                await asyncio.wait_for(_until_decided(consumer, codec, due, progress), wait_s)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    except TimeoutError as error:
        raise Unavailable(
            f"{len(due)} of {len(commands)} accounts are published but not charged yet after {wait_s:g} s; "
            "is a charging worker running? (tokenline status)"
        ) from error
    return len(commands)


async def _stand_at_end(consumer: AIOKafkaConsumer, settings: Settings) -> None:
    topic = settings.topic(DECISIONS)
    consumer.assign([TopicPartition(topic, number) for number in range(settings.partitions)])
    await consumer.seek_to_end()
    for tp in consumer.assignment():
        await consumer.position(tp)


async def _publish(
    producer: AIOKafkaProducer,
    settings: Settings,
    codec: Codec,
    commands: Sequence[Fields],
    now_ms: int,
) -> dict[tuple[str, str], int]:
    """Return the offset of each account's command."""
    due: dict[tuple[str, str], int] = {}
    for first in range(0, len(commands), SEND_AT_ONCE):
        sent = []
        for fields in commands[first : first + SEND_AT_ONCE]:
            tenant, account = str(fields["tenant_id"]), str(fields["account_id"])
            value = codec.encode(
                "account_command", {**fields, "command_id": str(uuid.uuid4()), "issued_at": now_ms}
            )
            key = account_key(tenant, account)
            partition = partition_of(key, settings.partitions)
            future = await producer.send(
                settings.topic(COMMANDS), value, key=key, partition=partition
            )
            sent.append(((tenant, account), future))
        for name, future in sent:
            due[name] = (await future).offset
    return due


async def _until_decided(
    consumer: AIOKafkaConsumer,
    codec: Codec,
    due: dict[tuple[str, str], int],
    progress: Callable[[int], None],
) -> None:
    total = len(due)
    while due:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            for record in records:
                _strike(codec, record.value, due)
        progress(total - len(due))


def _strike(codec: Codec, value: bytes | None, due: dict[tuple[str, str], int]) -> None:
    if value is None:
        return
    name, fields = codec.decode(value)
    # Its reason may be that a cut begins or ends; what it was caused by says that the command is in.
    if name != "quota_decision" or not str(fields["cause_topic"]).endswith(COMMANDS):
        return
    account = (str(fields["tenant_id"]), str(fields["account_id"]))
    if account in due and int(str(fields["cause_offset"])) >= due[account]:
        del due[account]
