"""What each role may do at a real broker, tried by a foreign client; and what nobody may."""

from __future__ import annotations

import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.protocol.fetch import FetchRequest
from confluent_kafka import KafkaError as Fault
from confluent_kafka import Producer

from tests.servers import give_rights
from tokenline.accounts.apply import apply_accounts
from tokenline.errors import BadData, BrokerUnavailable, SettingsError
from tokenline.event import UsageEvent
from tokenline.landing.reconcile import usage_bounds
from tokenline.platform.kafka_config import as_role
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess
from tokenline.settings import Settings
from tokenline.wire.acls import _CreateAcls, _known, ensure_acls
from tokenline.wire.avro import Codec
from tokenline.wire.catalogs import read_catalogs
from tokenline.wire.emitter import Emitter
from tokenline.wire.kafka import account_key, client_options, librdkafka_options
from tokenline.wire.orders import Orders
from tokenline.wire.registry import open_registry
from tokenline.wire.rights import ROLES, Acl, acls_of
from tokenline.wire.topics import TOPICS, ensure_topics

ACCOUNT = {
    **{
        f"{span}_{unit}": -1
        for span in ("minute", "hour", "day")
        for unit in ("tokens", "requests")
    },
    "tenant_id": "default",
    "account_id": "thief",
    "plan": "",
    "time_zone": "UTC",
    "month_tokens": 10**12,
}
STEMS = [topic.stem for topic in TOPICS]
DENIED = Fault.TOPIC_AUTHORIZATION_FAILED


def written(settings, role):
    """Return the topics to which a role could write a record."""
    done = []
    producer = Producer(
        librdkafka_options(as_role(settings, role)) | {"message.timeout.ms": 10_000, "log_level": 0}
    )

    def note(error, message):
        if error is None:
            done.append(message.topic().removeprefix(settings.topic_prefix))
        else:
            assert error.code() == DENIED, error

    for stem in STEMS:
        producer.produce(settings.topic(stem), b"x", key=b"k", partition=0, on_delivery=note)
    assert producer.flush(20) == 0
    return set(done)


async def readable(settings, role):
    """Return the topics of which a role may fetch; asked of the broker itself, not of its metadata."""
    client = AIOKafkaClient(**client_options(as_role(settings, role)))
    await client.bootstrap()
    found = set()
    try:
        for stem in STEMS:
            asked = [(settings.topic(stem), [(0, 0, 1 << 20)])]
            answer = await client.send(
                client.get_random_node(), FetchRequest(100, 1, 1 << 20, 0, asked)
            )
            code = answer.topics[0][1][0][1]
            assert code in (0, TopicAuthorizationFailedError.errno), (stem, code)
            if not code:
                found.add(stem)
    finally:
        await client.close()
    return found


async def test_each_role_writes_and_reads_what_the_table_says_and_nothing_else(settings):
    """A gateway writes usage, control and holds, and no orders, journal, decisions or balances."""
    await ensure_topics(settings)
    assert written(settings, "admin") == set(STEMS)
    for role, rights in ROLES.items():
        assert written(settings, role) == set(rights.writes), role
        assert await readable(settings, role) == set(rights.reads), role
    assert {"usage", "control", "holds"} == set(ROLES["gateway"].writes)


async def test_who_has_no_password_can_neither_look_nor_order(settings, kafka):
    """Whoever reached the broker could order himself tokens, and write decisions and the journal."""
    await ensure_topics(settings)
    order = Codec(open_registry(settings)).encode(
        "account_order",
        {"tenant_id": "default", "account_id": "thief", "command_id": "1", "kind": "open"},
    )
    with pytest.raises(KafkaError):
        await order_as_nobody(kafka, settings.topic("commands"), order)
    with pytest.raises(KafkaError):
        await look_as_nobody(kafka)


async def order_as_nobody(kafka, topic, order):
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=3000)
    try:
        await producer.start()
        key = account_key("default", "thief")
        await producer.send_and_wait(topic, order, key=key, partition=0)
    finally:
        await producer.stop()


async def look_as_nobody(kafka):
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=3000)
    try:
        await consumer.start()
        await consumer.topics()
    finally:
        await consumer.stop()


@pytest.mark.parametrize("password", ["", "guessed"])
async def test_a_wrong_password_is_refused_in_words(settings, tmp_path, password):
    wrong = as_role(settings, "gateway").model_copy(update={"kafka_password": password})
    for ask in (ensure_topics, read_catalogs, usage_bounds):
        with pytest.raises(SettingsError, match=r"refuses gateway or its password .*USERNAME"):
            await ask(wrong)
    emitter = Emitter(wrong, source="s", gateway_id="g", outbox_dir=tmp_path / "box")
    with pytest.raises(BrokerUnavailable, match=r"refuses gateway or its password"):
        await emitter.start()


