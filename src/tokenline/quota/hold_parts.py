"""Move units between a session and the buckets it holds of: take, give back, use, charge and refund.

A part without a bucket (its row is NONE) is held beyond all buckets, of a plan that goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket, Part
from tokenline.quota.entries import ChangeKind
from tokenline.quota.paying import come_back, lose, split
from tokenline.quota.pseudo import Pseudo, change_pseudo, note_pseudo, overage_room
from tokenline.quota.table import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenline.quota.books import Books
    from tokenline.quota.hold_rows import Hold
    from tokenline.quota.terms import Use


def pays(books: Books, part: Part, use: Use) -> bool:
    """Say whether what is held of a bucket may pay a use; when the bucket was valid is no matter."""
    if part.row == NONE:
        return True
    return books.scopes.covers(books.buckets.get(part.row, Bucket.SCOPE), use)


def there_is(books: Books, row: int, use: Use, amount_utok: int, now_ms: int) -> list[Part]:
    """Return what may be held for a use, up to an amount; beyond all buckets where the plan goes on."""
    parts = split(books, row, use, amount_utok, now_ms)
    missing = amount_utok - sum(part.amount_utok for part in parts)
    over = 0 if books.get(row, Balance.STOPS) else min(missing, overage_room(books, row))
    return [*parts, Part(NONE, Pseudo.OVERAGE, over)] if over > 0 else parts


def take(books: Books, row: int, hold: Hold, parts: Iterable[Part]) -> None:
    """Hold what was found to be there."""
    for part in parts:
        _put(books, row, hold, part)


def shrink(books: Books, row: int, hold: Hold, target_utok: int, now_ms: int) -> None:
    """Hold no more than `target_utok`.

    What was taken last is given back first, so what stays is what burns first.
    """
    surplus = hold.held_utok - target_utok
    for part in reversed(hold.parts):
        if surplus <= 0:
            break
        taken = min(part.amount_utok, surplus)
        surplus -= taken
        _put(books, row, hold, part._replace(amount_utok=-taken))
        if part.row != NONE:
            come_back(books, row, part.row, taken, now_ms)
    drop_empty(hold)


def use_held(books: Books, row: int, part: Part, amount_utok: int, now_ms: int) -> None:
    """Turn what is held of a bucket into what is used of it."""
    _change_held(books, row, part, -amount_utok)
    _change_used(books, row, part, amount_utok)
    if part.row != NONE:
        lose(books, row, part.row, now_ms)


def charge_ended(books: Books, row: int, part: Part, now_ms: int) -> None:
    """Charge what is held of a bucket without usage that says so: its session has ended."""
    use_held(books, row, part, part.amount_utok, now_ms)
    _enter(books, row, part, ChangeKind.HOLD_CHARGE, -part.amount_utok, now_ms)


def charge_again(books: Books, row: int, part: Part, amount_utok: int, now_ms: int) -> None:
    """Let usage pay what `charge_ended` charged: the bucket's rest stays, the entries say both."""
    _change_used(books, row, part, -amount_utok)
    _enter(books, row, part, ChangeKind.HOLD_REFUND, amount_utok, now_ms)
    _change_used(books, row, part, amount_utok)


def refund(books: Books, row: int, hold: Hold, amount_utok: int, now_ms: int) -> int:
    """Give back what `charge_ended` charged, as far as it is still in hand; return how much that was."""
    left = amount_utok
    for at, part in reversed(list(enumerate(hold.parts))):
        if taken := min(part.amount_utok, left):
            left -= taken
            hold.parts[at] = part._replace(amount_utok=part.amount_utok - taken)
            _change_used(books, row, part, -taken)
            _keep_base(books, row, part)
            _enter(books, row, part, ChangeKind.HOLD_REFUND, taken, now_ms)
    drop_empty(hold)
    return amount_utok - left


def drop_empty(hold: Hold) -> None:
    """Forget the parts of which nothing is left."""
    hold.parts = [part for part in hold.parts if part.amount_utok]


def _put(books: Books, row: int, hold: Hold, part: Part) -> None:
    """Add to what is held of one bucket."""
    for at, old in enumerate(hold.parts):
        if old.row == part.row:
            hold.parts[at] = old._replace(amount_utok=old.amount_utok + part.amount_utok)
            break
    else:
        hold.parts.append(part)
    _change_held(books, row, part, part.amount_utok)


def _change_held(books: Books, row: int, part: Part, amount_utok: int) -> None:
    if part.row == NONE:
        held_utok = books.get(row, Balance.OVERAGE_HELD) + amount_utok
        books.set(row, Balance.OVERAGE_HELD, held_utok)
    else:
        books.buckets.change(part.row, Bucket.HELD, amount_utok)


def _change_used(books: Books, row: int, part: Part, amount_utok: int) -> None:
    if part.row == NONE:
        change_pseudo(books, row, Pseudo.OVERAGE, amount_utok)
    else:
        books.buckets.change(part.row, Bucket.USED, amount_utok)


def _keep_base(books: Books, row: int, part: Part) -> None:
    """Let no figure of the present cycle fall below zero: what comes back was used before it began."""
    if part.row == NONE:
        base = min(books.get(row, Balance.OVERAGE_BASE), books.get(row, Balance.OVERAGE))
        books.set(row, Balance.OVERAGE_BASE, base)
    else:
        get = books.buckets.get
        base = min(get(part.row, Bucket.BEFORE), get(part.row, Bucket.USED))
        books.buckets.set(part.row, Bucket.BEFORE, base)


def _enter(
    books: Books, row: int, part: Part, kind: ChangeKind, amount_utok: int, now_ms: int
) -> None:
    if part.row == NONE:
        note_pseudo(books, row, Pseudo.OVERAGE, kind, amount_utok, now_ms)
    else:
        books.enter(row, part.row, kind, amount_utok, now_ms)
