"""Make usage by the million, in columns, and put it on the topic."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from aiokafka import AIOKafkaProducer

from tokenline.event import TOKEN_KINDS
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.topics import COMMANDS, USAGE

BATCH_EVENTS = 20_000
MODELS = np.array(
    ["qwen-max", "qwen-plus", "deepseek-chat", "deepseek-reasoner", "hunyuan-large", "pangu-pro"]
)
PROVIDERS = np.array(["alibaba", "alibaba", "deepseek", "deepseek", "tencent", "huawei"])
Int64s = npt.NDArray[np.int64]
ORDER_BATCH = 1000

_RATE = """
[[rates]]
provider = "{}"
model = "{}"
input_tokens = 1
cache_read_tokens = "0.1"
output_tokens = 4
hours = [{{ from = "23:00", to = "08:00", multiply = "0.5" }}]
"""
_PLANS = """
version = 1
effective_from = 2026-01-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"
{}
[plans.bench]
title = "All that costs time: rates by the hour, an allowance, limits"
fee = "1"
tokens = 1_000_000_000_000
mode = "prepaid"
limits = [
    {{ requests = 1_000_000_000, per = "minute" }},
    {{ tokens = 1_000_000_000_000, per = "hour" }},
    {{ tokens = 1_000_000_000_000, per = "day" }},
]

