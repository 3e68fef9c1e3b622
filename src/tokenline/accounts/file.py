"""Read the accounts file.

[plans.developer-15m]            # limits that accounts share; -1 or absent means none
month_tokens = 15_000_000
minute_requests = 60

[[accounts]]
id = "acme"                      # unique within its tenant
plan = "developer-15m"
time_zone = "Asia/Shanghai"      # its windows begin and end there
month_tokens = 20_000_000        # a limit of its own wins over the plan's
"""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tokenline.errors import BadData
from tokenline.metering.calendar import zone_of
from tokenline.names import why_bad_of
from tokenline.texts import read_text

LIMITS = (
    "month_tokens",
    "minute_tokens",
    "hour_tokens",
    "day_tokens",
    "minute_requests",
    "hour_requests",
    "day_requests",
)
Limit = Annotated[int, Field(ge=-1, le=10**15)]


def _named(field: str, name: str) -> str:
    if why := why_bad_of(field, name):
        raise ValueError(f"{name[:64]!r} {why}")
    return name


AccountName = Annotated[str, AfterValidator(partial(_named, "account_id"))]
TenantName = Annotated[str, AfterValidator(partial(_named, "tenant_id"))]


class Limits(BaseModel):
    """Hold the ceilings a plan or an account names; None where it does not."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    month_tokens: Limit | None = None
    minute_tokens: Limit | None = None
    hour_tokens: Limit | None = None
    day_tokens: Limit | None = None
    minute_requests: Limit | None = None
    hour_requests: Limit | None = None
    day_requests: Limit | None = None


class Account(Limits):
    """Hold one account as the file has it."""

    id: AccountName
    tenant: TenantName = "default"
    plan: str = ""
    time_zone: str = "Asia/Shanghai"


class AccountsFile(BaseModel):
    """Hold a whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plans: dict[str, Limits] = {}
    accounts: list[Account] = []

    def commands(self) -> list[dict[str, str | int]]:
        """Return the fields of one `account_command` for each account.

        Raises:
            BadData: an account names a plan or a zone that is not there, or stands twice.
        """
        seen: set[tuple[str, str]] = set()
        found = []
        for account in self.accounts:
            if (account.tenant, account.id) in seen:
                raise BadData(f"account {account.tenant}/{account.id} stands twice")
            seen.add((account.tenant, account.id))
            found.append(self._command(account))
        return found

    def _command(self, account: Account) -> dict[str, str | int]:
        zone_of(account.time_zone)
        if account.plan and account.plan not in self.plans:
            known = ", ".join(sorted(self.plans)) or "none"
            raise BadData(
                f"account {account.id}: there is no plan {account.plan!r}; plans: {known}"
            )
        plan = self.plans.get(account.plan, Limits())
        limits = {name: _first(getattr(account, name), getattr(plan, name)) for name in LIMITS}
        named = {
            "tenant_id": account.tenant,
            "account_id": account.id,
            "plan": account.plan,
            "time_zone": account.time_zone,
        }
        return {**named, **limits}


def read_accounts(path: Path) -> AccountsFile:
    """Parse and check an accounts file.

    Raises:
        BadData: the file is not there or is wrong; the text names the place.
    """
    try:
        return AccountsFile.model_validate(tomllib.loads(read_text(path, BadData)))
    except tomllib.TOMLDecodeError as error:
        raise BadData(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadData(f"{path}: {where}: {first['msg']}") from error


def _first(own: int | None, plan: int | None) -> int:
    if own is not None:
        return own
    return -1 if plan is None else plan
