"""Emergency slices on disk: no disk holds up a call, and they are made whole again however often it refuses."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from types import SimpleNamespace

import pytest

from tokenline.errors import SettingsError
from tokenline.gateway import gateway as module
from tokenline.gateway.emergency import Emergency
from tokenline.gateway.gateway import Gateway
from tokenline.settings import Settings


class Disk:
    """Stand before the file of slices: refuse a number of writes, or hold one up."""

    def __init__(self, emergency, refused=0):
        self.file, self.refused, self.writes = emergency._file, refused, []
        self.gate = threading.Event()
        self.gate.set()
        self.written = threading.Event()
        self._write = emergency._file.write
        emergency._file.write = self.write

    def write(self, rows, *, cleared):
        self.gate.wait(10)
        self.writes.append(dict(rows))
        if self.refused:
            self.refused -= 1
            raise sqlite3.OperationalError("database or disk is full")
        self._write(rows, cleared=cleared)
        self.written.set()


@pytest.fixture
def opened(tmp_path):
    """Open slices of one file, and close them at the end."""
    found = []

    def opener():
        found.append(Emergency(tmp_path / "a" / "b" / "slices.sqlite"))
        return found[-1]

    yield opener
    for one in found:
        one.close()


async def test_what_is_taken_is_on_disk_before_its_call_begins(opened):
    emergency = opened()
    assert not emergency.in_use
    assert await emergency.take("t", "a", 60, 100) == ""
    # A crash: nothing more is written.
    again = opened()
    assert (again.in_use, again.used_utok("t", "a")) == (True, 60)
    assert "used up" in await again.take("t", "a", 41, 100)
    assert await again.take("t", "a", 40, 100) == ""
    again.restore()
    assert (again.in_use, again.used_utok("t", "a")) == (False, 0)
    again.close()
    assert not opened().in_use


async def test_a_slow_disk_holds_up_no_other_call_and_calls_that_wait_are_written_at_once(opened):
    """A commit a call, in the event loop: at 18 ms each a hundred calls stood still for two seconds."""
    emergency = opened()
    disk = Disk(emergency)
    disk.gate.clear()
    calls = [asyncio.create_task(emergency.take("t", f"a{n % 7}", 1, 1000)) for n in range(100)]
    for _ in range(20):
        await asyncio.sleep(0)  # the loop turns all the while
    assert not any(call.done() for call in calls)
    disk.gate.set()
    assert set(await asyncio.gather(*calls)) == {""}
    assert len(disk.writes) <= 2
    emergency.close()
    assert sum(opened().used_utok("t", f"a{n}") for n in range(7)) == 100


async def test_a_slice_is_never_overdrawn_by_calls_that_ask_at_once(opened):
    emergency = opened()
    found = await asyncio.gather(*(emergency.take("t", "a", 30, 100) for _ in range(10)))
    assert sorted(found).count("") == 3
    assert emergency.used_utok("t", "a") == 90


async def test_a_slice_that_cannot_be_counted_serves_nobody_and_ends_no_call(opened):
    emergency = opened()
    assert await emergency.take("t", "a", 6, 10) == ""
    disk = Disk(emergency, refused=1)
    assert "cannot be counted on this disk" in await emergency.take("t", "a", 1, 10)
    assert emergency.used_utok("t", "a") == 6
    disk.refused = 1
    emergency.correct("t", "a", -5)
    await asyncio.sleep(0.05)
    assert emergency.used_utok("t", "a") == 1
    # What the disk refused is written with the next.
    assert await emergency.take("t", "b", 1, 10) == ""
    assert opened().used_utok("t", "a") == 1


async def test_who_is_cancelled_while_it_is_counted_has_used_nothing(opened):
    emergency = opened()
    disk = Disk(emergency)
    disk.gate.clear()
    call = asyncio.create_task(emergency.take("t", "a", 6, 10))
    await asyncio.sleep(0.01)
    call.cancel()
    disk.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert emergency.used_utok("t", "a") == 0
    emergency.close()
    assert opened().used_utok("t", "a") == 0


async def test_a_correction_where_the_loop_has_ended_is_written_at_the_close(opened):
    emergency = opened()
    await emergency.take("t", "a", 6, 10)
    await asyncio.to_thread(emergency.correct, "t", "a", -4)
    emergency.close()
    assert opened().used_utok("t", "a") == 2


async def test_a_damaged_file_serves_nobody_until_charging_is_back_and_stops_no_start(
    opened, tmp_path
):
    emergency = opened()
    await emergency.take("t", "a", 6, 10)
    emergency.close()
    file = tmp_path / "a" / "b" / "slices.sqlite"
    file.write_bytes(b"\0" * 4096)
    again = opened()
    assert again.in_use
    assert "damaged" in await again.take("t", "b", 1, 10)
    again.restore()
    assert await again.take("t", "b", 1, 10) == ""
    assert file.with_suffix(".damaged").exists()


def test_a_place_where_no_slice_can_be_kept_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file/slices\.sqlite: cannot keep"):
        Emergency(tmp_path / "file" / "slices.sqlite")
    with pytest.raises(SettingsError, match="cannot keep"):
        Emergency(tmp_path)


async def test_a_disk_that_is_full_just_now_leaves_no_slice_used_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MENDED_EVERY_S", 0.01)
    gateway = Gateway(Settings(data_dir=tmp_path, gateway_id="gw"))
    gateway.emitter = SimpleNamespace(stats=SimpleNamespace(waiting=0))
    gateway.guard._view.apply_heartbeat(0, 1, gateway.now_ms())
    emergency = gateway._emergency = Emergency(tmp_path / "slices.sqlite")
    await emergency.take("t", "a", 10, 10)
    disk = Disk(emergency, refused=2)
    mending = asyncio.create_task(gateway._mend_slices())
    assert await asyncio.to_thread(disk.written.wait, 10)
    assert (mending.done(), emergency.in_use, emergency.used_utok("t", "a")) == (False, False, 0)
    mending.cancel()
    emergency.close()
    again = Emergency(tmp_path / "slices.sqlite")
    assert not again.in_use
    again.close()
