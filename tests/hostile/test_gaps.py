"""Offsets may have gaps, whoever made them: both workers go on, and say what became of each offset."""

from __future__ import annotations

import time

import pytest
from stand import Stand, event

from tokenline.audit.reconcile import Accepted
from tokenline.wire.kafka import account_key


@pytest.fixture
def stand(settings, tmp_path):
    with Stand(settings.model_copy(update={"partitions": 2}), tmp_path) as one:
        one.apply()
        yield one


def records_of(stand, count):
    key = account_key("default", stand.account)
    return [(key, event(stand.account)) for _ in range(count)]


def kinds(report):
    return [one.kind for one in report.differences]


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_records_of_a_transaction_are_dead_letters_and_its_marker_is_a_gap(stand, end):
    """Landing ended with `next charged range starts at 8`, at every start; aborted usage was charged."""
    stand.start()
    stand.use(2)
    stand.in_transaction(records_of(stand, 3), end=end)
    stand.use(2)
    stand.in_transaction(records_of(stand, 1), end=end)  # the marker is the last offset there is
    stand.all_sealed()
    assert stand.bounds("usage") == (0, 10)
    stand.restart()
    report = stand.reconcile()

    assert (report.ok, kinds(report), report.seal_faults) == (True, [], [])
    assert stand.letters() == {"transactional_record": 4}
    assert stand.seals("counted", "rejected", "absent") == (4, 4, 2)
    assert report.totals["counted_tokens"] == 40


def test_a_partition_that_ends_with_a_marker_is_fresh(stand):
    """Its guards went stale, and all their calls stopped: there was a lag of one that never went."""
    stand.start()
    stand.use(1)
    stand.in_transaction(records_of(stand, 1), end="commit")
    stand.all_sealed()
    stand.until(lambda: 'lag_records{partition="0",topic="usage"} 0.0' in stand.metrics(), 20)


def test_a_marker_may_be_the_first_offset_that_there_is(stand):
    stand.in_transaction(records_of(stand, 1), end="commit")
    stand.use(2)
    stand.delete_to("usage", 1)
    stand.start()
    stand.all_sealed()
    stand.restart()
    report = stand.reconcile(accepted=Accepted(deleted=1))

    assert (report.ok, kinds(report)) == (True, [])
    assert stand.seals("deleted", "absent", "counted") == (1, 1, 2)


def test_a_transaction_that_is_left_open_holds_nobody_up(stand):
    stand.start()
    stand.use(1)
    producer = stand.in_transaction(records_of(stand, 2), end="leave")
    began = time.monotonic()
    stand.use(1)
    stand.all_sealed(within_s=15)
    took = time.monotonic() - began
    stand.restart()
    stand.use(1)
    stand.all_sealed(within_s=15)
    report = stand.reconcile()
    producer.abort_transaction(30)
    stand.all_sealed()

    assert took < 15
    assert (report.ok, stand.reconcile().ok) == (True, True)
    assert stand.letters() == {"transactional_record": 2}
    assert stand.seals("counted", "rejected", "absent") == (3, 2, 1)


@pytest.mark.parametrize("left", [3, 0])
def test_what_was_deleted_before_it_was_charged_is_counted_loudly_and_nothing_stops(stand, left):
    """Both workers ended, at every start."""
    stand.start()
    stand.use(2)
    stand.all_sealed()
    stand.stop()
    before = time.time()
    stand.use(4 + left)
    stand.delete_to("usage", 6)
    stand.start()
    stand.all_sealed()
    stand.use(1)
    stand.all_sealed()
    assert 'deleted_records_total{topic="usage"} 4.0' in stand.metrics()
    stand.restart()
    report = stand.reconcile()
    (lost,) = report.differences

    assert (lost.kind, lost.where, lost.left, report.ok) == ("deleted", "usage[0]", 4, False)
    assert stand.seals("counted", "deleted", "absent") == (3 + left, 4, 0)
    ((since, until),) = stand.ask(
        "SELECT toUnixTimestamp(deleted_since), toUnixTimestamp(deleted_until) "
        "FROM {db}.seals FINAL WHERE deleted > 0"
    )
    assert since <= before + 1 <= until + 2 <= time.time() + 3
    assert stand.reconcile(accepted=Accepted(deleted=4)).ok
    assert not stand.reconcile(wait_s=1, accepted=Accepted(deleted=3)).ok
    assert report.waited_s < 20


