"""Own an outbox directory, and know whose life its events belong to.

A life is one epoch: a name for an unbroken count of events, 1, 2, 3 … It goes on across process
crashes. It ends when the count cannot be trusted any more: the directory was deleted, or the
machine was started anew and appends did not wait for the disk, so the newest may be gone. Where the
file that names it is damaged, nobody knows its count: another begins.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from tokenline.errors import InvalidEvent, SettingsError
from tokenline.event import new_event_id
from tokenline.names import why_bad

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FILE = "life.json"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Name one epoch; its seq of the event at outbox position p is p - base.

    `lost` are runs of positions (first, count) whose events the disk did not keep; none is used again.
    """

    gateway_id: str
    gateway_epoch: str
    base: int
    boot: str
    lost: tuple[tuple[int, int], ...] = ()

    @property
    def lost_events(self) -> int:
        """How many events of this life the disk did not keep, at most."""
        return sum(count for first, count in self.lost if first > self.base)


def check_names(source: str, gateway_id: str, gateway_version: str) -> None:
    """Refuse names that could not be a key, a directory or a field.

    Raises:
        InvalidEvent: the text says which.
    """
    probe = {"source": source, "gateway_id": gateway_id, "gateway_version": gateway_version}
    for name, value in probe.items():
        if (value or name != "gateway_version") and (why := why_bad(value)):
            raise InvalidEvent(f"{name} {why}")
    if "/" in gateway_id or gateway_id.startswith("."):
        raise InvalidEvent(f"gateway_id {gateway_id!r} must not have '/' nor begin with '.'")


def read_life(directory: Path, gateway_id: str) -> Life | None:
    """Return the life that the directory holds, None when there is none or its file is damaged.

    A damaged file is set aside, and said in a log line.

    Raises:
        SettingsError: it is another gateway's.
    """
    path = directory / _FILE
    try:
        life = _life_of(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        _log.error("outbox_life_damaged", file=str(aside), error=str(error))
        return None
    if life.gateway_id != gateway_id:
        raise SettingsError(
            f"outbox {directory} belongs to gateway {life.gateway_id!r}, not {gateway_id!r}; "
            "give each gateway a directory of its own"
        )
    return life


def begin_life(gateway_id: str, base: int) -> Life:
    """Return a new life whose first event is at position `base` + 1."""
    return Life(gateway_id=gateway_id, gateway_epoch=new_event_id(), base=base, boot=boot_id())


def write_life(directory: Path, life: Life) -> None:
    """Put a life in the place of the one that the directory holds, whole or not at all.

    Raises:
        OSError: the disk does not take it.
    """
    fresh = directory / f"{_FILE}.new"
    said = asdict(life) | {"check": _check_of(life)}
    fresh.write_text(json.dumps(said), encoding="utf-8")
    sync(fresh)
    fresh.replace(directory / _FILE)
    sync(directory)


def boot_id() -> str:
    """Return what names this start of the machine; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def lock(directory: Path) -> int:
    """Return a descriptor that keeps others out until it is closed or the process dies.

    Raises:
        SettingsError: another emitter has the directory; the text names its process.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise SettingsError(
            f"outbox {directory} is in use by process {holder}; each emitter needs its own"
        ) from error
    # Only said to who comes second: a full disk may keep it from being written.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def sync(path: Path) -> None:
    """Wait until the disk has this file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _life_of(data: bytes) -> Life:
    said = json.loads(data.decode())
    check = said.pop("check")
    life = Life(**said | {"lost": tuple((first, count) for first, count in said["lost"])})
    if check != _check_of(life):
        raise ValueError("its checksum is wrong")
    return life


def _check_of(life: Life) -> int:
    return zlib.crc32(json.dumps(asdict(life)).encode())
