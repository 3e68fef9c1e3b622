"""A fetch is cut so that what becomes of it fits one batch of the journal."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from hashlib import sha256

import pytest

from streams.intake import decode_commands, decode_usage
from streams.outputs import Outputs
from streams.stretch import RUN_MAX_BYTES, Stretch, runs_of
from tests.strategies import BOUNDS, NOON
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.journal import JournalWriter
from tokenline.charging.packs import unpack_out
from tokenline.charging.partition import PartitionState
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import STATE_MAX_BYTES


@dataclass(frozen=True)
class Raw:
    """Be a record as the parser yields it."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp: int = NOON


def stretch(*records):
    return Stretch(lo=records[0].offset, hi=records[-1].offset, records=records)


def sizes(*lengths):
    return [Raw(offset, b"x" * length) for offset, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        ([], []),
        ([3, 3, 4], [[0, 1, 2]]),
        ([3, 3, 4, 1], [[0, 1, 2], [3]]),
        ([1, 99, 1, 1], [[0], [1], [2, 3]]),
        ([0, 99, 99], [[0, 1], [2]]),
    ],
)
def test_runs_hold_ten_bytes_or_one_record_and_lose_none(lengths, cut):
    found = runs_of(sizes(*lengths), 10, max_bytes=10)
    assert [[record.offset for record in run] for run in found] == cut


def test_a_run_holds_so_many_records_and_counts_their_keys():
    assert [len(run) for run in runs_of(sizes(*[0] * 7), 3)] == [3, 3, 1]
    keyed = [Raw(offset, None, key=b"12345") for offset in range(3)]
    assert [len(run) for run in runs_of(keyed, 3, max_bytes=10)] == [2, 1]


def test_the_largest_run_fits_one_batch_of_the_journal_even_if_nothing_of_it_can_be_read():
    """It did not: 10,000 refused events of 1.2 kB ended the worker, at each start anew."""
    settings = Settings()
    registry = open_registry(settings)
    codec, columns = Codec(registry), ColumnCodec(registry)
    count = Settings.model_fields["max_chunk_records"].metadata[1].le
    frame = b"".join(uuid.uuid4().bytes for _ in range(RUN_MAX_BYTES // count // 16))
    records = [Raw(offset, frame[offset % 64 :] + frame[: offset % 64]) for offset in range(count)]
    (run,) = runs_of(records, count)
    state, writer = PartitionState(BOUNDS), JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms)

    step = fold_usage(state, decode_usage(columns, stretch(*run)))
    out = Outputs(settings, codec, columns, None, 0).messages(state, step, run)
    written = writer.records(state, step, out)

    assert len(step.refused) == count
    assert sum(len(key) + len(value or b"") for key, value in written) < STATE_MAX_BYTES - 4096


REGISTRY = open_registry(Settings())
CODEC, COLUMNS = Codec(REGISTRY), ColumnCodec(REGISTRY)
LONG = "n" * 70_000
ORDER = {
    "tenant_id": "t", "account_id": "a", "command_id": "c", "kind": "open", "plan": "p",
    "reply_to": "me", "issued_at": 0,
}  # fmt: skip
QUESTION = {
    "tenant_id": "t", "account_id": "a", "session": "s", "seq": 3, "action": "hold",
    "reply_to": "me", "issued_at": 0,
}  # fmt: skip
LIMITS = {"tenant_id": "t", "account_id": "a", "command_id": "c", "issued_at": 0}


def told(step, state, raw):
    """Return what a step says by topic, as it comes back from the journal."""
    out = Outputs(Settings(), CODEC, COLUMNS, None, 0).messages(state, step, [raw])
    written = JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms).records(state, step, out)
    (kept,) = (unpack_out(value)[1] for key, value in written if b"/out/" in key)
    assert kept == out
    return {
        message.topic: message.key if message.topic == "charged" else CODEC.decode(message.value)[1]
        for message in kept
    }


def commanded(name, said, key=None, stem=None):
    key = f"{said['tenant_id']}/{said['account_id']}".encode() if key is None else key
    stem = stem or ("holds" if name == "hold_order" else "commands")
    raw, state = Raw(0, CODEC.encode(name, said), key), PartitionState(BOUNDS)
    commands, refused = decode_commands(COLUMNS, CODEC, [raw], stem)
    step = fold_commands(state, commands, 0, stem)
    step.refused = refused + step.refused
    return told(step, state, raw)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(("account_order", ORDER | {name: LONG}) for name in ("account_id", "reply_to")),
        *(("account_order", ORDER | {name: LONG}) for name in ("tenant_id", "command_id")),
        *(
            ("hold_order", QUESTION | {name: LONG})
            for name in ("account_id", "reply_to", "session")
        ),
        ("account_command", LIMITS | {"account_id": LONG}),
        ("account_order", ORDER | {"reply_to": "é" * 129}),
        ("account_order", ORDER | {"kind": "transfer", "to_account": LONG, "reply_to": ""}),
        ("hold_order", QUESTION | {"subscriber_id": LONG, "reply_to": ""}),
    ],
)
def test_a_command_with_a_name_too_long_for_a_key_is_a_dead_letter(name, said):
    """It ended the worker, at each start anew: the journal's messages have keys of 64 KiB at most."""
    found = commanded(name, said)
    assert found.keys() == {"dead-letters"}
    assert found["dead-letters"]["reason"] == "bad_name"
    assert "and a name has 256 at most" in found["dead-letters"]["detail"]