def test_what_was_deleted_before_it_landed_is_counted_loudly_and_nothing_stops(stand):
    """Landing ended with `was charged but is not in Kafka`, at every start."""
    stand.start()
    stand.use(2)
    stand.all_sealed()
    stand.stop("landing")
    stand.use(5)
    stand.all_charged()
    stand.delete_to("usage", 5)
    stand.start("landing")
    stand.all_sealed()
    stand.restart()
    report = stand.reconcile(wait_s=3)

    assert stand.seals("counted", "unlanded", "deleted") == (4, 3, 0)
    assert "unlanded" in kinds(report)
    assert not report.ok
    assert (report.totals["window_tokens"], report.totals["counted_tokens"]) == (70, 40)


def test_where_charged_ranges_are_lost_landing_goes_on_and_says_which(stand):
    """It ended with `the charged topic lost records`, at every start."""
    stand.start()
    stand.use(2)
    stand.all_sealed()
    stand.stop("landing")
    for _ in range(2):
        stand.use(2)
        stand.all_charged()
        lost = stand.bounds("charged")[1]
    stand.delete_to("charged", lost)
    stand.use(2)
    stand.start("landing")
    stand.all_sealed()
    stand.restart()
    report = stand.reconcile(wait_s=3)

    assert stand.seals("counted", "unjudged") == (4, 4)
    assert "unjudged" in kinds(report)
    assert "charged ranges are lost" in "".join(
        one.read_text() for one in stand.log_dir.glob("landing-*.log")
    )


def test_holes_that_compaction_leaves_are_gaps(stand):
    stand.start()
    stand.use(2)
    stand.all_sealed()
    stand.stop()
    compact(stand)
    stand.start()
    stand.all_sealed()
    stand.restart()
    report = stand.reconcile()

    absent, counted = stand.seals("absent", "counted")
    assert absent > 0
    assert absent + counted == stand.bounds("usage")[1]
    assert (report.ok, kinds(report)) == (True, [])


def compact(stand):
    """Have the broker compact usage that nobody read yet, until records are gone in the middle."""
    from confluent_kafka.admin import (
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        ResourceType,
    )

    def configure(kind, name, **entries):
        entries = [
            ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for key, value in entries.items()
        ]
        resource = ConfigResource(kind, name, incremental_configs=entries)
        for done in stand.admin.incremental_alter_configs([resource]).values():
            done.result(30)

    configure(ResourceType.BROKER, "1", log_cleaner_backoff_ms="200")
    configure(
        ResourceType.TOPIC, stand.topic("usage"), cleanup_policy="compact", segment_ms="100",
        min_cleanable_dirty_ratio="0.01", max_compaction_lag_ms="100", delete_retention_ms="0",
    )  # fmt: skip
    for _ in range(4):
        stand.use(20)
        time.sleep(0.3)
    stand.until(lambda: records_there(stand) < 60, what="compacted")
    configure(ResourceType.TOPIC, stand.topic("usage"), cleanup_policy="delete")


def records_there(stand):
    """Return how many records a reader gets of the partition."""
    from confluent_kafka import TopicPartition

    options = {"enable.partition.eof": True, "auto.offset.reset": "earliest"}
    consumer = stand.consumer(**options)
    consumer.assign([TopicPartition(stand.topic("usage"), 0, 0)])
    count = 0
    while not consumer.poll(10).error():
        count += 1
    consumer.close()
    return count
