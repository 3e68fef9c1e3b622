"""Name every topic, with its key, partition count and why its configuration is so.

| stem | key | cleanup | who writes -> who reads |
| --- | --- | --- | --- |
| usage | tenant/account | delete | emitters -> charging, landing |
| commands | tenant/account | delete | operators, charging (transfers) -> charging, landing |
| holds | tenant/account | delete | gateways -> charging |
| decisions | tenant/account#epoch, by account | compact | charging -> guards, landing, notify |
| replies | who asked | delete | charging -> who asked |
| catalog | version, one partition | compact | `catalog apply` -> gateways |
| windows | tenant/account | delete | charging -> landing |
| balances | tenant/account | delete | charging -> landing |
| state | by charging | compact | charging -> charging |
| charged | partition of usage | delete | charging -> landing |
| dead-letters | key of the bad record | delete | charging, notify -> landing |
| control | gateway_id, NUL, epoch, one partition | compact | emitters -> landing, reconcile |
| line | `~line`, one partition | nothing is removed | `topics` -> all |

All topics stamp the broker's append time: it is the line's clock, and no gateway can bend it.
The keyed topics have equal partition counts, so partition p of each speaks of the same accounts.
Orders and holds are two topics because Kafka gives rights by topic: a gateway may ask for a hold, and
may not order tokens for itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import account_key, client_options

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tokenline.settings import Settings

USAGE = "usage"
COMMANDS = "commands"
HOLDS = "holds"
DECISIONS = "decisions"
WINDOWS = "windows"
BALANCES = "balances"
STATE = "state"
CHARGED = "charged"
DEAD_LETTERS = "dead-letters"
CONTROL = "control"
REPLIES = "replies"
CATALOG = "catalog"
LINE = "line"

# What landing follows beside usage.
LANDED = (CHARGED, WINDOWS, BALANCES, DECISIONS, DEAD_LETTERS, COMMANDS, CONTROL)

# No tenant begins with a tilde.
HEARTBEAT_PREFIX = b"~heartbeat/"
TICK_PREFIX = b"~tick/"
STATE_MAX_BYTES = 16 * 1024 * 1024
_DAY_MS = 86_400_000
_TOPIC_ALREADY_EXISTS = 36
_READY_TRIES = 100
_READY_WAIT_S = 0.1
REQUIRE_TIMEOUT_MS = 5_000

# A compacted topic is read from the start at each start: small segments and an eager cleaner keep
# that short; tombstones stay a day, so a reader that is away for less never misses one.
_COMPACT = {
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "segment.bytes": str(64 * 1024 * 1024),
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": "3600000",
    "delete.retention.ms": str(_DAY_MS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """State what a topic must be like when it is made."""

    stem: str
    keyed: bool = True
    configs: dict[str, str] = field(default_factory=dict)

    def partitions(self, settings: Settings) -> int:
        """Return how many partitions this topic must have."""
        return settings.partitions if self.keyed else 1


# What anybody may write to; also Kafka's own default, which an operator may have raised.
_FOREIGN_MAX = {"max.message.bytes": str(1024 * 1024 + 12)}


def _kept(days: int) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS)}


TOPICS = (
    # Usage and its judgements are kept together: landing may be away for days and loses nothing.
    Topic(stem=USAGE, configs=_kept(14) | _FOREIGN_MAX),
    Topic(stem=CHARGED, configs=_kept(14)),
    # The last word on each account is in `state`; a month of commands is for people.
    Topic(stem=COMMANDS, configs=_kept(30) | _FOREIGN_MAX),
    # Whoever charges a partition again needs them beside its usage.
    Topic(stem=HOLDS, configs=_kept(14) | _FOREIGN_MAX),
    Topic(stem=WINDOWS, configs=_kept(14)),
    Topic(stem=BALANCES, configs=_kept(14)),
    # A letter holds its record in base64, and the largest record a topic takes is 1 MiB.
    Topic(stem=DEAD_LETTERS, configs=_kept(30) | {"max.message.bytes": str(2 * 1024 * 1024)}),
    # What was decided in between stays for an hour: a notify worker that is away for less tells all of it.
    Topic(
        stem=DECISIONS,
        configs=_COMPACT | {"min.compaction.lag.ms": "3600000", "max.compaction.lag.ms": "7200000"},
    ),
    # One chunk is one record batch, all or nothing; that batch may be large.
    Topic(stem=STATE, configs=_COMPACT | {"max.message.bytes": str(STATE_MAX_BYTES)}),
    Topic(stem=CONTROL, keyed=False, configs=_COMPACT | _FOREIGN_MAX),
    # Who asked waits for seconds; an answer can be asked for again.
    Topic(stem=REPLIES, configs=_kept(1)),
    Topic(stem=CATALOG, keyed=False, configs=_COMPACT),
    # Its first record counts, so that one must stay; compaction would keep the last.
    Topic(
        stem=LINE,
        keyed=False,
        configs={"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    ),
)


def decision_key(
    tenant: str, account: str, epoch: int, subscriber: str = "", group: str = ""
) -> bytes:
    """Return the key of a decision: compaction keeps the newest of each owner's life.

    A subscriber stands behind a NUL, which no name has, and a group of models behind another. What
    stands behind the last # is the epoch. So each key is of one decision (see `tokenline.names`).
    """
    own = [subscriber, group] if group else [subscriber] if subscriber else []
    whom = "".join(f"\0{name}" for name in own)
    return account_key(tenant, account) + whom.encode() + b"#%d" % epoch


def heartbeat_key(partition: int, epoch: int) -> bytes:
    """Return the key of a heartbeat on the decisions topic."""
    return HEARTBEAT_PREFIX + b"%d#%d" % (partition, epoch)


def tick_key(partition: int) -> bytes:
    """Return the key of a tick of the clock; it is no account's, and stands in the partition it names."""
    return TICK_PREFIX + b"%d" % partition


