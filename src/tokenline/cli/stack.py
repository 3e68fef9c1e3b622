"""Start, stop and look at the embedded stack and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenline.cli.common import DataDir, Json, err, print_json, print_table
from tokenline.errors import NotRunning, TokenlineError
from tokenline.settings import Settings

app = typer.Typer()


@app.command()
def up(
    data: DataDir = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="pick free ports")] = False,
    charging: Annotated[int, typer.Option(min=1, help="charging workers")] = 1,
    landing: Annotated[int, typer.Option(min=1, help="landing workers")] = 1,
) -> None:
    """Run broker, warehouse and workers in the foreground until Ctrl-C.

    Example: tokenline up --data ./line
    """
    from tokenline.platform.stack import up as run  # noqa: PLC0415  gateways install without it

    settings = Settings.from_env()
    run(
        settings,
        data or settings.data_dir,
        free_ports=free_ports,
        charging_workers=charging,
        landing_workers=landing,
        say=lambda line: err.print(line, markup=False),
    )


@app.command()
def down(data: DataDir = None) -> None:
    """Stop the stack that `tokenline up` runs.

    Example: tokenline down --data ./line
    """
    from tokenline.platform.stack import down as stop  # noqa: PLC0415

    stop(data or Settings.from_env().data_dir)
    err.print("stopped")


@app.command()
def status(
    data: DataDir = None,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="show users and passwords of the servers instead")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what each component of the stack does; exits 1 unless all are ready.

    Example: tokenline status --json
    """
    from dataclasses import asdict  # noqa: PLC0415

    from tokenline.platform.stack import status as look  # noqa: PLC0415

    folder = data or Settings.from_env().data_dir
    if secrets:
        _print_secrets(folder, as_json=as_json)
        return
    found = look(folder)
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print_table(
            ["component", "state", "pid", "port", "detail"],
            [list(asdict(one).values()) for one in found],
        )
    raise typer.Exit(0 if all(one.state == "ready" for one in found) else 1)


def _print_secrets(folder: Path, *, as_json: bool) -> None:
    from tokenline.platform.secrets import read_secrets  # noqa: PLC0415  gateways install without it

    known = read_secrets(folder)
    rows = [
        {"server": server, "user": role, "password": password}
        for server, roles in known.items()
        for role, password in roles.items()
    ]
    if not rows:
        raise NotRunning(f"no stack was ever started in {folder}; it makes its passwords then")
    if as_json:
        print_json(rows)
    else:
        print_table(["server", "user", "password"], [list(row.values()) for row in rows])


@app.command()
def worker(role: Annotated[str, typer.Argument(help="charging, landing or notify")]) -> None:
    """Run one stream worker; its settings come from the environment.

    Example: TOKENLINE_KAFKA_BOOTSTRAP=127.0.0.1:9092 tokenline worker charging
    """
    from tokenline.platform.worker import ROLES, run  # noqa: PLC0415

    known = {one: one for one in ROLES}
    if role not in known:
        raise TokenlineError(f"there is no worker {role!r}; say one of {', '.join(ROLES)}")
    run(known[role], Settings.from_env())
