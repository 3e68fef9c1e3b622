"""A fetch is cut so that what becomes of it fits one batch of the journal."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pytest

from streams.intake import RUN_MAX_BYTES, decode_usage, runs_of
from streams.outputs import Outputs
from tests.strategies import BOUNDS, NOON
from tokenline.charging.fold import fold_usage
from tokenline.charging.journal import JournalWriter
from tokenline.charging.partition import PartitionState
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import STATE_MAX_BYTES


@dataclass(frozen=True)
class Raw:
    """Be a record as the parser yields it."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp: int = NOON


def sizes(*lengths):
    return [Raw(offset, b"x" * length) for offset, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        ([], []),
        ([3, 3, 4], [[0, 1, 2]]),
        ([3, 3, 4, 1], [[0, 1, 2], [3]]),
        ([1, 99, 1, 1], [[0], [1], [2, 3]]),
        ([0, 99, 99], [[0, 1], [2]]),
    ],
)
def test_runs_hold_ten_bytes_or_one_record_and_lose_none(lengths, cut):
    found = runs_of(sizes(*lengths), 10, max_bytes=10)
    assert [[record.offset for record in run] for run in found] == cut


def test_a_run_holds_so_many_records_and_counts_their_keys():
    assert [len(run) for run in runs_of(sizes(*[0] * 7), 3)] == [3, 3, 1]
    keyed = [Raw(offset, None, key=b"12345") for offset in range(3)]
    assert [len(run) for run in runs_of(keyed, 3, max_bytes=10)] == [2, 1]


def test_the_largest_run_fits_one_batch_of_the_journal_even_if_nothing_of_it_can_be_read():
    """It did not: 10,000 refused events of 1.2 kB ended the worker, at each start anew."""
    settings = Settings()
    registry = open_registry(settings)
    codec, columns = Codec(registry), ColumnCodec(registry)
    count = Settings.model_fields["max_chunk_records"].metadata[1].le
    frame = b"".join(uuid.uuid4().bytes for _ in range(RUN_MAX_BYTES // count // 16))
    records = [Raw(offset, frame[offset % 64 :] + frame[: offset % 64]) for offset in range(count)]
    (run,) = runs_of(records, count)
    state, writer = PartitionState(BOUNDS), JournalWriter(epoch=1, remember_ms=BOUNDS.horizon_ms)

    step = fold_usage(state, decode_usage(columns, run))
    out = Outputs(settings, codec, columns, None, 0).messages(state, step, run)
    written = writer.records(state, step, out)

    assert len(step.refused) == count
    assert sum(len(key) + len(value or b"") for key, value in written) < STATE_MAX_BYTES - 4096
