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
from tokenline.quota.limit_windows import start_of
from tokenline.quota.limits import Limit
from tokenline.quota.subscribers import Subscriber
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenline.quota.books import Books


def limit_decisions(
    books: Books, decided: Iterable[Decided], now_ms: int, epoch: int
) -> list[Decided]:
    """Return the decisions on accounts, with limits named, and behind them those on subscribers."""
    named = [_named(books, one) if one.rule is Rule.LIMIT else one for one in decided]
    return [*named, *_on_subscribers(books, now_ms, epoch)]


def _named(books: Books, decided: Decided) -> Decided:
    row = books.get(books.row(decided.slot), Balance.LIMIT_ROW)
    return _told(books, decided, row)


def _on_subscribers(books: Books, now_ms: int, epoch: int) -> Iterator[Decided]:
    subscribers = books.subscribers
    for subscriber in books.limits.take_looked():
        rows = [
            row
            for row in books.limits.of_subscriber(subscriber)
            if books.limits.in_force(row) and not books.limits.spec(row).models
        ]
        row, ends_ms = longest(books, rows, now_ms)
        state = State.OPEN if row == NONE else State.CUT
        resets_ms = 0 if ends_ms == NEVER_MS else ends_ms
        spec = 0 if row == NONE else books.limits.get(row, Limit.SPEC)
        now = (state, spec, resets_ms)
        columns = (Subscriber.STATE, Subscriber.SPEC, Subscriber.RESETS_AT)
        if now != tuple(subscribers.get(subscriber, column) for column in columns):
            for column, value in zip(columns, now, strict=True):
                subscribers.set(subscriber, column, value)
            yield _record(books, subscriber, row, epoch)


def _record(books: Books, subscriber: int, row: int, epoch: int) -> Decided:
    subscribers = books.subscribers
    slot = subscribers.get(subscriber, Subscriber.OWNER)
    books.cells.matrix[slot, Cell.DECISION_VERSION] += 1
    old_epoch = subscribers.get(subscriber, Subscriber.EPOCH)
    subscribers.set(subscriber, Subscriber.EPOCH, epoch)
    opened = row == NONE
    decided = Decided(
        slot=slot,
        state=State.OPEN if opened else State.CUT,
        rule=Rule.NONE if opened else Rule.LIMIT,
        reason="window_reset" if opened else "limit_reached",
        threshold_percent=0,
        used=0,
        limit=-1,
        window_start_ms=0,
        resets_at_ms=subscribers.get(subscriber, Subscriber.RESETS_AT),
        version=int(books.cells.matrix[slot, Cell.DECISION_VERSION]),
        old_epoch=old_epoch,
        subscriber=subscribers.name(subscriber),
    )
    return decided if opened else _told(books, decided, row)


def _told(books: Books, decided: Decided, row: int) -> Decided:
    return replace(
        decided,
        limit_name=books.limits.spec(row).name,
        used=books.limits.get(row, Limit.USED),
        limit=books.limits.get(row, Limit.CEILING),
        window_start_ms=start_of(books, row),
    )