def total_key(gateway_id: str, gateway_epoch: str) -> bytes:
    """Return the key of a control total; no name has a NUL, so no two lives share one."""
    return f"{gateway_id}\0{gateway_epoch}".encode()


def configs_of(topic: Topic, settings: Settings) -> dict[str, str]:
    """Return the configuration a topic is created with."""
    configs = {"message.timestamp.type": "LogAppendTime"} | topic.configs
    if settings.replication_factor >= 3:
        # acks=all then means two disks, and one broker may be away.
        configs["min.insync.replicas"] = "2"
    return configs


async def ensure_topics(settings: Settings) -> list[str]:
    """Create the missing topics, check the others, and return the names of those created.

    The line gets its id with them (see `wire.line`). Safe to call from several processes at once; returns
    when every partition has a leader. It never changes a topic that exists.

    Raises:
        SettingsError: a topic has another partition count, or Kafka refuses to create one.
        BrokerUnavailable: Kafka did not answer.
    """
    from tokenline.wire.line import make_line  # noqa: PLC0415  it needs the names above

    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        created = await _create_missing(admin, settings)
        await _wait_ready(admin, settings)
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    finally:
        await admin.close()
    await make_line(settings)
    return created


async def require_topics(settings: Settings, stems: Collection[str]) -> None:
    """Check that the topics of these stems are there and have leaders; makes none.

    Raises:
        SettingsError: a topic has another partition count, or Kafka refuses the user.
        BrokerUnavailable: Kafka did not answer, or a topic is not there.
    """
    expected = _counts(settings, [topic for topic in TOPICS if topic.stem in stems])
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=REQUIRE_TIMEOUT_MS)
    try:
        await admin.start()
        # To describe a topic that is not there would make it, where Kafka makes topics by itself.
        if missing := sorted(expected.keys() - set(await admin.list_topics())):
            raise BrokerUnavailable(
                f"there is no topic {missing[0]}; has `tokenline topics` been run?"
            )
        found = await _described(admin, expected)
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    finally:
        await admin.close()
    if leaderless := [name for name in expected if not _has_leaders(found.get(name, []))]:
        raise BrokerUnavailable(f"a partition of {leaderless[0]} has no leader")
    _check_counts(expected, found)


async def _create_missing(admin: AIOKafkaAdminClient, settings: Settings) -> list[str]:
    known = set(await admin.list_topics())
    missing = [topic for topic in TOPICS if settings.topic(topic.stem) not in known]
    if not missing:
        return []
    response = await admin.create_topics([_new_topic(topic, settings) for topic in missing])
    created = []
    for name, code, *rest in response.topic_errors:
        if code == 0:
            created.append(name)
        elif code != _TOPIC_ALREADY_EXISTS:
            why = f"{for_code(code).__name__} {rest[0] if rest else ''}"
            raise SettingsError(f"Kafka refuses topic {name}: {why}")
    return created


def _new_topic(topic: Topic, settings: Settings) -> NewTopic:
    return NewTopic(
        name=settings.topic(topic.stem),
        num_partitions=topic.partitions(settings),
        replication_factor=settings.replication_factor,
        topic_configs=configs_of(topic, settings),
    )


async def _wait_ready(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    expected = _counts(settings, TOPICS)
    for _ in range(_READY_TRIES):
        found = await _described(admin, expected)
        if all(_has_leaders(found.get(name, [])) for name in expected):
            break
        await asyncio.sleep(_READY_WAIT_S)
    else:
        raise BrokerUnavailable("some partitions of the new topics have no leader after 10 s")
    _check_counts(expected, found)


def _counts(settings: Settings, topics: Iterable[Topic]) -> dict[str, int]:
    return {settings.topic(topic.stem): topic.partitions(settings) for topic in topics}


async def _described(
    admin: AIOKafkaAdminClient, names: Iterable[str]
) -> dict[str, list[dict[str, Any]]]:
    return {
        entry["topic"]: entry["partitions"] for entry in await admin.describe_topics(list(names))
    }


def _check_counts(expected: Mapping[str, int], found: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, count in expected.items():
        if len(found[name]) != count:
            raise SettingsError(
                f"{name} has {len(found[name])} partitions, TOKENLINE_PARTITIONS says {count}; "
                "the count is fixed for the life of a line: set it to what the topics have"
            )


def _has_leaders(partitions: list[dict[str, Any]]) -> bool:
    return bool(partitions) and all(entry["leader"] >= 0 for entry in partitions)
