"""Bring the warehouse's tables up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenline.cli.common import DataDir, line_settings, print_table

app = typer.Typer(help="Bring the warehouse's tables up to date.", no_args_is_help=True)


Roles = Annotated[
    bool, typer.Option("--roles", help="the roles of a ClickHouse server instead, and their rights")
]


@app.command("plan")
def migrate_plan(data: DataDir = None, roles: Roles = False) -> None:
    """Show which statements `apply` would run.

    Example: tokenline migrate plan --roles
    """
    from tokenline.landing.migrate import plan  # noqa: PLC0415
    from tokenline.landing.migrate import roles as statements  # noqa: PLC0415

    if roles:
        for one in statements(line_settings(data)):
            typer.echo(f"{one};")
        return
    print_table(
        ["file", "statement", "status"],
        [
            [f"{one.file:04d}_{one.name}", one.statement, one.status]
            for one in plan(line_settings(data, warehouse="auditor"))
        ],
    )


@app.command("apply")
def migrate_apply(data: DataDir = None, roles: Roles = False) -> None:
    """Create or alter tables and views; safe to repeat, also after a crash.

    Example: tokenline migrate apply
    """
    from tokenline.landing.migrate import apply, apply_roles  # noqa: PLC0415

    settings = line_settings(data, warehouse="writer")
    done = apply_roles(settings) if roles else apply(settings)
    typer.echo(f"{len(done)} statements applied")


@app.command("verify")
def migrate_verify(data: DataDir = None) -> None:
    """Check that the tables are those of this version; exits 1 and names what differs.

    Example: tokenline migrate verify
    """
    from tokenline.landing.migrate import verify  # noqa: PLC0415

    faults = verify(line_settings(data, warehouse="auditor"))
    for fault in faults:
        typer.echo(fault)
    raise typer.Exit(1 if faults else 0)
