"""Send what the line takes in: one event, the accounts, the topics they go to."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from tokenline.cli.common import DataDir, Json, Misuse, err, line_settings, print_json
from tokenline.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
app = typer.Typer()
accounts_app = typer.Typer(
    help="Set which accounts exist and what each may use.", no_args_is_help=True
)


@app.command()
def emit(
    account: Annotated[str, typer.Argument(help="account that pays")],
    model: Annotated[
        str, typer.Option(help="model that ran; a catalog must price it")
    ] = "demo-model",
    provider: Annotated[str, typer.Option(help="platform that served it")] = "demo",
    input_tokens: Annotated[int, typer.Option("--input", min=0, help="prompt tokens")] = 100,
    output_tokens: Annotated[int, typer.Option("--output", min=0, help="completion tokens")] = 50,
    tenant: Annotated[str, typer.Option(help="tenant of the account")] = "default",
    subscriber: Annotated[str, typer.Option(help="who of the account called")] = "",
    model_requested: Annotated[str, typer.Option(help="model that was asked for")] = "",
    source: Annotated[str, typer.Option(help="who reports it; part of its identity")] = "cli",
    event_id: Annotated[
        str, typer.Option(help="the same tenant, source and id again count once; drawn if not said")
    ] = "",
    occurred_at: Annotated[
        str, typer.Option(help="when, with its zone: 2026-11-22T07:00:00+08:00; now if not said")
    ] = "",
    corrects: Annotated[str, typer.Option(help="id of the event that this one replaces")] = "",
    data: DataDir = None,
) -> None:
    """Send one usage event, as a gateway would, and wait for the broker's ack.

    What charging makes of it is in `v_usage`, or in `v_dead_letters`: so where no such account is known,
    or the catalog in force has no rate for the model.

    Example: tokenline emit acme --input 1200 --output 350 --subscriber kim
    """
    from tokenline import Emitter, UsageEvent  # noqa: PLC0415
    from tokenline.event import new_event_id  # noqa: PLC0415

    event = UsageEvent(
        account_id=account,
        tenant_id=tenant,
        subscriber_id=subscriber,
        event_id=event_id or new_event_id(),
        model=model,
        model_requested=model_requested,
        provider=provider,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        occurred_at=_moment_ms(occurred_at) if occurred_at else 0,
        corrects=corrects,
    )

    async def send() -> str:
        settings = line_settings(data, "gateway")
        async with Emitter(settings, source=source, gateway_id="cli") as emitter:
            return (await emitter.emit(event)).event_id

    typer.echo(asyncio.run(send()))


def _moment_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Misuse(f"--occurred-at {text!r} is no time like 2026-11-22T07:00:00+08:00") from None
    if moment.tzinfo is None:
        raise Misuse(f"--occurred-at {text!r} does not say its zone: +08:00, or Z for UTC")
    return (moment - EPOCH) // timedelta(milliseconds=1)


@app.command()
def topics(
    data: DataDir = None,
    acls: Annotated[
        bool,
        typer.Option("--acls", help="print what each role may do at Kafka, and create nothing"),
    ] = False,
    role: Annotated[str, typer.Option(help="with --acls: of this role only")] = "",
    principal: Annotated[
        str, typer.Option(help="with --role: who has it, for example User:gw-7; else User:<role>")
    ] = "",
    as_json: Json = False,
    new_line: Annotated[
        bool,
        typer.Option(
            "--new-line", help="go on beside the books of a line whose Kafka is lost for good"
        ),
    ] = False,
) -> None:
    """Create the line's topics where they are missing and check the others.

    With --acls it prints kafka-acls.sh commands (--json: objects) that give gateway, charging, landing,
    notify, operator and reader their rights; admin.properties is yours.

    Example: tokenline topics --acls --role gateway
    """
    if acls:
        _print_acls(line_settings(data), role, principal, as_json=as_json)
        return
    if role or principal or as_json:
        raise Misuse("--role, --principal and --json go with --acls")
    if new_line:
        _begin_new_line(line_settings(data, warehouse="auditor"))
        return
    from tokenline.wire.topics import ensure_topics  # noqa: PLC0415

    created = asyncio.run(ensure_topics(line_settings(data)))
    typer.echo(f"{len(created)} topics created")


def _begin_new_line(settings: Settings) -> None:
    """Say what to set: this command makes no tables."""
    from tokenline.platform.prepare import begin_new_line  # noqa: PLC0415  loads the warehouse's client

    database = begin_new_line(settings, typer.echo)
    if database != settings.clickhouse_database:
        typer.echo(
            f"now give all workers and commands TOKENLINE_CLICKHOUSE_DATABASE={database}, and run "
            "tokenline migrate apply"
        )


def _print_acls(settings: Settings, role: str, principal: str, *, as_json: bool) -> None:
    from tokenline.wire.rights import ROLES, acls_of, kafka_commands  # noqa: PLC0415

    if role and role not in ROLES:
        raise Misuse(f"there is no role {role!r}; say one of {', '.join(ROLES)}")
    if principal and not role:
        raise Misuse("--principal goes with --role: each principal has one")
    for_roles = (role,) if role else tuple(ROLES)
    found = [acl for one in for_roles for acl in acls_of(settings, one, principal)]
    if as_json:
        print_json([asdict(acl) for acl in found])
        return
    for command in kafka_commands(found, settings.kafka_bootstrap):
        typer.echo(command)


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
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("accounts", total=len(commands))
        work = apply_accounts(
            line_settings(data),
            commands,
            wait_s=wait,
            progress=lambda done: progress.update(bar, completed=done),
        )
        count = asyncio.run(work)
    typer.echo(f"{count} accounts applied")
