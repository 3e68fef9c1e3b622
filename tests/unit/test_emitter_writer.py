"""The emitter's own encoder writes the bytes that fastavro writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenline.event import INT64_MAX, TOKEN_KINDS, UsageEvent
from tokenline.names import why_bad_of
from tokenline.wire.avro import Codec
from tokenline.wire.event_writer import EventWriter, write_long
from tokenline.wire.registry import FileRegistry

REGISTRY = FileRegistry()
CODEC = Codec(REGISTRY)
EMITTER = {"source": "src", "gateway_id": "g-1", "gateway_version": "2", "gateway_epoch": "e"}
WRITER = EventWriter(REGISTRY, EMITTER)
IDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60).filter(
    lambda text: not (why_bad_of("provider", text) or why_bad_of("model", text))
)
COUNTS = st.integers(0, INT64_MAX) | st.integers(0, 20_000)
EVENTS = st.builds(
    UsageEvent,
    account_id=IDS,
    provider=IDS,
    model=IDS,
    event_id=IDS,
    source=st.just("") | IDS,
    request_id=st.just("") | IDS,
    attempt=st.integers(1, 10_000),
    occurred_at=st.just(0) | COUNTS,
    started_at=COUNTS,
    usage_source=st.sampled_from(["reported", "partial", "estimated"]),
    outcome=st.sampled_from(["completed", "client_abort", "upstream_error", "cut_off"]),
    other_units=st.dictionaries(IDS, COUNTS, max_size=3),
    tags=st.dictionaries(IDS, IDS, max_size=3),
    **dict.fromkeys(TOKEN_KINDS, COUNTS),
)


@given(event=EVENTS, seq=st.integers(1, INT64_MAX), now_ms=st.integers(1, 2**41))
def test_any_event_is_written_as_fastavro_writes_it(event, seq, now_ms):
    record = event.record() | EMITTER | {"gateway_seq": seq}
    record["source"] = event.source or "src"
    record["occurred_at"] = event.occurred_at or now_ms

    assert WRITER.write(event, seq, now_ms) == CODEC.encode("usage_event", record)


@given(
    st.integers(0, INT64_MAX) | st.sampled_from([2**n + d for n in range(1, 63) for d in (-1, 0)])
)
def test_any_number_is_read_back(number):
    decoded = shift = 0
    for byte in write_long(number):
        decoded |= (byte & 0x7F) << shift
        shift += 7

    assert decoded == number << 1
