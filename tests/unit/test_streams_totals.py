"""What balances became is said once for all time: by number, or by bucket and minute."""

from __future__ import annotations

import pytest

from streams.totals import changes_of, encode_totals, totals_of
from tests.orders import CATALOG, catalog_version, order
from tests.strategies import BOUNDS, MINUTE, NOON, chunk_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry

MILLION = 1_000_000


@pytest.fixture
def state():
    """An account that has 310 tokens a month, on the last of October: 10 are left of it."""
    state = PartitionState(BOUNDS)
    said = [catalog_version(0, NOON, CATALOG), order(1, NOON, kind="open", plan="strict")]
    fold_commands(state, said, 1)
    return state


def use(state, offset, tokens, now_ms=NOON):
    said = {"account_id": "a", "event_id": f"e{offset}", "model": "max", "input_tokens": tokens}
    return fold_usage(state, chunk_of([record(offset, now_ms, occurred_at=now_ms, **said)]))


def said(state, flush):
    registry = open_registry(Settings())
    columns, codec = ColumnCodec(registry), Codec(registry)
    found = [
        (stem, key, codec.decode(value)[1])
        for stem, records in encode_totals(columns, totals_of(columns, state, flush, 3))
        for key, value in records
    ]
    assert {key for _, key, _ in found} == {b"t/a"}
    return {stem: [fields for s, _, fields in found if s == stem] for stem, _, _ in found}


def test_usage_of_a_minute_is_one_entry_a_bucket_and_grows(state):
    use(state, 0, 4)
    (small,) = said(state, state.flush())["balances"]
    use(state, 1, 9)
    large = said(state, state.flush())["balances"]

    assert (small["bucket"], small["amount_utok"], small["version"]) == (
        1,
        -4 * MILLION,
        4 * MILLION,
    )
    assert [(one["bucket"], one["amount_utok"]) for one in large] == [
        (-1, -3 * MILLION),
        (1, -10 * MILLION),
    ]
    assert {one["entry"] for one in [small, *large]} == {f"usage/{NOON // MINUTE * MINUTE}"}


def test_windows_say_what_they_cost_and_by_which_catalog(state):
    use(state, 0, 4)
    minute, month = said(state, state.flush())["windows"]

    assert (minute["charge_utok"], minute["catalog_version"]) == (4 * MILLION, 1)
    assert (month["grain"], month["charge_utok"], month["catalog_version"]) == ("month", 0, 0)


def test_other_entries_are_told_with_their_step_and_numbered(state):
    step = fold_commands(state, [order(2, NOON, kind="grant", amount_utok=5 * MILLION)], 2)
    (message,) = changes_of(Codec(open_registry(Settings())), state, step, 3)
    name, fields = Codec(open_registry(Settings())).decode(message.value)

    assert (message.topic, message.key, name) == ("balances", b"t/a", "balance_change")
    assert (fields["entry"], fields["kind"], fields["bucket"]) == ("2", "grant", 2)
    assert fields["amount_utok"] == 5 * MILLION
