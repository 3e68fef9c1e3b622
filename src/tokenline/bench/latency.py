"""Measure the time from an event to the cut-off it causes, at a steady rate.

Everything is made before the watch starts, and each slice goes out as whole batches: the load must not
take the processor from the worker it measures, nor keep its own listener waiting (it did: a slice late by
the making of 20,000 events was counted as the worker's).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tokenline.bench import load as loads
from tokenline.clock import SystemClock
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import DECISIONS, USAGE

CLOCK = SystemClock()
SLICE_S = 0.01
PROBE_EVERY = 50
LAST_WAIT_S = 2.0

Records = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Slice:
    """Hold what goes out in one moment: records by partition, and the accounts it cuts off."""

    records: Mapping[int, Records]
    probes: Sequence[str]


async def latencies_ms(settings: Settings, rate: int, seconds: float, offset: int) -> list[float]:
    """Emit at `rate` and return, for each cut-off caused, milliseconds from event to decision.

    One event in fifty goes to an account of its own whose allowance is one token, so it is cut by it.
    A cut-off that does not come within two seconds of the last event counts as that long.
    """
    slices = list(_slices(settings, rate, seconds, offset))
    sent_s: dict[str, float] = {}
    found: list[float] = []
    consumer = AIOKafkaConsumer(
        settings.topic(DECISIONS),
        **client_options(settings),
        auto_offset_reset="latest",
        fetch_max_wait_ms=10,
    )
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    async with producer, consumer:
        await consumer.seek_to_end()
        listener = asyncio.create_task(
            _listen(consumer, Codec(open_registry(settings)), sent_s, found)
        )
        with _no_garbage_collection():
            await _emit(producer, settings.topic(USAGE), slices, sent_s)
            await asyncio.sleep(LAST_WAIT_S)
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener
    now_s = time.perf_counter()
    return found + [(now_s - began) * 1000 for began in sent_s.values()]


def probes_of(rate: int, seconds: float) -> int:
    """Return how many accounts a window cuts off."""
    return -(-_events_of(rate, seconds) // PROBE_EVERY)


def _events_of(rate: int, seconds: float) -> int:
    return _slice_events(rate) * int(seconds / SLICE_S)


def _slice_events(rate: int) -> int:
    return max(int(rate * SLICE_S), 1)


def probe_name(number: int) -> str:
    """Return the name of an account that one event cuts off."""
    return f"probe-{number:07d}"


def _slices(settings: Settings, rate: int, seconds: float, offset: int) -> Iterator[Slice]:
    columns = ColumnCodec(open_registry(settings))
    size = _slice_events(rate)
    load = loads.Load(events=_events_of(rate, seconds), accounts=1000, seed=offset + rate)
    probe = offset
    for _, batch in loads.batches(load, CLOCK.wall_ms()):
        names = batch.column("account_id").to_pylist()
        for i in range(0, len(names), PROBE_EVERY):
            names[i] = probe_name(probe)
            probe += 1
        at = batch.schema.get_field_index("account_id")
        frames = columns.encode("usage_event", batch.set_column(at, "account_id", pa.array(names)))
        for first in range(0, len(names), size):
            end = first + size
            yield _slice(settings.partitions, names[first:end], frames[first:end])


def _slice(partitions: int, names: Sequence[str], frames: Sequence[bytes]) -> Slice:
    records: dict[int, Records] = defaultdict(list)
    for name, frame in zip(names, frames, strict=True):
        key = account_key("default", name)
        records[partition_of(key, partitions)].append((key, frame))
    return Slice(records, [name for name in names if name.startswith("probe-")])


async def _emit(
    producer: AIOKafkaProducer, topic: str, slices: Sequence[Slice], sent_s: dict[str, float]
) -> None:
    began = time.perf_counter()
    sent: list[asyncio.Future[object]] = []
    for turn, part in enumerate(slices):
        await asyncio.sleep(max(began + turn * SLICE_S - time.perf_counter(), 0))
        # From when it was due: a slice that a slow broker keeps waiting is late for its gateway too.
        sent_s.update(dict.fromkeys(part.probes, began + turn * SLICE_S))
        for partition, records in part.records.items():
            batch = producer.create_batch()
            for key, value in records:
                batch.append(key=key, value=value, timestamp=None)
            sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)


async def _listen(
    consumer: AIOKafkaConsumer, codec: Codec, sent_s: dict[str, float], found: list[float]
) -> None:
    async for record in consumer:
        if record.value is None:
            continue
        name, fields = codec.decode(record.value)
        if name == "quota_decision" and fields["state"] == "cut":
            began = sent_s.pop(str(fields["account_id"]), None)
            if began is not None:
                found.append((time.perf_counter() - began) * 1000)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
