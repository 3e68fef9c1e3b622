"""Rate usage by the catalog and charge it to the balances: between the fold and `quota`, `rating`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from tokenline.charging.absurd import refuse_absurd
from tokenline.metering.judge import Judgement, arrow_int64s, int64_column
from tokenline.quota.charge import Rated, charge_chunk
from tokenline.quota.terms import Use
from tokenline.rating import rate as rating

if TYPE_CHECKING:
    import pyarrow as pa

    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Step
    from tokenline.metering.tally import LineNumbers
    from tokenline.quota.hold_rows import Session

Int64s = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]

_NAME = struct.Struct("<qq")


def rate_usage(
    state: PartitionState, batch: pa.RecordBatch, tokens: Int64s, slots: Int64s, verdict: Int8s
) -> tuple[Int64s, Int64s]:
    """Return charge and catalog version of each event; one that has no rate, or costs too much, is judged so.

    Before the first catalog is in force nothing is rated and nothing refused: charge and version 0.
    Where there is no balance to charge, the charge is 0.
    """
    if not state.catalogs.versions or not len(batch):
        nothing = np.zeros(len(batch), np.int64)
        return nothing, nothing
    rated = rating.rate(state.catalogs, batch, tokens, int64_column(batch, "occurred_at"))
    unknown = (rated.version > 0) & ~rated.known
    if unknown.any():
        verdict[unknown & (verdict == Judgement.COUNTED)] = Judgement.UNKNOWN_MODEL
    charges_utok = rated.charge_utok * (state.books.rows_of(slots) >= 0)
    refuse_absurd(state, slots, charges_utok, verdict)
    return charges_utok, rated.version


def charge_usage(
    state: PartitionState,
    step: Step,
    batch: pa.RecordBatch,
    numbers: LineNumbers,
    appended_ms: Int64s,
) -> None:
    """Charge counted events to the accounts that have a balance, and enter it in the step."""
    if not len(state.books.balances):
        return
    held = batch.column("hold_id")
    texts = [batch.column(name) for name in ("provider", "model", "subscriber_id")]
    rated = Rated(
        slots=numbers.slots,
        charges_utok=numbers.charge_utok,
        tokens=numbers.totals,
        occurred_ms=int64_column(batch, "occurred_at"),
        appended_ms=appended_ms,
        named=_not_empty(held),
        uses=lambda events: _uses(texts, arrow_int64s(events)),
        session=lambda event: session_of(held[event].as_py()),
    )
    state.move_clock(step.as_of_ms)
    charge_chunk(state.books, rated)
    step.changes, step.burns = state.books.take()
    step.alarms = state.books.take_alarms()
    state.tally.add_burns(step.burns)


def _uses(texts: list[pa.Array], events: pa.Array) -> list[Use]:
    columns = (text.take(events).to_pylist() for text in texts)
    return [Use(*names) for names in zip(*columns, strict=True)]


def session_of(hold_id: str) -> Session:
    """Return the 128-bit name of a session; the same for ever."""
    hi, lo = _NAME.unpack(xxh3_128_digest(hold_id.encode()))
    return hi, lo


def _not_empty(texts: pa.Array) -> npt.NDArray[np.bool_]:
    starts = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, 4 * texts.offset)
    filled: npt.NDArray[np.bool_] = starts[1:] != starts[:-1]
    return filled
