"""Be the `tokenline` command: parse, call, print. What a command does is in the module it calls."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tokenline.errors import NotRunning, TokenlineError
from tokenline.settings import Settings, variable

app = typer.Typer(
    help="tokenline: the usage line for AI tokens (词元). Start with: tokenline demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
accounts_app = typer.Typer(
    help="Set which accounts exist and what each may use.", no_args_is_help=True
)
migrate_app = typer.Typer(help="Bring the warehouse's tables up to date.", no_args_is_help=True)
app.add_typer(accounts_app, name="accounts")
app.add_typer(migrate_app, name="migrate")

out = Console()
err = Console(stderr=True, highlight=False)

DataDir = Annotated[
    Path | None, typer.Option("--data", help="data directory of the embedded stack")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object for programs")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the result to this file")]


def main() -> NoReturn:
    """Run the command; a user's mistake gives one line and a non-zero exit, never a traceback."""
    code: object = 0
    try:
        # Without click's own ending, `typer.Exit(1)` comes back as a value.
        code = app(standalone_mode=False)
    except TokenlineError as error:
        _end(f"{error}", 1)
    except typer.Abort:
        _end("stopped", 130)
    except KeyboardInterrupt:
        _end("stopped", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:  # noqa: BLE001  the CLI's edge: click has its own errors and their codes
        _end_click(error)
    sys.exit(code if isinstance(code, int) else 0)


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
def status(data: DataDir = None, as_json: Json = False) -> None:
    """Show what each component of the stack does; exits 1 unless all are ready.

    Example: tokenline status --json
    """
    from dataclasses import asdict  # noqa: PLC0415

    from tokenline.platform.stack import status as look  # noqa: PLC0415

    found = look(data or Settings.from_env().data_dir)
    if as_json:
        _print_json([asdict(one) for one in found])
    else:
        _print_table(
            ["component", "state", "pid", "port", "detail"],
            [list(asdict(one).values()) for one in found],
        )
    raise typer.Exit(0 if all(one.state == "ready" for one in found) else 1)


@app.command()
def worker(role: Annotated[str, typer.Argument(help="charging or landing")]) -> None:
    """Run one stream worker; its settings come from the environment.

    Example: TOKENLINE_KAFKA_BOOTSTRAP=127.0.0.1:9092 tokenline worker charging
    """
    from tokenline.platform.worker import ROLES, run  # noqa: PLC0415

    known = {one: one for one in ROLES}
    if role not in known:
        raise TokenlineError(f"there is no worker {role!r}; say one of {', '.join(ROLES)}")
    run(known[role], Settings.from_env())


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=5, help="how long gateways send")] = 30,
    rate: Annotated[int, typer.Option(min=1, help="calls a second over all gateways")] = 250,
    accounts: Annotated[int, typer.Option(min=20, help="accounts that call")] = 500,
    keep: Annotated[
        bool, typer.Option("--keep", help="leave the data directory and say where it is")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Show the whole line at work in a temporary directory, then prove that nothing was lost.

    Exit code 0 only if the books balance. Example: tokenline demo --seconds 30 --json demo.json
    """
    from tokenline.demo.run import DemoOptions, run_demo  # noqa: PLC0415

    result = run_demo(DemoOptions(seconds=seconds, rate=rate, accounts=accounts, keep=keep), out)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    raise typer.Exit(0 if result["conservation"] else 1)


@app.command()
def prove(
    rounds: Annotated[int, typer.Option(min=1, help="how often something is killed")] = 20,
    pause: Annotated[float, typer.Option(min=0.5, help="seconds between kills, about")] = 4,
    rate: Annotated[int, typer.Option(min=1, help="calls a second over all gateways")] = 200,
    accounts: Annotated[int, typer.Option(min=20, help="accounts that call")] = 300,
    seed: Annotated[int, typer.Option(help="for the same order of events")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Kill -9 workers, servers and gateways under load, then prove that nothing was lost or doubled.

    Example: tokenline prove --rounds 20
    """
    from tokenline.demo.prove import ProveOptions, run_prove  # noqa: PLC0415

    options = ProveOptions(rounds=rounds, pause_s=pause, rate=rate, accounts=accounts, seed=seed)
    result = run_prove(options, out)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    raise typer.Exit(0 if result["conservation"] else 1)


@app.command()
def bench(
    json_file: JsonFile = None,
    events: Annotated[
        int, typer.Option(min=10_000, help="events of the throughput runs")
    ] = 2_000_000,
    accounts: Annotated[int, typer.Option(min=100, help="accounts they are spread over")] = 100_000,
    only: Annotated[
        str, typer.Option(help="comma-separated parts: charging, landing, latency, skew, memory")
    ] = "",
) -> None:
    """Measure the line beside stock Faust and bare aiokafka, in one run.

    Example: tokenline bench --json bench.json
    """
    from tokenline.bench.run import BenchOptions, run_bench  # noqa: PLC0415

    parts = tuple(part.strip() for part in only.split(",") if part.strip())
    result = run_bench(BenchOptions(events=events, accounts=accounts, only=parts), out)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    raise typer.Exit(0 if not result["missed"] else 1)


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
        _print_json(view.to_dict())
    else:
        _print_table(
            ["what", "value"],
            [[name, _readable(name, value)] for name, value in view.to_dict().items()],
        )
    if not view.known:
        raise TokenlineError(
            f"account {account} was never applied; see `tokenline accounts apply --help`"
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
    with _waiting("waiting until the line is quiet and comparing", quiet=as_json):
        report = compare(settings, wait)
    if as_json:
        typer.echo(report.to_json())
    else:
        out.print(render(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def emit(
    account: Annotated[str, typer.Argument(help="account that pays")],
    model: Annotated[str, typer.Option(help="model that ran")] = "demo-model",
    provider: Annotated[str, typer.Option(help="platform that served it")] = "demo",
    input_tokens: Annotated[int, typer.Option("--input", min=0, help="prompt tokens")] = 100,
    output_tokens: Annotated[int, typer.Option("--output", min=0, help="completion tokens")] = 50,
    data: DataDir = None,
) -> None:
    """Send one usage event, as a gateway would, and wait for the broker's ack.

    Example: tokenline emit acme --input 1200 --output 350
    """
    from tokenline import Emitter, UsageEvent  # noqa: PLC0415

    async def send() -> str:
        event = UsageEvent(
            account_id=account,
            model=model,
            provider=provider,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        async with Emitter(line_settings(data), source="cli", gateway_id="cli") as emitter:
            return (await emitter.emit(event)).event_id

    typer.echo(asyncio.run(send()))


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
        _print_json([dict(zip(("variable", "value", "meaning"), row, strict=True)) for row in rows])
    else:
        _print_table(["variable", "value", "meaning"], rows)


@accounts_app.command("apply")
def accounts_apply(
    file: Annotated[Path, typer.Argument(help="TOML file; see README")],
    data: DataDir = None,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait for charging; 0 does not wait")
    ] = 30,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the file and send nothing")
    ] = False,
) -> None:
    """Publish an accounts file and wait until charging has taken it in.

    Example: tokenline accounts apply accounts.toml
    """
    from tokenline.accounts.apply import apply_accounts  # noqa: PLC0415
    from tokenline.accounts.file import read_accounts  # noqa: PLC0415

    commands = read_accounts(file).commands()
    if dry_run:
        typer.echo(f"{len(commands)} accounts are right; nothing was sent")
        return
    with Progress(console=err, transient=True) as progress:
        bar = progress.add_task("accounts", total=len(commands))
        work = apply_accounts(
            line_settings(data),
            commands,
            wait_s=wait,
            progress=lambda done: progress.update(bar, completed=done),
        )
        count = asyncio.run(work)
    typer.echo(f"{count} accounts applied")


@migrate_app.command("plan")
def migrate_plan(data: DataDir = None) -> None:
    """Show which statements `apply` would run.

    Example: tokenline migrate plan
    """
    from tokenline.landing.migrate import plan  # noqa: PLC0415

    _print_table(
        ["file", "statement", "status"],
        [
            [f"{one.file:04d}_{one.name}", one.statement, one.status]
            for one in plan(line_settings(data))
        ],
    )


@migrate_app.command("apply")
def migrate_apply(data: DataDir = None) -> None:
    """Create or alter tables and views; safe to repeat, also after a crash.

    Example: tokenline migrate apply
    """
    from tokenline.landing.migrate import apply  # noqa: PLC0415

    done = apply(line_settings(data))
    typer.echo(f"{len(done)} statements applied")


@migrate_app.command("verify")
def migrate_verify(data: DataDir = None) -> None:
    """Check that the tables are those of this version; exits 1 and names what differs.

    Example: tokenline migrate verify
    """
    from tokenline.landing.migrate import verify  # noqa: PLC0415

    faults = verify(line_settings(data))
    for fault in faults:
        typer.echo(fault)
    raise typer.Exit(1 if faults else 0)


@app.command()
def topics(data: DataDir = None) -> None:
    """Create the line's topics where they are missing and check the others.

    Example: tokenline topics
    """
    from tokenline.wire.topics import ensure_topics  # noqa: PLC0415

    created = asyncio.run(ensure_topics(line_settings(data)))
    typer.echo(f"{len(created)} topics created")


def line_settings(data: Path | None) -> Settings:
    """Return the settings of the stack in `data`, or those of the environment when none runs there.

    Raises:
        NotRunning: `--data` was given and no stack runs there.
    """
    settings = Settings.from_env()
    try:
        from tokenline.platform.stack_file import find_stack  # noqa: PLC0415

        return find_stack(data or settings.data_dir)
    except (NotRunning, ImportError):
        if data is not None:
            raise
        return settings


@contextmanager
def _waiting(text: str, *, quiet: bool) -> Iterator[None]:
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


def _print_json(value: Any) -> None:  # noqa: ANN401  JSON is any JSON
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _print_table(columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    out.print(table)


def _readable(name: str, value: Any) -> str:  # noqa: ANN401  any field of a view
    if name.endswith("_ms") and isinstance(value, int):
        from datetime import UTC, datetime  # noqa: PLC0415

        return (
            datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds")
            if value > 0
            else "never"
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _end(text: str, code: int) -> NoReturn:
    err.print(f"tokenline: {text}", style="red", markup=False, soft_wrap=True)
    sys.exit(code)


def _end_click(error: Exception) -> NoReturn:
    """Show a usage error as click does; anything else is a defect of ours and keeps its traceback."""
    show: Callable[[], None] | None = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(int(getattr(error, "exit_code", 1)))


if __name__ == "__main__":
    main()
