"""Say what books hold in words that do not depend on which row is whose: for laws that compare books whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket
from tokenline.quota.cells import Cell
from tokenline.quota.limit_windows import rolled
from tokenline.quota.limits import EACH, Limit
from tokenline.quota.pseudo import Pseudo
from tokenline.quota.table import FREE, NONE, OWNER
from tokenline.quota.usage import roll_rates

# Numbers of rows, which depend on what other accounts gave back before.
_ROWS = (
    *(Balance.OWNER, Balance.FIRST, Balance.HEAD, Balance.LIMIT_ROW),
    # Numbers given in order of first sight.
    *(Balance.TERMS, Balance.PLAN, Balance.THRESHOLDS),
)
# What was told of an account is no balance.
TOLD = (
    *(Cell.STATE, Cell.RULE, Cell.THRESHOLD_PERCENT, Cell.THRESHOLD_MONTH, Cell.RESETS_AT),
    *(Cell.DECISION_VERSION, Cell.DECISION_EPOCH, Cell.COVERS),
    # They order what was published of a month, by places in topics: whoever looks takes one.
    *(Cell.MONTH_VERSION, Cell.LAST_MONTH_VERSION),
)


def books_as_said(state: Any) -> dict[str, Any]:
    """Return all that the books hold of each account, as of the partition's clock."""
    now_ms, books = state.clock_ms, state.books
    slots = np.arange(len(state.cells))
    roll_rates(state.cells, slots, now_ms // 60_000 * 60_000)
    found = {}
    for slot, key in enumerate(state.cells.keys):
        cells = dict(zip(Cell, state.cells.matrix[slot].tolist(), strict=True))
        found[key] = {"cells": {cell: cells[cell] for cell in Cell if cell not in TOLD}}
        row = books.row(slot)
        if row >= 0:
            found[key] |= _account(books, row, now_ms)
    found["answers"] = _answers(books)
    return found


def _account(books: Any, row: int, now_ms: int) -> dict[str, Any]:
    owner = books.get(row, Balance.OWNER)
    values = dict(zip(Balance, books.balances.matrix[row].tolist(), strict=True))
    chain = books.chain(row)
    numbers = {one: books.buckets.get(one, Bucket.NUMBER) for one in chain} | {NONE: Pseudo.OVERAGE}
    return {
        "balance": {column: value for column, value in values.items() if column not in _ROWS},
        "terms": (books.plan(row), books.terms(row)),
        "head": numbers[values[Balance.HEAD]],
        "cuts": _limit_name(books, values[Balance.LIMIT_ROW])
        if values[Balance.LIMIT_RESETS]
        else "",
        "buckets": [_bucket(books, one) for one in chain],
        "holds": sorted(_hold(books, one, numbers) for one in books.holds.of_owner(owner)),
        "limits": dict(
            sorted(
                (_limit_name(books, one), _limit(books, one, now_ms))
                for one in books.limits.of_owner(owner)
            )
        ),
    }


def _bucket(books: Any, bucket: int) -> list[int]:
    values = dict(zip(Bucket, books.buckets.matrix[bucket].tolist(), strict=True))
    scope = books.scopes.scopes[values.pop(Bucket.SCOPE)]
    return [scope, *(value for column, value in values.items() if column > Bucket.NEXT)]


def _hold(books: Any, hold: Any, numbers: dict[int, int]) -> Any:
    parts = [(part.number, part.amount_utok) for part in hold.parts]
    assert all(numbers[part.row] == part.number for part in hold.parts)
    limits = sorted(_limit_name(books, one) for one in hold.limits)
    times = hold.opened_at_ms, hold.expires_at_ms, hold.kept_until_ms
    amounts = hold.reported_utok, hold.used_utok, hold.reserved_utok
    return [hold.session, hold.seq, hold.status, hold.expiry, times, amounts, parts, limits]


def _limit_name(books: Any, row: int) -> tuple[str, str, str]:
    who = books.limits.get(row, Limit.SUBSCRIBER)
    name = books.limits.subscribers.name(who) if who >= 0 else "*" * (who == EACH)
    return (*books.limits.spec(row).identity, name)


def _limit(books: Any, row: int, now_ms: int) -> list[int]:
    values = rolled(books, row, now_ms)
    return [value for column, value in enumerate(values) if column > Limit.SUBSCRIBER]


def _answers(books: Any) -> list[list[int]]:
    rows = books.answers.matrix.tolist()
    return sorted(row for row in rows if row[OWNER] != FREE)
