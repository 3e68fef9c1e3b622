"""Look at catalog files before anybody is charged by them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenline.cli.common import Json, print_json, print_table

if TYPE_CHECKING:
    from tokenline.rating.catalog import Catalog
    from tokenline.rating.offers import Pack, Plan
    from tokenline.rating.rates import Rate

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

    catalog = read_catalog(file)
    if as_json:
        print_json(_summary(catalog))
        return
    typer.echo(
        f"catalog version {catalog.version}, in force from {catalog.effective_from:%Y-%m-%d %H:%M %z} "
        f"({catalog.time_zone}); unknown models: {catalog.unknown_model}"
    )
    print_table(["model", "input", "cache read", "output", "hours"], _rate_rows(catalog))
    print_table(["offer", "title", "yuan", "standard tokens", "how"], _offer_rows(catalog))


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
    changes = changes_of(before, after)
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        typer.echo("\n".join(map(str, changes)) or "nothing changes")
    book = CatalogBook()
    book.add(before)
    book.add(after)


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
