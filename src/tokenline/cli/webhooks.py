"""Look at a webhooks file and try its endpoints."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenline.cli.common import Json, print_json, print_table
from tokenline.errors import SettingsError
from tokenline.settings import Settings

if TYPE_CHECKING:
    from tokenline.notify.endpoints import Endpoint
    from tokenline.notify.signing import Secret

app = typer.Typer(help="Look at who is told of cuts and thresholds.", no_args_is_help=True)

WebhooksFile = Annotated[Path, typer.Argument(help="TOML file; see TOKENLINE_WEBHOOKS_FILE")]


@app.command()
def check(file: WebhooksFile, as_json: Json = False) -> None:
    """Check a webhooks file and its secrets; nothing is sent.

    Example: tokenline webhooks check webhooks.toml
    """
    found = [
        {
            "endpoint": one.name,
            "url": one.url,
            "secrets": len(secrets),
            "kinds": ", ".join(kind.value for kind in one.kinds),
            "tenants": ", ".join(one.tenants) or "all",
        }
        for one, secrets in _read(file)
    ]
    _print(found, as_json=as_json)


@app.command("test")
def send_tests(
    file: WebhooksFile,
    endpoint: Annotated[str, typer.Option("--endpoint", help="only this one")] = "",
    as_json: Json = False,
) -> None:
    """Send each endpoint one signed message of type webhook.test; exits 1 if one does not take it.

    Example: tokenline webhooks test webhooks.toml --endpoint crm
    """
    from tokenline.clock import SystemClock  # noqa: PLC0415
    from tokenline.notify.probe import probe  # noqa: PLC0415  a gateway has no HTTP client

    wanted = [pair for pair in _read(file) if endpoint in ("", pair[0].name)]
    if not wanted:
        raise SettingsError(f"{file}: there is no endpoint {endpoint or 'at all'}")
    timeout_ms, now_ms = Settings.from_env().webhook_timeout_ms, SystemClock().wall_ms()
    found = []
    for one, secrets in wanted:
        taken, said = asyncio.run(probe(one, secrets, now_ms, timeout_ms))
        found.append({"endpoint": one.name, "taken": taken, "answer": said})
    _print(found, as_json=as_json)
    raise typer.Exit(0 if all(row["taken"] for row in found) else 1)


def _read(file: Path) -> list[tuple[Endpoint, tuple[Secret, ...]]]:
    from tokenline.notify.endpoints import read_webhooks  # noqa: PLC0415

    return read_webhooks(file, os.environ)


def _print(rows: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table(list(rows[0]) if rows else ["endpoint"], [list(row.values()) for row in rows])
