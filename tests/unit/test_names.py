"""One rule for names at every entrance, and keys made of names that cannot collide."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orders import hold_order, order
from tests.strategies import BOUNDS, NOON, batch_of, chunk_of, command, event, record
from tokenline.accounts.file import AccountsFile
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.errors import BadData, InvalidEvent
from tokenline.event import UsageEvent
from tokenline.metering.judge import bad_names_in
from tokenline.names import (
    EVENT_NAMES,
    EVENT_NAMES_OR_NONE,
    NAME_MAX_BYTES,
    bad_names,
    why_bad,
    why_bad_of,
)
from tokenline.rating.parts import checked_name
from tokenline.wire.emitter import check_names
from tokenline.wire.kafka import account_key
from tokenline.wire.orders import _fit
from tokenline.wire.topics import decision_key, heartbeat_key, total_key

GOOD = ("a", "acme", "sh/138-词元", "Qwen 2.5 (fast)", "~tilde", "a#1", "é" * 128, "x" * 256, "🙂")
BAD = {
    "": "is empty",
    "x" * 257: "has 257 bytes",
    "词" * 86: "has 258 bytes",
    "a\0b": "has U+0000, a control character",
    "a\nb": "has U+000A, a control character",
    "a\x7f": "has U+007F, a control character",
    "a\x85b": "has U+0085, a control character",
    "a\u200bb": "has U+200B, a character that nobody sees",
    "a\u202eb": "has U+202E, a character that nobody sees",
    "\ufeffa": "has U+FEFF, a character that nobody sees",
    "a\u2028b": "has U+2028, a line separator",
    "a\u2029b": "has U+2029, a paragraph separator",
    "a\ud800": "has U+D800, half a character",
    " a": "has white space around it",
    "a\u3000": "has white space around it",
    "a\u00a0": "has white space around it",
}
SENDABLE = {name: why for name, why in BAD.items() if "half" not in why}
TEXTS = st.text(max_size=12) | st.text("ab/~*# \0\u200b\n词", max_size=8)


@pytest.mark.parametrize("name", GOOD)
def test_a_name_is_what_a_person_can_read(name):
    assert why_bad(name) == ""


@pytest.mark.parametrize(("name", "why"), BAD.items())
def test_what_is_no_name_is_told_by_what_is_wrong(name, why):
    assert why in why_bad(name)


@given(TEXTS)
def test_the_rule_is_what_it_says(name):
    kinds = {unicodedata.category(char) for char in name}
    good = (
        len(name) > 0
        and "Cs" not in kinds
        and len(name.encode()) <= NAME_MAX_BYTES
        and not kinds & {"Cc", "Cf", "Zl", "Zp"}
        and name == name.strip()
    )
    assert (why_bad(name) == "") is good


@pytest.mark.parametrize(
    ("field", "name", "why"),
    [
        ("tenant_id", "a/b", "has a slash"),
        ("tenant_id", "~heartbeat", "begins with ~"),
        ("provider", "a/b", "has a slash"),
        ("model", "*", "is *"),
        ("account_id", "a/b", ""),
        ("account_id", "~a", ""),
        ("model", "a/b", ""),
    ],
)
def test_some_names_are_parts_of_keys_that_are_taken_apart_again(field, name, why):
    assert why in why_bad_of(field, name)
    assert bool(why) == bool(why_bad_of(field, name))


FIELDS = [*EVENT_NAMES, *EVENT_NAMES_OR_NONE]


@settings(deadline=None)
@given(st.sampled_from(FIELDS), st.lists(TEXTS.filter(lambda one: "\ud800" not in one), max_size=9),
       st.booleans())  # fmt: skip
def test_many_names_are_judged_as_each_is(field, names, sliced):
    names = [name for name in names if name.encode("utf-8", "ignore").decode() == name]
    texts = pa.array(["before\0", *names], pa.string()).slice(1) if sliced else pa.array(
        names, pa.string()
    )  # fmt: skip
    found = bad_names_in(texts, field)
    expected = [
        bool(name or field in EVENT_NAMES) and bool(why_bad_of(field, name)) for name in names
    ]
    assert (found.tolist() if found is not None else [False] * len(names)) == expected


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", [name for name in SENDABLE if name])
def test_usage_with_a_bad_name_is_a_dead_letter_that_names_the_field(field, name):
    """NUL in a subscriber made two decisions share one key; `~heartbeat` was taken for a heartbeat."""
    state = PartitionState(BOUNDS)
    fold_commands(state, [command()], 0)
    said = event(**{field: name})
    one = replace(record(0), event=said, key=f"{said['tenant_id']}/{said['account_id']}")
    step = fold_usage(state, chunk_of([one, record(1, event_id="good")]))
    (refused,) = step.refused

    assert (refused.offset, refused.reason, step.counted) == (0, "bad_name", 1)
    assert refused.detail.startswith(f"{field} {SENDABLE[name][:10]}")


@pytest.mark.parametrize("field", EVENT_NAMES_OR_NONE)
def test_what_may_be_empty_may_be(field):
    assert bad_names_in(batch_of([event(**{field: ""})]).column(field), field) is None


@pytest.mark.parametrize("name", [name for name in SENDABLE if name])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (command, "account_id"),
        (command, "tenant_id"),
        (order, "account_id"),
        (order, "command_id"),
        (order, "to_account"),
        (order, "plan"),
        (hold_order, "session"),
        (hold_order, "subscriber_id"),
        (hold_order, "model"),
    ],
)
def test_a_command_with_a_bad_name_is_refused_and_changes_nothing(make, field, name):
    """`done` was answered to a cap of a subscriber that no usage could ever name."""
    state = PartitionState(BOUNDS)
    own = {"kind": "open"} if make is order else {}
    said = make(0, NOON, **own, **{field: name})
    step = fold_commands(state, [said], 0)

    assert [one.reason for one in step.refused] == ["bad_name"]
    assert step.refused[0].detail.startswith(f"{field} ")
    assert (state.cells.keys, step.replies) == ([], [])


@pytest.mark.parametrize(
    "fields",
    [
        {"subscribers": ["kid", "k\u200bid"]},
        {"subscribers": ["x" * 257]},
        {"subscribers": [""]},
        {"models": ["p/\0"]},
        {"models": ["p\n/*"]},
        {"models": ["p/"]},
    ],
)
def test_a_scope_names_nobody_that_usage_cannot_name(fields):
    """Granted tokens could be used by nobody."""
    said = order(0, NOON, kind="grant", amount_utok=5, **fields).fields
    assert len(list(bad_names(said))) == 1


@pytest.mark.parametrize("name", BAD)
def test_every_entrance_keeps_the_same_rule(name):
    with pytest.raises(InvalidEvent, match=r"^account_id "):
        UsageEvent(account_id=name, provider="p", model="m")
    with pytest.raises(InvalidEvent, match=r"^source "):
        check_names(name, "gw", "1")
    with pytest.raises(ValueError, match="id"):
        AccountsFile.model_validate({"accounts": [{"id": name}]})
    with pytest.raises(ValueError, match=" "):
        checked_name(name)
    if name:
        with pytest.raises(BadData, match=r"^account_id "):
            _fit({"account_id": name})
        with pytest.raises(InvalidEvent, match=r"^subscriber_id "):
            UsageEvent(account_id="a", provider="p", model="m", subscriber_id=name)


@pytest.mark.parametrize("name", GOOD)
def test_every_entrance_takes_the_same_names(name):
    said = UsageEvent(account_id=name, provider="p", model=name, subscriber_id=name)
    assert said.account_id == name
    check_names(name, "gw", "1")
    accounts = AccountsFile.model_validate({"accounts": [{"id": name}]}).accounts
    assert accounts[0].id == checked_name(name) == name
    assert _fit({"account_id": name, "subscriber_id": name}) == {
        "account_id": name, "subscriber_id": name,
    }  # fmt: skip
    state = PartitionState(BOUNDS)
    assert fold_commands(state, [command(account_id=name)], 0).refused == []
    one = record(0, account_id=name, subscriber_id=name, event_id=name)
    assert fold_usage(state, chunk_of([one])).counted == 1


NAMES = st.text(st.sampled_from("ab/#~0 \u8bcd"), min_size=1, max_size=5).filter(
    lambda name: not why_bad(name)
)
TENANTS = NAMES.filter(lambda name: not why_bad_of("tenant_id", name))
EPOCHS = st.integers(1, 30)
DECIDED = st.tuples(TENANTS, NAMES, EPOCHS, NAMES | st.just(""), NAMES | st.just(""))


@settings(max_examples=500)
@given(DECIDED, DECIDED)
def test_keys_of_different_decisions_differ(one, other):
    assert (decision_key(*one) == decision_key(*other)) is (one == other)


@settings(max_examples=500)
@given(DECIDED, st.integers(0, 9), EPOCHS)
def test_no_decision_has_the_key_of_a_heartbeat(decided, partition, epoch):
    assert decision_key(*decided) != heartbeat_key(partition, epoch)


@settings(max_examples=500)
@given(st.tuples(TENANTS, NAMES), st.tuples(TENANTS, NAMES))
def test_keys_of_different_accounts_differ(one, other):
    assert (account_key(*one) == account_key(*other)) is (one == other)


@settings(max_examples=500)
@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_keys_of_different_lives_of_gateways_differ(one, other):
    """`a/b` of life c, and `a` of life b/c: the compacted topic kept one total of two."""
    assert (total_key(*one) == total_key(*other)) is (one == other)
    assert not total_key(*one).startswith(b"~line")


def test_ten_thousand_names_are_judged_in_no_time():
    """Names of visible ASCII, as nearly all are: no look at a single one."""
    texts = pa.array([f"0192-{number:08d}-7000" for number in range(10_000)])
    assert bad_names_in(texts, "event_id") is None
    wrong = pa.array(["ok"] * 9_999 + ["a\0"])
    assert np.flatnonzero(bad_names_in(wrong, "event_id")).tolist() == [9_999]
