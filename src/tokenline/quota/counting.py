"""Count charged usage into the limits it matches, and note who has reached one.

Nothing is decided here: an account's row says which limit cuts it, and subscribers of whom something
may have to be told are gathered for `limit_decisions`.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.quota.balance import Balance
from tokenline.quota.limit_windows import note_use, resets_at, roll_all, rolled, take_back
from tokenline.quota.limits import Limit
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenline.quota.books import Books, Int64s
    from tokenline.quota.hold_rows import Hold
    from tokenline.quota.terms import Use

Bools = npt.NDArray[np.bool_]


def count_one(books: Books, row: int, use: Use, tokens: int, amount_utok: int, now_ms: int) -> None:
    """Count one event of an account, by its balance row."""
    if books.get(row, Balance.LIMITED):
        owner = books.get(row, Balance.OWNER)
        amounts = np.array([amount_utok], np.int64)
        count_events(books, [(owner, use)], np.array([tokens], np.int64), amounts, now_ms)


def count_events(
    books: Books,
    uses: Sequence[tuple[int, Use]],
    tokens: Int64s,
    amounts_utok: Int64s,
    now_ms: int,
) -> None:
    """Count events, each an account's slot and what was used, into all limits they match."""
    matching = books.limits.matching
    found = [matching(owner, use) for owner, use in uses]
    rows = np.fromiter(chain.from_iterable(found), np.int64)
    if not rows.size:
        return
    events = np.repeat(np.arange(len(found)), [len(one) for one in found])
    roll_all(books, np.unique(rows), now_ms)
    units = books.limits.matrix[rows, Limit.UNIT]
    counts = (tokens[events], amounts_utok[events], np.ones(len(events), np.int64))
    _add(books, rows, np.choose(units, counts), now_ms)


def charge_expired(books: Books, hold: Hold, now_ms: int) -> None:
    """Count what a hold was charged at its end as used of the limits it was held against."""
    if hold.limits and hold.held_utok:
        rows = np.array(hold.limits, np.int64)
        roll_all(books, rows, now_ms)
        _add(books, rows, np.full(len(rows), hold.held_utok, np.int64), now_ms)


def refund_expired(books: Books, hold: Hold, amount_utok: int) -> None:
    """Take off again what `charge_expired` counted: it was not used, or its own event counts it."""
    charged_ms = hold.expires_at_ms
    for row in hold.limits if amount_utok else ():
        take_back(books, row, amount_utok, charged_ms)
        _look_again(books, np.array([row], np.int64), charged_ms)


def stand(books: Books, row: int, now_ms: int) -> None:
    """Note in an account's balance which limit cuts it and when that ends: it is due then."""
    if not books.get(row, Balance.LIMITED) and not books.get(row, Balance.LIMIT_RESETS):
        return
    worst, resets = longest(books, books.limits.of_account(books.get(row, Balance.OWNER)), now_ms)
    books.set(row, Balance.LIMIT_ROW, worst)
    books.set(row, Balance.LIMIT_RESETS, resets)
    if worst != NONE:
        books.set(row, Balance.DUE_AT, min(books.get(row, Balance.DUE_AT), resets))
        books.dues.note_row(row)


def longest(books: Books, rows: Iterable[int], now_ms: int) -> tuple[int, int]:
    """Return, of the limits that are reached, the one that resets last, and when; else NONE and 0."""
    worst, resets = NONE, 0
    for row in rows:
        values = rolled(books, row, now_ms)
        if values[Limit.USED] >= values[Limit.CEILING]:
            ends = resets_at(values)
            worst, resets = (row, ends) if ends > resets else (worst, resets)
    return worst, resets


def _add(books: Books, rows: Int64s, amounts: Int64s, now_ms: int) -> None:
    note_use(books, rows, amounts)
    distinct = np.unique(rows)
    books.limits.touch_all(distinct)
    _look_again(books, distinct, now_ms)


def _look_at_groups(books: Books, rows: Int64s, over: Bools) -> None:
    grouped, looked = books.limits.grouped, books.limits.looked_groups
    looked.update(grouped[row] for row in grouped.keys() & rows[over].tolist())
    below = [grouped[row] for row in grouped.keys() & rows[~over].tolist()]
    looked |= books.told.cut_groups(below)


def _look_again(books: Books, rows: Int64s, now_ms: int) -> None:
    """Note whose standing may have changed: who has reached a limit, and who was cut before."""
    limits = books.limits.matrix[rows]
    over = limits[:, Limit.USED] >= limits[:, Limit.CEILING]
    whose = limits[:, Limit.SUBSCRIBER]
    own = whose >= 0
    books.limits.looked.update(whose[own & over].tolist())
    books.limits.looked |= books.told.cut(whose[own & ~over].tolist())
    if books.limits.grouped:
        _look_at_groups(books, rows, over)
    accounts = books.rows_of(limits[~own, Limit.OWNER])
    cut = books.balances.matrix[accounts, Balance.LIMIT_RESETS] != 0
    for row in np.unique(accounts[over[~own] | cut]).tolist():
        stand(books, row, now_ms)
