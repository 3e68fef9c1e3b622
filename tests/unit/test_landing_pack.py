from __future__ import annotations

import pyarrow as pa
import pytest

from tokenline.landing.pack import INT8_VALUES, packed


@pytest.mark.parametrize(
    ("values", "index"), [(1, pa.int8()), (INT8_VALUES, pa.int8()), (INT8_VALUES + 1, pa.int32())]
)
def test_few_values_are_named_by_one_byte_and_stay_what_they_are(values, index):
    models = [f"m{at % values}" for at in range(3 * values)]
    rows = packed(pa.table({"model": models, "event_id": models}))

    assert rows.column("model").type == pa.dictionary(index, pa.string())
    assert rows.column("model").to_pylist() == models
    assert rows.column("event_id").type == pa.string()


def test_no_rows_have_a_dictionary_too():
    empty = pa.table({"model": pa.array([], pa.string()), "event_id": pa.array(["a"])[:0]})

    assert packed(empty).num_rows == 0


def test_columns_of_defaults_are_not_sent():
    rows = pa.table({"event_id": ["a", "b"], "hold_id": ["", ""], "input_tokens": [0, 0]})

    assert packed(rows).column_names == ["event_id"]
