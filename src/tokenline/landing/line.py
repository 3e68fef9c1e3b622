"""Hold a warehouse to one line: compare its id with Kafka's, and take it on where there is none yet.

A database holds one line. One without an id takes on the line it meets, and then all that Kafka still has
is landed, whatever was landed before into a warehouse that is gone. One with another id is refused.
"""

# ruff: noqa: S608  # the database's name is checked by Settings; values are bound

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from tokenline.clock import SystemClock
from tokenline.errors import SettingsError, TokenlineError
from tokenline.landing.connect import connect, warehouse_errors
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import client_options
from tokenline.wire.topics import LANDED, TOPICS

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from tokenline.settings import Settings
    from tokenline.wire.line import Line

HELP = (
    "Kafka was made again, or TOKENLINE_KAFKA_BOOTSTRAP, TOKENLINE_TOPIC_PREFIX, "
    "TOKENLINE_CLICKHOUSE_URL or _DATABASE lead to another line. If that line's Kafka is lost for good, "
    "--new-line (of `tokenline up`, or `tokenline topics`) begins a new one beside its books"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SUFFIX = re.compile(r"_[0-9a-f]{8}$")

_log = structlog.get_logger("tokenline.landing")


class NotAdopted(TokenlineError):
    """Report that a warehouse turned up that holds no line, while landing is at work: a restart takes it on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Name a database of this warehouse and the line whose rows it holds."""

    database: str
    line_id: str


def warehouse_line(settings: Settings) -> str:
    """Return the id of the line that the database holds; empty where it holds none yet.

    Raises:
        WarehouseUnavailable: nobody answers.
    """
    with warehouse_errors("asking which line the warehouse holds"):
        client = connect(settings)
        try:
            return line_in(client, settings.clickhouse_database)
        finally:
            client.close()


def line_in(client: Client, database: str) -> str:
    """Return the id in one database; empty where there is none, or no such table."""
    if database not in _with_table(client):
        return ""
    found = client.query(f"SELECT line_id FROM {database}.line FINAL ORDER BY adopted_at LIMIT 1")
    return str(found.result_rows[0][0]) if found.result_rows else ""


def archives(settings: Settings, line: Line) -> list[Archive]:
    """Return the databases of this warehouse that hold a line from which `line` goes on.

    Raises:
        WarehouseUnavailable: nobody answers.
    """
    with warehouse_errors("looking for the books of earlier lines"):
        client = connect(settings)
        try:
            held = {name: line_in(client, name) for name in _with_table(client)}
        finally:
            client.close()
    return [
        Archive(database=name, line_id=line_id)
        for name, line_id in sorted(held.items())
        if line_id in line.predecessors
    ]


def require_own(settings: Settings, line: Line, known: str) -> None:
    """Check that the id a warehouse holds, if any, is that of Kafka's line.

    Raises:
        ForeignLine: it is another's.
    """
    line.require(known, f"the warehouse's database {settings.clickhouse_database}", HELP)


def meet(client: Client, settings: Settings, line: Line, *, adopt: bool) -> None:
    """Check, before anything is landed, that the database holds this line; with `adopt` take it on.

    Raises:
        ForeignLine: it holds another.
        NotAdopted: it holds none, and may not take it on in the middle of work.
    """
    known = line_in(client, settings.clickhouse_database)
    require_own(settings, line, known)
    if not known and not adopt:
        raise NotAdopted("the warehouse holds no line yet; starting again takes it on")
    if not known:
        _adopt(client, settings, line)


async def join_line(settings: Settings, line: Line) -> None:
    """Compare the warehouse with Kafka's line, or have it take that on; its tables must be there.

    Raises:
        ForeignLine: it holds another line.
        SettingsError: it holds none, and landing workers are at work for one that is gone.
        Unavailable: a server does not answer.
    """
    known = await asyncio.to_thread(warehouse_line, settings)
    require_own(settings, line, known)
    if not known:
        # In this order: a crash in between repeats the first, and what lands twice is one row.
        await landed_before(settings, forget=True)
        await asyncio.to_thread(_adopt_now, settings, line)


async def landed_before(settings: Settings, *, forget: bool = False) -> bool:
    """Say whether landing has landed anything, wherever that was.

    With `forget` it begins again with the first record that Kafka has.

    Raises:
        SettingsError: landing workers are at work, so that they cannot be made to begin again.
        BrokerUnavailable: Kafka does not answer.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=settings.topic("landing"), enable_auto_commit=False
    )
    places = [
        TopicPartition(settings.topic(topic.stem), number)
        for topic in TOPICS
        if topic.stem in LANDED
        for number in range(topic.partitions(settings))
    ]
    try:
        await consumer.start()
        consumer.assign(places)
        landed = [place for place in places if await consumer.committed(place)]
        if landed and forget:
            await consumer.commit(await consumer.beginning_offsets(landed))
            _log.warning(
                "the warehouse is new: landing begins with the first record that Kafka has"
            )
    except CommitFailedError as error:
        raise SettingsError(
            "the warehouse is new, and landing workers are at work for the old one; stop all of "
            "them, then start them again"
        ) from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    finally:
        await consumer.stop()
    return bool(landed)


def database_after(settings: Settings, line: Line) -> str:
    """Return the name of the database for a line that goes on from the one held now."""
    return f"{_SUFFIX.sub('', settings.clickhouse_database)}_{line.line_id[:8]}"


def _adopt_now(settings: Settings, line: Line) -> None:
    with warehouse_errors("taking on the line"):
        client = connect(settings)
        try:
            _adopt(client, settings, line)
        finally:
            client.close()


def _adopt(client: Client, settings: Settings, line: Line) -> None:
    client.command(
        f"INSERT INTO {settings.clickhouse_database}.line (line_id, made_at, adopted_at) "
        f"VALUES ('{line.line_id}', fromUnixTimestamp64Milli({line.made_ms}, 'UTC'), "
        f"fromUnixTimestamp64Milli({SystemClock().wall_ms()}, 'UTC'))",
        settings={"async_insert": 0},
    )


def _with_table(client: Client) -> list[str]:
    """Return the databases that have a table `line` of ours."""
    rows = client.query(
        "SELECT database FROM system.columns WHERE table = 'line' AND name = 'line_id'"
    ).result_rows
    # One that is named otherwise is none of ours.
    return [name for name in map(str, (row[0] for row in rows)) if _NAME.fullmatch(name)]
