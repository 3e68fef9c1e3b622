"""Records of numbers by the thousand are encoded as `avro` encodes them, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenline.errors import BadData
from tokenline.wire.avro import Codec
from tokenline.wire.flat import FlatCodec, varint, varints
from tokenline.wire.registry import FileRegistry

INT64S = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-70, 70),
    st.sampled_from(
        [edge * 2**bits + step for bits in range(62) for edge in (-1, 1) for step in (-1, 0, 1)]
    ),
)
PLAIN = {"topic": "t.usage", "partition": 1, "lo_offset": 7, "hi_offset": 9, "as_of": 5, "epoch": 2}
LISTS: dict[str, list[int]] = {
    "late_offsets": [],
    "duplicate_offsets": [],
    "rejected_offsets": [],
}


@given(st.lists(INT64S, max_size=40), st.lists(INT64S, max_size=4), st.text(max_size=9))
def test_an_array_of_numpy_is_encoded_as_a_list_is(many, few, topic):
    registry = FileRegistry()
    said = PLAIN | LISTS | {"topic": topic, "charges_utok": many, "splits": few}
    arrays = {name: np.array(said[name], np.int64) for name in ("charges_utok", "splits")}

    assert FlatCodec(registry, "charged_range").encode(said | arrays) == Codec(registry).encode(
        "charged_range", said
    )


@given(st.lists(INT64S, min_size=1))
def test_many_numbers_are_each_written_as_one_is(numbers):
    assert varints(np.array(numbers, np.int64)) == b"".join(map(varint, numbers))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"topic": 7}, "topic"),
        ({"lo_offset": "x"}, "lo_offset"),
        ({"hi_offset": 2**63}, "hi_offset"),
        ({"late_offsets": ["x"]}, "late_offsets"),
        ({"late_offsets": None}, "late_offsets"),
    ],
)
def test_a_field_of_another_type_is_named(wrong, said):
    with pytest.raises(BadData, match=f"charged_range: {said}"):
        FlatCodec(FileRegistry(), "charged_range").encode(PLAIN | LISTS | wrong)


def test_a_record_with_other_fields_is_refused_at_once():
    with pytest.raises(BadData, match=r"usage_event cannot be encoded flat: .*other_units"):
        FlatCodec(FileRegistry(), "usage_event")
