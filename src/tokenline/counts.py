"""Take in numbers of whatever library a caller uses, and refuse what is none; pure.

A count is of any integral type, numpy's among them, and becomes an `int` here. A bool is no count: who
passes one has mixed something up. Nor is a whole float, a text of digits or None.
"""

from __future__ import annotations

import math
import operator
from numbers import Real

from tokenline.errors import InvalidEvent

INT64_MAX = 2**63 - 1
_SHOWN_CHARS = 80


def count_of(name: str, value: object, most: int = INT64_MAX) -> int:
    """Return a count as an int.

    Raises:
        InvalidEvent: it is none, is below zero or above `most`; the text names it.
    """
    number = value if type(value) is int else _whole(name, value)
    if number < 0:
        raise InvalidEvent(f"{name} must not be negative, and is {number}")
    if number > most:
        over = "does not fit 63 bits" if most == INT64_MAX else f"is above {most}, the most taken"
        raise InvalidEvent(f"{name} {over}: {number}")
    return number


def duration_of(name: str, value: object) -> float:
    """Return a duration as it is, in the unit that its name ends in: finite and not negative.

    Raises:
        InvalidEvent: it is none; the text names it.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidEvent(f"{name} must be a number, not {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    # NaN is neither.
    if not 0 <= found < math.inf:
        raise InvalidEvent(f"{name} must be 0 or more, and finite, not {shown(value)}")
    return found


def shown(value: object) -> str:
    """Return how a value reads in an error; a long one is cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _whole(name: str, value: object) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # what callers pass may be anything
        except TypeError:
            pass
    raise InvalidEvent(f"{name} must be a whole number (int), not {shown(value)}")
