"""Ask the warehouse, the books and the settings."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tokenline.cli.common import (
    DataDir,
    Json,
    line_settings,
    out,
    print_json,
    print_table,
    readable,
    waiting,
)
from tokenline.errors import TokenlineError
from tokenline.settings import Settings, variable

app = typer.Typer()


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(help="one SELECT; views: v_usage, v_windows, v_decisions, …")
    ],
    fmt: Annotated[str, typer.Option("--format", help="table, json or csv")] = "table",
    data: DataDir = None,
) -> None:
    """Ask the warehouse; nothing can be written.

    Example: tokenline sql "SELECT account_id, sum(total_tokens) FROM v_windows GROUP BY 1" --format csv
    """
    from tokenline.landing.queries import sql as ask  # noqa: PLC0415

    formats: dict[str, Literal["table", "json", "csv"]] = {
        "table": "table",
        "json": "json",
        "csv": "csv",
    }
    if fmt not in formats:
        raise TokenlineError(f"there is no format {fmt!r}; say table, json or csv")
    # Not through rich: a program or a pipe reads this.
    typer.echo(ask(line_settings(data), query, formats[fmt]).rstrip("\n"))


@app.command()
def quota(
    account: Annotated[str, typer.Argument(help="account, or tenant/account")],
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what an account has used, may use, and whether it is cut off.

    Example: tokenline quota acme
    """
    from tokenline.landing.queries import quota as look  # noqa: PLC0415

    tenant, slash, name = account.partition("/")
    view = look(line_settings(data), tenant if slash else "default", name if slash else account)
    if as_json:
        print_json(view.to_dict())
    else:
        print_table(
            ["what", "value"],
            [[name, readable(name, value)] for name, value in view.to_dict().items()],
        )
    if not view.known:
        raise TokenlineError(
            f"account {account} was never applied (see `tokenline accounts apply --help`); "
            f"if it has a plan: tokenline account show {account}"
        )


@app.command()
def reconcile(
    data: DataDir = None,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait until the line is quiet")
    ] = 60,
    as_json: Json = False,
) -> None:
    """Prove that nothing was lost or counted twice; exits 1 on any difference.

    Example: tokenline reconcile --json
    """
    from tokenline.landing.reconcile import reconcile as compare  # noqa: PLC0415
    from tokenline.landing.reconcile import render  # noqa: PLC0415

    settings = line_settings(data)
    with waiting("waiting until the line is quiet and comparing", quiet=as_json):
        report = compare(settings, wait)
    if as_json:
        typer.echo(report.to_json())
    else:
        out.print(render(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command(name="settings")
def show_settings(as_json: Json = False) -> None:
    """List every setting: its variable, its value here and what it means.

    Example: tokenline settings
    """
    settings = Settings.from_env()
    rows = [
        [
            variable(name),
            "***"
            if "password" in name and getattr(settings, name)
            else str(getattr(settings, name)),
            field.description,
        ]
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        print_json([dict(zip(("variable", "value", "meaning"), row, strict=True)) for row in rows])
    else:
        print_table(["variable", "value", "meaning"], rows)
