"""Make topics and tables, once: `python -m tokenline.platform.prepare`. Harmless when repeated."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from tokenline.errors import TokenlineError, Unavailable
from tokenline.landing import migrate
from tokenline.platform import processes
from tokenline.settings import Settings
from tokenline.wire.topics import ensure_topics

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60.0
EVERY_S = 0.5


def prepare(settings: Settings, say: Callable[[str], None] = print) -> None:
    """Create the missing topics and run the missing migrations.

    Raises:
        SettingsError: a topic exists with another partition count.
        Unavailable: a server did not answer.
        BrokenLog: the warehouse was migrated by a newer version.
    """
    made = asyncio.run(ensure_topics(settings))
    applied = migrate.apply(settings)
    if made or applied:
        say(f"made {len(made)} topics, ran {len(applied)} migration statements")


def prepare_patiently(
    settings: Settings, say: Callable[[str], None], give_up: Callable[[], bool]
) -> None:
    """Prepare servers that were only just started: one that does not answer yet is asked again.

    Raises:
        Unavailable: a server did not answer within a minute, or `give_up` says so.
        SettingsError, BrokenLog: as `prepare`.
    """
    failed: list[Unavailable] = []

    def done() -> bool:
        try:
            prepare(settings, say)
        except Unavailable as error:
            failed[:] = [error]
            return give_up()
        failed.clear()
        return True

    processes.wait_for(done, timeout_s=PATIENCE_S, every_s=EVERY_S)
    if failed:
        raise failed[0]


def main() -> int:
    """Prepare what the environment names; return the exit code."""
    try:
        prepare(Settings.from_env())
    except TokenlineError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
