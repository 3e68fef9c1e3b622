"""Make topics and tables, once: `python -m tokenline.platform.prepare`. Harmless when repeated.

`python -m tokenline.platform.prepare rights` gives the roles, and a schema registry's user, their rights
at Kafka and does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from tokenline.errors import SettingsError, TokenlineError, Unavailable
from tokenline.landing import migrate
from tokenline.landing.line import database_after, join_line, require_own, warehouse_line
from tokenline.platform import processes
from tokenline.settings import Settings
from tokenline.wire.acls import ensure_acls
from tokenline.wire.line import go_on_from, read_line
from tokenline.wire.rights import registry_acls
from tokenline.wire.topics import ensure_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenline.wire.line import Line

    Say = Callable[[str], None]

PATIENCE_S = 60.0
EVERY_S = 0.5


def prepare(settings: Settings, say: Say = print, *, rights: bool = False) -> Line:
    """Create the missing topics, run the missing migrations, and have the warehouse take on the line.

    With `rights` the roles are given theirs first. Returns the line.

    Raises:
        ForeignLine: Kafka and warehouse hold different lines; the warehouse was not touched.
        SettingsError: a topic exists with another partition count.
        Unavailable: a server did not answer.
        BrokenLog: the warehouse was migrated by a newer version.
    """
    if rights:
        asyncio.run(ensure_acls(settings))
    made = asyncio.run(ensure_topics(settings))
    line = asyncio.run(read_line(settings))
    require_own(settings, line, warehouse_line(settings))
    applied = migrate.apply(settings)
    asyncio.run(join_line(settings, line))
    if made or applied:
        say(f"made {len(made)} topics, ran {len(applied)} migration statements")
    return line


def patiently(work: Callable[[], object], give_up: Callable[[], bool]) -> None:
    """Do what asks servers that were only just started: while one does not answer yet, it is done again.

    Raises:
        Unavailable: a server did not answer within a minute, or `give_up` says so.
        TokenlineError: as `work` does.
    """
    failed: list[Unavailable] = []

    def done() -> bool:
        try:
            work()
        except Unavailable as error:
            failed[:] = [error]
            return give_up()
        failed.clear()
        return True

    processes.wait_for(done, timeout_s=PATIENCE_S, every_s=EVERY_S)
    if failed:
        raise failed[0]


def begin_new_line(settings: Settings, say: Say = print) -> str:
    """Let the line that Kafka holds go on from the one whose books the warehouse holds.

    For a Kafka that is lost for good. The old database stays as it is; returns the name of the new one,
    which is made by `prepare`, or the present one if it holds no other line. Outboxes of the old line may
    be delivered to the new one from now on. Safe to repeat.

    Raises:
        Unavailable: a server did not answer.
        SettingsError: Kafka refuses the user.
    """
    asyncio.run(ensure_topics(settings))
    line, known = asyncio.run(read_line(settings)), warehouse_line(settings)
    if known in ("", line.line_id):
        say(
            f"database {settings.clickhouse_database} holds no other line; there is nothing to begin"
        )
        return settings.clickhouse_database
    asyncio.run(go_on_from(settings, line, known))
    database = database_after(settings, line)
    say(f"line {known} stays in database {settings.clickhouse_database}")
    say(f"line {line.line_id} begins in database {database}")
    return database


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the environment names; return the exit code."""
    parser = argparse.ArgumentParser(prog="tokenline.platform.prepare")
    parser.add_argument("what", nargs="?", choices=["all", "rights"], default="all")
    what = parser.parse_args(argv).what
    try:
        settings = Settings.from_env()
        if what == "rights":
            asyncio.run(ensure_acls(settings, registry_acls()))
        else:
            prepare(settings)
    except SettingsError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except TokenlineError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
