"""Offsets may have gaps, whoever made them: both workers go on, and say what became of each offset.

One line lives through all of it, a kind of gap a partition; each test looks at one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from stand import Stand, event

from tokenline.audit.reconcile import Accepted
from tokenline.wire.kafka import account_key

COMMIT, ABORT, FRESH, FIRST, OPEN, DELETED, ALL_DELETED, UNLANDED, UNJUDGED = range(9)


@dataclass
class Story:
    """Hold what happened to the line, and what `reconcile` said at its end."""

    stand: Stand
    report: object = None
    accepted: object = None
    fresh_after_s: float = 0.0
    open_after_s: float = 0.0
    deleted_at_s: float = 0.0
    deleted_metric: str = ""
    landing_log: str = ""

    def tell(self):
        self._before_anybody_reads()
        self.stand.start()
        self._while_all_run()
        self._while_nobody_runs()
        self._while_landing_is_away()
        self.stand.restart()
        self._at_the_end()

    def use(self, place, count):
        self.stand.use(count, self.stand.accounts[place])

    def transact(self, place, count, end):
        account = self.stand.accounts[place]
        records = [(account_key("default", account), event(account)) for _ in range(count)]
        return self.stand.in_transaction(records, end=end, partition=place)

    def settle(self, *places):
        for place in places or range(9):
            self.stand.all_sealed(place)

    def _before_anybody_reads(self):
        self.stand.apply(*self.stand.accounts)
        self.transact(FIRST, 1, "commit")
        self.use(FIRST, 2)
        self.stand.delete_to("usage", 1, FIRST)

    def _while_all_run(self):
        for place, end in ((COMMIT, "commit"), (ABORT, "abort")):
            self.use(place, 2)
            self.transact(place, 3, end)
            self.use(place, 2)
            self.transact(place, 1, end)  # the marker is the last offset there is
        self.use(OPEN, 1)
        self.left = self.transact(OPEN, 2, "leave")
        began = time.monotonic()
        self.use(OPEN, 1)
        self.settle(OPEN)
        self.open_after_s = time.monotonic() - began
        for place in (DELETED, ALL_DELETED, UNLANDED, UNJUDGED):
            self.use(place, 2)
        self.settle()
        self.use(FRESH, 1)
        self.transact(FRESH, 1, "commit")
        began = time.monotonic()
        self.stand.all_charged(FRESH)
        lag = f'lag_records{{partition="{FRESH}",topic="usage"}} 0.0'
        self.stand.until(lambda: lag in self.stand.metrics())
        self.fresh_after_s = time.monotonic() - began
        self.settle(FRESH)

    def _while_nobody_runs(self):
        self.stand.stop()
        self.deleted_at_s = time.time()
        self.use(DELETED, 7)
        self.use(ALL_DELETED, 4)
        for place in (DELETED, ALL_DELETED):
            self.stand.delete_to("usage", 6, place)
        self.stand.start()
        self.settle()
        for place in (DELETED, ALL_DELETED):
            self.use(place, 1)
        self.settle()
        self.deleted_metric = self.stand.metrics()

    def _while_landing_is_away(self):
        self.stand.stop("landing")
        self.use(UNLANDED, 5)
        self.stand.all_charged(UNLANDED)
        self.stand.delete_to("usage", 5, UNLANDED)
        for _ in range(2):
            self.use(UNJUDGED, 2)
            self.stand.all_charged(UNJUDGED)
        self.stand.delete_to("charged", self.stand.bounds("charged", UNJUDGED)[1], UNJUDGED)
        self.use(UNJUDGED, 2)
        self.stand.start("landing")
        self.settle()
        self.landing_log = self.stand.text("landing")

    def _at_the_end(self):
        self.report = self.stand.reconcile(wait_s=2)
        self.accepted = self.stand.reconcile(wait_s=1, accepted=Accepted(deleted=9))
        self.left.abort_transaction(30)
        self.settle(OPEN)


@pytest.fixture(scope="module")
def story(line_settings, tmp_path_factory):
    with Stand(line_settings(partitions=9), tmp_path_factory.mktemp("logs")) as stand:
        told = Story(stand)
        told.tell()
        yield told


def named(report):
    return {(one.kind, one.where): one.left for one in report.differences}


@pytest.mark.parametrize("place", [COMMIT, ABORT])
def test_records_of_a_transaction_are_dead_letters_and_its_marker_is_a_gap(story, place):
    """Landing ended with `next charged range starts at 8`, at every start; aborted usage was charged."""
    assert story.stand.bounds("usage", place) == (0, 10)
    assert story.stand.letters(f"partition = {place}") == {"transactional_record": 4}
    assert story.stand.seals("counted", "rejected", "absent", partition=place) == (4, 4, 2)


def test_a_partition_that_ends_with_a_marker_is_fresh(story):
    """Its guards went stale, and all their calls stopped: there was a lag of one that never went."""
    assert story.fresh_after_s < 15
    assert story.stand.seals("counted", "rejected", "absent", partition=FRESH) == (1, 1, 1)


def test_a_marker_may_be_the_first_offset_that_there_is(story):
    assert story.stand.bounds("usage", FIRST)[0] == 1
    assert story.stand.seals("deleted", "absent", "counted", partition=FIRST) == (1, 1, 2)


def test_a_transaction_that_is_left_open_holds_nobody_up(story):
    assert story.open_after_s < 15
    assert story.stand.letters(f"partition = {OPEN}") == {"transactional_record": 2}
    assert story.stand.seals("counted", "rejected", "absent", partition=OPEN) == (2, 2, 1)


@pytest.mark.parametrize(("place", "counted"), [(DELETED, 6), (ALL_DELETED, 3)])
def test_what_was_deleted_before_it_was_charged_is_counted_loudly(story, place, counted):
    """Both workers ended, at every start."""
    assert story.stand.seals("counted", "deleted", "absent", partition=place) == (counted, 4, 0)
    assert named(story.report)["deleted", f"usage[{place}]"] == 4
    ((since, until),) = story.stand.ask(
        "SELECT toUnixTimestamp(deleted_since), toUnixTimestamp(deleted_until) "
        f"FROM {{db}}.seals FINAL WHERE deleted > 0 AND partition = {place}"
    )
    assert since <= story.deleted_at_s + 1 <= until + 2 <= time.time() + 3
    assert 'deleted_records_total{topic="usage"} 8.0' in story.deleted_metric


def test_what_was_deleted_is_accepted_by_its_exact_number(story):
    assert {kind for kind, _ in named(story.accepted)}.isdisjoint({"deleted"})
    wrong = story.stand.reconcile(wait_s=1, accepted=Accepted(deleted=8))
    assert named(wrong)["deleted", "usage"] == 9


def test_what_was_deleted_before_it_landed_is_counted_loudly(story):
    """Landing ended with `was charged but is not in Kafka`, at every start."""
    found = story.stand.seals("counted", "unlanded", "deleted", partition=UNLANDED)
    assert found == (4, 3, 0)
    assert named(story.report)["unlanded", f"usage[{UNLANDED}]"] == 3
    assert "usage was charged and is gone before it landed" in story.landing_log


def test_where_charged_ranges_are_lost_landing_goes_on_and_says_which(story):
    """It ended with `the charged topic lost records`, at every start."""
    assert story.stand.seals("counted", "unjudged", partition=UNJUDGED) == (4, 4)
    assert named(story.report)["unjudged", f"usage[{UNJUDGED}]"] == 4
    assert "charged ranges are lost" in story.landing_log


def test_nothing_else_differs_and_no_seal_is_broken(story):
    """What was charged and did not land is in the windows and in no ledger; all else agrees."""
    lost = {story.stand.accounts[place] for place in (UNLANDED, UNJUDGED)}
    for one in story.report.differences:
        assert one.kind in {"deleted", "unlanded", "unjudged", "account", "window"}
        account = one.where.split(" ")[0].partition("/")[2]
        assert one.kind not in {"account", "window"} or account in lost
    assert story.report.seal_faults == []


def test_holes_that_compaction_leaves_are_gaps(line_settings, tmp_path):
    with Stand(line_settings(partitions=1), tmp_path) as stand:
        stand.apply()
        stand.start()
        stand.use(2)
        stand.all_sealed()
        stand.stop()
        compact(stand)
        stand.start()
        stand.all_sealed()
        report = stand.reconcile()

        absent, counted = stand.seals("absent", "counted")
        assert absent > 0
        assert absent + counted == stand.bounds("usage")[1]
        assert report.ok


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
    deadline = time.monotonic() + 60
    # Only a segment that is closed is compacted, and one is closed by what comes after it.
    while records_there(stand) == stand.bounds("usage")[1]:
        assert time.monotonic() < deadline, "nothing was compacted"
        stand.use(5)
    configure(ResourceType.TOPIC, stand.topic("usage"), cleanup_policy="delete")


def records_there(stand):
    """Return how many records a reader gets of the partition."""
    from confluent_kafka import KafkaError, TopicPartition

    options = {"enable.partition.eof": True, "auto.offset.reset": "earliest"}
    consumer = stand.consumer(**options)
    consumer.assign([TopicPartition(stand.topic("usage"), 0, 0)])
    count = 0
    while (message := consumer.poll(10)) is None or not message.error():
        count += message is not None
    # Another error would pass for holes.
    assert message.error().code() == KafkaError._PARTITION_EOF
    consumer.close()
    return count