[plans.pool]
title = "Limits that are looked at event by event: a cap for each member, a week, a rolling day"
fee = "1"
tokens = 1_000_000_000_000
mode = "prepaid"
subscriber_tokens = 500_000_000_000
limits = [
    {{ utok = 1_000_000_000_000_000, per = "week" }},
    {{ tokens = 1_000_000_000_000, per = "day", rolling = true }},
    {{ requests = 1_000_000_000, per = "cycle", of = "subscriber" }},
]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Describe events: how many, over which accounts, spread how.

    `spread`: zipf (the first account has about a twelfth of all), hot (the first has a quarter),
    subscribers (all under one account with 10,000 subscribers).
    """

    events: int
    accounts: int
    spread: str = "zipf"
    seed: int = 7


def account_name(number: int) -> str:
    """Return the name of an account by its number."""
    return f"acct-{number:07d}"


def catalog() -> Catalog:
    """Return a catalog that rates every model of the load and has two plans, `bench` and `pool`."""
    rates = "".join(_RATE.format(*pair) for pair in zip(PROVIDERS, MODELS, strict=True))
    return Catalog.model_validate(tomllib.loads(_PLANS.format(rates)))


async def produce_orders(
    settings: Settings, codec: Codec, accounts: int, plan: str, now_ms: int
) -> None:
    """Put an order on the commands topic for each account, to open it on a plan."""
    producer = AIOKafkaProducer(**client_options(settings), acks="all", max_batch_size=1 << 20)
    async with producer:
        for first in range(0, accounts, ORDER_BATCH):
            some = range(first, min(first + ORDER_BATCH, accounts))
            frames = [
                codec.encode("account_order", _opening(account_name(number), plan, now_ms))
                for number in some
            ]
            keys = [account_key("default", account_name(number)) for number in some]
            await append(producer, settings, COMMANDS, keys, frames)


def _opening(account: str, plan: str, now_ms: int) -> dict[str, object]:
    return {
        "account_id": account,
        "command_id": f"open-{account}",
        "kind": "open",
        "plan": plan,
        "issued_at": now_ms,
    }


def batches(load: Load, now_ms: int) -> Iterator[tuple[Int64s, pa.RecordBatch]]:
    """Yield account numbers and events, BATCH_EVENTS at a time; the same for the same seed."""
    rng = np.random.default_rng(load.seed)
    for first in range(0, load.events, BATCH_EVENTS):
        count = min(BATCH_EVENTS, load.events - first)
        accounts = _accounts(rng, load, count)
        yield accounts, _batch(rng, load, accounts, first, now_ms)


def _accounts(rng: np.random.Generator, load: Load, count: int) -> Int64s:
    if load.spread == "subscribers":
        return np.zeros(count, np.int64)
    if load.spread == "hot":
        drawn = rng.integers(0, load.accounts, count)
        drawn[rng.random(count) < 0.25] = 0
        return drawn
    # Inverse of the cumulative 1/rank law: cheap, and heavy at the head as real accounts are.
    return np.minimum(load.accounts ** rng.random(count), load.accounts - 1).astype(np.int64)


def _batch(
    rng: np.random.Generator, load: Load, accounts: Int64s, first: int, now_ms: int
) -> pa.RecordBatch:
    count = len(accounts)
    model = rng.integers(0, len(MODELS), count)
    names = {number: account_name(number) for number in np.unique(accounts).tolist()}
    subscribers = rng.integers(0, 10_000 if load.spread == "subscribers" else 3, count)
    run = f"{load.seed:012x}"
    text = {
        "tenant_id": ["default"] * count,
        "source": ["bench"] * count,
        "event_id": [f"{run}-{number:012d}" for number in range(first, first + count)],
        "account_id": [names[number] for number in accounts.tolist()],
        "subscriber_id": [f"user-{number}" for number in subscribers.tolist()],
        "gateway_id": ["bench-1"] * count,
        "gateway_version": ["0.1.0"] * count,
        "gateway_epoch": ["bench"] * count,
        "home_domain": ["shanghai"] * count,
        "serving_domain": ["guizhou"] * count,
        "provider": PROVIDERS[model].tolist(),
        "model_requested": MODELS[model].tolist(),
        "model": MODELS[model].tolist(),
        "operation": ["chat"] * count,
        "usage_source": ["reported"] * count,
        "outcome": ["completed"] * count,
        "request_id": [f"req-{number}" for number in range(first, first + count)],
        "hold_id": [""] * count,
        "corrects": [""] * count,
    }
    numbers = dict.fromkeys(TOKEN_KINDS, np.zeros(count, np.int64))
    numbers["input_tokens"] = rng.lognormal(6.5, 1.2, count).astype(np.int64) + 1
    numbers["cache_read_tokens"] = rng.integers(0, 500, count)
    numbers["output_tokens"] = rng.lognormal(5.5, 1.0, count).astype(np.int64) + 1
    numbers["gateway_seq"] = np.arange(first + 1, first + count + 1)
    moment = pa.array(np.full(count, now_ms)).cast(pa.timestamp("ms"))
    empty_units = pa.array([[]] * count, pa.map_(pa.string(), pa.int64()))
    empty_tags = pa.array([[]] * count, pa.map_(pa.string(), pa.string()))
    columns = {name: pa.array(values, pa.string()) for name, values in text.items()}
    columns |= {name: pa.array(values) for name, values in numbers.items()}
    columns |= {
        "occurred_at": moment,
        "started_at": moment,
        "attempt": pa.array(np.ones(count, np.int32)),
    }
    columns |= {"other_units": empty_units, "tags": empty_tags}
    return pa.RecordBatch.from_pydict(columns)


async def produce_usage(settings: Settings, codec: ColumnCodec, load: Load, now_ms: int) -> None:
    """Append the whole load to the usage topic, keyed and partitioned as emitters do."""
    async with _producer(settings) as producer:
        for accounts, batch in batches(load, now_ms):
            frames = codec.encode("usage_event", batch)
            keys = [account_key("default", account_name(number)) for number in accounts.tolist()]
            await append(producer, settings, USAGE, keys, frames)


async def produce_accounts(
    settings: Settings, codec: ColumnCodec, accounts: int, month_tokens: int, now_ms: int
) -> None:
    """Append one command for each account."""
    async with _producer(settings) as producer:
        for first in range(0, accounts, BATCH_EVENTS):
            names = [
                account_name(number) for number in range(first, min(first + BATCH_EVENTS, accounts))
            ]
            frames = codec.encode("account_command", commands(names, month_tokens, now_ms))
            await append(
                producer,
                settings,
                COMMANDS,
                [account_key("default", name) for name in names],
                frames,
            )


def commands(names: Sequence[str], month_tokens: int, now_ms: int) -> pa.RecordBatch:
    """Return account commands that set a monthly allowance and a daily request limit nobody reaches."""
    count = len(names)
    limits = ("minute_tokens", "hour_tokens", "day_tokens", "minute_requests", "hour_requests")
    columns = {
        "tenant_id": pa.array(["default"] * count),
        "account_id": pa.array(list(names)),
        "command_id": pa.array([f"bench-{name}" for name in names]),
        "plan": pa.array(["bench"] * count),
        "time_zone": pa.array(["Asia/Shanghai"] * count),
        "month_tokens": pa.array([month_tokens] * count),
        "day_requests": pa.array([1_000_000_000] * count),
        "issued_at": pa.array([now_ms] * count).cast(pa.timestamp("ms")),
    }
    columns |= {name: pa.array([-1] * count) for name in limits}
    return pa.RecordBatch.from_pydict(columns)


async def append(
    producer: AIOKafkaProducer,
    settings: Settings,
    stem: str,
    keys: Sequence[bytes],
    frames: Sequence[bytes],
) -> None:
    """Append records in whole batches, a batch a partition."""
    topic = settings.topic(stem)
    open_batches = {partition: producer.create_batch() for partition in range(settings.partitions)}
    for key, frame in zip(keys, frames, strict=True):
        partition = partition_of(key, settings.partitions)
        if open_batches[partition].append(key=key, value=frame, timestamp=None) is None:
            await producer.send_batch(open_batches[partition], topic, partition=partition)
            open_batches[partition] = producer.create_batch()
            open_batches[partition].append(key=key, value=frame, timestamp=None)
    sent = [
        await producer.send_batch(batch, topic, partition=partition)
        for partition, batch in open_batches.items()
        if batch.record_count()
    ]
    for future in sent:
        await future


def _producer(settings: Settings) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        **client_options(settings),
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        max_batch_size=1 << 20,
        max_request_size=8 << 20,
    )
