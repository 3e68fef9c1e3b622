"""Say what limits decide: cut a subscriber or open it again, and name what cut an account.

A subscriber is cut while a limit of its own, of all models, is reached; of several the one that
resets last decides. Its decisions count on in its account's versions, so those have no gaps, and
carry an epoch of their own, because a decision is kept by subscriber and epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenline.quota.books import Balance
from tokenline.quota.cells import Cell
from tokenline.quota.counting import longest
from tokenline.quota.decide import Decided, Rule, State
from tokenline.quota.limit_windows import rolled, start_of
from tokenline.quota.limits import Limit
from tokenline.quota.subscribers import Telling
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenline.quota.books import Books


def limit_decisions(
    books: Books, decided: Iterable[Decided], now_ms: int, epoch: int
) -> list[Decided]:
    """Return the decisions on accounts, with limits named, and behind them those on subscribers."""
    named = [_named(books, one, now_ms) if one.rule is Rule.LIMIT else one for one in decided]
    return [*named, *_on_subscribers(books, now_ms, epoch)]


def _named(books: Books, decided: Decided, now_ms: int) -> Decided:
    row = books.get(books.row(decided.slot), Balance.LIMIT_ROW)
    return _told(books, decided, row, now_ms)


def _on_subscribers(books: Books, now_ms: int, epoch: int) -> Iterator[Decided]:
    for subscriber in books.limits.take_looked():
        rows = [
            row
            for row in books.limits.of_subscriber(subscriber)
            if books.limits.in_force(row) and not books.limits.spec(row).models
        ]
        row, ends_ms = longest(books, rows, now_ms)
        spec = 0 if row == NONE else books.limits.get(row, Limit.SPEC)
        now = [int(row != NONE) * State.CUT, spec, 0 if ends_ms == NEVER_MS else ends_ms]
        told = books.told.find(subscriber)
        if now != told[Telling.STATE : Telling.EPOCH]:
            slot = books.subscribers.owner(subscriber)
            books.told.tell([slot, subscriber, *now, epoch])
            decided = _record(books, subscriber, now[2], told[Telling.EPOCH], opened=row == NONE)
            yield decided if row == NONE else _told(books, decided, row, now_ms)


def _record(
    books: Books, subscriber: int, resets_ms: int, old_epoch: int, *, opened: bool
) -> Decided:
    slot = books.subscribers.owner(subscriber)
    books.cells.matrix[slot, Cell.DECISION_VERSION] += 1
    return Decided(
        slot=slot,
        state=State.OPEN if opened else State.CUT,
        rule=Rule.NONE if opened else Rule.LIMIT,
        reason="resumed" if opened else "limit_reached",
        threshold_percent=0,
        used=0,
        limit=-1,
        window_start_ms=0,
        resets_at_ms=resets_ms,
        version=int(books.cells.matrix[slot, Cell.DECISION_VERSION]),
        old_epoch=old_epoch,
        subscriber=books.subscribers.name(subscriber),
    )


def _told(books: Books, decided: Decided, row: int, now_ms: int) -> Decided:
    values = rolled(books, row, now_ms)
    return replace(
        decided,
        limit_name=books.limits.spec(row).name,
        used=values[Limit.USED],
        limit=values[Limit.CEILING],
        window_start_ms=start_of(values),
    )
