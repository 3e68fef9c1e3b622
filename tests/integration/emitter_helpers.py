"""Read whole topics and run a gateway that is killed; for the tests of emitter and guard."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

from tokenline import Emitter, Settings, UsageEvent
from tokenline.errors import OutboxFull
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import client_options
from tokenline.wire.registry import FileRegistry

CODEC = Codec(FileRegistry())


async def read_topic(settings, stem):
    """Return every record of a topic, from the start to its present end, in partition order."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        topic = settings.topic(stem)
        found = await consumer._client._wait_on_metadata(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(found)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        records = []
        while any([await consumer.position(at) < end for at, end in ends.items()]):
            for fetched in (await consumer.getmany(timeout_ms=200)).values():
                records += fetched
    finally:
        await consumer.stop()
    return sorted(records, key=lambda record: (record.partition, record.offset))


async def read_events(settings):
    """Return every usage event on the topic as a record, in partition order."""
    return [CODEC.decode(record.value)[1] for record in await read_topic(settings, "usage")]


async def last_totals(settings):
    """Return the newest control total of each key."""
    totals = await read_topic(settings, "control")
    return {record.key.decode(): CODEC.decode(record.value)[1] for record in totals}


async def emit_until_killed(settings, outbox_dir, accepted):
    """Emit as fast as the outbox takes it; note each accepted event behind the emitter's back."""
    note = os.open(accepted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with Emitter(
        settings, source="s", gateway_id="gw-1", outbox_dir=outbox_dir, on_outage="spool"
    ) as emitter:
        for number in range(10**9):
            event = UsageEvent(account_id=f"a{number % 50}", provider="p", model="m")
            try:
                emitter.emit_nowait(event)
            except OutboxFull:
                await asyncio.sleep(0.01)
                continue
            os.write(note, event.event_id.encode() + b"\n")
            if number % 20 == 0:
                await asyncio.sleep(0.0005)


def main():
    """Be the gateway: python emitter_helpers.py OUTBOX ACCEPTED; settings come from the environment."""
    outbox_dir, accepted = sys.argv[1:]
    asyncio.run(emit_until_killed(Settings.from_env(), Path(outbox_dir), accepted))


if __name__ == "__main__":
    main()
