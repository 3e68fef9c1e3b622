"""Send what the line takes in: one event, the accounts, the topics they go to."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from tokenline.cli.common import DataDir, Misuse, err, line_settings

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
        async with Emitter(line_settings(data), source=source, gateway_id="cli") as emitter:
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
def topics(data: DataDir = None) -> None:
    """Create the line's topics where they are missing and check the others.

    Example: tokenline topics
    """
    from tokenline.wire.topics import ensure_topics  # noqa: PLC0415

    created = asyncio.run(ensure_topics(line_settings(data)))
    typer.echo(f"{len(created)} topics created")


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
