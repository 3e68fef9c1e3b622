"""Be a gateway whose disk gets full, and has room again: LINE=SETTINGS python full_gateway_disk.py DIRECTORY HOW.

HOW is `filler`, on a small disk of its own, or `limit`: then no file may grow. Says `ok` when all went on.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sys
import time
from pathlib import Path

import pytest

from tokenline import Emitter, Settings, UsageEvent
from tokenline.errors import OutboxFull
from tokenline.gateway.emergency import Emergency

WITHIN_MS = 20_000


class Disk:
    """Be full, or have room again."""

    def __init__(self, directory, how):
        self.filler, self.how = directory / "filler", how

    def fill(self):
        if self.how == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with self.filler.open("ab", buffering=0) as file:
            for size in (65_536, 4096, 1, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.filler.unlink(missing_ok=True)


def event(**fields):
    return UsageEvent(account_id="a", provider="p", model="m", **fields)


async def refuses(sender):
    """Check that each entrance says one clear thing, once the last of what a page still takes is used."""
    with pytest.raises(OutboxFull, match="the disk under outbox"):
        [sender.emit_nowait(event()) for _ in range(100)]
    with pytest.raises(OutboxFull, match="the disk under outbox"):
        await sender.emit(event(tags={"n": "x" * 900}), deadline_ms=50)
    # Then no call begins either.
    with pytest.raises(OutboxFull, match="the disk under outbox"):
        sender.check_room()


async def until(done):
    end = time.monotonic() + WITHIN_MS / 1000
    while not done():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.02)


async def a_full_disk_keeps_nothing_that_is_kept_from_being_sent(settings, box, disk):
    def emitter():
        return Emitter(settings, source="s", gateway_id="gw", outbox_dir=box, on_outage="spool")

    async with emitter() as sender:
        kept = [sender.emit_nowait(event()) for _ in range(20)]
        noise = {f"k{at}": random.Random(at).randbytes(300).hex() for at in range(10)}
        large = sender.emit_nowait(event(tags=noise))  # the broker will never take it
        kept += [sender.emit_nowait(event()) for _ in range(20)]
        disk.fill()
        await until(lambda: all(one.done() for one in [*kept, large]))
        assert {one.result().status for one in kept} == {"acknowledged"}
        await refuses(sender)
        await until(lambda: sender.stats.waiting == 1)
        assert sender.stats.refused == 0
        disk.free()
        assert await sender.flush(WITHIN_MS)
        await until(lambda: sender.stats.refused == 1)
        assert len(list(box.glob("refused-*.avro"))) == 1
        sender.check_room()
        last = sender.stats.emitted
        assert (await sender.emit(event())).gateway_seq == last + 1

    # One that starts on a full disk sends what is left, and takes no more until there is room.
    crashed = emitter()
    await crashed.start()
    crashed._delivery.submit = lambda _: None
    crashed.emit_nowait(event())
    for task in [*crashed._tasks, *crashed._delivery._tasks]:
        task.cancel()
    crashed._outbox._free()
    disk.fill()
    async with emitter() as sender:
        await until(lambda: not sender.stats.waiting)
        await refuses(sender)
        disk.free()
        receipt = await sender.emit(event(), deadline_ms=WITHIN_MS)
        assert receipt.status == "acknowledged"
        assert receipt.gateway_seq == sender.stats.emitted > last + 2


async def a_full_disk_refuses_emergency_slices_and_ends_nothing(path, disk):
    emergency = Emergency(path)
    assert not await emergency.take("t", "a", 5, 100)
    disk.fill()
    assert "cannot be counted on this disk" in await emergency.take("t", "a", 5, 100)
    emergency.correct("t", "a", -2)
    disk.free()
    assert not await emergency.take("t", "a", 5, 100)
    assert emergency.used_utok("t", "a") == 8
    emergency.close()
    # One that starts on a full disk, with nothing there yet.
    disk.fill()
    fresh = Emergency(path.with_name("fresh.sqlite"))
    assert "cannot be counted on this disk" in await fresh.take("t", "a", 5, 100)
    disk.free()
    assert not await fresh.take("t", "a", 5, 100)
    fresh.close()


async def main(directory, how):
    settings = Settings.model_validate_json(os.environ["LINE"])
    place = Path(directory)
    disk = Disk(place, how)
    await a_full_disk_keeps_nothing_that_is_kept_from_being_sent(settings, place / "box", disk)
    await a_full_disk_refuses_emergency_slices_and_ends_nothing(place / "slices.sqlite", disk)
    sys.stdout.write("ok\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
