"""Build what charging reads, records on paper, and draw them for hypothesis.

A record is what a broker would hand over: an offset, an append time, a key, and the event it says
(None where its bytes could not be decoded).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from tokenline.charging.step import Commanded, Refused, UsageChunk
from tokenline.event import TOKEN_KINDS
from tokenline.metering.judge import Bounds, token_matrix
from tokenline.metering.tally import LineNumbers

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
# 2026-10-31 15:30 UTC: half an hour before November begins in Shanghai.
NOON = 1_793_460_600_000
BOUNDS = Bounds(horizon_ms=HOUR, future_skew_ms=5 * MINUTE, max_age_ms=90 * DAY, max_tokens=10**9)

_TEXTS = (
    "tenant_id",
    "source",
    "event_id",
    "account_id",
    "subscriber_id",
    "gateway_id",
    "gateway_epoch",
    "provider",
    "model",
    "hold_id",
    "corrects",
)
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("gateway_seq", pa.int64()),
        ("occurred_at", pa.timestamp("ms")),
        *((name, pa.int64()) for name in TOKEN_KINDS),
        ("other_units", pa.map_(pa.string(), pa.int64())),
    ]
)


@dataclass(frozen=True, slots=True)
class Record:
    """Be one record of the usage topic; `event` is None when its bytes are no event."""

    offset: int
    appended_ms: int
    key: str | None
    event: dict[str, Any] | None


def event(**fields: Any) -> dict[str, Any]:
    """Return a good event of ten tokens; `fields` say what is different."""
    plain: dict[str, Any] = dict.fromkeys(TOKEN_KINDS, 0) | {
        "tenant_id": "t",
        "source": "gateway",
        "event_id": "e1",
        "account_id": "a",
        "subscriber_id": "s",
        "gateway_id": "g1",
        "gateway_epoch": "1",
        "gateway_seq": 1,
        "provider": "p",
        "model": "m",
        "hold_id": "",
        "corrects": "",
        "occurred_at": NOON,
        "input_tokens": 10,
        "other_units": {},
    }
    return plain | fields


def numbers_of(batch: pa.RecordBatch, slots: Any, offsets: Any, charges: Any = 0) -> LineNumbers:
    """Return what a tally needs beside the batch; `charges` are µtok by catalog version 1."""
    count = len(batch)
    return LineNumbers(
        slots=np.array(slots, np.int64),
        offsets=np.array(offsets, np.int64),
        totals=token_matrix(batch).sum(axis=1),
        charge_utok=np.zeros(count, np.int64) + charges,
        catalog_version=np.ones(count, np.int64),
    )


def key_of(said: dict[str, Any]) -> str:
    """Return the Kafka key an event should come with."""
    return f"{said['tenant_id']}/{said['account_id']}"


def record(offset: int, appended_ms: int = NOON, **fields: Any) -> Record:
    """Return a record with the right key."""
    said = event(**fields)
    return Record(offset, appended_ms, key_of(said), said)


def batch_of(events: list[dict[str, Any]]) -> pa.RecordBatch:
    """Return the events as the columns the decoder gives."""
    rows = [said | {"other_units": list(said["other_units"].items())} for said in events]
    return pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def chunk_of(records: list[Record]) -> UsageChunk:
    """Return the records as one decoded chunk."""
    read = [one for one in records if one.event is not None]
    return UsageChunk(
        lo=records[0].offset,
        hi=records[-1].offset,
        batch=batch_of([one.event for one in read if one.event is not None]),
        keys=[one.key for one in read],
        offsets=np.array([one.offset for one in read], np.int64),
        appended_ms=np.array([one.appended_ms for one in read], np.int64),
        refused=[
            Refused(
                offset=one.offset, appended_ms=one.appended_ms, reason="undecodable", detail="torn"
            )
            for one in records
            if one.event is None
        ],
    )


def command(offset: int = 0, appended_ms: int = NOON - HOUR, **fields: Any) -> Commanded:
    """Return an account command; limits not named are none."""
    limits = ("month_tokens", "minute_tokens", "hour_tokens", "day_tokens")
    requests = ("minute_requests", "hour_requests", "day_requests")
    plain = dict.fromkeys((*limits, *requests), -1) | {
        "tenant_id": "t",
        "account_id": "a",
        "time_zone": "Asia/Shanghai",
    }
    return Commanded(offset=offset, appended_ms=appended_ms, fields=plain | fields)


# What differs between events; all the rest is the same, so that collisions are common.
ACCOUNTS = ("a", "b", "c")
UNKNOWN = "nobody"
TOKENS = st.sampled_from([0, 1, 7, 100, 10**9])
BAD_FIELDS = st.sampled_from(
    [
        {"input_tokens": -1},
        {"output_tokens": 10**9 + 1},
        {"model": ""},
        {"other_units": {"search_count": -1}},
        {"other_units": {"audio_ms": 10**9 + 1}},
    ]
)
# When it occurred, before it was first appended: on time, at each bound, late, too old, ahead.
AGES_MS = st.one_of(
    st.integers(0, 3 * MINUTE),
    st.sampled_from(
        [
            -5 * MINUTE - 1,
            -5 * MINUTE,
            -MINUTE,
            HOUR,
            HOUR + 1,
            2 * HOUR,
            90 * DAY,
            90 * DAY + 1,
        ]
    ),
    st.integers(0, HOUR),
)


@st.composite
def events(draw: st.DrawFn, number: int, now_ms: int) -> dict[str, Any]:
    """Draw one event that nobody sent before, first appended at about `now_ms`."""
    said = event(
        event_id=f"e{number}",
        source=draw(st.sampled_from(["g", "h"])),
        account_id=draw(st.sampled_from([*ACCOUNTS, *ACCOUNTS, *ACCOUNTS, UNKNOWN])),
        subscriber_id=draw(st.sampled_from(["", "s1", "s2"])),
        model=draw(st.sampled_from(["m1", "m2"])),
        occurred_at=now_ms - draw(AGES_MS),
        input_tokens=draw(TOKENS),
        output_tokens=draw(TOKENS),
    )
    return said | (draw(BAD_FIELDS) if draw(st.integers(0, 9)) == 9 else {})


STEPS_MS = st.sampled_from([0, 0, 0, 1, 999, 20_000, MINUTE, 3 * MINUTE, 20 * MINUTE])


@st.composite
def topics(draw: st.DrawFn, most: int = 40) -> list[Record]:
    """Draw the records of one partition in offset order: events, some sent again, some torn."""
    now_ms = NOON + draw(st.integers(0, HOUR))
    sent: list[dict[str, Any]] = []
    records: list[Record] = []
    for offset in range(draw(st.integers(1, most))):
        now_ms += draw(STEPS_MS)
        kind = draw(st.integers(0, 9))
        if kind == 0:
            records.append(Record(offset, now_ms, "t/a", None))
            continue
        if sent and kind <= 3:
            said = draw(st.sampled_from(sent))
        else:
            said = draw(events(number=offset, now_ms=now_ms))
            sent.append(said)
        stray = kind == 9 and draw(st.booleans())
        records.append(Record(offset, now_ms, None if stray else key_of(said), said))
    return records


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Draw where a run of `length` is cut into chunks; always begins with 0 and ends with it."""
    inner = draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=8)) if length > 1 else set()
    return [0, *sorted(inner), length]
