"""A receiver of webhooks, and decisions to tell it; run as a program, a worker that ends at a named step."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

from aiohttp import web
from aiokafka import AIOKafkaProducer

from tokenline.notify import verify
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.registry import FileRegistry
from tokenline.wire.topics import decision_key, ensure_topics, heartbeat_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CODEC = Codec(FileRegistry())
THIS = str(Path(__file__).resolve())


class Receiver:
    """Answer each path by a function of the webhook and how often it came; keep what was taken."""

    def __init__(self):
        self.rules = {}
        self.calls = defaultdict(list)
        self.taken = defaultdict(list)
        self.changed = asyncio.Condition()
        self.port = free_port()

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _take(self, request):
        name, body = request.match_info["name"], await request.read()
        message = verify(SECRET, request.headers, body, int(time.time()))
        said = json.loads(body)
        self.calls[name].append((message, said))
        rule = self.rules.get(name)
        answer = await rule(message, said, self) if rule else web.Response(status=204)
        async with self.changed:
            if answer.status < 300:
                self.taken[name].append((message, said))
            self.changed.notify_all()
        return answer

    async def until(self, done, timeout_s=40):
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(done), timeout_s)

    def told(self, name):
        """Return (account, version) of what was taken, doubles left out, in order of first arrival."""
        first = {
            message: (said["data"]["account_id"], said["data"]["version"])
            for message, said in reversed(self.taken[name])
        }
        return list(reversed(first.values()))


def status(code, **headers):
    async def answer(*_):
        return web.Response(status=code, headers=headers)

    return answer


def decision(account, version, **fields):
    """Return the fields of a decision: a cut, unless said otherwise."""
    return {
        "tenant_id": "default",
        "account_id": account,
        "subscriber_id": "",
        "state": "cut",
        "rule": "balance",
        "reason": "limit_reached",
        "threshold_percent": 100,
        "used": 1_000_000,
        "limit": 1_000_000,
        "window_start": 1_790_000_000_000,
        "resets_at": 1_792_000_000_000,
        "version": version,
        "epoch": 1,
        "as_of": 1_790_000_000_000,
        "model_group": "",
        "models": [],
        "cause_topic": "usage",
        "cause_partition": 0,
        "cause_offset": version,
    } | fields


async def publish(settings, decisions):
    """Append decisions as charging does, each account's to its partition, with heartbeats in between."""
    async with AIOKafkaProducer(**client_options(settings), linger_ms=5) as producer:
        topic, sent = settings.topic("decisions"), []
        for fields in decisions:
            tenant, account = fields["tenant_id"], fields["account_id"]
            to = partition_of(account_key(tenant, account), settings.partitions)
            # Landing believes a decision only where its cause stands.
            value = CODEC.encode("quota_decision", fields | {"cause_partition": to})
            key = decision_key(tenant, account, fields["epoch"])
            sent.append(await producer.send(topic, value, key=key, partition=to))
        for number in range(settings.partitions):
            beat = {"partition": number, "as_of": 1, "next_offset": 0, "epoch": 1}
            value = CODEC.encode("charging_heartbeat", beat)
            key = heartbeat_key(number, 1)
            sent.append(await producer.send(topic, value, key=key, partition=number))
        await asyncio.gather(*sent)


async def line(settings, tmp_path, receiver, endpoints, **changes):
    """Make topics and a webhooks file; return the settings of a worker."""
    await ensure_topics(settings)
    file = tmp_path / "webhooks.toml"
    file.write_text(
        "\n".join(
            f'[[endpoints]]\nname = "{name}"\nurl = "http://127.0.0.1:{receiver.port}/{name}"\n'
            f'secret_env = ["HOOK_SECRET"]\n{more}'
            for name, more in endpoints.items()
        )
    )
    changes = {"webhook_retry_first_ms": 50, "webhook_timeout_ms": 1000} | changes
    return settings.model_copy(update={"webhooks_file": file, **changes})


def worker(settings, tmp_path, *, point="", number=0):
    """Return a worker that is not started; `point` makes it end itself there."""
    log = tmp_path / f"notify-{number}.log"
    program = {"program": (sys.executable, THIS, point)} if point else {}
    return WorkerProcess("notify", settings, log, port=free_port(), **program)


def _run_until(point):
    """Be a worker that ends itself the n-th time it comes to a step: `told:7`."""
    import streams.notify
    from tokenline.platform.worker import run
    from tokenline.settings import Settings

    name, _, count = point.partition(":")
    left, real = int(count), streams.notify.register

    def step(done):
        nonlocal left
        left -= done == name
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    streams.notify.register = lambda *args, **options: real(*args, **options, step=step)
    run("notify", Settings.from_env())


if __name__ == "__main__":
    _run_until(sys.argv[1])
