"""Order charging to take back what late copies were charged, and to carry corrections out.

An order names all that charging needs of both sides; charging keeps no event. What a correction was
charged is not in its row: what it came to is asked of windows and entries, or, where it is not here yet,
left to charging, which remembers the last ones (UNKNOWN).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenline.event import TOKEN_KINDS
from tokenline.landing.row import plain_rows
from tokenline.landing.store import Ordered, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from tokenline.landing.copies import Found
    from tokenline.landing.row import Events
    from tokenline.landing.store import Store

Row = dict[str, Any]
Order = dict[str, Any]

UNKNOWN = -1  # charge of a correction that only charging knows
_PLAIN = (
    *("topic", "partition", "offset", "event_id", "source", "occurred_at"),
    *("provider", "model", "subscriber_id", "hold_id", *TOKEN_KINDS),
)
_CHARGES = ("charge_utok", "catalog_version", "paid_buckets", "paid_utok")
_WANTED = (
    *("tenant_id", "account_id", *_PLAIN, "other_units", *_CHARGES),
    *("appended_at", "late", "judgement"),
)
# Charging takes so many orders of one record; an event is not counted that often.
PARTS_MAX = 1000


def orders_of(store: Store, found: Found, rows: pa.Table) -> list[Order]:
    """Return the orders of a run, by the offsets that cause them; `rows` are its rows of the ledger.

    Raises:
        WarehouseUnavailable: try again.
    """
    if not (found.copies or found.corrections):
        return []
    originals = _originals(found, rows)
    settled = store.settlements(
        [_ordered(row) for each in originals for row in each if row["judgement"] == "correction"]
    )
    orders = list(_voids(found.events, found.copies))
    corrections = found.events.rows_at([one.position for one in found.corrections])
    for row, replaced in zip(plain_rows(corrections.select(_WANTED)), originals, strict=True):
        orders += _corrects(row, replaced, settled)
    return sorted(orders, key=lambda order: (order["cause_offset"], order["part"]))


def _originals(found: Found, rows: pa.Table) -> list[list[Row]]:
    """Return for each correction the rows that it replaces, from before and of this run."""
    wanted = [at for one in found.corrections for at in one.positions]
    offsets = {int(found.events.offsets[at]) for at in wanted}
    here = {row["offset"]: row for row in _rows_at(rows, offsets)}
    return [
        [*one.rows, *(here[int(found.events.offsets[at])] for at in one.positions)]
        for one in found.corrections
    ]


def _rows_at(rows: pa.Table, offsets: set[int]) -> list[Row]:
    if not offsets:
        return []
    places = {int(offset): at for at, offset in enumerate(rows.column("offset").to_pylist())}
    return plain_rows(rows.take([places[offset] for offset in sorted(offsets)]))


def _voids(events: Events, copies: list[int]) -> Iterator[Order]:
    """Yield an order for each late copy: it was charged, and counts for nothing."""
    for row in plain_rows(events.rows_at(copies).select(_WANTED)):
        yield _order(row, "void", row["offset"], 0, row, None)


def _corrects(row: Row, replaced: list[Row], settled: dict[str, Settlement]) -> Iterator[Order]:
    """Yield the order of a correction, and one for each further time that its event was counted."""
    sides: list[Row | None] = [_with_settlement(original, settled) for original in replaced]
    sides = sides or [None]
    yield _order(row, "correct", row["offset"], 0, sides[0], row)
    for part, side in enumerate(sides[1:PARTS_MAX], start=1):
        yield _order(side, "void", row["offset"], part, side, None)


def _with_settlement(original: Row, settled: dict[str, Settlement]) -> Row:
    """Return an original with what it was charged; a correction's row does not say it."""
    if original["judgement"] != "correction":
        return original | {"charged_at": original["appended_at"]}
    known = settled.get(_ordered(original).command_id)
    if known is None:
        return original | {"charge_utok": UNKNOWN, "charged_at": 0}
    return original | {
        "charge_utok": known.charge_utok,
        "catalog_version": known.catalog_version,
        "charged_at": known.charged_ms,
        "paid_buckets": [number for number, _ in known.parts],
        "paid_utok": [amount for _, amount in known.parts],
    }


def _ordered(row: Row) -> Ordered:
    name = f"correct/{row['partition']}/{row['offset']}"
    return Ordered(row["tenant_id"], row["account_id"], name)


def _order(
    named: Row | None,
    kind: str,
    cause: int,
    part: int,
    original: Row | None,
    replacement: Row | None,
) -> Order:
    assert named is not None  # noqa: S101  # the original of a void, the replacement of a correction
    return {
        "tenant_id": named["tenant_id"],
        "account_id": named["account_id"],
        "command_id": f"{kind}/{named['partition']}/{named['offset']}",
        "kind": kind,
        "cause_offset": cause,
        "part": part,
        **_side("original", original),
        **_side("replacement", replacement),
    }


def _side(name: str, row: Row | None) -> Order:
    """Return one side of an order; an absent one is empty."""
    if row is None:
        return _ABSENT[name]
    said = {field: row[field] for field in (*_PLAIN, *_CHARGES)}
    said |= {
        "present": 1,
        "charged_at": row.get("charged_at", row["appended_at"]),
        "other_units": dict(row["other_units"]),
        "late": row["late"],
    }
    return {f"{name}_{field}": value for field, value in said.items()}


def _absent(name: str) -> Order:
    texts = dict.fromkeys(
        ("topic", "event_id", "source", "provider", "model", "subscriber_id", "hold_id"), ""
    )
    numbers = dict.fromkeys(
        ("present", "partition", "offset", "occurred_at", "charged_at", *TOKEN_KINDS), 0
    )
    rest = {"other_units": {}, "charge_utok": 0, "catalog_version": 0, "late": 0}
    lists: Order = {"paid_buckets": [], "paid_utok": []}
    return {f"{name}_{field}": value for field, value in (texts | numbers | rest | lists).items()}


_ABSENT = {name: _absent(name) for name in ("original", "replacement")}
