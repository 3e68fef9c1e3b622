"""Kafka takes what docker-compose.yml gives it: users, rights, listeners; tried without containers."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.platform import jars, processes
from tokenline.platform.kafka_config import random_id
from tokenline.platform.prepare import main
from tokenline.settings import Settings
from tokenline.wire.line import read_line
from tokenline.wire.topics import ensure_topics

ROOT = Path(__file__).resolve().parents[2]


def password_of(name):
    return f"{name.lower()}-of-the-test"


def filled(value):
    """Return a value as `docker compose` fills it in: with the passwords of the test."""
    text = re.sub(r"\$\{(\w+PASSWORD):\?[^}]*\}", lambda found: password_of(found[1]), str(value))
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def properties_of(environment, ports, folder):
    """Return the properties that the image makes of its variables, on this machine's ports."""
    found = {}
    for name, value in environment.items():
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS":
            key = name.removeprefix("KAFKA_").lower()
            key = key.replace("___", "-").replace("__", "\0").replace("_", ".").replace("\0", "_")
            text = filled(value).replace("kafka:9092", f"127.0.0.1:{ports['9092']}")
            for old, new in ports.items():
                text = re.sub(rf":{old}\b", f":{new}", text)
            found[key] = text.replace("://:", "://127.0.0.1:").replace("localhost", "127.0.0.1")
    return found | {"log.dirs": str(folder / "log")}


@pytest.fixture
def compose_kafka(tmp_path):
    """A broker with the settings of docker-compose.yml; gives the ports of its listeners."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    environment = compose["services"]["kafka"]["environment"]
    ports = {old: processes.free_port() for old in ("9092", "9093", "19092")}
    file = tmp_path / "server.properties"
    said = properties_of(environment, ports, tmp_path)
    file.write_text("".join(f"{name}={value}\n" for name, value in said.items()))
    java = [str(jars.java()), "-Xmx256m", "-cp", ":".join(map(str, jars.kafka_jars()))]
    tool = [*java, "kafka.tools.StorageTool", "format", "-t", random_id(), "-c", str(file)]
    subprocess.run(tool, check=True, capture_output=True)
    log = tmp_path / "broker.log"
    broker = processes.spawn([*java, "kafka.Kafka", str(file)], log=log)
    yield ports
    processes.end(broker, 20)
    print(processes.last_lines(log, 30))


def login(port, user, password):
    return Settings(
        kafka_bootstrap=f"127.0.0.1:{port}",
        kafka_security="SASL_PLAINTEXT",
        kafka_sasl_mechanism="PLAIN",
        kafka_username=user,
        kafka_password=password,
    )


async def test_its_users_log_in_and_have_their_rights(compose_kafka, monkeypatch):
    inside, host = compose_kafka["9092"], compose_kafka["19092"]
    admin = login(inside, "admin", password_of("KAFKA_ADMIN_PASSWORD"))
    assert await first_answer(admin, 60)
    monkeypatch.setattr(os, "environ", admin.to_env())
    assert await asyncio.to_thread(main, ["rights"]) == 0
    operator = login(host, "operator", password_of("KAFKA_OPERATOR_PASSWORD"))
    await ensure_topics(operator)
    gateway = login(host, "gateway", password_of("KAFKA_GATEWAY_PASSWORD"))
    assert await read_line(gateway) == await read_line(admin)
    with pytest.raises(SettingsError, match="refuses gateway or its password"):
        await read_line(gateway.model_copy(update={"kafka_password": "guessed"}))
    with pytest.raises(SettingsError, match="refuses controller or its password"):
        await read_line(login(host, "controller", password_of("KAFKA_CONTROLLER_PASSWORD")))


async def first_answer(settings, within_s):
    """Make topics as soon as the broker lets us; say whether it did in time."""
    for _ in range(within_s * 5):
        try:
            return await ensure_topics(settings.model_copy(update={"topic_prefix": "probe."}))
        except BrokerUnavailable:
            await asyncio.sleep(0.2)
    return []
