from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from tokenline.errors import BrokenLog
from tokenline.event import TOKEN_KINDS
from tokenline.landing.row import (
    LEDGER_SCHEMA,
    Events,
    duplicate_rows,
    identities_at,
    ledger_rows,
    repeats_within,
    rows_not_at,
)
from tokenline.wire.registry import schemas_dir


def events(ids, *, late=(), repeats=(), **columns):
    zero = {field.name: _zero(field.type) for field in LEDGER_SCHEMA}
    rows = [zero | {"event_id": one, "account_id": "a"} | columns for one in ids]
    offsets = np.arange(10, 10 + len(ids), dtype=np.int64)
    return Events(
        topic="u",
        partition=1,
        batch=pa.RecordBatch.from_pylist(rows, schema=LEDGER_SCHEMA),
        offsets=offsets,
        appended_ms=offsets * 100,
        late=np.isin(offsets, late),
        repeats=np.isin(offsets, repeats),
    )


def _zero(kind):
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


def asked_of(found):
    return identities_at(found, np.flatnonzero(found.late & ~found.repeats))


def test_the_ledger_has_every_field_of_a_usage_event_in_its_order():
    path = max(schemas_dir().glob("usage_event.v*.avsc"))
    fields = [field["name"] for field in json.loads(path.read_text())["fields"]]

    assert LEDGER_SCHEMA.names[: len(fields)] == fields


def test_every_column_of_the_ledger_is_in_its_table():
    ddl = (schemas_dir() / "clickhouse" / "0002_ledger.sql").read_text()

    assert [name for name in LEDGER_SCHEMA.names if f"\n  {name} " not in ddl] == []


def test_copies_are_no_ledger_rows_and_the_rest_are():
    found = events(["a", "b", "a", "c"], late=[13], repeats=[12])

    assert ledger_rows(found).column("offset").to_pylist() == [10, 11, 13]
    assert ledger_rows(found).column("late").to_pylist() == [0, 0, 1]
    assert duplicate_rows(found).column("offset").to_pylist() == [12]
    assert duplicate_rows(found).column("event_id").to_pylist() == ["a"]


def test_the_total_is_the_sum_over_all_kinds():
    kinds = {name: 10**at for at, name in enumerate(TOKEN_KINDS)}
    rows = ledger_rows(events(["a"], **kinds))

    assert rows.column("total_tokens").to_pylist() == [1_111_111_111]


def test_landed_rows_are_left_out():
    rows = ledger_rows(events(["a", "b", "c"]))

    assert rows_not_at(rows, np.array([11, 99])).column("offset").to_pylist() == [10, 12]
    assert rows_not_at(rows, np.zeros(0, np.int64)).num_rows == 3


def test_a_late_event_repeats_what_stands_before_it_in_the_run_but_not_itself():
    found = events(["a", "b", "a", "c", "c"], late=[12, 13, 14])
    late = asked_of(found)

    assert late.column("position").to_pylist() == [2, 3, 4]
    assert repeats_within(found, late) == [2, 4]


@pytest.mark.parametrize("name", ["source", "tenant_id", "account_id"])
def test_an_event_of_another_source_tenant_or_account_is_another_event(name):
    one, other = events(["a"], **{name: "x"}), events(["a"], **{name: "y"})
    joined = Events(
        topic="u",
        partition=1,
        batch=pa.concat_batches([one.batch, other.batch]),
        offsets=np.array([10, 11]),
        appended_ms=np.array([1, 2]),
        late=np.array([False, True]),
        repeats=np.array([False, False]),
    )

    assert repeats_within(joined, asked_of(joined)) == []


def test_a_decoded_batch_without_a_column_of_the_ledger_is_refused():
    found = events(["a"])
    poor = Events(
        topic="u",
        partition=1,
        batch=found.batch.select([name for name in found.batch.schema.names if name != "hold_id"]),
        offsets=found.offsets,
        appended_ms=found.appended_ms,
        late=found.late,
        repeats=found.repeats,
    )
    with pytest.raises(BrokenLog, match="no hold_id"):
        ledger_rows(poor)
