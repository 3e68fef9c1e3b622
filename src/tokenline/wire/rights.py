"""Say what each role may do at Kafka.

One table: `tokenline topics --acls` prints it, the embedded broker applies it, the tests check it.

| role | is | writes | reads |
| --- | --- | --- | --- |
| gateway | `Gateway`, `Emitter`, `Guard` | usage, control, holds | decisions, replies, catalog, line |
| charging | charging workers | all that charging says; `commands` | usage, commands, holds, journal, line |
| landing | landing workers | nothing | all that it lands, line |
| notify | notify workers | dead-letters | decisions, line |
| operator | `accounts`, `catalog`, `account`, `topics` | commands, catalog, line | their answers, line |
| reader | `reconcile`, auditors | nothing | all but journal and replies |

Whoever may write to `commands` can order tokens for anybody, so a gateway may not. Charging writes the
parts of transfers there (`transfer_in`, `transfer_return`), and nobody else may; but Kafka cannot tell
them from other orders, so operators are trusted. Write includes Describe, and with it what an idempotent
producer needs since Kafka 2.8; nobody needs a right to the cluster.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from tokenline.wire.topics import (
    BALANCES,
    CATALOG,
    CHARGED,
    COMMANDS,
    CONTROL,
    DEAD_LETTERS,
    DECISIONS,
    HOLDS,
    REPLIES,
    STATE,
    USAGE,
    WINDOWS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenline.settings import Settings

Resource = Literal["topic", "group"]
Pattern = Literal["literal", "prefixed"]
Operation = Literal["Read", "Write", "Create", "Describe"]

_ANSWERS = (DECISIONS, REPLIES, CATALOG)
_LANDED = (USAGE, CHARGED, WINDOWS, BALANCES, DECISIONS, DEAD_LETTERS, COMMANDS, CONTROL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Name by stem which topics a role writes and reads, and which consumer groups it is in.

    `groups` are groups of that name and of all names that begin with it and a dot. `makes_topics` is the
    right to create the line's topics, and to see all of them.
    """

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    group: str = ""
    groups: str = ""
    makes_topics: bool = False


ROLES: dict[str, Rights] = {
    "gateway": Rights(writes=(USAGE, CONTROL, HOLDS), reads=_ANSWERS),
    "charging": Rights(
        writes=(
            *(STATE, DECISIONS, REPLIES, WINDOWS, BALANCES, CHARGED, DEAD_LETTERS),
            COMMANDS,
        ),
        reads=(USAGE, COMMANDS, HOLDS, STATE),
        group="charging",
    ),
    "landing": Rights(reads=_LANDED, group="landing"),
    "notify": Rights(writes=(DEAD_LETTERS,), reads=(DECISIONS,), groups="notify"),
    "operator": Rights(writes=(COMMANDS, CATALOG), reads=_ANSWERS, makes_topics=True),
    "reader": Rights(reads=(*_LANDED, HOLDS, CATALOG)),
}


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Acl:
    """Allow one principal one operation on what a pattern names."""

    principal: str
    resource: Resource
    pattern: Pattern
    name: str
    operation: Operation


def acls_of(settings: Settings, role: str, principal: str = "") -> list[Acl]:
    """Return what a role may do, sorted; `principal` is `User:<role>` unless it is given."""
    who = principal or f"User:{role}"
    return sorted(
        Acl(principal=who, resource=resource, pattern=pattern, name=name, operation=operation)
        for resource, pattern, name, operation in _of(settings, ROLES[role])
    )


def kafka_commands(acls: Sequence[Acl], bootstrap: str) -> Iterator[str]:
    """Yield the `kafka-acls.sh` commands that set these rights, one for each resource and principal."""
    for (principal, resource, pattern, name), some in groupby(acls, key=_target):
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap]
        words += ["--command-config", "admin.properties", "--add", "--allow-principal", principal]
        for one in some:
            words += ["--operation", one.operation]
        words += [f"--{resource}", name, "--resource-pattern-type", pattern]
        yield shlex.join(words)


def _target(acl: Acl) -> tuple[str, str, str, str]:
    return acl.principal, acl.resource, acl.pattern, acl.name


def _of(settings: Settings, rights: Rights) -> Iterator[tuple[Resource, Pattern, str, Operation]]:
    for stem in rights.writes:
        yield "topic", "literal", settings.topic(stem), "Write"
    for stem in rights.reads:
        yield "topic", "literal", settings.topic(stem), "Read"
    if rights.group:
        yield "group", "literal", settings.topic(rights.group), "Read"
    if rights.groups:
        yield "group", "literal", settings.topic(rights.groups), "Read"
        yield "group", "prefixed", settings.topic(f"{rights.groups}."), "Read"
    if rights.makes_topics:
        whole: tuple[Pattern, str] = ("prefixed", settings.topic_prefix)
        if not settings.topic_prefix:
            whole = ("literal", "*")
        yield "topic", *whole, "Create"
        yield "topic", *whole, "Describe"
