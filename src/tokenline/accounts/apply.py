"""Publish account commands and wait until charging has taken them in."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.clock import Clock, SystemClock
from tokenline.errors import BadData, Unavailable
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import account_key, check_partitions, client_options, partition_of
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import COMMANDS, DEAD_LETTERS, DECISIONS

Fields = Mapping[str, str | int]
Account = tuple[str, str]
SEND_AT_ONCE = 500
NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class _Due:
    """The accounts whose command charging has not answered yet, by where it stands, and the refused ones."""

    topic: str
    places: dict[Account, tuple[int, int]] = field(default_factory=dict)
    refused: dict[Account, str] = field(default_factory=dict)

    def strike(self, name: str, said: Mapping[str, object]) -> None:
        """Take in one record of charging: a decision behind the command, or its dead letter."""
        account = (str(said.get("tenant_id")), str(said.get("account_id")))
        if name == "quota_decision":
            # Its reason may be that a cut begins or ends; its cause says that the command is in.
            _, offset = self.places.get(account, (0, -1))
            if said["cause_topic"] == self.topic and 0 <= offset <= int(str(said["cause_offset"])):
                del self.places[account]
        elif name == "dead_letter" and said["topic"] == self.topic:
            place = (int(str(said["partition"])), int(str(said["offset"])))
            for one in [one for one, stands in self.places.items() if stands == place]:
                del self.places[one]
                self.refused[one] = f"{said['reason']}: {said['detail']}"


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
        BadData: charging refused some; the others are applied.
        BrokerUnavailable: Kafka did not take them; applying the file again is harmless.
        SettingsError: the line has another number of partitions.
        Unavailable: they were published, but no charging worker took them in time.
    """
    clock = clock or SystemClock()
    codec = Codec(open_registry(settings))
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="latest")
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    due = _Due(settings.topic(COMMANDS))
    try:
        async with consumer, producer:
            await check_partitions(producer, settings, settings.topic(COMMANDS))
            await _stand_at_end(consumer, settings)
            await _publish(producer, settings, codec, commands, clock.wall_ms(), due)
            if wait_s > 0:
                await asyncio.wait_for(_until_decided(consumer, codec, due, progress), wait_s)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    except TimeoutError as error:
        raise Unavailable(
            f"{len(due.places)} of {len(commands)} accounts are published but not charged yet after {wait_s:g} s; "
            "is a charging worker running? (tokenline status)"
        ) from error
    if due.refused:
        raise BadData(_why(due.refused, len(commands)))
    return len(commands)


def _why(refused: Mapping[Account, str], of: int) -> str:
    first = [f"{'/'.join(account)} ({why})" for account, why in list(refused.items())[:NAMED_MAX]]
    more = [f"and {len(refused) - NAMED_MAX} more"] if len(refused) > NAMED_MAX else []
    return f"{len(refused)} of {of} accounts are refused: {', '.join(first + more)}"


async def _stand_at_end(consumer: AIOKafkaConsumer, settings: Settings) -> None:
    topics = (settings.topic(DECISIONS), settings.topic(DEAD_LETTERS))
    consumer.assign(
        [TopicPartition(topic, number) for topic in topics for number in range(settings.partitions)]
    )
    await consumer.seek_to_end()
    for tp in consumer.assignment():
        await consumer.position(tp)


async def _publish(
    producer: AIOKafkaProducer,
    settings: Settings,
    codec: Codec,
    commands: Sequence[Fields],
    now_ms: int,
    due: _Due,
) -> None:
    """Send the commands and note where each stands."""
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
            stands = await future
            due.places[name] = (stands.partition, stands.offset)


async def _until_decided(
    consumer: AIOKafkaConsumer,
    codec: Codec,
    due: _Due,
    progress: Callable[[int], None],
) -> None:
    total = len(due.places)
    while due.places:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            for record in records:
                _strike(codec, record.value, due)
        progress(total - len(due.places))


def _strike(codec: Codec, value: bytes | None, due: _Due) -> None:
    try:
        if value is not None:
            due.strike(*codec.decode(value))
    except BadData:
        return  # what others put there is not about these accounts
