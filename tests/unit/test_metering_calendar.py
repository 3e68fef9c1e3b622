"""Windows begin and end where the account's clock on the wall says, also when that clock jumps."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest

from tests.strategies import DAY, HOUR, MINUTE
from tokenline.errors import BadData
from tokenline.metering.calendar import month_starts, spans_at, zone_of


def utc_ms(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def said(span):
    return tuple(datetime.fromtimestamp(ms // 1000, UTC).strftime("%m-%dT%H:%M") for ms in span)


def test_windows_in_shanghai_begin_at_its_own_midnight():
    spans = spans_at("Asia/Shanghai", utc_ms("2026-10-31T15:30"))

    assert said(spans.minute) == ("10-31T15:30", "10-31T15:31")
    assert said(spans.hour) == ("10-31T15:00", "10-31T16:00")
    assert said(spans.day) == ("10-30T16:00", "10-31T16:00")
    assert said(spans.month) == ("09-30T16:00", "10-31T16:00")


def test_a_window_is_half_open():
    before = spans_at("Asia/Shanghai", utc_ms("2026-10-31T15:59"))
    after = spans_at("Asia/Shanghai", utc_ms("2026-10-31T16:00"))

    assert before.month[1] == after.month[0]
    assert before.day[1] == after.day[0] == after.hour[0] == utc_ms("2026-10-31T16:00")


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", 25),
        ("America/New_York", "2026-03-08T12:00", 23),
        ("America/New_York", "2026-11-01T12:00", 25),
        ("Asia/Shanghai", "2026-10-25T12:00", 24),
    ],
)
def test_a_day_has_the_hours_its_zone_gives_it(zone, moment, hours):
    day = spans_at(zone, utc_ms(moment)).day
    assert day[1] - day[0] == hours * HOUR


def test_both_passes_of_a_repeated_hour_are_hours_of_their_own():
    first = spans_at("Europe/Berlin", utc_ms("2026-10-25T00:30")).hour
    second = spans_at("Europe/Berlin", utc_ms("2026-10-25T01:30")).hour

    assert said(first) == ("10-25T00:00", "10-25T01:00")
    assert said(second) == ("10-25T01:00", "10-25T02:00")


def test_a_day_whose_midnight_does_not_exist_begins_when_the_clock_jumps():
    """Cairo goes from 23:59 to 01:00 on the last Friday of April."""
    day = spans_at("Africa/Cairo", utc_ms("2026-04-24T12:00")).day
    assert said(day) == ("04-23T22:00", "04-24T21:00")


def test_a_day_whose_midnight_comes_twice_begins_with_the_first():
    """Havana goes from 00:59 back to 00:00 on 1 November."""
    for moment in ("2026-11-01T04:30", "2026-11-01T05:30"):
        spans = spans_at("America/Havana", utc_ms(moment))
        assert said(spans.day) == ("11-01T04:00", "11-02T05:00")
        assert said(spans.month)[0] == "11-01T04:00"


@pytest.mark.parametrize(
    ("zone", "moment", "hour", "day"),
    [
        ("Asia/Kolkata", "2026-05-01T00:10", "04-30T23:30", "04-30T18:30"),
        ("Asia/Kathmandu", "2026-05-01T00:10", "04-30T23:15", "04-30T18:15"),
        ("America/St_Johns", "2026-01-15T03:40", "01-15T03:30", "01-15T03:30"),
    ],
)
def test_zones_off_the_full_hour_have_hours_of_their_own(zone, moment, hour, day):
    spans = spans_at(zone, utc_ms(moment))
    assert (said(spans.hour)[0], said(spans.day)[0]) == (hour, day)


@pytest.mark.parametrize(
    ("moment", "days"),
    [("2026-02-10T00:00", 28), ("2028-02-29T23:59", 29), ("2026-12-31T23:59", 31)],
)
def test_a_month_has_its_days(moment, days):
    month = spans_at("UTC", utc_ms(moment)).month
    assert month[1] - month[0] == days * DAY


def test_the_month_after_december_is_january():
    assert said(spans_at("UTC", utc_ms("2026-12-31T23:59")).month)[1] == "01-01T00:00"


def test_windows_tile_a_year_without_gap_or_overlap():
    for zone in ("Europe/Berlin", "Africa/Cairo", "America/Havana", "Asia/Kathmandu"):
        at, end = utc_ms("2026-01-01T12:00"), utc_ms("2027-01-01T12:00")
        while at < end:
            spans = spans_at(zone, at)
            assert spans.day[0] <= at < spans.day[1]
            assert spans_at(zone, spans.day[1]).day[0] == spans.day[1]
            assert spans_at(zone, spans.month[1]).month[0] == spans.month[1]
            at = spans.day[1]


def test_month_starts_of_many_zones_are_those_of_each():
    zones = ["Asia/Shanghai", "UTC", "America/St_Johns"]
    moments = np.arange(utc_ms("2026-10-31T12:00"), utc_ms("2026-11-01T06:00"), 7 * MINUTE + 13)
    codes = np.arange(len(moments)) % 3
    expected = [
        spans_at(zones[code], int(ms) // MINUTE * MINUTE).month[0]
        for code, ms in zip(codes, moments, strict=True)
    ]

    assert month_starts(zones, codes, moments).tolist() == expected
    assert month_starts(zones, codes[:1], moments[:1]).tolist() == expected[:1]


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Asia/../Asia", "\0"])
def test_what_is_no_zone_is_bad_data(name):
    with pytest.raises(BadData, match="IANA zone"):
        zone_of(name)


def lord_howe(day):
    """Return each hour window that a minute of a day falls into, in order."""
    start = utc_ms(f"{day}T00:00")
    return list(
        dict.fromkeys(
            spans_at("Australia/Lord_Howe", start + minute * MINUTE).hour
            for minute in range(48 * 60)
        )
    )


# Clocks go half an hour back at 2:00 on 2026-04-05 and forward on 2026-10-04.
@pytest.mark.parametrize("day", ["2026-04-04", "2026-10-03"])
def test_hours_neither_overlap_nor_leave_gaps_where_a_clock_moves_by_half_an_hour(day):
    hours = lord_howe(day)
    for (_, end), (start, _) in pairwise(hours):
        assert end == start
    lengths = [(end - start) // MINUTE for start, end in hours]
    assert sorted(set(lengths)) == [30, 60]
    assert lengths.count(30) == 1


@pytest.mark.parametrize(
    "zone",
    [
        "Europe/Berlin",
        "America/New_York",
        "America/St_Johns",
        "Asia/Kathmandu",
        "Africa/Casablanca",
    ],
)
def test_hours_follow_each_other_in_every_zone_through_a_year(zone):
    at, year = utc_ms("2026-01-01T00:00"), 366 * DAY
    end = spans_at(zone, at).hour[1]
    while end < at + year:
        start, following = spans_at(zone, end).hour
        assert start == end
        assert 30 * MINUTE <= following - start <= HOUR
        assert spans_at(zone, following - MINUTE).hour == (start, following)
        end = following
