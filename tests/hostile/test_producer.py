"""A producer in another language keeps the contract of schemas/README.md, or is told what it broke."""

from __future__ import annotations

import re
import uuid

import pytest
from aiokafka.partitioner import murmur2
from stand import CODEC, Stand, account_command, event, now_ms

from tokenline.wire.kafka import account_key, partition_of
from tokenline.wire.registry import schemas_dir

ACCOUNTS = [f"murmur-{number}" for number in range(24)]
STRAYS = [f"crc-{number}" for number in range(24)]
VECTOR = re.compile(r"\| `(\S+)` \| (\d+) \| (\d+) \| (\d+) \|")


@pytest.fixture(scope="module")
def stand(line_settings, tmp_path_factory):
    with Stand(line_settings(partitions=4), tmp_path_factory.mktemp("logs")) as one:
        one.start()
        yield one


def test_the_vectors_of_the_contract_are_right():
    vectors = VECTOR.findall((schemas_dir() / "README.md").read_text())
    assert len(vectors) == 3
    for key, number, of_two, of_sixteen in vectors:
        raw = key.encode()
        assert murmur2(raw) == int(number)
        assert (partition_of(raw, 2), partition_of(raw, 16)) == (int(of_two), int(of_sixteen))
    assert any(not key.isascii() for key, *_ in vectors)
    assert any(int(number) > 2**31 for _, number, *_ in vectors)  # the sign bit is dropped


def send(stand, stem, records, **options):
    """Send keyed records as librdkafka likes; return the partition that each got."""
    producer, placed = stand.producer(**options), []
    for key, value in records:
        producer.produce(
            stand.topic(stem), value, key,
            on_delivery=lambda _, message: placed.append((message.key(), message.partition())),
        )  # fmt: skip
    assert producer.flush(30) == 0
    return dict(placed)


def keyed(make, accounts):
    return [(account_key("default", name), make(name)) for name in accounts]


def test_librdkafka_with_murmur2_is_charged_whatever_it_compresses_with(stand):
    stand.apply(*ACCOUNTS)
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        options = {"partitioner": "murmur2_random", "compression.type": codec, "linger.ms": 50}
        placed = send(stand, "usage", keyed(event, ACCOUNTS), **options)
        assert all(stand.home(key.decode().split("/")[1]) == at for key, at in placed.items())
    for partition in range(4):
        stand.all_sealed(partition)

    assert stand.letters("account_id LIKE 'murmur%'") == {}
    tokens = "SELECT sum(total_tokens) FROM {db}.v_usage WHERE account_id LIKE 'murmur%'"
    assert stand.ask(tokens) == [(5 * len(ACCOUNTS) * 10,)]
    assert stand.reconcile().ok


def test_its_default_partitioner_is_refused_and_makes_no_second_owner(stand):
    """17 of 40 orders made accounts that `show` could not find, each with the full allowance."""
    placed = send(stand, "commands", keyed(account_command, STRAYS))
    wrong = {key for key, at in placed.items() if stand.home(key.decode().split("/")[1]) != at}
    assert 0 < len(wrong) < len(STRAYS)
    orders = {key: order_of(key) for key in placed}
    producer = stand.producer()
    for key, at in placed.items():
        producer.produce(stand.topic("commands"), orders[key], key, partition=at)
    assert producer.flush(30) == 0
    send(stand, "usage", keyed(event, STRAYS))
    for partition in range(4):
        stand.all_sealed(partition)
    letters = (
        "SELECT topic, account_id, detail FROM {db}.v_dead_letters WHERE account_id LIKE 'crc%'"
    )
    stand.until(lambda: len(stand.ask(letters)) >= 3 * len(wrong), what="dead letters")

    assert stand.letters("account_id LIKE 'crc%'") == {"wrong_partition": 3 * len(wrong)}
    for topic, account, detail in stand.ask(letters):
        key = account_key("default", account)
        assert key in wrong, topic
        assert f"stands in partition {placed[key]} and belongs into {stand.home(account)}" in detail
        assert "murmur2" in detail
    known = {
        f"default/{name}".encode()
        for (name,) in stand.ask(
            "SELECT account_id FROM {db}.v_accounts WHERE account_id LIKE 'crc%'"
        )
    }
    assert known == set(placed) - wrong
    rows = stand.ask("SELECT count() FROM {db}.accounts FINAL WHERE account_id LIKE 'crc%'")
    assert rows == [(len(known),)]  # nor in the table behind the view
    assert {reply["reason"] for reply in replies(stand)} == {"unknown_plan", "wrong_partition"}
    assert sum(reply["reason"] == "wrong_partition" for reply in replies(stand)) == len(wrong)
    assert stand.reconcile().ok


def order_of(key):
    tenant, account = key.decode().split("/")
    said = {
        "tenant_id": tenant, "account_id": account, "command_id": uuid.uuid4().hex, "kind": "open",
        "plan": "none-such", "reply_to": "hostile", "issued_at": now_ms(),
    }  # fmt: skip
    return CODEC.encode("account_order", said)


def replies(stand):
    from confluent_kafka import TopicPartition

    consumer = stand.consumer(**{"enable.partition.eof": True, "auto.offset.reset": "earliest"})
    partition = partition_of(b"hostile", 4)
    consumer.assign([TopicPartition(stand.topic("replies"), partition, 0)])
    found = []
    while not (message := consumer.poll(10)).error():
        found.append(CODEC.decode(message.value())[1])
    consumer.close()
    return found


def test_an_account_command_with_a_null_or_foreign_key_makes_no_account(stand):
    """It was applied wherever it stood."""
    for key in (None, b"default/somebody-else", b"\xff"):
        stand.put("commands", [(key, account_command("keyless"))], stand.home("keyless"))
    stand.until(lambda: stand.letters("reason = 'key_mismatch'") == {"key_mismatch": 3})

    assert stand.ask("SELECT count() FROM {db}.accounts WHERE account_id = 'keyless'") == [(0,)]


def test_commands_of_a_transaction_are_refused_and_those_around_them_are_not(stand):
    inside, outside = stand.accounts[:2]
    record = (account_key("default", inside), account_command(inside))
    stand.in_transaction([record], end="commit", stem="commands")
    stand.apply(outside)
    stand.until(lambda: stand.letters("reason = 'transactional_record'"))
    for account in (inside, outside):
        stand.use(1, account)
    for partition in range(2):
        stand.all_sealed(partition)

    who = f"account_id IN ('{inside}', '{outside}')"
    assert stand.letters(who) == {"unknown_account": 1}
    assert stand.ask(f"SELECT account_id FROM {{db}}.accounts WHERE {who}") == [(outside,)]
    assert stand.reconcile().ok


def test_the_line_that_took_all_this_starts_again(stand):
    stand.restart()
    assert stand.reconcile().ok
