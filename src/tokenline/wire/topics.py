"""Name every topic, with its key, partition count and why its configuration is so.

| stem | key | cleanup | who writes -> who reads |
| --- | --- | --- | --- |
| usage | tenant/account | delete | emitters -> charging, landing |
| commands | tenant/account | delete | `accounts apply`, orders, gateways -> charging, landing |
| decisions | tenant/account#epoch, by account | compact | charging -> guards, landing, notify |
| replies | who asked | delete | charging -> who asked |
| catalog | version, one partition | compact | `catalog apply` -> gateways |
| windows | tenant/account | delete | charging -> landing |
| balances | tenant/account | delete | charging -> landing |
| state | by charging | compact | charging -> charging |
| charged | partition of usage | delete | charging -> landing |
| dead-letters | key of the bad record | delete | charging, notify -> landing |
| control | gateway_id, NUL, epoch, one partition | compact | emitters -> landing, reconcile |

All topics stamp the broker's append time: it is the line's clock, and no gateway can bend it.
The keyed topics have equal partition counts, so partition p of each speaks of the same accounts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.wire.kafka import account_key, client_options

if TYPE_CHECKING:
    from tokenline.settings import Settings

USAGE = "usage"
COMMANDS = "commands"
DECISIONS = "decisions"
WINDOWS = "windows"
BALANCES = "balances"
STATE = "state"
CHARGED = "charged"
DEAD_LETTERS = "dead-letters"
CONTROL = "control"
REPLIES = "replies"
CATALOG = "catalog"

# No tenant begins with a tilde.
HEARTBEAT_PREFIX = b"~heartbeat/"
STATE_MAX_BYTES = 16 * 1024 * 1024
_DAY_MS = 86_400_000
_TOPIC_ALREADY_EXISTS = 36
_READY_TRIES = 100
_READY_WAIT_S = 0.1

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


def _kept(days: int) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS)}


TOPICS = (
    # Usage and its judgements are kept together: landing may be away for days and loses nothing.
    Topic(stem=USAGE, configs=_kept(14)),
    Topic(stem=CHARGED, configs=_kept(14)),
    # The last word on each account is in `state`; a month of commands is for people.
    Topic(stem=COMMANDS, configs=_kept(30)),
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
    Topic(stem=CONTROL, keyed=False, configs=_COMPACT),
    # Who asked waits for seconds; an answer can be asked for again.
    Topic(stem=REPLIES, configs=_kept(1)),
    Topic(stem=CATALOG, keyed=False, configs=_COMPACT),
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

    Safe to call from several processes at once; returns when every partition has a leader. It never
    changes a topic that exists.

    Raises:
        SettingsError: a topic has another partition count, or Kafka refuses to create one.
        BrokerUnavailable: Kafka did not answer.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        created = await _create_missing(admin, settings)
        await _wait_ready(admin, settings)
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka_bootstrap}: {error!r}") from error
    finally:
        await admin.close()
    return created


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
    expected = {settings.topic(topic.stem): topic.partitions(settings) for topic in TOPICS}
    for _ in range(_READY_TRIES):
        described = await admin.describe_topics(list(expected))
        found = {entry["topic"]: entry["partitions"] for entry in described}
        if all(_has_leaders(found.get(name, [])) for name in expected):
            break
        await asyncio.sleep(_READY_WAIT_S)
    else:
        raise BrokerUnavailable("some partitions of the new topics have no leader after 10 s")
    for name, count in expected.items():
        if len(found[name]) != count:
            raise SettingsError(
                f"{name} has {len(found[name])} partitions, TOKENLINE_PARTITIONS says {count}; "
                "the count is fixed for the life of a line: set it to what the topics have"
            )


def _has_leaders(partitions: list[dict[str, Any]]) -> bool:
    return bool(partitions) and all(entry["leader"] >= 0 for entry in partitions)
