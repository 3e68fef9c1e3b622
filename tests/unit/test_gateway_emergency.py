"""Emergency slices on disk: they are made whole again however often the disk refuses."""

from __future__ import annotations

import asyncio
import sqlite3
from types import SimpleNamespace

from tokenline.gateway import gateway as module
from tokenline.gateway.emergency import Emergency
from tokenline.gateway.gateway import Gateway
from tokenline.settings import Settings


def full(*_):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_slice_that_cannot_be_counted_serves_nobody_and_ends_no_call(tmp_path):
    emergency = Emergency(tmp_path / "slices.sqlite")
    assert emergency.take("t", "a", 6, 10)
    disk = emergency._db
    emergency._db = SimpleNamespace(execute=full)
    assert not emergency.take("t", "a", 1, 10)
    emergency.correct("t", "a", -5)
    emergency._db = disk
    assert emergency.used_utok("t", "a") == 6
    emergency.close()


async def test_a_disk_that_is_full_just_now_leaves_no_slice_used_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MENDED_EVERY_S", 0.01)
    gateway = Gateway(Settings(data_dir=tmp_path, gateway_id="gw"))
    gateway.emitter = SimpleNamespace(stats=SimpleNamespace(waiting=0))
    gateway.guard._view.apply_heartbeat(0, 1, gateway.now_ms())
    emergency = gateway._emergency = Emergency(tmp_path / "slices.sqlite")
    emergency.take("t", "a", 10, 10)
    disk, turns = emergency._db, iter(range(2))

    def execute(*said):
        for _ in turns:
            full()
        return disk.execute(*said)

    emergency._db = SimpleNamespace(execute=execute, close=disk.close)
    mending = asyncio.create_task(gateway._mend_slices())
    await asyncio.sleep(0.2)
    assert (mending.done(), emergency.in_use, emergency.used_utok("t", "a")) == (False, False, 0)
    mending.cancel()
    emergency.close()
