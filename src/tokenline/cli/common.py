"""Share options, settings and printing between the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenline.errors import NotRunning, TokenlineError
from tokenline.settings import Settings

PIPE_WIDTH = 1000
WORD_MAX = 40  # a longer one is folded

out = Console()
err = Console(stderr=True, highlight=False)

DataDir = Annotated[
    Path | None, typer.Option("--data", help="data directory of the embedded stack")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object for programs")]
WarehouseRole = Literal["reader", "auditor", "writer"]
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the result to this file")]


class Misuse(TokenlineError):
    """Refuse options that are wrong together; nothing was sent, and the exit code is 2 as for any usage."""


def line_settings(
    data: Path | None, role: str = "operator", *, warehouse: WarehouseRole = "reader"
) -> Settings:
    """Return the settings of the stack in `data`, or those of the environment when none runs there.

    At a stack the command logs in as `role` at Kafka, and at the warehouse as the least role that will do;
    elsewhere the environment says itself as what.

    Raises:
        NotRunning: `--data` was given and no stack runs there.
    """
    settings = Settings.from_env()
    try:
        from tokenline.platform.stack_file import find_stack  # noqa: PLC0415

        return find_stack(data or settings.data_dir, role, warehouse=warehouse)
    except (NotRunning, ImportError):
        if data is not None:
            raise
        return settings


@contextmanager
def waiting(text: str, *, quiet: bool) -> Iterator[None]:
    """Say what takes a while, if a person looks."""
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


def print_json(value: Any) -> None:  # noqa: ANN401  JSON is any JSON
    """Print for a program."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def write_json(file: Path | None, value: Any) -> None:  # noqa: ANN401  JSON is any JSON
    """Write a result to the file of `--json`, if one was named."""
    if file is not None:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def print_table(columns: list[str], rows: list[list[Any]], *, title: str | None = None) -> None:
    """Print for a person; None is shown as nothing.

    Nothing is cut off: words and numbers stay whole, and a pipe is as wide as it takes.
    """
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    table = Table(title=title, title_justify="left")
    for at, name in enumerate(columns):
        words = " ".join((name, *(row[at] for row in cells))).split()
        longest = max(map(len, words), default=0)
        table.add_column(name, overflow="fold", min_width=min(longest, WORD_MAX))
    for row in cells:
        # Names may have brackets, which rich would take for its own.
        table.add_row(*map(Text, row))
    console = out if out.is_terminal else Console(width=PIPE_WIDTH)
    console.print(table, crop=False)
