"""Keep the passwords of the embedded servers: one JSON file of the data directory, its owner's alone.

    {"kafka": {role: password}, "warehouse": {role: password}}

A password is drawn at random when it is first asked for and stays. Who removes the file gets new ones
with the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FILE = "secrets.json"
RANDOM_BYTES = 24

Passwords = dict[str, dict[str, str]]


def read_secrets(data_dir: Path) -> Passwords:
    """Return all passwords by server and role; empty where none were made.

    Raises:
        PlatformError: the file is damaged, or another user of the machine may read it.
    """
    path = data_dir / FILE
    try:
        with path.open(encoding="utf-8") as source:
            _require_private(path, os.fstat(source.fileno()).st_mode)
            return _checked(json.load(source))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PlatformError(
            f"{path} cannot be read: {error}; remove it while the line is down, and new passwords "
            "are made"
        ) from error


def make_secrets(data_dir: Path, server: str, roles: Iterable[str]) -> dict[str, str]:
    """Return a server's passwords by role, those of `roles` drawn where they are missing.

    Safe to call from several threads and processes at once.

    Raises:
        PlatformError: as `read_secrets`.
    """
    with _alone(data_dir):
        known = read_secrets(data_dir)
        own = known.setdefault(server, {})
        missing = [role for role in roles if role not in own]
        own.update({role: secrets.token_urlsafe(RANDOM_BYTES) for role in missing})
        if missing:
            _write(data_dir / FILE, known)
    return own


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner may read; one that is so already is left alone.

    A full disk would else leave it empty, and a broker without its identity never starts again.

    Raises:
        PlatformError: there is no room.
    """
    try:
        if not _is_private(path, text):
            _replace(path, text)
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror}") from error


def _is_private(path: Path, text: str) -> bool:
    try:
        private = not stat.S_IMODE(path.stat().st_mode) & 0o077
        return private and path.read_text(encoding="utf-8") == text
    except (FileNotFoundError, ValueError):
        return False


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        sink.write(text)
        sink.flush()
        os.fsync(sink.fileno())
    draft.replace(path)


def _write(path: Path, known: Passwords) -> None:
    write_private(path, json.dumps(known, indent=1) + "\n")


def _require_private(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise PlatformError(
            f"others may read {path}: chmod 600 it, or remove it while the line is down, and new "
            "passwords are made"
        )


def _checked(value: object) -> Passwords:
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  damaged, as what is no JSON at all
    for server, roles in value.items():
        if not isinstance(roles, dict) or not all(isinstance(one, str) for one in roles.values()):
            raise ValueError(f"{server!r} does not name roles and their passwords")
    return value


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Keep other writers of this directory's passwords out."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(data_dir / (FILE + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
