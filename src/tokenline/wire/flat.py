"""Encode records of numbers by the thousand: a charged range has some for every event of its step.

`avro` looks at each number by itself, a quarter of a microsecond; here an array is encoded as one. Only
records whose fields are texts, integers and arrays of integers can be encoded so.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.errors import BadData
from tokenline.wire.avro import header_of, without_logical_types

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenline.wire.registry import Registry

Int64s = npt.NDArray[np.int64]

# Ten groups of seven bits hold 64.
LONGEST = 10
_KINDS = ("string", "int", "long", "longs")
# More than one value of a group of seven bits: bit n + 1 groups long.
_BOUNDS = np.array([1 << (7 * groups) for groups in range(1, LONGEST)], np.uint64)


class FlatCodec:
    """Encode records of one name under its newest schema."""

    def __init__(self, registry: Registry, name: str) -> None:
        schema_id = registry.newest_id(name)
        self._name, self._header = name, header_of(schema_id)
        schema = without_logical_types(json.loads(registry.text(schema_id)))
        self._fields = [
            (field["name"], _kind_of(field["type"]), field.get("default"))
            for field in schema["fields"]
        ]
        if strange := [field for field, kind, _ in self._fields if kind not in _KINDS]:
            raise BadData(f"{name} cannot be encoded flat: {', '.join(strange)}")

    def encode(self, record: Mapping[str, object]) -> bytes:
        """Return the frame of `record`; arrays may be lists or arrays of NumPy, missing fields take defaults.

        Raises:
            BadData: a field is missing or of another type.
        """
        parts = [self._header]
        try:
            for name, kind, default in self._fields:
                parts.append(_encoded(kind, record.get(name, default)))
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise BadData(f"this is not a {self._name}: {name}: {error}") from error
        return b"".join(parts)


def _kind_of(kind: object) -> str:
    if isinstance(kind, dict) and kind.get("items") == "long":
        return "longs"
    return str(kind["type"] if isinstance(kind, dict) else kind)


def _encoded(kind: str, value: object) -> bytes:
    if kind == "string":
        text = str.encode(value)  # type: ignore[arg-type]  # a TypeError is what is wanted
        return varint(len(text)) + text
    if kind in ("int", "long"):
        return varint(int(value))  # type: ignore[call-overload]  # as above
    values = np.asarray(value, np.int64)
    # A block of all of them, then a block of none, which ends an array.
    return b"".join((varint(len(values)), varints(values), b"\0")) if len(values) else b"\0"


def varint(number: int) -> bytes:
    """Return an int64 as Avro writes it: zigzag, then groups of seven bits, the lowest first.

    Raises:
        OverflowError: it is more than an int64 holds.
    """
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"{number} is no int64")
    left, groups = (number << 1) ^ (number >> 63), []
    while left > 0x7F:
        groups.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes((*groups, left))


def varints(numbers: Int64s) -> bytes:
    """Return many numbers one behind the other, each as `varint` has it."""
    left = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    if left.max() <= 0x7F:
        return left.astype(np.uint8).tobytes()
    sizes = np.searchsorted(_BOUNDS, left, side="right") + 1
    longest = int(sizes.max())
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]), np.uint8)
    starts = ends - sizes
    for group in range(longest):
        here = slice(None) if group == 0 else np.flatnonzero(sizes > group)
        more = (sizes[here] > group + 1).astype(np.uint8) << 7
        low = (left[here] >> np.uint64(7 * group)).astype(np.uint8) & 0x7F
        out[starts[here] + group] = low | more
    return out.tobytes()
