"""Draw records that fit an Avro schema, and damage their bytes; for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values(kind):
    """Draw a value of an Avro type."""
    if isinstance(kind, dict):
        inner = kind["type"]
        if inner == "enum":
            return st.sampled_from(kind["symbols"])
        if inner == "map":
            return st.dictionaries(TEXT, values(kind["values"]), max_size=3)
        if inner == "array":
            return st.lists(values(kind["items"]), max_size=3)
        if inner == "record":
            return records(kind)
        return values(inner)
    return {"string": TEXT, "int": INT32, "long": INT64, "boolean": st.booleans()}[kind]


def records(schema):
    """Draw a record with every field of the schema."""
    return st.fixed_dictionaries(
        {field["name"]: values(field["type"]) for field in schema["fields"]}
    )


@st.composite
def damaged(draw, datum: bytes):
    """Draw a version of the bytes with one to four faults: changed, inserted, removed, cut."""
    data = bytearray(datum)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        fault = draw(st.sampled_from(["change", "insert", "remove", "cut"]))
        byte = draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        if fault == "insert" or not data:
            data[at:at] = bytes([byte]) * draw(st.integers(1, 11))
        elif fault == "change":
            data[at] = byte
        elif fault == "remove":
            del data[at]
        else:
            del data[at:]
    return bytes(data)
