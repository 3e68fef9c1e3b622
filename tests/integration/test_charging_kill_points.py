"""The journal of a partition, compacted as hard as Kafka may, read back after a crash at any step.

No broker: time must jump by minutes here. `Topic` keeps only the last value of each key, always.
"""

from __future__ import annotations

import numpy as np
import pytest
from charging_helpers import command, frame, usage
from charging_oracle import key_of

from tests.paper_line import recover
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.step import Commanded, UsageChunk
from tokenline.metering.judge import Bounds
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

COLUMNS = ColumnCodec(FileRegistry())
BOUNDS = Bounds(
    horizon_ms=3_600_000, future_skew_ms=300_000, max_age_ms=90 * 86_400_000, max_tokens=10**9
)
BEGAN_MS = 1_790_000_040_000


class Topic:
    """A compacted topic partition."""

    def __init__(self):
        self.end = 0
        self.survivors = {}

    def append(self, records):
        for key, value in records:
            self.survivors.pop(key, None)
            if value is not None:
                self.survivors[key] = (self.end, value)
            self.end += 1


class Owner:
    """One life of a writer: what a line does, without a broker; `published` outlives it."""

    def __init__(self, topic, published):
        self.topic, self.published = topic, published
        self.state = PartitionState(BOUNDS)
        found = recover(self.state, topic.survivors)
        self.writer = found.writer()
        topic.append(self.writer.opening())
        for flush in found.unflushed:
            self._publish(flush)

    def apply(self, account):
        fields = command(account, month_tokens=1000)
        stands = self.state.next_offsets["commands"]
        applied = Commanded(offset=stands, appended_ms=BEGAN_MS - 60_000, fields=fields)
        self._journal(fold_commands(self.state, [applied], stands))

    def charge(self, minute, *tokens, publish=True):
        """Count one event of each number of tokens, appended in `minute`, as one step."""
        now_ms = BEGAN_MS + minute * 60_000
        events = [usage("a", input_tokens=n, occurred_at=now_ms) for n in tokens]
        first = self.state.next_offsets["usage"]
        offsets = np.arange(first, first + len(events))
        chunk = UsageChunk(
            lo=first,
            hi=int(offsets[-1]),
            batch=COLUMNS.decode("usage_event", [frame(event) for event in events]).batch,
            keys=[key_of(event).decode() for event in events],
            offsets=offsets,
            appended_ms=np.full(len(events), now_ms),
            refused=[],
        )
        self._journal(fold_usage(self.state, chunk), publish=publish)

    def rest(self):
        """Publish the open minute, as a line does that has nothing else to do."""
        flush = self.state.flush()
        if flush is not None:
            self._publish(flush)

    def _journal(self, step, *, publish=True):
        self.topic.append(self.writer.records(self.state, step, []))
        if publish and step.flush is not None:
            self._publish(step.flush)

    def _publish(self, flush):
        for row in flush.windows.iter_rows(named=True):
            at = row["window_start"], row["version"]
            said = row["events"], row["total_tokens"]
            assert self.published.setdefault(at, said) == said, "one version says two things"
        self.state.note_flushed(flush)


def totals(published):
    """Return events and tokens of each window as the highest version has them."""
    newest = {start: said for (start, _), said in sorted(published.items())}
    return [newest[start] for start in sorted(newest)]


@pytest.fixture
def topic():
    return Topic()


@pytest.fixture
def published():
    return {}


def opened(topic, published):
    owner = Owner(topic, published)
    owner.apply("a")
    return owner


def test_a_line_that_rested_every_minute_recovers_nothing_half(topic, published):
    owner = opened(topic, published)
    for tokens in (1, 2, 4):
        owner.charge(0, tokens)
    owner.rest()
    for minute in (1, 2, 3):
        owner.charge(minute, 8)
        owner.rest()
    Owner(topic, published).rest()
    assert totals(published) == [(3, 7), (1, 8), (1, 8), (1, 8)]


@pytest.mark.parametrize("gap", [1, 2, 3, 6])
def test_a_crash_at_the_first_step_after_a_gap_keeps_the_minute_before(topic, published, gap):
    owner = opened(topic, published)
    for tokens in (1, 2, 4):
        owner.charge(0, tokens)
    owner.charge(gap, 8, publish=False)
    Owner(topic, published).rest()
    assert totals(published) == [(3, 7), (1, 8)]


def test_what_a_fenced_owner_wrote_stays_dead_when_the_opening_is_compacted_away(topic, published):
    first = opened(topic, published)
    first.charge(0, 1)
    second = Owner(topic, published)
    first.charge(0, 2)  # too late: it will learn so from the answer
    second.charge(0, 4)
    third = Owner(topic, published)
    third.rest()
    assert totals(published) == [(2, 5)]
    assert third.state.totals.tokens == 5


def test_a_third_owner_finds_what_two_wrote(topic, published):
    for minute, tokens in enumerate((1, 2, 4)):
        owner = opened(topic, published)
        owner.charge(minute, tokens, publish=False)
    owner = Owner(topic, published)
    owner.rest()
    assert totals(published) == [(1, 1), (1, 2), (1, 4)]
    assert owner.state.totals.counted == 3
