"""Read and write exact numbers as people do: "0.1", "5/4", "9.9" yuan, "08:00". No float on the way.

What is wrong is a ValueError, so that pydantic adds the place.
"""

from __future__ import annotations

import re
from fractions import Fraction

UTOK = 1_000_000  # µtok in a standard token
NANO = 1_000_000_000  # nano-yuan in a yuan
MULTIPLIER_MAX = 100
UNIT_MAX = 1_000_000  # standard tokens a unit that is no token
YUAN_MAX = 1_000_000_000  # 10^18 nano-yuan, which an int64 holds
DAY_MINUTES = 24 * 60

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_FRACTION = re.compile(r"[0-9]{1,12}/[0-9]{1,12}")
_CLOCK = re.compile(r"([0-9]{2}):([0-9]{2})")


def ratio_of(said: object) -> Fraction:
    """Return a whole number, a decimal as text or a fraction as text.

    Raises:
        ValueError: it is none of them.
    """
    if type(said) is int and said >= 0:
        return Fraction(said)
    if isinstance(said, str) and (_DECIMAL.fullmatch(said) or _is_fraction(said)):
        return Fraction(said)
    hint = '; write it as text, which is exact: "0.1"' if isinstance(said, float) else ""
    raise ValueError(f'{said!r} is not a number such as 2, "0.1" or "5/4"{hint}')


def utok_of(said: object) -> int:
    """Return a multiplier, standard tokens a token, as µtok a token.

    Raises:
        ValueError: it is no number, above MULTIPLIER_MAX, or no whole number of millionths.
    """
    return whole_utok(ratio_of(said) * UTOK, repr(said))


def unit_utok_of(said: object) -> int:
    """Return what a unit costs that is no token, standard tokens a unit, as µtok a unit.

    Raises:
        ValueError: it is no number, above UNIT_MAX, or no whole number of millionths.
    """
    return whole_utok(ratio_of(said) * UTOK, repr(said), UNIT_MAX)


def whole_utok(utok: Fraction, said: str, most: int = MULTIPLIER_MAX) -> int:
    """Return a multiplier in µtok if it is one; `said` is what it is called if not.

    Raises:
        ValueError: it is above `most` or no whole number.
    """
    if utok > most * UTOK:
        raise ValueError(f"{said} is above {most}")
    if utok.denominator != 1:
        raise ValueError(f"{said} is not a whole number of millionths (µtok)")
    return utok.numerator


def nano_of(said: object) -> int:
    """Return an amount of yuan, a decimal as text or a whole number, as nano-yuan.

    Raises:
        ValueError: it is no such number, above YUAN_MAX, or finer than a nano-yuan.
    """
    if isinstance(said, float | bool) or (isinstance(said, str) and not _DECIMAL.fullmatch(said)):
        raise ValueError(f'{said!r} is not an amount of yuan as text, such as "9.9"')
    nano = ratio_of(said) * NANO
    if nano.denominator != 1 or nano > YUAN_MAX * NANO:
        raise ValueError(f"{said!r} yuan is finer than a nano-yuan or above {YUAN_MAX}")
    return nano.numerator


def minute_of(said: object) -> int:
    """Return the minute of the day of "HH:MM", 0 to 1440 ("24:00").

    Raises:
        ValueError: it is no such time.
    """
    found = _CLOCK.fullmatch(said) if isinstance(said, str) else None
    if found:
        hour, minute = (int(part) for part in found.groups())
        if minute < 60 and hour * 60 + minute <= DAY_MINUTES:
            return hour * 60 + minute
    raise ValueError(f'{said!r} is not a time of day such as "08:00"')


def decimal_text(amount: int, unit: int) -> str:
    """Return `amount / unit` as a decimal without trailing zeros; `unit` is a power of ten."""
    whole, rest = divmod(amount, unit)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") if rest else str(whole)


def clock_text(minute: int) -> str:
    """Return a minute of the day as "HH:MM"."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _is_fraction(said: str) -> bool:
    return bool(_FRACTION.fullmatch(said)) and int(said.partition("/")[2]) > 0
