"""Who leaves a part of the line while its broker is away leaves in bounded time, and hears of no error."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from structlog.testing import capture_logs

from tokenline import Emitter, Guard, Settings, UsageEvent
from tokenline.errors import BrokerUnavailable, Unavailable
from tokenline.gateway.gateway import Gateway
from tokenline.wire.catalogs import Catalogs
from tokenline.wire.orders import Orders
from tokenline.wire.outbox import Outbox
from tokenline.wire.topics import ensure_topics

WITHIN_S = 15


@pytest.fixture
async def line(private_kafka, tmp_path):
    settings = Settings(
        **private_kafka.access(),
        topic_prefix=f"t{uuid.uuid4().hex[:8]}.",
        gateway_id="gw",
        data_dir=tmp_path / "data",
    )
    await ensure_topics(settings)
    return settings


def event():
    return UsageEvent(account_id="a", provider="p", model="m")


def parts(settings):
    """Return each part that is left with `async with`, and what it does before."""
    emitter = Emitter(settings, source="s", gateway_id="alone")

    async def emit():
        return emitter.emit_nowait(event())

    async def ask(orders):
        with pytest.raises(Unavailable):
            await orders.order("a", kind="show", timeout_s=0.5)

    gateway, orders, unasked = Gateway(settings), Orders(settings), Orders(settings)

    async def emit_through_gateway():
        return gateway.emit(event())

    return [
        (emitter, emit),
        (Guard(settings), None),
        (orders, lambda: ask(orders)),
        (unasked, None),
        (Catalogs(settings), None),
        (gateway, emit_through_gateway),
    ]


async def test_whatever_is_left_after_the_broker_has_gone_is_left_in_time_and_raises_nothing(
    line, private_kafka
):
    found = parts(line)
    for part, _ in found:
        await part.__aenter__()
    private_kafka.kill()
    for _, does in found:
        if does is not None:
            await does()
    took = {}
    with capture_logs() as said:
        for part, _ in found:
            began = time.monotonic()
            async with asyncio.timeout(60):
                await part.__aexit__(None, None, None)
            took[type(part).__name__] = round(time.monotonic() - began, 1)
    assert max(took.values()) < WITHIN_S, took
    kept = [one["events"] for one in said if one["event"] == "outbox_keeps"]
    assert kept == [1, 1]
    for name in ("alone", "gw"):
        again = Outbox(line.data_dir / "outbox" / name, name)
        assert len(again.take_recovered()) == 1
        again.close()


async def test_an_error_of_its_own_leaves_a_gateway_as_it_was_raised(line, private_kafka):
    error = KeyError("mine")

    async def serve():
        async with Gateway(line) as gateway:
            private_kafka.kill()
            gateway.emit(event())
            raise error

    with pytest.raises(KeyError) as caught:
        await serve()
    assert caught.value is error


async def test_an_emitter_that_is_cancelled_while_it_closes_lets_go_of_its_outbox(
    line, private_kafka
):
    sender = Emitter(line, source="s", gateway_id="gw", close_ms=60_000)
    await sender.start()
    private_kafka.kill()
    sender.emit_nowait(event())
    closing = asyncio.create_task(sender.close())
    await asyncio.sleep(0.1)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    Outbox(line.data_dir / "outbox" / "gw", "gw").close()


async def test_a_gateway_that_never_met_its_broker_leaves_in_time():
    """A cancellation got lost on the way to a client that was just refused: it never ended."""
    settings = Settings(kafka_bootstrap="127.0.0.1:1")
    for wait_s in (0, 0.01, 0.3):
        orders, guard = Orders(settings), Guard(settings, start_ms=1 + int(wait_s * 1000))
        for part in (orders, guard):
            with pytest.raises(BrokerUnavailable):
                await part.__aenter__()
            began = time.monotonic()
            await part.__aexit__(None, None, None)
            assert time.monotonic() - began < WITHIN_S
