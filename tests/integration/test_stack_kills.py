"""A whole stack with its real workers, and kill -9 of one after the other: each comes back, the rest runs on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from tokenline import Emitter, UsageEvent
from tokenline.accounts.apply import apply_accounts
from tokenline.demo.plans import sample_accounts
from tokenline.landing.connect import connect
from tokenline.landing.reconcile import reconcile
from tokenline.platform import processes
from tokenline.platform.kafka_config import as_role
from tokenline.platform.stack import Stack
from tokenline.platform.worker_process import ask_health
from tokenline.settings import Settings

ACCOUNTS = 20
BACK_S = 40


@pytest.fixture
def stack(tmp_path):
    settings = Settings(session_timeout_ms=2000, idle_flush_ms=200, data_dir=tmp_path / "gateway")
    with Stack(
        settings,
        tmp_path / "line",
        free_ports=True,
        charging_workers=3,
        landing_workers=3,
        say=lambda _: None,
    ) as running:
        asyncio.run(apply_accounts(running.settings, sample_accounts(ACCOUNTS).commands()))
        yield running


@contextmanager
def load(stack, directory):
    """Emit events from a thread until the block is left; then all of them are acknowledged."""
    stop, names = threading.Event(), [one.id for one in sample_accounts(ACCOUNTS).accounts]
    gateway = as_role(stack.settings, "gateway")

    async def emit():
        async with Emitter(
            gateway, source="gw", gateway_id="gw-1", outbox_dir=directory, on_outage="spool"
        ) as emitter:
            number = 0
            while not stop.is_set():
                account = names[number % len(names)]
                emitter.emit_nowait(
                    UsageEvent(account_id=account, provider="p", model="m", input_tokens=7)
                )
                number += 1
                await asyncio.sleep(0.002)
            assert await emitter.flush(60_000)

    with ThreadPoolExecutor(1) as pool:
        emitting = pool.submit(asyncio.run, emit())
        try:
            yield
        finally:
            stop.set()
        emitting.result()


def quarantined(stack):
    """Return what was put aside, for an error's text."""
    settings = stack.settings
    with closing(connect(settings)) as client:
        quarantine = f"{settings.clickhouse_database}.quarantine"
        asked = f"SELECT topic, partition, offset, reason, detail FROM {quarantine} LIMIT 5"
        return client.query(asked).result_rows


def components(stack):
    return {one.component: one for one in stack.status()}


def await_all(stack):
    def all_ready():
        return all(one.state == "ready" for one in stack.status())

    assert processes.wait_for(all_ready, timeout_s=BACK_S), stack.status()


def lags(stack):
    """Return what each landing worker says of its lag, added up, at twenty moments of two seconds."""
    ports = [one.port for one in stack.status() if one.component.startswith("landing")]
    found = []
    for _ in range(20):
        said = [json.loads(ask_health(port, "/healthz")[1])["lag"] for port in ports]
        found.append(sum(sum(one.values()) for one in said))
        time.sleep(0.1)
    return found


def test_at_rest_landing_has_no_lag(stack):
    """Heartbeats that were read and not yet acknowledged looked like rows that had not landed."""
    assert processes.wait_for(lambda: lags(stack).count(0) >= 18, timeout_s=15), lags(stack)


def test_what_is_killed_again_and_again_comes_back_and_the_rest_runs_on(stack, tmp_path):
    """Five deaths of charging within a minute ended broker, warehouse and all."""
    spares = [one for one in stack.status() if "spare" in one.detail]
    assert len([one for one in spares if one.component.startswith("charging")]) == 1
    before = components(stack)
    with load(stack, tmp_path / "outbox"):
        for _ in range(5):
            stack.kill("charging", restart=True)
            assert processes.wait_for(lambda: stack.component("charging").running, timeout_s=12)
        await_all(stack)
        now = components(stack)
        assert "died 5 times, last exit -9 (SIGKILL)" in now["charging"].detail
        assert {name for name, one in now.items() if one.pid != before[name].pid} == {"charging"}
        stack.kill("kafka", restart=True)
        await_all(stack)
        stack.kill("warehouse", restart=True)
        stack.kill("landing-2", restart=True)
        await_all(stack)
    report = reconcile(as_role(stack.settings, "reader"), 60)
    assert report.ok, (report, quarantined(stack))
