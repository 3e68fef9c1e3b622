"""Say what limits decide: cut a subscriber or open it again, and name what cut an account.

A subscriber is cut while a limit of its own, of all models, is reached; of several the one that
resets last decides. A limit of a group of models cuts its account, or its subscriber, for these models
alone: each such limit is a decision of its own. All count on in their account's versions, so those
have no gaps, and carry an epoch of their own, because a decision is kept by whom it cuts and epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenline.quota.balance import Balance
from tokenline.quota.cells import Cell
from tokenline.quota.counting import longest
from tokenline.quota.decided import Decided, Rule, State
from tokenline.quota.limit_windows import rolled, start_of
from tokenline.quota.limits import Limit
from tokenline.quota.subscribers import Telling, Whom
from tokenline.quota.table import NONE
from tokenline.quota.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenline.quota.books import Books


def limit_decisions(
    books: Books, decided: Iterable[Decided], now_ms: int, epoch: int
) -> list[Decided]:
    """Return the decisions on accounts, with limits named, and behind them those that limits alone make."""
    named = [_named(books, one, now_ms) if one.rule is Rule.LIMIT else one for one in decided]
    return [*named, *_by_limits(books, now_ms, epoch)]


def _named(books: Books, decided: Decided, now_ms: int) -> Decided:
    row = books.get(books.row(decided.slot), Balance.LIMIT_ROW)
    return _told(books, decided, row, now_ms)


def _by_limits(books: Books, now_ms: int, epoch: int) -> Iterator[Decided]:
    """Cut subscribers, and for groups of models also accounts, or open them again."""
    for whom in books.limits.take_looked():
        row, ends_ms = longest(books, books.limits.that_cut(whom), now_ms)
        spec = 0 if row == NONE else books.limits.get(row, Limit.SPEC)
        now = [int(row != NONE) * State.CUT, spec, 0 if ends_ms == NEVER_MS else ends_ms]
        told = books.told.find(whom)
        if now != told[Telling.STATE : Telling.EPOCH]:
            books.told.tell([whom.owner, whom.subscriber, *now, epoch, whom.group])
            decided = _record(books, whom, spec, now[2], told[Telling.EPOCH])
            yield decided if row == NONE else _told(books, decided, row, now_ms)


def _record(books: Books, whom: Whom, spec: int, resets_ms: int, old_epoch: int) -> Decided:
    """Return a decision that opens, or with the `spec` that cuts one that does."""
    slot = whom.owner
    books.cells.matrix[slot, Cell.DECISION_VERSION] += 1
    group = books.limits.specs[spec or whom.group] if whom.group else None
    return Decided(
        slot=slot,
        state=State.CUT if spec else State.OPEN,
        rule=Rule.LIMIT if spec else Rule.NONE,
        reason="limit_reached" if spec else "resumed",
        threshold_percent=0,
        used=0,
        limit=-1,
        window_start_ms=0,
        resets_at_ms=resets_ms,
        version=int(books.cells.matrix[slot, Cell.DECISION_VERSION]),
        old_epoch=old_epoch,
        subscriber="" if whom.subscriber == NONE else books.subscribers.name(whom.subscriber),
        group="" if group is None else group.group,
        models=() if group is None else group.models,
    )


def _told(books: Books, decided: Decided, row: int, now_ms: int) -> Decided:
    values = rolled(books, row, now_ms)
    return replace(
        decided,
        limit_name=books.limits.spec(row).name,
        used=values[Limit.USED],
        limit=values[Limit.CEILING],
        unit=books.limits.spec(row).unit.name.lower(),
        window_start_ms=start_of(values),
    )