def test_who_asks_with_a_bad_name_is_told_so():
    found = commanded("account_order", ORDER | {"account_id": "a\0kid"})
    assert found["replies"]["reason"] == found["dead-letters"]["reason"] == "bad_name"
    assert "account_id has U+0000, a control character" in found["replies"]["detail"]


def test_a_value_that_is_too_large_for_a_dead_letter_is_in_it_in_part():
    value = b"\0" * (60 << 20)
    raw, state = Raw(0, value), PartitionState(BOUNDS)
    step = fold_usage(state, decode_usage(COLUMNS, stretch(raw)))
    (letter,) = Outputs(Settings(), CODEC, COLUMNS, None, 0).messages(state, step, [raw])[:1]
    assert len(letter.value) < 2 << 20
    said = CODEC.decode(letter.value)[1]
    assert base64.b64decode(said["value_base64"]) == value[: 1 << 20]
    assert f"of {60 << 20} bytes, sha256 {sha256(value).hexdigest()}" in said["detail"]


def test_names_of_any_length_that_is_allowed_go_through():
    name = "é" * 128
    names = {"tenant_id": name, "account_id": name, "command_id": name, "reply_to": name}
    assert commanded("account_order", ORDER | names)["replies"]["reason"] == "unknown_plan"


@pytest.mark.parametrize("stem", ["usage", "commands"])
def test_a_key_that_no_message_can_have_is_in_the_dead_letter_whole(stem):
    raw, state = Raw(0, b"junk", LONG.encode()), PartitionState(BOUNDS)
    if stem == "usage":
        step = fold_usage(state, decode_usage(COLUMNS, stretch(raw)))
    else:
        step = fold_commands(state, [], 0)
        step.refused = decode_commands(COLUMNS, CODEC, [raw])[1]
    letter = told(step, state, raw)["dead-letters"]
    assert base64.b64decode(letter["key_base64"]) == raw.key
    assert letter["reason"] == "undecodable"


@pytest.mark.parametrize(
    ("name", "said", "key", "reason", "detail"),
    [
        ("account_order", ORDER | {"kind": "opne"}, None, "bad_command", "no order 'opne'"),
        ("account_order", ORDER | {"time_zone": "Mars"}, None, "bad_command", "IANA"),
        ("account_order", ORDER, b"t/b", "key_mismatch", "is not t/a"),
        ("hold_order", QUESTION | {"max_tokens": -1}, None, "bad_command", "below zero"),
    ],
)
def test_who_asks_for_what_is_no_order_is_told_so(name, said, key, reason, detail):
    """It was a dead letter only, and the asker waited half a minute for a worker that was there."""
    found = commanded(name, said, key)
    assert found["dead-letters"]["reason"] == found["replies"]["reason"] == reason
    reply = found["replies"]
    assert detail in reply["detail"]
    assert (reply["outcome"], reply["cause_offset"], reply["reply_to"]) == ("refused", 0, "me")
    assert all(reply[name] == said[name] for name in ("tenant_id", "account_id"))
    assert (reply["command_id"], reply["session"]) == (
        said.get("command_id", ""),
        said.get("session", ""),
    )
    assert reply["seq"] == said.get("seq", 0)


@pytest.mark.parametrize(
    ("name", "said", "stem"),
    [("account_order", ORDER, "holds"), ("hold_order", QUESTION, "commands")],
)
def test_an_order_on_the_topic_of_holds_is_refused_and_a_hold_on_that_of_orders(name, said, stem):
    """Rights go by topic: who may ask for holds must not be able to order tokens for himself."""
    found = commanded(name, said, stem=stem)
    assert found.keys() == {"dead-letters", "replies"}
    assert found["dead-letters"]["reason"] == found["replies"]["reason"] == "wrong_topic"
    assert found["dead-letters"]["topic"] == f"tokenline.{stem}"
    assert f"a {name} does not belong on the {stem} topic" in found["replies"]["detail"]


@pytest.mark.parametrize("name", ["account_command", "catalog_version"])
def test_limits_and_catalogs_on_the_topic_of_holds_change_nothing(name):
    said = {"version": 1, "catalog": "{}", "effective_at": 0} | LIMITS | {"reply_to": "me"}
    raw = Raw(0, CODEC.encode(name, said), b"t/a")
    commands, (refused,) = decode_commands(COLUMNS, CODEC, [raw], "holds")
    assert (commands, refused.reason) == ([], "wrong_topic")


def test_nobody_is_told_of_a_dead_letter_that_nobody_waits_for():
    assert commanded("account_order", ORDER | {"kind": "x", "reply_to": ""}).keys() == {
        "dead-letters"
    }


@pytest.mark.parametrize("issued_at", [-(2**62), 253_402_300_800_000, 1_790_000_000_000_000, 2**62])
def test_a_command_issued_at_no_moment_of_the_calendar_is_carried_out(issued_at):
    """Microseconds for milliseconds ended the worker, at each start anew; nobody looks at the field."""
    state = PartitionState(BOUNDS)
    raw = Raw(0, CODEC.encode("account_command", LIMITS | {"issued_at": issued_at}), b"t/a")
    commands, refused = decode_commands(COLUMNS, CODEC, [raw])
    fold_commands(state, commands, 0)
    assert (state.cells.keys, refused) == (["t/a"], [])
    assert commands[0].fields["issued_at"] == issued_at
