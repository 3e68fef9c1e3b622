"""Ask the warehouse, the books and the settings."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from tokenline.cli.common import (
    DataDir,
    Json,
    err,
    line_settings,
    out,
    print_json,
    print_table,
    waiting,
)
from tokenline.errors import TokenlineError, Unavailable
from tokenline.settings import Settings, variable

app = typer.Typer()

CHARGING_WITHIN_S = 5.0
# Of what charging shows of an account, what a balance is; and how people call it, if they are told.
BALANCE = {
    "plan": "plan",
    "mode": "mode",
    "status": "",
    "state": "",
    "why": "",
    "allowance_utok": "balance of this bill cycle",
    "used_utok": "balance used",
    "overage_utok": "used beyond it (overage)",
    "written_off_utok": "used beyond it, written off",
    "claimed_utok": "used beyond it, claimed of what calls hold",
    "late_adjustment_utok": "late usage of closed cycles",
    "held_utok": "balance held for calls",
    "rest_utok": "balance left",
    "cycle_end_ms": "bill cycle ends",
    "resets_at_ms": "",
    "time_zone": "",
}
OF_THE_MONTH = {
    "tenant_id": "",
    "account_id": "",
    "known": "",
    "plan": "plan of the accounts file",
    "used": "used this month",
    "limit": "limit a month",
    "late_used": "used late, of this month",
    "state": "state",
    "rule": "rule",
    "reason": "reason",
    "month_start_ms": "month began",
    "resets_at_ms": "resets",
    "as_of_ms": "landed until",
}
# What has landed of the newest decision; charging says how it is now.
OF_A_DECISION = ("state", "rule", "reason", "resets_at_ms")


class _Sql(TyperCommand):
    """Take a query that begins with a remark for what it is: no option has a blank in its name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer's own click, private
        """Set the query apart from the options."""
        end = args.index("--") if "--" in args else len(args)
        queries = [one for one in args[:end] if one.startswith("--") and len(one.split()) > 1]
        options = [one for one in args[:end] if one not in queries]
        return super().parse_args(ctx, [*options, "--", *queries, *args[end + 1 :]])


@app.command(cls=_Sql)
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
    if answer := ask(line_settings(data), query, formats[fmt]).rstrip("\n"):
        typer.echo(answer)
    else:
        err.print("no rows")


@app.command()
def quota(
    account: Annotated[str, typer.Argument(help="account id")],
    tenant: Annotated[str, typer.Option(help="tenant of the account")] = "default",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what an account has used, may use, and whether it is cut off.

    Its month is what has landed in the warehouse; its balance, if it has a plan, is asked of charging.

    Example: tokenline quota acme
    """
    from tokenline.landing.queries import quota as look  # noqa: PLC0415

    settings = line_settings(data)
    view, (found, away) = look(settings, tenant, account), _ask_charging(settings, tenant, account)
    balance = {key: found[key] for key in BALANCE} if found and "plan" in found else None
    if as_json:
        print_json(view.to_dict() | {"balance": balance})
    elif view.known or balance:
        _print_quota(view.to_dict() if view.known else {}, found, balance)
    if view.known and away:
        err.print(f"tokenline: a balance is not shown: {away}", markup=False, soft_wrap=True)
    if view.known or balance:
        return
    if away:
        raise Unavailable(f"account {tenant}/{account} is in no accounts file; its balance: {away}")
    other = " (the account of another tenant is named by --tenant)" if "/" in account else ""
    raise TokenlineError(
        f"account {tenant}/{account} was never applied (see `tokenline accounts apply --help`) nor "
        f"opened on a plan (see `tokenline account open --help`){other}"
    )


def _ask_charging(settings: Settings, tenant: str, name: str) -> tuple[dict[str, Any] | None, str]:
    """Return what charging shows of an account, None if it has none, and why it was not to be asked."""
    from tokenline.wire.orders import Orders  # noqa: PLC0415

    async def ask() -> dict[str, Any]:
        async with Orders(settings) as orders:
            return await orders.order(name, tenant=tenant, kind="show", timeout_s=CHARGING_WITHIN_S)

    try:
        reply = asyncio.run(ask())
    except Unavailable as error:
        return None, str(error)
    return (json.loads(reply["detail"]), "") if reply["outcome"] == "done" else (None, "")


def _print_quota(
    month: dict[str, Any], found: dict[str, Any] | None, balance: dict[str, Any] | None
) -> None:
    """Print for people what charging says now, and what of the month has landed."""
    from tokenline.cli.account_show import (  # noqa: PLC0415  they bring numpy
        covers_text,
        fact_text,
        why_text,
    )

    zone, rows = "UTC", []
    if found:
        typer.echo(f"{found['account']} is {why_text(found)}")
        if found.get("covers"):
            typer.echo(covers_text(found))
        zone = found["time_zone"]
        # What has landed of a decision may be older than that.
        month = {name: value for name, value in month.items() if name not in OF_A_DECISION}
    for name, value in (balance or {}).items():
        if text := BALANCE[name]:
            rows.append([text, fact_text(name, value, zone)])
    for name, value in month.items():
        if text := OF_THE_MONTH[name]:
            told = "none" if value == -1 else fact_text(name, value, zone)
            told = f"{value:,} tokens" if text.endswith("month") and value >= 0 else told
            rows.append([text, told])
    print_table(["what", "value"], rows)


@app.command()
def reconcile(
    data: DataDir = None,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait until the line is quiet")
    ] = 60,
    accept_deleted: Annotated[
        int, typer.Option(min=0, help="usage that was deleted uncharged and is taken as lost")
    ] = 0,
    accept_quarantined: Annotated[
        int, typer.Option(min=0, help="records in the quarantine that were looked into")
    ] = 0,
    accept_gateway_lost: Annotated[
        int, typer.Option(min=0, help="events that disks of gateways lost (damaged outboxes)")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Prove that nothing was lost or counted twice; exits 1 on any difference.

    What is accepted must be exactly what is lost, so that the next loss is seen.

    Example: tokenline reconcile --json
    """
    from tokenline.audit.reconcile import Accepted  # noqa: PLC0415
    from tokenline.landing.reconcile import reconcile as compare  # noqa: PLC0415
    from tokenline.landing.reconcile import render  # noqa: PLC0415

    settings = line_settings(data, "reader", warehouse="auditor")
    with waiting("waiting until the line is quiet and comparing", quiet=as_json):
        accepted = Accepted(
            deleted=accept_deleted,
            quarantined=accept_quarantined,
            gateway_lost=accept_gateway_lost,
        )
        report = compare(settings, wait, accepted=accepted)
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
    shown = Settings.from_env().shown()
    rows = [
        [variable(name), shown[name], field.description]
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        print_json([dict(zip(("variable", "value", "meaning"), row, strict=True)) for row in rows])
    else:
        print_table(["variable", "value", "meaning"], rows)
