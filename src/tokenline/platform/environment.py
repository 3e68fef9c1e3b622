"""Choose what a child process finds in its environment: no secret that it does not need."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tokenline.notify.endpoints import secret_variables
from tokenline.settings import FOREIGN, PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

# What any program needs: where things are, language and zone, how Python and its memory work.
PLAIN = frozenset(
    (
        "DYLD_LIBRARY_PATH", "HOME", "JAVA_HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH",
        "TEMP", "TERM", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV",
    )
)  # fmt: skip
PLAIN_PREFIXES = ("LC_", "MALLOC_", "PYTHON", "XDG_")
# Settings that only some workers need, with those that do.
ONLY_FOR = {
    "clickhouse_url": ("landing",),  # a user may stand in it
    "clickhouse_username": ("landing",),
    "clickhouse_password": ("landing",),
    "webhooks_file": ("notify",),
}


def server_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what broker and warehouse get of this process's environment: a list of plain names."""
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if name in PLAIN or name.startswith(PLAIN_PREFIXES)
    }


def worker_environment(role: str, settings: Settings) -> dict[str, str]:
    """Return this process's environment with exactly the settings of a role in it.

    Only the notify worker gets the variables in which the webhooks file has its secrets.
    In a checkout `PYTHONPATH` leads to the `streams` package wherever the supervisor was started.

    Raises:
        SettingsError: the webhooks file cannot be read.
    """
    fields = type(settings).model_fields
    foreign = {name: fields[name].default for name, roles in ONLY_FOR.items() if role not in roles}
    secret = frozenset[str]()
    if role != "notify" and settings.webhooks_file is not None:
        secret = secret_variables(settings.webhooks_file)
    ours = secret | set(FOREIGN.values())
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name not in ours
    }
    found = importlib.util.find_spec("streams")
    if found is not None and found.submodule_search_locations:
        root = str(Path(next(iter(found.submodule_search_locations))).resolve().parent)
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
    return kept | settings.model_copy(update=foreign).to_env()
