"""Remember in which database of the embedded warehouse the present line's books are.

It is the one of the settings until a Kafka is lost: the line that is made then has a database of its own,
so that nothing of the old one is overwritten, and its name is kept in the data directory.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform.kafka_config import ADMIN, as_role
from tokenline.platform.prepare import begin_new_line
from tokenline.platform.secrets import write_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenline.settings import Settings

FILE = "database.json"


def in_its_database(
    settings: Settings, say: Callable[[str], None], *, new_line: bool = False
) -> Settings:
    """Return settings that lead to the present line's database, begun now with `new_line`.

    Raises:
        PlatformError: the file that names it is damaged.
        Unavailable: a server did not answer.
    """
    asked = settings.clickhouse_database
    known = _names(settings.data_dir)
    settings = settings.model_copy(update={"clickhouse_database": known.get(asked, asked)})
    if not new_line:
        return settings
    database = begin_new_line(as_role(settings, ADMIN), say)
    if database != settings.clickhouse_database:
        write_private(settings.data_dir / FILE, json.dumps(known | {asked: database}) + "\n")
    return settings.model_copy(update={"clickhouse_database": database})


def database_of(data_dir: Path, asked: str) -> str:
    """Return the present line's database, where settings say `asked`.

    Raises:
        PlatformError: the file that names it is damaged.
    """
    return _names(data_dir).get(asked, asked)


def _names(data_dir: Path) -> dict[str, str]:
    path = data_dir / FILE
    try:
        known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return dict(known)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise PlatformError(f"{path} does not name databases: {error}") from error
