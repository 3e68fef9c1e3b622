"""Hold the demo's plans and accounts.

Allowances are those carriers sold in May 2026 (15M to 250M tokens a month at 39.9 to 299.9 yuan, packs of
400,000 tokens for 1 yuan); illustrative, not an offer. Small accounts are there so that some reach their
limit while one watches.
"""

from __future__ import annotations

from tokenline.accounts.file import Account, AccountsFile, Limits

PLANS = {
    "developer-15m": Limits(month_tokens=15_000_000),
    "business-70m": Limits(month_tokens=70_000_000),
    "business-250m": Limits(month_tokens=250_000_000, minute_requests=6_000),
    "household-40m": Limits(month_tokens=40_000_000),
    "person-10m": Limits(month_tokens=10_000_000, day_requests=5_000),
    "pack-400k": Limits(month_tokens=400_000),
    "trial-60k": Limits(month_tokens=60_000),
    "burst-guarded": Limits(month_tokens=15_000_000, minute_requests=12),
}
# How the accounts are spread: busy ones (low numbers) on large plans, with a few that will be cut among them.
PATTERN = (
    "business-250m",
    "trial-60k",
    "business-70m",
    "developer-15m",
    "pack-400k",
    "burst-guarded",
    "household-40m",
    "person-10m",
    "person-10m",
    "developer-15m",
)
ZONES = ("Asia/Shanghai", "Asia/Shanghai", "Asia/Hong_Kong", "Asia/Urumqi", "Europe/Berlin")


def account_name(number: int) -> str:
    """Return the name of an account by its number; low numbers call most."""
    return f"acct-{number:05d}"


def sample_accounts(count: int) -> AccountsFile:
    """Return `count` accounts over all plans."""
    accounts = [
        Account(
            id=account_name(number),
            plan=PATTERN[number % len(PATTERN)],
            time_zone=ZONES[number % len(ZONES)],
        )
        for number in range(count)
    ]
    return AccountsFile(plans=PLANS, accounts=accounts)


def topped_up(file: AccountsFile, names: list[str], extra_tokens: int) -> AccountsFile:
    """Return a file with only `names`, each with `extra_tokens` on top of its plan."""
    chosen = [account for account in file.accounts if account.id in names]
    grown = [
        account.model_copy(
            update={"month_tokens": (file.plans[account.plan].month_tokens or 0) + extra_tokens}
        )
        for account in chosen
    ]
    return AccountsFile(plans=file.plans, accounts=grown)
