from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError

from tokenline.errors import PlatformError, PortTaken
from tokenline.platform import processes
from tokenline.platform.kafka import EmbeddedKafka


async def create(broker, topic):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def send(broker, topic, values):
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True
    ) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def read(broker, topic, count):
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_acknowledged_records_survive_kill_and_stop(private_kafka):
    broker = private_kafka
    identity = (broker.data_dir / "kafka.json").read_text()
    await create(broker, "kept")
    await send(broker, "kept", [b"1", b"2"])
    broker.kill()
    assert not broker.answers()
    broker.start()
    await send(broker, "kept", [b"3"])
    broker.stop()
    assert broker.pid is None
    broker.start()
    assert await read(broker, "kept", 3) == [b"1", b"2", b"3"]
    assert (broker.data_dir / "kafka.json").read_text() == identity


async def test_a_group_may_use_a_session_timeout_of_one_second(kafka):
    await create(kafka, "grouped")
    await send(kafka, "grouped", [b"x"])
    consumer = AIOKafkaConsumer(
        "grouped",
        bootstrap_servers=kafka.bootstrap,
        group_id="g",
        auto_offset_reset="earliest",
        session_timeout_ms=1000,
        heartbeat_interval_ms=300,
    )
    await consumer.start()
    try:
        assert (await consumer.getone()).value == b"x"
    finally:
        await consumer.stop()


async def test_topics_are_never_made_by_mistake(kafka):
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        described = await admin.describe_topics(["no-such-topic"])
    finally:
        await admin.close()
    assert described[0]["error_code"] == UnknownTopicOrPartitionError.errno


def test_listens_on_loopback_only(kafka):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(kafka.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 2
    assert {address.removeprefix("::ffff:") for address in listening} == {processes.LOOPBACK}


def test_a_taken_port_is_named_with_its_holder_and_its_variable(tmp_path):
    with socket.socket() as holder:
        holder.bind((processes.LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            EmbeddedKafka(tmp_path, port).start()
    text = str(caught.value)
    assert f"port {port}" in text
    assert f"pid {os.getpid()}" in text
    assert "TOKENLINE_KAFKA_BOOTSTRAP" in text


def test_a_second_broker_on_the_same_data_says_so(kafka):
    with pytest.raises(PlatformError, match=f"in use by process {os.getpid()}"):
        EmbeddedKafka(kafka.data_dir, processes.free_port()).start()
    assert kafka.answers()


def test_a_data_directory_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    broker = EmbeddedKafka(tmp_path / "词元 data \\ 🙂")
    broker.start()
    broker.stop()
    assert (broker.data_dir / "log" / "meta.properties").exists()


def test_the_broker_ends_when_its_supervisor_is_killed(private_kafka):
    broker = private_kafka
    broker.stop()
    program = """
        import sys, time
        from pathlib import Path
        from tokenline.platform.kafka import EmbeddedKafka
        broker = EmbeddedKafka(Path(sys.argv[1]))
        broker.start()
        print(broker.pid, flush=True)
        time.sleep(60)
    """
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(broker.data_dir)],
        stdout=subprocess.PIPE,
    )
    child = psutil.Process(int(supervisor.stdout.readline()))
    assert child.is_running()
    supervisor.send_signal(signal.SIGKILL)
    supervisor.communicate()
    assert processes.wait_for(lambda: not child.is_running(), timeout_s=5)
