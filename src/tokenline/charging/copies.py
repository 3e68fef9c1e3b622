"""Tell the first of an event from its copies, and remember what came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.metering.identity import identities
from tokenline.metering.judge import Judgement, arrow_int64s

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenline.metering.seen import SeenEvents

Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

OWNER = ("tenant_id", "account_id", "source")


def tell_copies(seen: SeenEvents, batch: pa.RecordBatch, verdict: Int8s) -> UInt64s:
    """Judge the good events that came before to be duplicates; return the names to remember, each new.

    What a correction replaces may come after it: then it is a copy of what the correction says.
    """
    fit = np.flatnonzero(verdict <= Judgement.CORRECTION)
    names = _names(batch, "event_id", fit)
    held = np.flatnonzero(verdict[fit] == Judgement.CORRECTION)
    if not held.size:
        found = seen.find(names)
        verdict[fit[found]] = Judgement.DUPLICATE
        return names[~found]
    # Each replaced name behind that of its correction.
    places = np.concatenate((2 * np.arange(len(fit)), 2 * held + 1))
    order = np.argsort(places)
    both = np.concatenate((names, _names(batch, "corrects", fit[held])))[order]
    found = _found_in_turn(both, places[order], seen.known(both))
    verdict[fit[found[places[order] % 2 == 0]]] = Judgement.DUPLICATE
    return both[~found]


def _found_in_turn(names: UInt64s, places: Int64s, known: Bools) -> Bools:
    """Say of each name whether it came before; a copy of a correction, which is none, replaces nothing.

    An odd place is that of what the correction at the place before it replaces.
    """
    found = known.copy()
    _, alike, counts = np.unique(names, axis=0, return_inverse=True, return_counts=True)
    alike = alike.ravel()
    came: set[int] = set()
    # Only of names that stand twice does the turn matter; a replaced name depends on its correction.
    for at in np.flatnonzero((counts[alike] > 1) | (places % 2 == 1)).tolist():
        if places[at] % 2 and found[at - 1]:
            # Said by a copy: it is no news, and nobody is to remember it.
            found[at] = True
            continue
        found[at] |= int(alike[at]) in came
        came.add(int(alike[at]))
    return found


def _names(batch: pa.RecordBatch, column: str, rows: Int64s) -> UInt64s:
    if len(rows) < len(batch):
        batch = batch.take(arrow_int64s(rows))
    return identities(*(batch.column(name) for name in (*OWNER, column)))