async def test_who_comes_without_a_user_is_given_a_hint(kafka):
    nobody = Settings(kafka_bootstrap=kafka.bootstrap)
    with pytest.raises(BrokerUnavailable, match=r"hangs up on us.*TOKENLINE_KAFKA_SECURITY"):
        await ensure_topics(nobody)


async def test_who_lacks_a_right_is_shown_where_it_is_listed(settings):
    await ensure_topics(settings)
    with pytest.raises(SettingsError, match=r"does not let gateway do this.* topics --acls"):
        await apply_accounts(as_role(settings, "gateway"), [ACCOUNT])


async def test_a_gateways_order_is_a_dead_letter_wherever_it_may_write(settings, tmp_path):
    """An order on the topic of holds opens no account, grants nothing and is answered."""
    await ensure_topics(settings)
    gateway, operator = as_role(settings, "gateway"), as_role(settings, "operator")
    worker = WorkerProcess("charging", settings, tmp_path / "charging.log", port=free_port())
    worker.start()
    try:
        async with Orders(gateway) as thief, Orders(operator) as honest:
            with pytest.raises(SettingsError, match="TopicAuthorizationFailed"):
                await thief.order("thief", kind="open", plan="x", timeout_s=10)
            order = {
                "tenant_id": "default",
                "account_id": "thief",
                "command_id": "theft",
                "kind": "grant",
                "amount_utok": 10**12,
                "reply_to": thief._name,
                "issued_at": 0,
            }
            value = thief._codec.encode("account_order", order)
            name = ("order", "default", "thief", "theft", 0)
            reply = await thief._ask("holds", account_key("default", "thief"), value, name, 20)
            assert (reply["outcome"], reply["reason"]) == ("refused", "wrong_topic")
            with pytest.raises(BadData, match="unknown_account"):
                await honest.show("thief", timeout_s=20)
            held = await thief.hold("thief", "s", 0, provider="p", model="m", max_tokens=1)
            assert (held["outcome"], held["reason"]) == ("refused", "unknown_account")
    finally:
        worker.stop()
    assert worker.process.returncode == 0


async def test_a_gateway_with_its_rights_alone_emits_with_an_idempotent_producer(
    settings, tmp_path
):
    """Write on a topic is enough since Kafka 2.8: no right to the cluster is given."""
    await ensure_topics(settings)
    gateway = as_role(settings, "gateway")
    async with Emitter(gateway, source="s", gateway_id="g", outbox_dir=tmp_path / "box") as emitter:
        receipt = await emitter.emit(UsageEvent(account_id="a", provider="p", model="m"))
    assert receipt.status == "acknowledged"


async def test_a_right_that_the_table_does_not_name_is_taken_back(settings):
    """Also after an upgrade that needs less; rights of others and at other topics stay."""
    extra = [
        Acl(principal=who, resource="topic", pattern="literal", name=name, operation="Write")
        for who, name in (
            ("User:gateway", settings.topic("commands")),
            ("User:gateway", "elsewhere." + settings.topic_prefix),
            ("User:somebody", settings.topic("commands")),
        )
    ]
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin._send_request(_CreateAcls(extra))
        assert await until_known(admin, settings, extra[0])
        assert await ensure_acls(settings) == (0, 1)
        everywhere = settings.model_copy(update={"topic_prefix": ""})
        left = await _known(admin, everywhere, {"User:gateway", "User:somebody"})
        assert [one in left for one in extra] == [False, True, True]
        ours = await _known(admin, settings, {"User:gateway"})
        assert sorted(ours) == acls_of(settings, "gateway")
    finally:
        await admin.close()


async def until_known(admin, settings, acl):
    until_s = time.monotonic() + 10
    while acl not in await _known(admin, settings, {acl.principal}):
        if time.monotonic() > until_s:
            return False
    return True


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_no_role_but_the_super_user_gives_rights(settings, role):
    with pytest.raises(SettingsError, match="ClusterAuthorizationFailed"):
        await ensure_acls(as_role(settings, role))


async def test_only_an_operator_makes_topics(settings):
    give_rights(other := settings.model_copy(update={"topic_prefix": "o" + settings.topic_prefix}))
    for role in ROLES:
        admin = AIOKafkaAdminClient(**client_options(as_role(other, role)))
        await admin.start()
        try:
            made = await admin.create_topics([NewTopic(other.topic(f"by-{role}"), 1, 1)])
        finally:
            await admin.close()
        assert (made.topic_errors[0][1] == 0) == (role == "operator"), role
    assert len(await ensure_topics(as_role(other, "operator"))) == len(TOPICS)
