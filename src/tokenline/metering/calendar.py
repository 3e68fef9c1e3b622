"""Find the calendar windows a moment is in, in an account's own zone.

Windows are half-open, `[start, end)`. Days and months begin at local midnight, so a day may have
23, 24 or 25 hours. Hours are clock hours of the zone; where its clock is moved by less than one, as by half
an hour on Lord Howe Island, one of them is shorter. Resolution: one minute.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from tokenline.errors import BadData

MINUTE_MS = 60_000
# What is shorter is no cycle, but what a move to another zone leaves of one.
CYCLE_MIN_MS = 2 * 86_400_000
ZONE_MINUTES = 1 << 40  # more minutes than there are
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """Hold start and end of the windows around one minute, in ms since the epoch."""

    minute: tuple[int, int]
    hour: tuple[int, int]
    day: tuple[int, int]
    month: tuple[int, int]


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return the IANA zone.

    Raises:
        BadData: there is no such zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadData(f"time_zone {name!r} is not an IANA zone such as Asia/Shanghai") from error


@lru_cache(maxsize=65_536)
def spans_at(zone_name: str, minute_ms: int) -> Spans:
    """Return the windows that hold the minute beginning at `minute_ms`."""
    zone = zone_of(zone_name)
    local = datetime.fromtimestamp(minute_ms / 1000, zone)
    day = local.replace(hour=0, minute=0, fold=0)
    month = day.replace(day=1)
    next_month = (month + timedelta(days=32)).replace(day=1)
    return Spans(
        minute=(minute_ms, minute_ms + MINUTE_MS),
        hour=_hour(zone, local, minute_ms),
        day=(_ms(day), _ms(day + timedelta(days=1))),
        month=(_ms(month), _ms(next_month)),
    )


@lru_cache(maxsize=65_536)
def cycle_at(zone_name: str, day: int, minute_ms: int) -> tuple[int, int]:
    """Return start and end of the bill cycle that holds the minute beginning at `minute_ms`.

    A cycle begins at local midnight of `day` (1 to 31), in a shorter month of its last day.
    """
    local = datetime.fromtimestamp(minute_ms / 1000, zone_of(zone_name))
    start = _anchored(local, day)
    if start > local:
        start = _anchored(local.replace(day=1) - timedelta(days=1), day)
    end = _anchored(start.replace(day=1) + timedelta(days=32), day)
    return _ms(start), _ms(end)


def cycle_after(zone_name: str, day: int, ended_ms: int, minute_ms: int) -> tuple[int, int]:
    """Return start and end of the cycle that holds a minute, where one ended at `ended_ms` before it.

    What a move to another zone leaves between two cycles belongs to the second, whoever looks when.
    """
    start_ms, end_ms = cycle_at(zone_name, day, minute_ms)
    if start_ms < ended_ms and end_ms - ended_ms < CYCLE_MIN_MS:
        start_ms, end_ms = end_ms, cycle_at(zone_name, day, end_ms)[1]
    return ended_ms if start_ms - ended_ms < CYCLE_MIN_MS else start_ms, end_ms


@lru_cache(maxsize=65_536)
def week_at(zone_name: str, minute_ms: int) -> tuple[int, int]:
    """Return start and end of the week, from Monday's local midnight (ISO 8601), that holds a minute."""
    local = datetime.fromtimestamp(minute_ms // 1000, zone_of(zone_name))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    start = day - timedelta(days=day.weekday())
    return _ms(start), _ms(start + timedelta(days=7))


def month_starts(zone_names: list[str], zone_codes: Int64s, moments_ms: Int64s) -> Int64s:
    """Return for each moment the start of its month in the zone its code names.

    Work is done once for each distinct (zone, minute), of which a chunk has few.
    """
    codes = zone_codes * ZONE_MINUTES + moments_ms // MINUTE_MS
    if (codes == codes[0]).all():
        return np.full(len(codes), _month_start(zone_names, int(codes[0])), np.int64)
    distinct, inverse = np.unique(codes, return_inverse=True)
    starts = [_month_start(zone_names, code) for code in distinct.tolist()]
    return np.array(starts, np.int64)[inverse]


def _month_start(zone_names: list[str], code: int) -> int:
    zone, minute = divmod(code, ZONE_MINUTES)
    return spans_at(zone_names[zone], minute * MINUTE_MS).month[0]


def days_of(zone_name: str, start_ms: int, end_ms: int) -> int:
    """Return how many calendar days lie from the day of one moment to the day of another."""
    zone = zone_of(zone_name)
    start, end = (datetime.fromtimestamp(ms // 1000, zone).date() for ms in (start_ms, end_ms))
    return (end - start).days


def days_end(zone_name: str, moment_ms: int, days: int) -> int:
    """Return when the last of so many local days ends; the rest of the moment's own day comes on top."""
    local = datetime.fromtimestamp(moment_ms // 1000, zone_of(zone_name))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return _ms(day + timedelta(days=days + 1))


def day_of_month(zone_name: str, moment_ms: int) -> int:
    """Return the day of the month, 1 to 31, on which a moment falls."""
    return datetime.fromtimestamp(moment_ms // 1000, zone_of(zone_name)).day


def moment_text(zone_name: str, moment_ms: int) -> str:
    """Return a moment as people read it, to the second: "2026-10-01 00:00:00 +0800 (Asia/Shanghai)"."""
    try:
        local = (EPOCH + timedelta(milliseconds=moment_ms)).astimezone(zone_of(zone_name))
    except OverflowError:  # It has no date.
        return f"{moment_ms} ms since the epoch"
    return f"{local:%Y-%m-%d %H:%M:%S %z} ({zone_name})"


def _anchored(local: datetime, day: int) -> datetime:
    """Return midnight of `day` in the month of `local`."""
    last = monthrange(local.year, local.month)[1]
    return local.replace(day=min(day, last), hour=0, minute=0, second=0, microsecond=0, fold=0)


def _ms(local: datetime) -> int:
    return int(local.astimezone(UTC).timestamp()) * 1000


def _hour(zone: ZoneInfo, local: datetime, minute_ms: int) -> tuple[int, int]:
    """Return the clock hour around a minute; it ends where the clock is moved, and another begins there."""
    # Subtracting minutes in absolute time keeps both passes of a repeated hour apart.
    start_ms = minute_ms - local.minute * MINUTE_MS
    end_ms, offset = start_ms + 60 * MINUTE_MS, local.utcoffset()
    while _offset(zone, start_ms) != offset:
        start_ms += MINUTE_MS
    while _offset(zone, end_ms - MINUTE_MS) != offset:
        end_ms -= MINUTE_MS
    return start_ms, end_ms


def _offset(zone: ZoneInfo, moment_ms: int) -> timedelta | None:
    return datetime.fromtimestamp(moment_ms // 1000, zone).utcoffset()
