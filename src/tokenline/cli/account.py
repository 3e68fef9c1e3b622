"""Ask something of one account: open it, grant, change, suspend, show."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tokenline.cli.account_order import ask, check_done, order
from tokenline.cli.common import DataDir, Json, Misuse, print_json

app = typer.Typer(
    help="Open an account on a plan, top it up, change it, look at it.", no_args_is_help=True
)

MILLION = 1_000_000
MOST_TOKENS = 1_000_000_000_000  # that an account may hold
MOST_DAYS = 365_000
MOST_PRIORITY = 1_000_000
# What a pack's terms in the catalog say of a grant, by the option that says it without a pack.
PACK_SAYS = ("--source", "--days", "--priority", "--models", "--transferable")
Account = Annotated[str, typer.Argument(help="account id")]
Tenant = Annotated[str, typer.Option(help="tenant of the account")]
CommandId = Annotated[
    str, typer.Option(help="id of this order: the same id again is carried out once")
]


@app.command("open")
def open_account(
    account: Account,
    plan: Annotated[str, typer.Option(help="plan of the catalog")],
    cycle_day: Annotated[
        int, typer.Option(min=0, max=31, help="day on which bill cycles begin; 0 is today")
    ] = 0,
    time_zone: Annotated[str, typer.Option(help="IANA zone of its cycles")] = "Asia/Shanghai",
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Give an account a plan and its first allowance.

    Example: tokenline account open acme --plan developer-15m
    """
    from tokenline.metering.calendar import zone_of  # noqa: PLC0415  zones bring numpy

    zone_of(time_zone)
    fields = {"kind": "open", "plan": plan, "cycle_day": cycle_day, "time_zone": time_zone}
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("grant")
def grant(
    account: Account,
    tokens: Annotated[
        int | None, typer.Argument(min=1, max=MOST_TOKENS, help="standard tokens; none with --pack")
    ] = None,
    pack: Annotated[
        str, typer.Option(help="pack of the catalog; it says all but whom it is for")
    ] = "",
    source: Annotated[
        Literal["top_up", "gift", "free", "pack", "refund"] | None,
        typer.Option(help="where it comes from; top_up if not said"),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_DAYS,
            help="whole days it is valid after today, to the end of the last in the account's zone; 0: for ever",
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=-MOST_PRIORITY, max=MOST_PRIORITY, help="lower burns first; 100 if not said"
        ),
    ] = None,
    subscriber: Annotated[
        list[str] | None,
        typer.Option(help="subscriber it pays for; once for each; not said: for all"),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="what it pays for: provider/model or provider/*; once for each; not said: all"
        ),
    ] = None,
    transferable: Annotated[
        bool, typer.Option("--transferable", help="may be moved to another account")
    ] = False,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Add tokens: a top-up, a gift, a refund, or a pack of the catalog.

    A pack that is not shared wants the subscribers it is for.

    Example: tokenline account grant acme 400000 --days 31

    Example: tokenline account grant acme --pack students --subscriber kim --subscriber lee
    """
    if bool(tokens) == bool(pack):
        raise Misuse("say either how many tokens to grant, or --pack")
    if pack:
        _check_pack_alone(source, days, priority, models, transferable or None)
    fields = {
        "kind": "grant",
        "pack": pack,
        "amount_utok": (tokens or 0) * MILLION,
        "source": source or "top_up",
        "priority": 100 if priority is None else priority,
        "models": _checked_models(models or []),
        "subscribers": _checked_subscribers(subscriber or []),
        "transferable": int(transferable),
        "valid_days": days or 0,
    }
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


# So that a number below zero is one, and no option.
@app.command("adjust", context_settings={"ignore_unknown_options": True})
def adjust(
    account: Account,
    bucket: Annotated[int, typer.Argument(min=1, help="number of the bucket; see `show`")],
    tokens: Annotated[
        int,
        typer.Argument(
            min=-MOST_TOKENS, max=MOST_TOKENS, help="standard tokens to add; below zero to take"
        ),
    ],
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Correct a bucket by hand; the ledger keeps it as an adjustment.

    Example: tokenline account adjust acme 1 -5000
    """
    fields = {"kind": "adjust", "bucket": bucket, "amount_utok": tokens * MILLION}
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("cap")
def cap(
    account: Account,
    subscriber: Annotated[str, typer.Argument(help="subscriber of the account")],
    tokens: Annotated[
        int | None, typer.Argument(min=0, max=MOST_TOKENS, help="standard tokens a bill cycle")
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help="take it off: the plan says again what all may use")
    ] = False,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Cap what one subscriber may use of each bill cycle, whatever the plan says.

    Example: tokenline account cap acme kim 200000
    """
    if none is not (tokens is None):
        raise Misuse("say either how many tokens the subscriber may use, or --none")
    fields = {
        "kind": "cap",
        "subscribers": _checked_subscribers([subscriber]),
        "amount_utok": (tokens or 0) * MILLION,
        "uncap": int(none),
    }
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("transfer")
def transfer(
    account: Annotated[str, typer.Argument(metavar="FROM", help="account that gives")],
    to_account: Annotated[str, typer.Argument(metavar="TO", help="account that receives")],
    tokens: Annotated[
        int, typer.Argument(metavar="AMOUNT", min=1, max=MOST_TOKENS, help="standard tokens")
    ],
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Move transferable tokens to another account of the tenant; all of it or nothing.

    They keep their validity and what they pay for, and cannot be moved on. If the receiver cannot
    take them (unknown, closed, or they ended on the way) they come back to who gave.

    Example: tokenline account transfer acme acme-lab 400000
    """
    fields = {"kind": "transfer", "to_account": to_account, "amount_utok": tokens * MILLION}
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("plan")
def change_plan(
    account: Account,
    plan: Annotated[str, typer.Argument(help="plan of the catalog")],
    when: Annotated[
        Literal["now", "next_cycle"] | None,
        typer.Option(help="from when on; not said: as the plan says"),
    ] = None,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Put another plan into force; each pays for its days of the cycle.

    Where --when says nothing, the plan does: usually it is at once if it gives at least as much a cycle, and
    with the next cycle if it gives less. A change that waits for the next cycle is replaced by a newer one,
    and cancelled by choosing the plan that is in force.

    Example: tokenline account plan acme business-70m

    Example: tokenline account plan acme personal-10m --when next_cycle
    """
    fields = {"kind": "change_plan", "plan": plan, "when": when or ""}
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("cycle")
def change_cycle(
    account: Account,
    day: Annotated[int, typer.Argument(min=1, max=31, help="day of the month")],
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Begin bill cycles on another day of the month.

    Example: tokenline account cycle acme 15
    """
    fields = {"kind": "change_cycle", "cycle_day": day}
    order(account, tenant, command_id, fields, data=data, as_json=as_json)


@app.command("suspend")
def suspend(
    account: Account,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Cut an account off until it is resumed.

    Example: tokenline account suspend acme
    """
    order(account, tenant, command_id, {"kind": "suspend"}, data=data, as_json=as_json)


@app.command("resume")
def resume(
    account: Account,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """End a suspension.

    Example: tokenline account resume acme
    """
    order(account, tenant, command_id, {"kind": "resume"}, data=data, as_json=as_json)


@app.command("close")
def close(
    account: Account,
    tenant: Tenant = "default",
    command_id: CommandId = "",
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """End an account for good; usage that is still reported is charged to what it had.

    Example: tokenline account close acme
    """
    order(account, tenant, command_id, {"kind": "close"}, data=data, as_json=as_json)


@app.command("show")
def show(
    account: Account, tenant: Tenant = "default", data: DataDir = None, as_json: Json = False
) -> None:
    """Show buckets, limits, holds and the decision of an account, and why it is so.

    Asks the worker that owns it, so it is the balance at this very moment. With --json amounts are in
    µtok, millionths of a standard token, and times in ms since the epoch.

    Example: tokenline account show acme
    """
    import json  # noqa: PLC0415

    from tokenline.cli.account_show import print_account  # noqa: PLC0415  it brings numpy

    reply = ask(account, tenant, "", {"kind": "show"}, data)
    check_done(reply, "show")
    found = json.loads(reply["detail"])
    if as_json:
        print_json(found)
        return
    print_account(found)


def _check_pack_alone(*given: object) -> None:
    """Check that nothing is asked of a pack that its terms in the catalog say.

    Raises:
        Misuse: it would be passed over in silence.
    """
    said = [name for name, one in zip(PACK_SAYS, given, strict=True) if one is not None]
    if said:
        raise Misuse(f"the pack itself says {', '.join(said)}: leave out what goes with --pack")


def _checked_models(models: list[str]) -> list[str]:
    for one in models:
        provider, _, model = one.partition("/")
        if not (provider and model):
            raise Misuse(f"--models {one!r} is no provider/model and no provider/*")
    return models


def _checked_subscribers(subscribers: list[str]) -> list[str]:
    if not all(subscribers):
        raise Misuse("a subscriber needs a name; what is for all names none")
    return subscribers
