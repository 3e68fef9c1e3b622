"""A follower of decisions tells what is a decision, whatever else stands on the topic."""

from __future__ import annotations

from types import SimpleNamespace

from streams.metrics import NotifyMetrics
from streams.notify import EndpointFollower
from streams.webhooks import Counts
from tests.unit.test_notify_parts import decision
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.registry import FileRegistry

CODEC = Codec(FileRegistry())


def record(offset, value):
    return SimpleNamespace(offset=offset, value=value, key=b"default/acme#1", timestamp=1)


def test_a_record_that_is_no_decision_is_told_to_nobody_and_those_around_it_are():
    """It ended the worker, and each that was started after it."""
    good = CODEC.encode("quota_decision", decision())
    other = CODEC.encode("gateway_total", dict.fromkeys(("emitted", "acknowledged", "as_of"), 1)
                         | {"gateway_id": "g", "gateway_epoch": "e"})  # fmt: skip
    values = [good, b"junk", b"", other, b"\0\0\0\xff\xff", good[:-4], None, good]
    wanted = SimpleNamespace(wants=lambda _: True, name="crm")
    deliveries = SimpleNamespace(endpoint=wanted, counts=Counts(), waiting=0)
    follower = EndpointFollower(None, Settings(), deliveries, CODEC)
    jobs = list(follower._jobs([record(at, value) for at, value in enumerate(values)], 0))

    assert [job.offset for job in jobs] == [0, 7]
    assert deliveries.counts.ignored == 5
    (seen,) = [one for one in NotifyMetrics([follower]).collect() if "ignored" in one.name]
    assert [(one.labels, one.value) for one in seen.samples] == [({"topic": "decisions"}, 5)]
