"""Know which line a Kafka holds: an id that is made with its topics and stays for their life.

Offsets, journals, seals and outboxes of one line mean nothing to another. So each of them keeps the id,
and whoever brings two together compares first. The id stands on a topic of its own, from which nothing
is ever removed, and to which only operators may write: the first record counts, so that of two processes
that make a line at once both get the same, and no later record makes another line of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from tokenline.clock import SystemClock
from tokenline.errors import BadData, BrokerUnavailable, ForeignLine, RegistryUnavailable
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import client_options, start_reader
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.topics import LINE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenline.settings import Settings

KEY = b"~line"
_ID = re.compile(r"[0-9a-f]{32}")
POLL_MS = 500
MAKE_TRIES = 5

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Name a line, when it was made, and the lines it goes on from because their Kafka was lost."""

    line_id: str
    made_ms: int = 0
    predecessors: frozenset[str] = frozenset()

    def require(self, other: str, what: str, help_text: str) -> None:
        """Check that something which keeps the id of a line, if it does, is of this one.

        Raises:
            ForeignLine: it is another's.
        """
        if other and other != self.line_id:
            raise ForeignLine(
                f"{what} is of line {other}, and Kafka holds line {self.line_id}; {help_text}"
            )


class SameLine:
    """Notice when Kafka holds another line than at the first look.

    Arguments:
        what: what was learnt from the line and means nothing to another, for the error's text.
    """

    def __init__(self, settings: Settings, registry: Registry, what: str) -> None:
        self._settings, self._registry, self._what = settings, registry, what
        self._line_id = ""

    async def check(self) -> None:
        """Look again; a registry that is away just now says nothing about the line.

        Raises:
            ForeignLine: it is another one.
            BrokerUnavailable: Kafka does not answer, or holds no line yet.
        """
        with contextlib.suppress(RegistryUnavailable):
            line = await read_line(self._settings, registry=self._registry)
            line.require(
                self._line_id, self._what, "Kafka was made again: start this process again"
            )
            self._line_id = line.line_id


async def read_line(settings: Settings, *, registry: Registry | None = None) -> Line:
    """Return the line that Kafka holds.

    Raises:
        BrokerUnavailable: Kafka does not answer, or holds no line yet.
        SettingsError: it refuses the user.
    """
    line = await _read(settings, registry or open_registry(settings))
    if line is None:
        raise BrokerUnavailable(
            f"Kafka at {settings.kafka_bootstrap} holds no line under {settings.topic_prefix!r} yet; "
            "`tokenline topics` makes one"
        )
    return line


async def make_line(settings: Settings, *, registry: Registry | None = None) -> Line:
    """Return the line that Kafka holds, made now if there is none; its topics must be there.

    Raises:
        BrokerUnavailable: Kafka does not answer.
        SettingsError: it refuses the user.
    """
    registry = registry or open_registry(settings)
    for _ in range(MAKE_TRIES):
        line = await _read(settings, registry)
        if line is not None:
            return line
        # Another process may do the same: whose record is first is read, not assumed.
        await _append(settings, registry, line_id=uuid.uuid4().hex)
    raise BrokerUnavailable(f"Kafka at {settings.kafka_bootstrap} does not keep the line's id")


async def go_on_from(
    settings: Settings, line: Line, other: str, *, registry: Registry | None = None
) -> Line:
    """Note that `line` goes on from another, whose outboxes may then be delivered to it; return it anew.

    Raises:
        BrokerUnavailable: Kafka does not answer.
        SettingsError: it refuses the user.
    """
    registry = registry or open_registry(settings)
    if other not in line.predecessors:
        await _append(settings, registry, line_id=line.line_id, supersedes=other)
    return await read_line(settings, registry=registry)


async def _read(settings: Settings, registry: Registry) -> Line | None:
    tp = TopicPartition(settings.topic(LINE), 0)
    try:
        consumer = await start_reader(settings, tp, auto_offset_reset="earliest")
        try:
            values = await _values(consumer, tp) if await _exists(consumer, tp.topic) else []
        finally:
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    return _line_of(await asyncio.to_thread(_records, Codec(registry), values))


async def _exists(consumer: AIOKafkaConsumer, topic: str) -> bool:
    """Say whether there is such a topic, without the wait of aiokafka's own calls for one that is not there."""
    client = consumer._client
    await client.add_topic(topic)
    await client.force_metadata_update()
    if topic in client.cluster.unauthorized_topics:
        raise TopicAuthorizationFailedError(topic)
    return client.cluster.partitions_for_topic(topic) is not None


async def _values(consumer: AIOKafkaConsumer, tp: TopicPartition) -> list[bytes | None]:
    end = (await consumer.end_offsets([tp]))[tp]
    values: list[bytes | None] = []
    while await consumer.position(tp) < end:
        found = await consumer.getmany(tp, timeout_ms=POLL_MS)
        values += [record.value for record in found.get(tp, []) if record.key == KEY]
    return values


def _records(codec: Codec, values: Iterable[bytes | None]) -> list[dict[str, object]]:
    found = []
    for value in values:
        try:
            name, fields = codec.decode(value or b"")
        except BadData as error:
            _log.warning("a record of the line's identity cannot be read", error=str(error))
            continue
        # It becomes part of names and statements.
        if name == "line_identity" and _ID.fullmatch(str(fields["line_id"])):
            found.append(dict(fields))
    return found


def _line_of(records: list[dict[str, object]]) -> Line | None:
    """Return what the records say: the first names the line, others of the same line its predecessors."""
    if not records:
        return None
    line_id = str(records[0]["line_id"])
    own = [record for record in records if record["line_id"] == line_id]
    return Line(
        line_id=line_id,
        made_ms=int(str(records[0]["made_at"])),
        predecessors=frozenset(filter(_ID.fullmatch, (str(one["supersedes"]) for one in own))),
    )


async def _append(settings: Settings, registry: Registry, **fields: str) -> None:
    fields_ = {"made_at": SystemClock().wall_ms(), "supersedes": "", **fields}
    value = await asyncio.to_thread(Codec(registry).encode, "line_identity", fields_)
    producer = AIOKafkaProducer(**client_options(settings), acks="all")
    try:
        await producer.start()
        await producer.send_and_wait(settings.topic(LINE), value, key=KEY, partition=0)
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    finally:
        await producer.stop()
