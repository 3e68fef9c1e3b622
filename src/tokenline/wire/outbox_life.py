"""Own an outbox directory, and know whose life its events belong to.

A life is one epoch: a name for an unbroken count of events, 1, 2, 3 … It goes on across process
crashes. It ends when the count cannot be trusted any more: the directory was deleted, or the
machine was started anew and appends did not wait for the disk, so the newest may be gone.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenline.errors import BrokenLog, InvalidEvent, SettingsError
from tokenline.event import new_event_id
from tokenline.names import why_bad

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FILE = "life.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Name one epoch; its seq of the event at outbox position p is p - base."""

    gateway_id: str
    gateway_epoch: str
    base: int
    boot: str


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
    """Return the life that the directory holds, None when there is none yet.

    Raises:
        SettingsError: it is another gateway's.
        BrokenLog: the file is damaged.
    """
    path = directory / _FILE
    try:
        life = Life(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise BrokenLog(f"{path} cannot be read: {error}") from error
    if life.gateway_id != gateway_id:
        raise SettingsError(
            f"outbox {directory} belongs to gateway {life.gateway_id!r}, not {gateway_id!r}; "
            "give each gateway a directory of its own"
        )
    return life


def begin_life(directory: Path, gateway_id: str, base: int) -> Life:
    """Write and return a new life whose first event is at position `base` + 1."""
    life = Life(gateway_id=gateway_id, gateway_epoch=new_event_id(), base=base, boot=boot_id())
    _write(directory, life)
    return life


def go_on(directory: Path, life: Life) -> Life:
    """Note that the life goes on under the present start of the machine."""
    here = boot_id()
    if life.boot == here:
        return life
    life = replace(life, boot=here)
    _write(directory, life)
    return life


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


def _write(directory: Path, life: Life) -> None:
    fresh = directory / f"{_FILE}.new"
    fresh.write_text(json.dumps(asdict(life)), encoding="utf-8")
    sync(fresh)
    fresh.replace(directory / _FILE)
    sync(directory)
