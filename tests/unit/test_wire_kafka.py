"""Keys live where every Kafka client would put them, and clients connect as the settings say."""

from __future__ import annotations

import ssl

import pytest
from aiokafka.partitioner import DefaultPartitioner

from streams.credentials import faust_credentials
from tokenline.errors import SettingsError
from tokenline.settings import Settings
from tokenline.wire.kafka import (
    account_key,
    client_options,
    librdkafka_options,
    partition_of,
)
from tokenline.wire.topics import TOPICS, configs_of, decision_key, heartbeat_key, total_key


@pytest.mark.parametrize("partitions", [1, 4, 32, 97])
def test_a_key_lives_where_kafkas_default_partitioner_puts_it(partitions):
    every = list(range(partitions))
    for number in range(200):
        key = account_key("default", f"acct-{number}")
        assert partition_of(key, partitions) == DefaultPartitioner()(key, every, every)


def test_the_hash_is_that_of_the_java_client():
    # From Kafka's own UtilsTest: murmur2 of these strings.
    known = {b"21": -973932308, b"foobar": -790332482, b"abc": 479470107}
    for key, murmur2 in known.items():
        assert partition_of(key, 2**31 - 1) == (murmur2 & 0x7FFFFFFF) % (2**31 - 1)


def test_keys_are_readable_and_apart():
    assert account_key("default", "sh/1") == b"default/sh/1"
    assert decision_key("default", "a", 3) == b"default/a#3"
    assert heartbeat_key(2, 3) == b"~heartbeat/2#3"
    assert total_key("g", "e") == b"g\0e"


def test_plaintext_needs_no_more_than_the_servers():
    options = client_options(Settings(kafka_bootstrap="a:1, b:2"))

    assert options == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}


def test_sasl_over_tls_carries_user_and_context():
    options = client_options(
        Settings(kafka_security="SASL_SSL", kafka_username="u", kafka_password="p")
    )

    assert isinstance(options["ssl_context"], ssl.SSLContext)
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"USERNAME": "u"},
            "TOKENLINE_KAFKA_USERNAME is given, and TOKENLINE_KAFKA_SECURITY=PLAIN",
        ),
        ({"PASSWORD": "p"}, "TOKENLINE_KAFKA_PASSWORD is given"),
        ({"PASSWORD_FILE": "/f"}, "TOKENLINE_KAFKA_PASSWORD_FILE is given"),
        ({"SECURITY": "SASL_SSL", "PASSWORD": "p"}, "TOKENLINE_KAFKA_USERNAME is missing"),
        ({"SECURITY": "SASL_SSL", "USERNAME": "u"}, "TOKENLINE_KAFKA_PASSWORD_FILE, one of them"),
        (
            {"SECURITY": "SASL_SSL", "USERNAME": "u", "PASSWORD": "p", "PASSWORD_FILE": "/f"},
            "TOKENLINE_KAFKA_PASSWORD_FILE, one of them",
        ),
        ({"SECURITY": "SASL"}, "TOKENLINE_KAFKA_SECURITY='SASL'"),
    ],
)
def test_credentials_that_lack_a_part_are_refused_by_name(given, text):
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({f"TOKENLINE_KAFKA_{name}": value for name, value in given.items()})
    assert text in str(caught.value)
    assert "p'" not in str(caught.value)


def with_file(path):
    return Settings(
        kafka_security="SASL_PLAINTEXT", kafka_username="u", kafka_password_file=path,
        kafka_sasl_mechanism="SCRAM-SHA-256", kafka_ca_file="/ca.pem",
    )  # fmt: skip


def test_a_password_is_read_from_its_file_each_time_and_all_clients_get_it(tmp_path):
    path = tmp_path / "password"
    path.write_text("first\n")
    settings = with_file(path)
    assert client_options(settings)["sasl_plain_password"] == "first"
    path.write_text("renewed")
    assert client_options(settings)["sasl_plain_password"] == "renewed"
    assert faust_credentials(settings).password == "renewed"
    assert librdkafka_options(settings) == {
        "bootstrap.servers": "127.0.0.1:19092",
        "security.protocol": "SASL_PLAINTEXT",
        "partitioner": "murmur2_random",
        "ssl.ca.location": "/ca.pem",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "u",
        "sasl.password": "renewed",
    }


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_password_file_without_a_password_is_named(tmp_path, content):
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match="TOKENLINE_KAFKA_PASSWORD_FILE"):
        client_options(with_file(path))


def test_a_missing_certificate_is_a_setting_at_fault(tmp_path):
    with pytest.raises(SettingsError, match="TLS to Kafka"):
        client_options(Settings(kafka_security="SSL", kafka_ca_file=tmp_path / "no.pem"))


def test_every_topic_stamps_append_time_and_is_kept_for_a_reason():
    for topic in TOPICS:
        configs = configs_of(topic, Settings())
        assert configs["message.timestamp.type"] == "LogAppendTime"
        assert configs["cleanup.policy"] in ("compact", "delete")
        assert "min.insync.replicas" not in configs
    replicated = configs_of(TOPICS[0], Settings(replication_factor=3))
    assert replicated["min.insync.replicas"] == "2"
