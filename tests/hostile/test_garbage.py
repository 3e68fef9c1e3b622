"""Whoever reaches the broker may write anything on any topic: no worker ends, and what is real goes on."""

from __future__ import annotations

import base64
import json

import pytest
from stand import CODEC, Stand, now_ms

from tokenline.audit.reconcile import Accepted
from tokenline.wire.registry import FileRegistry

# Topics that only our workers write, and what landing keeps of garbage on them.
OURS = ("decisions", "windows", "balances", "charged", "dead-letters", "control")
GARBAGE = (b"", b"\0", b"junk", b"\0\0\0\xff\xff" + b"x" * 20, b"\0\0\0\0\x01" + b"\xff" * 30)


@pytest.fixture
def stand(line_settings, tmp_path):
    webhooks = tmp_path / "webhooks.toml"
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + base64.b64encode(b"s" * 32).decode())
    webhooks.write_text(
        f'[[endpoints]]\nname = "crm"\nurl = "http://127.0.0.1:9"\nsecret_file = ["{secret}"]\n'
    )
    with Stand(line_settings(partitions=2, webhooks_file=webhooks), tmp_path) as one:
        one.apply()
        yield one


def charged_range(stand, **fields):
    said = {
        "topic": stand.topic("usage"), "partition": 0, "lo_offset": 0, "hi_offset": 0,
        "as_of": now_ms(), "epoch": 1, "late_offsets": [], "duplicate_offsets": [],
        "rejected_offsets": [],
    }  # fmt: skip
    return CODEC.encode("charged_range", said | fields)


def test_garbage_on_every_topic_ends_no_worker_and_stops_nothing_behind_it(stand):
    roles = ("charging", "landing", "notify")
    stand.start(*roles)
    stand.use(2)
    stand.all_sealed()
    for stem in (*OURS, "state", "replies", "catalog", "commands", "usage"):
        stand.put(stem, [(b"key", value) for value in GARBAGE])
    stand.use(2)
    stand.all_sealed()
    aside = "SELECT topic, count() FROM {db}.v_quarantine GROUP BY topic ORDER BY topic"
    expected = sorted((stand.topic(stem), len(GARBAGE)) for stem in OURS)
    stand.until(lambda: [(t, int(n)) for t, n in stand.ask(aside)] == expected, what="put aside")
    lines = [f'quarantined_total{{topic="{stand.topic(stem)}"}} 5.0' for stem in OURS]
    assert [line for line in lines if line not in stand.metrics("landing")] == []

    stand.stop(*roles)
    stand.start(*roles)
    assert 'ignored_records_total{topic="state"} 5.0' in stand.metrics()
    assert "the journal has records that are not ours" in stand.text("charging")
    stand.use(2)
    stand.all_sealed()
    report = stand.reconcile(wait_s=10)

    assert {one.kind for one in report.differences} == {"quarantine"}
    assert {one.where: one.left for one in report.differences} == dict(expected)
    assert stand.reconcile(accepted=Accepted(quarantined=5 * len(OURS))).ok
    assert stand.seals("counted", "rejected", "unjudged", "unlanded") == (6, 5, 0, 0)


def test_a_forged_range_is_put_aside_and_the_real_ones_behind_it_land(stand):
    """One ended landing at every start, or took the next usage of the partition for landed."""
    stand.start()
    stand.use(3)
    stand.all_sealed()
    other = {"partition": 1}
    forged = [
        charged_range(stand, lo_offset=2, hi_offset=900),  # what Kafka does not have
        charged_range(stand, lo_offset=2, hi_offset=2**62),
        charged_range(stand, lo_offset=5, hi_offset=3),
        charged_range(stand, lo_offset=-5, hi_offset=-3),
        charged_range(stand, late_offsets=[2**40]),
        charged_range(stand, **other),
        charged_range(stand, topic="elsewhere"),
    ]
    stand.put("charged", [(b"0", value) for value in forged])
    stand.use(3)
    stand.put("charged", [(b"0", charged_range(stand, lo_offset=4, hi_offset=5, epoch=2**40))])
    stand.use(3)
    stand.all_sealed(within_s=90)
    stand.put("windows", [(b"k", frame) for frame in windows_that_nobody_counted(stand)])
    aside = f"SELECT count() FROM {{db}}.v_quarantine WHERE topic = '{stand.topic('windows')}'"
    stand.until(lambda: stand.ask(aside) == [(2,)], what="windows put aside")
    stand.restart()
    stand.use(1)
    stand.all_sealed()
    report = stand.reconcile(wait_s=10)

    assert {one.kind for one in report.differences} == {"quarantine"}
    assert stand.ask("SELECT sum(events) FROM {db}.v_windows") == [(10,)]
    assert report.totals["quarantined"] >= len(forged) + 2
    assert stand.seals("counted", "unjudged", "unlanded") == (10, 0, 0)
    assert stand.reconcile(accepted=Accepted(quarantined=report.totals["quarantined"])).ok


def windows_that_nobody_counted(stand):
    """One of an account elsewhere, and one with -1 events: ClickHouse would take that for 2^64 - 1."""
    stray = next(name for name in map("stray-{}".format, range(99)) if stand.home(name) == 1)
    numbers = ("events", "total_tokens", "version", "window_start", "segment_start")
    kinds = [name for name in fields_of("account_window") if name.endswith("_tokens")]
    window = dict.fromkeys(kinds, 0) | dict.fromkeys(numbers, 5) | {
        "tenant_id": "default", "account_id": stray, "subscriber_id": "", "provider": "p",
        "model": "m", "grain": "minute", "partition": 0,
    }  # fmt: skip
    own = window | {"account_id": stand.account, "events": -1}
    return [CODEC.encode("account_window", one) for one in (window, own)]


def fields_of(name):
    registry = FileRegistry()
    text = registry.text(registry.newest_id(name))
    return [field["name"] for field in json.loads(text)["fields"]]
