"""Print an account for people: standard tokens, units beside numbers, times in its own zone.

Programs take `--json`: exact µtok and ms since the epoch.
"""

from __future__ import annotations

from typing import Any

import typer

from tokenline.cli.common import print_table
from tokenline.metering.calendar import moment_text
from tokenline.quota.terms import tokens_number, tokens_text

UNITS = {"utok": "standard tokens", "tokens": "tokens", "requests": "requests"}
LISTS = ("buckets", "limits", "holds", "covers")
# Said in the line above, or in lists of their own.
NOT_FACTS = {*LISTS, "not_shown", "why", "figure", "resets_at_ms"}


def print_account(found: dict[str, Any]) -> None:
    """Print why an account is as it is, its facts, and its lists."""
    typer.echo(f"{found['account']} is {why_text(found)}")
    if found.get("covers"):
        typer.echo(covers_text(found))
    zone = found["time_zone"]
    facts = [
        [
            name.removesuffix("_ms").removesuffix("_utok").replace("_", " "),
            fact_text(name, value, zone),
        ]
        for name, value in found.items()
        if name not in NOT_FACTS and value != ""
    ]
    print_table(["what", "is"], facts)
    _print_buckets(found.get("buckets", []), zone)
    _print_limits(found["limits"], zone)
    _print_holds(found.get("holds", []), zone)
    for name, count in found.get("not_shown", {}).items():
        typer.echo(f"and {count:,} more {name}")


def why_text(found: dict[str, Any]) -> str:
    """Return in one line why an account is open, warned or cut, with the figure and when it resets."""
    state, why, figure = found["state"], found["why"], found.get("figure")
    if why in _STATUSES:
        return _STATUSES[why].format(account=found["account"].partition("/")[2])
    if figure is None:
        return "cut" if state == "cut" else f"{state}: nothing limits all of it together"
    text = f"{_amounts(figure, found)}; {_resets(figure, found['time_zone'], state)}"
    if state == "cut":
        return f"cut: {_cut_text(why, figure)}: {text}"
    if state == "warned":
        used = figure["used"] + figure.get("overage", 0)
        return f"warned: {used * 100 // max(1, figure['limit'])} % is used: {text}"
    return f"open: {text}"


def covers_text(found: dict[str, Any]) -> str:
    """Return what can be paid of an account of which not everything can."""
    each = [
        " for ".join(
            (
                ", ".join(one["models"]) or "every model",
                ", ".join(one["subscribers"]) or "everybody",
            )
        )
        for one in found["covers"]
    ]
    if found["state"] == "cut":
        return f"what costs nothing may be used all the same: {'; '.join(each)}"
    return f"all that can be paid: {'; '.join(each)}"


def _cut_text(why: str, figure: dict[str, Any]) -> str:
    if why != "balance":
        return f"the limit {why.removeprefix('limit: ')} is reached"
    # See `Plan.least_call_tokens`.
    crumb = figure["used"] < figure["limit"]
    return "what is left of its balance pays for no call" if crumb else "its balance is used up"


_STATUSES = {
    "suspended": "cut: it is suspended until somebody resumes it (tokenline account resume {account})",
    "closed": "cut: it is closed for good",
}


def _amounts(figure: dict[str, Any], found: dict[str, Any]) -> str:
    unit = UNITS[figure["unit"]]
    used, limit = (_amount(figure[name], figure["unit"]) for name in ("used", "limit"))
    held = found.get("held_utok", 0) if figure["unit"] == "utok" else 0
    held_text = f" ({tokens_text(held)} more held for calls)" if held else ""
    over = figure.get("overage", 0)
    over_text = f" and {tokens_number(over)} beyond them" if over else ""
    return f"{used} of {limit} {unit} used{over_text}{held_text}"


def _resets(figure: dict[str, Any], zone: str, state: str) -> str:
    if not figure["resets_at_ms"]:
        return "no clock ends that" if state == "cut" else "never resets"
    begins = state != "cut" and figure["unit"] == "utok"
    what = "the next cycle begins" if begins else "resets"
    return f"{what} {moment_text(zone, figure['resets_at_ms'])}"


def _amount(value: int, unit: str) -> str:
    return tokens_number(value) if unit == "utok" else f"{value:,}"


def fact_text(name: str, value: Any, zone: str) -> str:  # noqa: ANN401  JSON is any JSON
    """Return a fact as people read it: amounts with their unit, times in the account's own zone."""
    if name.endswith("_utok"):
        return tokens_text(value)
    if name.endswith("_ms"):
        return moment_text(zone, value) if value else "never"
    return str(value)


def _local(zone: str, moment_ms: int) -> str:
    """Return a moment for a table that names the zone above it."""
    return moment_text(zone, moment_ms).partition(" (")[0]


def _print_buckets(buckets: list[dict[str, Any]], zone: str) -> None:
    rows = [
        {
            "bucket": one["bucket"],
            "source": one["source"],
            "priority": one["priority"],
            "total": tokens_number(one["total_utok"]),
            "used": tokens_number(one["used_utok"]),
            "held": tokens_number(one["held_utok"]) if one["held_utok"] else "",
            "claimed": tokens_number(one["claimed_utok"]) if one["claimed_utok"] else "",
            "valid to": _local(zone, one["valid_to_ms"]) if one["valid_to_ms"] else "for ever",
            "models": ", ".join(one["models"]),
            "subscribers": ", ".join(one["subscribers"]),
            "transferable": "yes" if one["transferable"] else "",
        }
        for one in buckets
    ]
    _print_rows(f"buckets, in standard tokens; times of {zone}", rows)


def _print_limits(limits: list[dict[str, Any]], zone: str) -> None:
    rows = [
        {
            "limit": one["limit"],
            "subscriber": one["subscriber"],
            **{name: _amount(one[name], one["unit"]) for name in ("used", "held", "ceiling")},
            "unit": UNITS[one["unit"]],
            "resets at": _limit_resets(one, zone),
            "set by": "account" if one.get("own") else "",
        }
        for one in limits
    ]
    _print_rows(f"limits; times of {zone}", rows)


def _limit_resets(limit: dict[str, Any], zone: str) -> str:
    """Return when a limit resets; a rolling one that is not full lets go bit by bit, and says nothing."""
    if limit["resets_at_ms"]:
        return _local(zone, limit["resets_at_ms"])
    return "" if limit["ceiling"] else "never"


def _print_holds(holds: list[dict[str, Any]], zone: str) -> None:
    rows = [
        {
            "status": one["status"],
            "lease": "yes" if one["lease"] else "",
            "held": tokens_number(one["held_utok"]),
            "used": tokens_number(one["used_utok"]),
            "expires at": _local(zone, one["expires_at_ms"]),
        }
        for one in holds
    ]
    _print_rows(f"holds, in standard tokens; times of {zone}", rows)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a list without the columns in which nobody says anything."""
    if rows:
        names = [name for name in rows[0] if any(one[name] != "" for one in rows)]
        print_table(names, [[one[name] for name in names] for one in rows], title=title)
