"""Have an order of an account carried out, and tell what became of it and how to repeat it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import typer

from tokenline.cli.common import err, line_settings, print_json
from tokenline.errors import BadData, Unavailable


def order(
    account: str,
    tenant: str,
    command_id: str,
    fields: dict[str, Any],
    *,
    data: Any,  # noqa: ANN401  as typer gives it
    as_json: bool,
) -> None:
    """Have an order carried out and print what became of it, with the id to repeat it by.

    Raises:
        BadData: it was refused; the text says why.
        Unavailable: nobody knows whether it was; the text says how to find out.
    """
    from tokenline.quota.terms import tokens_text  # noqa: PLC0415  it brings numpy

    command_id = command_id or str(uuid.uuid4())
    repeat = f"the same order with --command-id {command_id} is carried out once"
    try:
        reply = ask(account, tenant, command_id, fields, data)
    except Unavailable as error:
        raise Unavailable(f"{error}; {repeat}") from error
    except KeyboardInterrupt:
        err.print(f"it may be carried out; {repeat}", markup=False, soft_wrap=True)
        raise
    if as_json:
        print_json(reply)
    check_done(reply, fields["kind"])
    if not as_json:
        bucket = f", bucket {reply['bucket']}" if reply["bucket"] else ""
        if to_account := fields.get("to_account"):
            bucket = f", and what {to_account} cannot take comes back"
        if reply["detail"]:
            bucket += f", {reply['detail']}"
        left = tokens_text(reply["rest_utok"])
        typer.echo(f"{fields['kind']}: done{bucket}; {left} left (command id {command_id})")


def ask(
    account: str,
    tenant: str,
    command_id: str,
    fields: dict[str, Any],
    data: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return the answer, which may be a refusal."""
    from tokenline.wire.orders import Orders  # noqa: PLC0415

    async def answered() -> dict[str, Any]:
        async with Orders(line_settings(data)) as orders:
            return await orders.order(account, tenant=tenant, command_id=command_id, **fields)

    return asyncio.run(answered())


_HELP = {
    "unknown_account": "an account is opened first: tokenline account open {account} --plan NAME",
    "already_open": "its plan is changed by: tokenline account plan {account} NAME",
    "unknown_plan": "tokenline catalog show lists the newest, and from when on",
    "unknown_pack": "tokenline catalog show lists the newest, and from when on",
    "unknown_bucket": "tokenline account show {account} lists its buckets",
    "suspended": "tokenline account resume {account} ends that",
    "closed": "a closed account stays closed",
    "unknown_cap": "tokenline account show {account} lists whom it caps itself",
    "command_id_reused": "repeat an order word for word, or leave --command-id out",
}


def check_done(reply: dict[str, Any], kind: str) -> None:
    """Check that an order was carried out.

    Raises:
        BadData: it was refused; the text says why and what helps.
    """
    if reply["outcome"] == "done":
        return
    tenant, account, reason = reply["tenant_id"], reply["account_id"], reply["reason"]
    text = f"{kind} of {tenant}/{account} is refused: {reason.replace('_', ' ')}"
    if reply["detail"]:
        text += f": {reply['detail']}"
    if reason == "unknown_account" and "/" in account:
        text += " (the account of another tenant is named by --tenant)"
    elif reason in _HELP:
        text += f" ({_HELP[reason].format(account=account)})"
    raise BadData(text)
