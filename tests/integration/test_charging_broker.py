"""The broker goes away under load, by stop and by kill -9, and comes back: nothing is lost.

The worker survives it: its clients wait up to 30 s. Only if the broker is away for longer does the
worker end, with a non-zero code, and the supervisor's restart makes the totals exact.
"""

from __future__ import annotations

import asyncio

from charging_helpers import Line, Load, line_settings, prepared

BACK_WITHIN_S = 15


async def test_the_broker_restarts_under_load(private_kafka, tmp_path):
    settings = line_settings(private_kafka, tmp_path, partitions=4)
    async with Line(settings, tmp_path) as line:
        worker = await prepared(line, month_tokens=300_000)
        async with Load(line):
            for go_down in (private_kafka.stop, private_kafka.kill):
                await line.charging(BACK_WITHIN_S)
                await asyncio.to_thread(go_down)
                await asyncio.sleep(2)  # an outage has to last for a while
                await asyncio.to_thread(private_kafka.start)
                await line.charging(BACK_WITHIN_S)
                assert worker.running
        await line.settled()
