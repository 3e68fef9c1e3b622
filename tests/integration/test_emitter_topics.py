"""Topics are made once, as they must be, and a line that does not fit them is refused."""

from __future__ import annotations

import asyncio
import uuid
from itertools import chain

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tokenline import Settings
from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.wire.kafka import client_options
from tokenline.wire.topics import STATE_MAX_BYTES, TOPICS, ensure_topics


@pytest.fixture
def line(kafka):
    return Settings(
        partitions=4,
        **kafka.access(),
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
    )


async def configs(line, stem):
    admin = AIOKafkaAdminClient(**client_options(line))
    await admin.start()
    try:
        topic = ConfigResource(ConfigResourceType.TOPIC, line.topic(stem))
        (answer,) = await admin.describe_configs([topic])
    finally:
        await admin.close()
    return {name: value for name, value, *_ in answer.resources[0][4]}


async def test_missing_topics_are_made_and_a_second_call_makes_none(line):
    assert sorted(await ensure_topics(line)) == sorted(line.topic(topic.stem) for topic in TOPICS)
    assert await ensure_topics(line) == []


async def test_several_processes_may_make_them_at_once(line):
    made = await asyncio.gather(*(ensure_topics(line) for _ in range(4)))

    assert sorted(chain.from_iterable(made)) == sorted(line.topic(topic.stem) for topic in TOPICS)


async def test_every_topic_is_stamped_by_the_broker(line):
    await ensure_topics(line)
    for topic in TOPICS:
        found = await configs(line, topic.stem)
        assert found["message.timestamp.type"] == "LogAppendTime"
        assert found["cleanup.policy"] == topic.configs["cleanup.policy"]
    assert (await configs(line, "state"))["max.message.bytes"] == str(STATE_MAX_BYTES)


async def test_another_partition_count_is_refused_with_what_to_set(line):
    await ensure_topics(line)
    with pytest.raises(SettingsError, match="has 4 partitions, TOKENLINE_PARTITIONS says 6"):
        await ensure_topics(line.model_copy(update={"partitions": 6}))


async def test_more_replicas_than_brokers_are_refused_by_name(line):
    with pytest.raises(SettingsError, match=r"Kafka refuses topic .*InvalidReplicationFactor"):
        await ensure_topics(line.model_copy(update={"replication_factor": 3}))


async def test_no_broker_is_said_in_one_line():
    nobody = Settings(kafka_bootstrap="127.0.0.1:1")
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        await ensure_topics(nobody)
