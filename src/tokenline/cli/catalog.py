"""Look at catalog files before anybody is charged by them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenline.cli.common import DataDir, Json, err, line_settings, print_json, print_table
from tokenline.errors import BadData

if TYPE_CHECKING:
    from tokenline.rating.catalog import Catalog
    from tokenline.rating.diff import Change
    from tokenline.rating.offers import Pack, Plan
    from tokenline.rating.rates import Rate
    from tokenline.settings import Settings

app = typer.Typer(
    help="Check what is sold and what a token of each model costs.", no_args_is_help=True
)

CatalogFile = Annotated[Path, typer.Argument(help="TOML file; see schemas/catalog.toml")]


@app.command()
def check(file: CatalogFile, as_json: Json = False) -> None:
    """Check a catalog file and show what it says; nothing is sent.

    Example: tokenline catalog check schemas/catalog.toml
    """
    from tokenline.rating.catalog import read_catalog  # noqa: PLC0415

    _print(read_catalog(file), as_json=as_json)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="the catalog as it is")],
    new: Annotated[Path, typer.Argument(help="the catalog as it shall be")],
    as_json: Json = False,
) -> None:
    """Show what a new catalog changes, and whether it may follow the old one; nothing is sent.

    Example: tokenline catalog diff catalog.toml next.toml
    """
    from tokenline.rating.book import CatalogBook  # noqa: PLC0415
    from tokenline.rating.catalog import read_catalog  # noqa: PLC0415
    from tokenline.rating.diff import diff as changes_of  # noqa: PLC0415

    before, after = read_catalog(old), read_catalog(new)
    _print_changes(changes_of(before, after), as_json=as_json)
    book = CatalogBook()
    book.add(before)
    book.add(after)


@app.command()
def apply(
    file: CatalogFile,
    data: DataDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what it changes and send nothing")
    ] = False,
) -> None:
    """Publish a version of the catalog and wait until every partition rates by it.

    It must come into force later than calls are held ahead by the one before (11 minutes where
    that has a strict plan of usual `longest_call_s`); a refusal says from when on it may. Only the first
    version of a line may begin in the past.

    Example: tokenline catalog apply catalog.toml --dry-run
    """
    from tokenline.clock import SystemClock  # noqa: PLC0415
    from tokenline.rating.catalog import read_catalog  # noqa: PLC0415
    from tokenline.rating.diff import diff as changes_of  # noqa: PLC0415
    from tokenline.rating.succession import check_succession, lead_ms_of  # noqa: PLC0415

    catalog, settings = read_catalog(file), line_settings(data)
    known = _published(settings)
    before = known[-1] if known else None
    if before == catalog:
        typer.echo(f"catalog version {catalog.version} is published already")
        return
    try:
        check_succession(known, catalog, SystemClock().wall_ms(), lead_ms_of(known))
    except BadData as error:
        raise BadData(f"{file}: {error}") from error
    if before is not None:
        _warn_dropped(before, catalog)
        _warn_withdrawn(known, catalog)
    if dry_run:
        _warn(catalog)
        _print_changes(changes_of(before, catalog), as_json=False)
        return
    _warn(catalog)
    _publish(settings, catalog)


@app.command()
def withdraw(
    version: Annotated[int, typer.Argument(help="a version that is not in force yet")],
    data: DataDir = None,
) -> None:
    """Withdraw a version that was published and is not in force yet, and all that begin after it.

    The version in force is published once more, under the next number: it begins as soon as it may, and a
    version that begins before others withdraws them.

    Example: tokenline catalog withdraw 4
    """
    from tokenline.clock import SystemClock  # noqa: PLC0415
    from tokenline.rating.succession import lead_ms_of, next_minute_ms, renewed  # noqa: PLC0415

    settings, now_ms = line_settings(data), SystemClock().wall_ms()
    known = _published(settings)
    from_ms = next_minute_ms(now_ms + lead_ms_of(known))
    begins_ms = {one.version: one.effective_ms for one in known}.get(version)
    stays = max(
        (one for one in known if one.effective_ms <= now_ms),
        key=lambda one: one.version,
        default=None,
    )
    if begins_ms is None:
        raise BadData(f"no catalog version {version} was published, or it was withdrawn")
    if begins_ms <= from_ms:
        raise BadData(
            f"catalog version {version} is in force, or will be before it could be withdrawn: publish "
            "another version instead"
        )
    if stays is None:
        raise BadData("no version is in force that could stay: publish another version instead")
    number = known[-1].version + 1
    _publish(settings, renewed(stays, number, from_ms))
    typer.echo(
        f"version {number} has the terms of version {stays.version}; version {version} is withdrawn"
    )


@app.command()
def show(data: DataDir = None, as_json: Json = False) -> None:
    """Show the newest catalog that was published.

    Example: tokenline catalog show --json
    """
    known = _published(line_settings(data))
    if not known:
        raise BadData("no catalog was published yet: tokenline catalog apply FILE")
    _print(known[-1], as_json=as_json)


def _print(catalog: Catalog, *, as_json: bool) -> None:
    if as_json:
        print_json(_summary(catalog))
        return
    typer.echo(
        f"catalog version {catalog.version}, in force from {catalog.effective_from:%Y-%m-%d %H:%M %z} "
        f"({catalog.time_zone}); unknown models: {catalog.unknown_model}"
    )
    columns, rows = _rates_shown(catalog)
    print_table(columns, rows)
    print_table(["offer", "title", "yuan", "standard tokens", "how"], _offer_rows(catalog))
    _warn(catalog)


def _warn(catalog: Catalog) -> None:
    """Name on stderr what would be sold and is not kept."""
    try:
        from tokenline.charging.terms import not_enforced  # noqa: PLC0415
    except ImportError:  # a gateway has no worker to ask
        return
    for said in not_enforced(catalog):
        err.print(f"not enforced yet: {said}", style="yellow", markup=False)


def _warn_dropped(before: Catalog, catalog: Catalog) -> None:
    """Name on stderr the plans that are sold no more, and what that means for who is on them."""
    from tokenline.rating.diff import dropped_plans  # noqa: PLC0415

    for name in dropped_plans(before, catalog):
        err.print(
            f"plans.{name} is sold no more: its accounts keep their terms, allowance included, until "
            "they are given another plan",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _warn_withdrawn(known: list[Catalog], catalog: Catalog) -> None:
    """Name on stderr the versions that will not come into force, because this one begins before them."""
    for one in known:
        if one.effective_ms > catalog.effective_ms:
            err.print(f"version {one.version} will not come into force: this one begins before it",
                      style="yellow", markup=False, soft_wrap=True)  # fmt: skip


def _print_changes(changes: list[Change], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        typer.echo("\n".join(map(str, changes)) or "nothing changes")


def _published(settings: Settings) -> list[Catalog]:
    """Return the versions that are in force or will be, oldest first."""
    from tokenline.rating.book import CatalogBook  # noqa: PLC0415
    from tokenline.rating.catalog import Catalog  # noqa: PLC0415
    from tokenline.wire.catalogs import read_catalogs  # noqa: PLC0415

    book = CatalogBook()
    for text in asyncio.run(read_catalogs(settings)):
        book.add(Catalog.from_json(text))
    return list(book.versions)


def _publish(settings: Settings, catalog: Catalog) -> None:
    from tokenline.wire.orders import Orders  # noqa: PLC0415

    async def publish() -> int:
        async with Orders(settings) as orders:
            text = catalog.to_json()
            return len(await orders.publish_catalog(catalog.version, catalog.effective_ms, text))

    partitions = asyncio.run(publish())
    typer.echo(f"catalog version {catalog.version} is with all {partitions} partitions")


def _summary(catalog: Catalog) -> dict[str, Any]:
    return {
        "version": catalog.version,
        "effective_from": catalog.effective_from.isoformat(),
        "time_zone": catalog.time_zone,
        "unknown_model": catalog.unknown_model,
        "digest": catalog.digest,
        "rates": [str(rate) for rate in catalog.rates],
        "groups": sorted(catalog.groups),
        "plans": {name: _offer(plan) for name, plan in sorted(catalog.plans.items())},
        "packs": {name: _offer(pack) for name, pack in sorted(catalog.packs.items())},
    }


def _offer(offer: Plan | Pack) -> dict[str, Any]:
    return {"title": offer.title, "fee_nano": offer.fee_nano, "tokens": offer.tokens}


def _rates_shown(catalog: Catalog) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the rates; those that few catalogs need only where one has something in it."""
    columns = ["model", "input", "cache read", "output", "hours", "other units", "applies from"]
    rows = _rate_rows(catalog)
    shown = [at for at in range(len(columns)) if at < 5 or any(row[at] for row in rows)]
    return [columns[at] for at in shown], [[row[at] for at in shown] for row in rows]


