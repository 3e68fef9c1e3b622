"""Let an account live in another zone, and let what it has begun in its own go on: see `moves`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenline.metering.calendar import MINUTE_MS
from tokenline.quota.cells import Cell
from tokenline.quota.limit_windows import keep_windows
from tokenline.quota.table import NONE
from tokenline.quota.usage import roll_rates

if TYPE_CHECKING:
    from tokenline.quota.books import Books


def move_to(books: Books, slot: int, zone: str, now_ms: int) -> None:
    """Let an account that was set before live in a zone from now on; what was due before was done before."""
    cells, code = books.cells, books.cells.zone_code(zone)
    if cells.matrix[slot, Cell.ZONE] != code:
        minute_ms = now_ms // MINUTE_MS * MINUTE_MS
        roll_rates(cells, np.array([slot]), minute_ms)
        cells.moves.keep(slot, cells.spans_of(slot, minute_ms), zone)
        if books.row(slot) != NONE:
            keep_windows(books, slot, zone, now_ms)
    cells.matrix[slot, Cell.ZONE] = code
