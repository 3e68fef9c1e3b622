"""Start, stop and look at the embedded stack and its workers."""

from __future__ import annotations

import shlex
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
    new_line: Annotated[
        bool,
        typer.Option("--new-line", help="go on beside the books of a line whose Kafka is lost"),
    ] = False,
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
        new_line=new_line,
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
    as_json: Json = False,
    secrets: Annotated[
        bool,
        typer.Option(
            "--secrets", help="print how a gateway connects, and all users with their passwords"
        ),
    ] = False,
) -> None:
    """Show what each component of the stack does; exits 1 unless all are ready.

    With --secrets it prints variables instead, for an env file or a shell:
    set -a; eval "$(tokenline status --secrets)"

    Example: tokenline status --json
    """
    from dataclasses import asdict  # noqa: PLC0415

    from tokenline.platform.line_status import line_status  # noqa: PLC0415
    from tokenline.platform.stack import status as look  # noqa: PLC0415

    folder = data or Settings.from_env().data_dir
    if secrets:
        _print_secrets(folder, as_json=as_json)
        return
    found = [*look(folder), line_status(folder)]
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
    from tokenline.platform.stack_file import gateway_environment  # noqa: PLC0415

    users = [
        {"server": server, "user": role, "password": password}
        for server, roles in read_secrets(folder).items()
        for role, password in roles.items()
    ]
    if not users:
        raise NotRunning(f"no stack was ever started in {folder}; it makes its passwords then")
    try:
        variables = gateway_environment(folder)
    except NotRunning:
        variables = {}
    if as_json:
        print_json({"gateway": variables, "users": users})
        return
    for name, value in variables.items():
        typer.echo(f"{name}={shlex.quote(value)}")
    for one in users:
        typer.echo("# {server} user {user} password {password}".format_map(one))


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