def _rate_rows(catalog: Catalog) -> list[list[Any]]:
    from tokenline.event import TOKEN_KINDS  # noqa: PLC0415
    from tokenline.rating.exact import UTOK, decimal_text  # noqa: PLC0415

    shown = [
        TOKEN_KINDS.index(kind) for kind in ("input_tokens", "cache_read_tokens", "output_tokens")
    ]
    named: list[tuple[str, Rate]] = [(str(rate), rate) for rate in catalog.rates]
    if catalog.default_rate:
        named.append(("any other", catalog.default_rate))
    return [
        [
            name,
            *(decimal_text(rate.utok[kind], UTOK) for kind in shown),
            ", ".join(f"{hours} x {hours.ratio}" for hours in rate.hours),
            ", ".join(
                f"{unit} {decimal_text(utok, UTOK)}"
                for unit, utok in sorted(rate.units_utok.items())
            ),
            ""
            if (since_ms := getattr(rate, "applies_ms", None)) is None
            else catalog.moment_text(since_ms),
        ]
        for name, rate in named
    ]


def _offer_rows(catalog: Catalog) -> list[list[Any]]:
    from tokenline.rating.exact import NANO, decimal_text  # noqa: PLC0415

    offers: list[tuple[str, Plan | Pack, str]] = [
        *((name, plan, plan.mode) for name, plan in sorted(catalog.plans.items())),
        *((name, pack, f"{pack.valid_days} days") for name, pack in sorted(catalog.packs.items())),
    ]
    return [
        [name, offer.title, decimal_text(offer.fee_nano, NANO), f"{offer.tokens:,}", how]
        for name, offer, how in offers
    ]
