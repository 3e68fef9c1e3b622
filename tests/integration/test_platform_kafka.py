from __future__ import annotations

import json
import os
import signal
import socket
import stat
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
from tokenline.platform.kafka_link import KafkaLink, RefusedLogin, broker_answers
from tokenline.platform.secrets import FILE, write_private
from tokenline.settings import Settings
from tokenline.wire.kafka import client_options
from tokenline.wire.rights import ROLES


def options(broker):
    return client_options(Settings(**broker.access()))


async def create(broker, topic):
    admin = AIOKafkaAdminClient(**options(broker))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def send(broker, topic, values):
    async with AIOKafkaProducer(**options(broker), acks="all", enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def read(broker, topic, count):
    consumer = AIOKafkaConsumer(**options(broker))
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
        **options(kafka),
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
    admin = AIOKafkaAdminClient(**options(kafka))
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


def logs_in(broker, role, password):
    return broker_answers(broker.port, role, password)


def test_each_role_logs_in_with_its_own_password_and_nobody_with_anothers(kafka):
    passwords = {role: kafka.access(role)["kafka_password"] for role in ("admin", *ROLES)}
    assert len(set(passwords.values())) == len(passwords)
    assert all(logs_in(kafka, role, word) for role, word in passwords.items())
    assert not logs_in(kafka, "charging", passwords["gateway"])
    assert not logs_in(kafka, "nobody", passwords["gateway"])
    with pytest.raises(PlatformError, match="no password for the role 'nobody'"):
        kafka.access("nobody")


async def test_passwords_that_were_removed_are_made_anew_and_the_data_stays(private_kafka):
    """The old ones are of no use from then on: so does who fears that one was seen."""
    broker = private_kafka
    old = broker.access("gateway")["kafka_password"]
    await create(broker, "kept")
    await send(broker, "kept", [b"1"])
    broker.stop()
    (broker.data_dir / FILE).unlink()
    broker.start()
    new = broker.access("gateway")["kafka_password"]
    assert new != old
    assert logs_in(broker, "gateway", new)
    assert not logs_in(broker, "gateway", old)
    assert await read(broker, "kept", 1) == [b"1"]


def test_a_role_that_is_new_in_this_version_may_log_in_after_the_start(private_kafka):
    broker = private_kafka
    broker.stop()
    file = broker.data_dir / FILE
    write_private(file, file.read_text().replace('"landing"', '"role-of-an-older-version"'))
    broker.start()
    assert logs_in(broker, "landing", broker.access("landing")["kafka_password"])


def test_files_with_passwords_are_the_owners_alone(kafka):
    for name in (FILE, "server.properties"):
        assert stat.S_IMODE((kafka.data_dir / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(kafka.data_dir.stat().st_mode) == 0o700
    words = [kafka.access(role)["kafka_password"] for role in ("admin", *ROLES)]
    process = psutil.Process(kafka.pid)
    told = " ".join(process.cmdline()) + kafka.log.read_text()
    told += (kafka.data_dir / "users.sha256").read_text() + (
        kafka.data_dir / "kafka.json"
    ).read_text()
    assert not any(word in told for word in words)


def test_the_controllers_listener_lets_nobody_in_without_its_password(kafka):
    """It takes requests that set users and rights: who reaches it must not be able to send any."""
    port = json.loads((kafka.data_dir / "kafka.json").read_text())["controller_port"]
    with KafkaLink(port) as link, pytest.raises(OSError, match="closed"):
        link.set_users({"thief": "own"})
    for user in ("admin", "controller"):
        with KafkaLink(port) as link, pytest.raises(RefusedLogin):
            link.log_in_plain(user, kafka.access()["kafka_password"])
    assert not logs_in(kafka, "thief", "own")


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
