"""Hold rows that no seal covers against the records they came from, for as long as Kafka has those.

Entries of balances, decisions, dead letters and commands land word for word. What landing has committed
must be in its table, field by field; of rows with versions the newest counts. A decision that another has
replaced is compacted away in Kafka; an entry or a letter lies there for its topic's retention. A table may
hold more than Kafka still has, but no entry with a higher number than an account's newest there.
"""

# names of tables are ours; all else is bound

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.errors import BadData
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.queries import Asker
from tokenline.landing.row import plain_rows
from tokenline.landing.topics import is_verdict
from tokenline.names import bad_names
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import account_key, client_options, partition_of, stop_consumer
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import BALANCES, COMMANDS, DEAD_LETTERS, DECISIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tokenline.landing.store import Table
    from tokenline.settings import Settings

Fields = dict[str, Any]
Key = tuple[Any, ...]

ROWS_MAX = 500
BYTES_MAX = 4 << 20
FAULTS_MAX = 100
POLL_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Name a table, the topic its rows come from, their key, and the column whose highest value stays."""

    stem: str
    table: Table
    record: str
    key: tuple[str, ...]
    version: str = ""


EVIDENCE = (
    Evidence(
        stem=BALANCES, table="balance_changes", record="balance_change",
        key=("tenant_id", "account_id", "bucket", "entry"), version="version",
    ),
    Evidence(
        stem=DECISIONS, table="decisions", record="quota_decision",
        key=("tenant_id", "account_id", "subscriber_id", "version"), version="epoch",
    ),
    Evidence(
        stem=DEAD_LETTERS, table="dead_letters", record="dead_letter",
        key=("tenant_id", "topic", "partition", "offset"),
    ),
    Evidence(
        stem=COMMANDS, table="accounts", record="account_command",
        key=("tenant_id", "account_id", "offset"),
    ),
)  # fmt: skip


@dataclass(slots=True)
class _Look:
    """Hold what one look at a line needs, and what it has found."""

    settings: Settings
    store: ClickHouseStore
    asker: Asker
    codec: Codec
    faults: list[str] = field(default_factory=list)
    newest_entries: dict[tuple[str, str], int] = field(default_factory=dict)


async def kafka_faults(settings: Settings) -> list[str]:
    """Return, a line each, the rows that are not as their records in Kafka say, at most `FAULTS_MAX`.

    Raises:
        BrokerUnavailable, WarehouseUnavailable: a side does not answer.
        SettingsError: Kafka does not let this user look at landing's group.
    """
    codec = Codec(open_registry(settings))
    look = _Look(settings, ClickHouseStore(settings), Asker(settings), codec)
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=settings.topic("landing"), enable_auto_commit=False
    )
    try:
        await consumer.start()
        for evidence in EVIDENCE:
            for partition in range(settings.partitions):
                await _look_at(look, consumer, evidence, partition)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    finally:
        await stop_consumer(consumer)
        look.store.close()
        look.asker.close()
    return look.faults[:FAULTS_MAX]


async def _look_at(
    look: _Look, consumer: AIOKafkaConsumer, evidence: Evidence, partition: int
) -> None:
    place = TopicPartition(look.settings.topic(evidence.stem), partition)
    consumer.assign([place])
    landed = await consumer.committed(place) or 0
    aside = _aside(look, place)
    async for records in _records(consumer, place, landed):
        if len(look.faults) >= FAULTS_MAX:
            return
        found = dict(_rows_said(look, evidence, place, records, aside))
        if found:
            _compare(look, evidence, found)
    if evidence.stem == BALANCES:
        await _look_for_invented(look, consumer, place)


async def _records(
    consumer: AIOKafkaConsumer, place: TopicPartition, end: int
) -> AsyncIterator[list[Any]]:
    """Yield what Kafka has below an offset, some at a time."""
    begin = (await consumer.beginning_offsets([place]))[place]
    if begin >= end:
        return
    consumer.seek(place, begin)
    held: list[Any] = []
    size_bytes = 0
    while await consumer.position(place) < end:
        fetched = await consumer.getmany(place, timeout_ms=POLL_MS, max_records=ROWS_MAX)
        for record in fetched.get(place, []):
            if record.offset >= end:
                continue
            held.append(record)
            size_bytes += len(record.value or b"")
            if len(held) >= ROWS_MAX or size_bytes >= BYTES_MAX:
                yield held
                held, size_bytes = [], 0
    if held:
        yield held


def _aside(look: _Look, place: TopicPartition) -> set[int]:
    """Return the offsets of what landing or charging did not take: those are in no table."""
    where = {"topic": place.topic, "partition": place.partition}
    rows = look.asker.rows(
        "SELECT offset FROM {db}.quarantine WHERE topic = %(topic)s AND partition = %(partition)s "
        "UNION ALL SELECT offset FROM {db}.dead_letters "
        "WHERE topic = %(topic)s AND partition = %(partition)s",
        where,
    )
    return {int(row[0]) for row in rows}


def _rows_said(
    look: _Look,
    evidence: Evidence,
    place: TopicPartition,
    records: Sequence[Any],
    aside: set[int],
) -> dict[Key, Fields]:
    """Return what the records of a table say, by key; of one key the newest version."""
    found: dict[Key, Fields] = {}
    for record in records:
        if record.offset in aside or not is_verdict(record):
            continue
        fields = _fields(look, evidence, place, record)
        if fields is None:
            continue
        key = tuple(fields[name] for name in evidence.key)
        older = found.get(key)
        if older is None or _version(evidence, fields) >= _version(evidence, older):
            found[key] = fields
    return found


def _fields(
    look: _Look,
    evidence: Evidence,
    place: TopicPartition,
    record: Any,  # noqa: ANN401  aiokafka ships no types
) -> Fields | None:
    """Return the fields of a record as they land; None of what lands in no row of the table."""
    try:
        name, said = look.codec.decode(record.value)
    except BadData:
        return None
    if name != evidence.record:
        return None
    fields: Fields = dict(said)
    if evidence.stem == COMMANDS:
        fields |= {"topic": place.topic, "partition": place.partition, "offset": record.offset}
        key = account_key(str(fields["tenant_id"]), str(fields["account_id"]))
        home = partition_of(key, look.settings.partitions)
        if record.key != key or home != place.partition or any(bad_names(fields)):
            return None
    if evidence.stem == BALANCES and fields["kind"] != "usage":
        _note_entry(look, fields)
    return fields


def _note_entry(look: _Look, fields: Fields) -> None:
    whose = str(fields["tenant_id"]), str(fields["account_id"])
    newest = look.newest_entries.get(whose, 0)
    look.newest_entries[whose] = max(newest, int(fields["entry"]))


def _compare(look: _Look, evidence: Evidence, wanted: dict[Key, Fields]) -> None:
    keys = ", ".join(evidence.key)
    rows = look.store.rows_where(evidence.table, f"({keys}) IN %(keys)s", {"keys": tuple(wanted)})
    landed = {tuple(row[name] for name in evidence.key): row for row in plain_rows(rows)}
    for key, fields in wanted.items():
        where = f"{evidence.table} {'/'.join(map(str, key))}"
        row = landed.get(key)
        if row is None:
            look.faults.append(f"{where}: Kafka has it and the table has not")
        elif _version(evidence, row) <= _version(evidence, fields):
            names = row.keys() & fields.keys()
            wrong = sorted(name for name in names if row[name] != fields[name])
            if wrong:
                look.faults.append(f"{where}: {', '.join(wrong)} is not what Kafka has")


def _version(evidence: Evidence, fields: Fields) -> int:
    return int(fields[evidence.version]) if evidence.version else 0


async def _look_for_invented(
    look: _Look, consumer: AIOKafkaConsumer, place: TopicPartition
) -> None:
    """Find entries with a higher number than any in Kafka, of accounts that have some there."""
    accounts, look.newest_entries = look.newest_entries, {}
    table = _newest_in_table(look, tuple(accounts))
    # Behind the question, so that whatever had landed by then has been read.
    end = (await consumer.end_offsets([place]))[place]
    look.newest_entries = accounts
    async for records in _records(consumer, place, end):
        for record in records:
            if record.value is not None:
                _fields(look, EVIDENCE[0], place, record)
    for whose, newest in sorted(table.items()):
        if newest > look.newest_entries.get(whose, 0):
            look.faults.append(
                f"balance_changes {'/'.join(whose)}: entry {newest} is not in Kafka, whose newest is "
                f"{look.newest_entries.get(whose, 0)}"
            )
    look.newest_entries = {}


def _newest_in_table(
    look: _Look, accounts: tuple[tuple[str, str], ...]
) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for at in range(0, len(accounts), ROWS_MAX):
        rows = look.asker.rows(
            "SELECT tenant_id, account_id, max(toUInt64OrZero(entry)) FROM {db}.balance_changes "
            "WHERE kind != 'usage' AND (tenant_id, account_id) IN %(accounts)s "
            "GROUP BY tenant_id, account_id",
            {"accounts": accounts[at : at + ROWS_MAX]},
        )
        found |= {(str(row[0]), str(row[1])): int(row[2]) for row in rows}
    return found
