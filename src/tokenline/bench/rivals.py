"""Run what people would use instead, on the same topic: stock Faust with a table, and bare aiokafka.

python -m tokenline.bench.rivals stock SECONDS      prints events a second
python -m tokenline.bench.rivals bare EVENTS
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import client_options
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import USAGE


def run_stock(settings: Settings, seconds: float) -> None:
    """Sum tokens by account the way Faust's documentation shows it, for a while."""
    import faust  # noqa: PLC0415  only this rival needs it

    from streams.credentials import faust_credentials  # noqa: PLC0415  as above

    codec = Codec(open_registry(settings))
    app = faust.App(
        f"{settings.topic_prefix}stock-{os.getpid()}",
        broker=f"kafka://{settings.kafka_bootstrap}",
        broker_credentials=faust_credentials(settings),
        datadir=settings.data_dir / "stock",
        store="memory://",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication_factor,
        web_enabled=False,
        topic_disable_leader=True,
    )
    totals = app.Table("totals", default=int, partitions=settings.partitions)
    topic = app.topic(
        settings.topic(USAGE), value_serializer="raw", value_type=bytes, key_serializer="raw"
    )

    @app.agent(topic)
    async def sum_tokens(stream: Any) -> None:
        began, events = 0.0, 0
        async for frame in stream:
            event: dict[str, Any] = codec.decode(frame)[1]
            totals[event["account_id"]] += event["input_tokens"] + event["output_tokens"]
            began = began or time.perf_counter()
            events += 1
            if time.perf_counter() - began > seconds:
                print("", events / (time.perf_counter() - began), flush=True)
                os._exit(0)

    faust.Worker(
        app, loglevel="ERROR", quiet=True, redirect_stdouts=False, daemon=True
    ).execute_from_commandline()


async def run_bare(settings: Settings, events: int) -> None:
    """Fetch records and look at none of them."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), auto_offset_reset="earliest", max_partition_fetch_bytes=4 << 20
    )
    await consumer.start()
    consumer.assign(
        [TopicPartition(settings.topic(USAGE), number) for number in range(settings.partitions)]
    )
    # From the first call on: what the first fetch brings (a third of a short run) takes its time too.
    seen, began = 0, time.perf_counter()
    while seen < events:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=10_000)
        seen += sum(map(len, fetched.values()))
    print(seen / (time.perf_counter() - began), flush=True)
    await consumer.stop()


def main(argv: list[str]) -> None:
    """Run the rival named first."""
    settings = Settings.from_env()
    if argv[0] == "stock":
        run_stock(settings, float(argv[1]))
    else:
        asyncio.run(run_bare(settings, int(argv[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
