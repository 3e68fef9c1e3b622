"""Make topics and tables, once: `python -m tokenline.platform.prepare`. Harmless when repeated."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from tokenline.errors import TokenlineError
from tokenline.landing import migrate
from tokenline.settings import Settings
from tokenline.wire.acls import ensure_acls
from tokenline.wire.topics import ensure_topics

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare(
    settings: Settings, say: Callable[[str], None] = print, *, rights: bool = False
) -> None:
    """Create the missing topics and run the missing migrations; with `rights` give roles theirs first.

    Raises:
        SettingsError: a topic exists with another partition count.
        Unavailable: a server did not answer.
        BrokenLog: the warehouse was migrated by a newer version.
    """
    if rights:
        asyncio.run(ensure_acls(settings))
    made = asyncio.run(ensure_topics(settings))
    applied = migrate.apply(settings)
    if made or applied:
        say(f"made {len(made)} topics, ran {len(applied)} migration statements")


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
