"""A topic that was made again under a journal or under seals is not taken for the one that was read."""

from __future__ import annotations

import asyncio
import json

import pytest
from stand import Stand

from tokenline.platform.worker_process import ask_health
from tokenline.wire.topics import ensure_topics


@pytest.fixture
def stand(line_settings, tmp_path):
    with Stand(line_settings(partitions=1), tmp_path) as one:
        one.apply()
        one.start()
        one.use(5)
        one.all_sealed()
        one.stop()
        yield one


def make_again(stand, *stems):
    topics = [stand.topic(stem) for stem in stems]
    for done in stand.admin.delete_topics(topics, operation_timeout=30).values():
        done.result(30)
    stand.until(lambda: not set(topics) & set(stand.admin.list_topics(timeout=20).topics))
    asyncio.run(ensure_topics(stand.settings))


def health(stand, role):
    """Return whether a worker is ready, and why a partition of it waits."""
    status, text = ask_health(stand.workers[role].port, "/readyz")
    return status, json.loads(text)["astray"] if text else []


def spawn(stand, role):
    """Start a worker that is not to become ready."""
    log = stand.log_dir / f"{role}-astray.log"
    stand.workers[role] = worker = stand.worker(role, log)
    worker.spawn()
    stand.until(lambda: health(stand, role)[1], what="it says why it waits")
    return log


@pytest.mark.parametrize("count", [2, 9])
def test_usage_made_again_under_a_journal_is_not_skipped_as_charged(stand, count):
    """Everything said healthy with lag 0, and the next events were taken for charged."""
    make_again(stand, "usage")
    stand.use(count)
    log = spawn(stand, "charging")
    status, (why,) = health(stand, "charging")

    assert status == 503
    assert "the topic was made again" in why
    assert ask_health(stand.workers["charging"].port, "/healthz")[0] == 200
    assert "a remembered position is none" in log.read_text()
    assert 'tokenline_astray{partition="0"}' in stand.metrics()
    # Ranges may be published again; none is new.
    counts = [line for line in stand.metrics().splitlines() if "tokenline_events_total{" in line]
    assert {line.rsplit(" ", 1)[1] for line in counts} <= {"0.0"}


@pytest.mark.parametrize("count", [2, 9])
def test_usage_made_again_under_seals_is_not_cut_away_as_landed(stand, count):
    """Events were charged, in windows, and never in the ledger: they lay below the last seal."""
    make_again(stand, "usage", "charged", "state")
    stand.apply()
    stand.use(count)
    stand.start("charging")
    stand.all_charged()
    before = stand.ask("SELECT count() FROM {db}.ledger")
    log = spawn(stand, "landing")
    status, (why,) = health(stand, "landing")

    assert status == 503
    assert "the topic was made again" in why
    assert "a seal is not of this topic: nothing of it lands" in log.read_text()
    assert stand.ask("SELECT count() FROM {db}.ledger") == before
