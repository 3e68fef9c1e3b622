"""Apply the table of `wire.rights` to a broker: what it does not name is taken back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import (
    CreateAclsRequest_v1,
    DeleteAclsRequest_v1,
    DescribeAclsRequest_v1,
)
from aiokafka.protocol.api import Request

from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import client_options
from tokenline.wire.rights import ROLES, Acl, acls_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenline.settings import Settings

# Kafka's numbers (org.apache.kafka.common.acl, .resource); 1 is "any" in a filter.
_ANY = 1
_ALLOW = 3
_RESOURCES = {"topic": 2, "group": 3}
_PATTERNS = {"literal": 3, "prefixed": 4}
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
# The controller answers when it has written the rights down; each broker applies them a moment later.
_APPLIED_TRIES = 150
_APPLIED_WAIT_S = 0.2


async def ensure_acls(settings: Settings, beside: Iterable[Acl] = ()) -> tuple[int, int]:
    """Give each role exactly its rights at this line's topics and groups, and those `beside`.

    Returns how many were given and taken, once every broker applies them. Rights of other principals, and
    at other prefixes, stay as they are. `settings` must be a super user's.

    Raises:
        SettingsError: the user may not set rights, or the broker keeps none.
        BrokerUnavailable: Kafka did not answer, or a broker does not apply them within 30 s.
    """
    wanted = {acl for role in ROLES for acl in acls_of(settings, role)} | set(beside)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        known = set(await _known(admin, settings, _principals(wanted)))
        given, taken = sorted(wanted - known), sorted(known - wanted)
        await _change(admin, given, _CreateAcls)
        await _change(admin, taken, _DeleteAcls)
        await _until_applied(admin, settings, wanted)
    except (KafkaError, OSError, TimeoutError) as error:
        raise await fault_of(settings, error) from error
    finally:
        await admin.close()
    return len(given), len(taken)


class _DescribeAcls(Request[DescribeAclsRequest_v1]):
    API_KEY = 29

    def build(self, kind: type[DescribeAclsRequest_v1]) -> DescribeAclsRequest_v1:
        return kind(_ANY, None, _ANY, None, None, _ANY, _ALLOW)


class _CreateAcls(Request[CreateAclsRequest_v1]):
    API_KEY = 30

    def __init__(self, acls: Iterable[Acl]) -> None:
        self._acls = acls

    def build(self, kind: type[CreateAclsRequest_v1]) -> CreateAclsRequest_v1:
        return kind([_numbers(acl) for acl in self._acls])


class _DeleteAcls(Request[DeleteAclsRequest_v1]):
    API_KEY = 31

    def __init__(self, acls: Iterable[Acl]) -> None:
        self._acls = acls

    def build(self, kind: type[DeleteAclsRequest_v1]) -> DeleteAclsRequest_v1:
        return kind([_numbers(acl) for acl in self._acls])


def _principals(acls: Iterable[Acl]) -> set[str]:
    return {acl.principal for acl in acls}


async def _until_applied(admin: AIOKafkaAdminClient, settings: Settings, wanted: set[Acl]) -> None:
    """Return when each broker allows what is wanted of this line's topics and groups, and nothing else."""
    ours = {acl for acl in wanted if acl.name.startswith(settings.topic_prefix)}
    for node in sorted(broker.nodeId for broker in admin._client.cluster.brokers()):
        for _ in range(_APPLIED_TRIES):
            if set(await _known(admin, settings, _principals(ours), node)) == ours:
                break
            await asyncio.sleep(_APPLIED_WAIT_S)
        else:
            raise BrokerUnavailable(f"broker {node} does not apply the new rights yet; try again")


async def _known(
    admin: AIOKafkaAdminClient,
    settings: Settings,
    principals: set[str],
    node: int | None = None,
) -> list[Acl]:
    """Return what a broker, any without `node`, lets these principals do at this line's topics and groups."""
    answer = await admin._send_request(_DescribeAcls(), node)
    _require(answer.error_code, answer.error_message)
    names = [
        {number: name for name, number in known.items()}
        for known in (_RESOURCES, _PATTERNS, _OPERATIONS)
    ]
    found = []
    for resource, name, pattern, acls in answer.resources:
        for principal, _host, operation, _permission in acls:
            words = [
                known.get(one)
                for known, one in zip(names, (resource, pattern, operation), strict=True)
            ]
            ours = principal in principals and name.startswith(settings.topic_prefix)
            if ours and None not in words:
                fields: dict[str, Any] = dict(
                    zip(("resource", "pattern", "operation"), words, strict=True)
                )
                found.append(Acl(principal=principal, name=name, **fields))
    return found


async def _change(
    admin: AIOKafkaAdminClient, acls: Sequence[Acl], request: type[_CreateAcls | _DeleteAcls]
) -> None:
    if not acls:
        return
    answer = await admin._send_request(request(acls))
    results = answer.creation_responses if request is _CreateAcls else answer.filter_responses
    for code, text, *_ in results:
        _require(code, text)


def _require(code: int, text: str | None) -> None:
    if code:
        raise SettingsError(
            f"Kafka sets no rights: {for_code(code).__name__} {text or ''}".rstrip()
        )


def _numbers(acl: Acl) -> tuple[Any, ...]:
    kinds = _RESOURCES[acl.resource], acl.name, _PATTERNS[acl.pattern]
    return *kinds, acl.principal, "*", _OPERATIONS[acl.operation], _ALLOW
