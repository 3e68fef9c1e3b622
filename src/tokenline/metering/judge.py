"""Judge decoded events by what they say: fit to count, late, or not usable and why.

It knows no account, no catalog and no history; unknown accounts, unknown models and repeats are
charging's to find. Every rule
looks only at the record and its broker append time, so every replay judges alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.event import TOKEN_KINDS
from tokenline.metering.identity import FEW_ROWS
from tokenline.names import EVENT_NAMES, EVENT_NAMES_OR_NONE, NAME_MAX_BYTES, why_bad_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64s = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]

DAY_MS = 86_400_000
# The bytes of printable ASCII: where there are no others, nothing else need be looked at.
_SPACE, _LAST = 0x20, 0x7E


class Judgement(IntEnum):
    """Say what becomes of one event; all above DUPLICATE are dead letters."""

    COUNTED = 0
    LATE = 1
    DUPLICATE = 2
    BAD_NAME = 3
    NEGATIVE_COUNT = 4
    ABSURD_COUNT = 5
    FUTURE_TIME = 6
    TOO_OLD = 7
    KEY_MISMATCH = 8
    UNKNOWN_ACCOUNT = 9
    UNKNOWN_MODEL = 10
    WRONG_PARTITION = 11
    ABSURD_CHARGE = 12


DETAILS = {
    Judgement.BAD_NAME: "a name is none",
    Judgement.NEGATIVE_COUNT: "a token count or other unit is below zero",
    Judgement.ABSURD_COUNT: "a token count or other unit is above max_tokens_per_event",
    Judgement.FUTURE_TIME: "occurred_at is further ahead of the broker's clock than future_skew_s",
    Judgement.TOO_OLD: "occurred_at is more than max_age_days before the broker's clock",
    Judgement.KEY_MISMATCH: "the key is not tenant_id/account_id: another account may be meant",
    Judgement.WRONG_PARTITION: "its key belongs into another partition",
    Judgement.ABSURD_CHARGE: "it costs more than max_charge_utok_per_event, or its account has used more "
    "than 10^18 utok that no bucket paid: a person must look at that first",
    Judgement.UNKNOWN_MODEL: "the catalog in force when it occurred has no rate for the model",
    Judgement.UNKNOWN_ACCOUNT: "no account of this name was applied before the event was charged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Hold what an event may say at most."""

    horizon_ms: int
    future_skew_ms: int
    max_age_ms: int
    max_tokens: int
    max_charge_utok: int = 10**15


def judge(
    batch: pa.RecordBatch,
    tokens: Int64s,
    keys: Sequence[str | None],
    appended_ms: Int64s,
    bounds: Bounds,
) -> Int8s:
    """Return a `Judgement` for each event; of several faults the one listed last below names it.

    `tokens` is the `token_matrix` of the batch; `keys` are the Kafka keys as text, None where they
    were no UTF-8.
    """
    verdict = np.zeros(len(batch), np.int8)
    _judge_times(verdict, appended_ms - int64_column(batch, "occurred_at"), bounds)
    _judge_amounts(verdict, tokens, batch.column("other_units"), bounds.max_tokens)
    expected = account_keys(batch)
    if keys != expected:
        verdict[_differ(keys, expected)] = Judgement.KEY_MISMATCH
    for name in (*EVENT_NAMES, *EVENT_NAMES_OR_NONE):
        bad = bad_names_in(batch.column(name), name)
        if bad is not None:
            verdict[bad] = Judgement.BAD_NAME
    return verdict


def bad_names_in(texts: pa.Array, field: str) -> Bools | None:
    """Return which texts of a field are no names; None when all are, which few looks at all bytes tell."""
    starts = _text_starts(texts)
    sizes = np.diff(starts)
    bad: Bools = sizes > NAME_MAX_BYTES
    if field not in EVENT_NAMES_OR_NONE:
        bad |= sizes == 0
    if not _is_plain(texts, starts, field):
        # Names repeat, and each different one is looked at once.
        found = texts.dictionary_encode()
        said = (why_bad_of(field, name) if name else "" for name in found.dictionary.to_pylist())
        wrong = np.fromiter(map(bool, said), np.bool_, len(found.dictionary))
        bad |= wrong[_numbers(found.indices, np.dtype(np.int32))]
    return bad if bad.any() else None


def _is_plain(texts: pa.Array, starts: Int32s, field: str) -> bool:
    """Say whether all texts are of visible ASCII, and have nothing that the field forbids besides."""
    raw = texts.buffers()[2]
    if raw is None or starts[0] == starts[-1]:
        return True
    data = np.frombuffer(raw, np.uint8)[starts[0] : starts[-1]]
    if data.min() <= _SPACE or data.max() > _LAST:
        return False
    forbidden = {"tenant_id": (b"/", b"~"), "provider": (b"/",), "model": (b"*",)}.get(field, ())
    return not any((data == one[0]).any() for one in forbidden)


def _judge_times(verdict: Int8s, age_ms: Int64s, bounds: Bounds) -> None:
    # Nearly every chunk is young: three comparisons of an extreme spare three of the whole.
    if age_ms.max(initial=0) > bounds.horizon_ms:
        verdict[age_ms > bounds.horizon_ms] = Judgement.LATE
        verdict[age_ms > bounds.max_age_ms] = Judgement.TOO_OLD
    if age_ms.min(initial=0) < -bounds.future_skew_ms:
        verdict[age_ms < -bounds.future_skew_ms] = Judgement.FUTURE_TIME


def _judge_amounts(verdict: Int8s, tokens: Int64s, units: pa.MapArray, max_tokens: int) -> None:
    amounts = int64s(units.items)
    if tokens.max(initial=0) > max_tokens or amounts.max(initial=0) > max_tokens:
        verdict[(tokens > max_tokens).any(axis=1)] = Judgement.ABSURD_COUNT
        verdict[_rows_with(units, amounts > max_tokens)] = Judgement.ABSURD_COUNT
    if tokens.min(initial=0) < 0 or amounts.min(initial=0) < 0:
        verdict[(tokens < 0).any(axis=1)] = Judgement.NEGATIVE_COUNT
        verdict[_rows_with(units, amounts < 0)] = Judgement.NEGATIVE_COUNT


def account_keys(batch: pa.RecordBatch) -> list[str]:
    """Return `tenant/account` of each event, which is its Kafka key."""
    tenants, accounts = batch.column("tenant_id"), batch.column("account_id")
    if len(batch) < FEW_ROWS:
        pairs = zip(tenants.to_pylist(), accounts.to_pylist(), strict=True)
        return [f"{tenant}/{account}" for tenant, account in pairs]
    keys = pc.binary_join_element_wise(tenants, accounts, "/")
    texts: list[str] = keys.to_pylist()
    return texts


def int64_column(batch: pa.RecordBatch, name: str) -> Int64s:
    """Return a column without nulls as int64, not copied; times as ms since the epoch."""
    return int64s(batch.column(name))


def int64s(values: pa.Array) -> Int64s:
    """Return 64-bit integers or times, an array without nulls, as int64, not copied."""
    return _numbers(values, np.dtype(np.int64))


def arrow_int64s(values: Int64s) -> pa.Array:
    """Return an Arrow array over the same memory, if it is contiguous, else over a copy.

    `pa.array` of a NumPy array imports pandas where it is installed: see `_numbers`.
    """
    buffer = pa.py_buffer(np.ascontiguousarray(values, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(values), [None, buffer])


def token_matrix(batch: pa.RecordBatch) -> Int64s:
    """Return the counts, a row an event and a column a kind in the order of TOKEN_KINDS."""
    # One call of Arrow: ten columns looked at one by one took five times as long.
    counts: Int64s = batch.select(TOKEN_KINDS).to_tensor(row_major=False).to_numpy()
    return counts


def _differ(keys: Sequence[str | None], expected: Sequence[str]) -> Bools:
    pairs = zip(keys, expected, strict=True)
    return np.fromiter((key != wanted for key, wanted in pairs), np.bool_, len(expected))


def _text_starts(texts: pa.Array) -> npt.NDArray[np.int32]:
    """Return where each text begins and, last, where all end; equal neighbours are an empty text."""
    return np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, 4 * texts.offset)


def _rows_with(units: pa.MapArray, wrong: Bools) -> Bools:
    # The entries of a sliced map array are all of its parent's; the offsets say which are its own.
    rows = np.zeros(len(units), np.bool_)
    if wrong.any():
        starts = _numbers(units.offsets, np.dtype(np.int32))
        entries = starts[0] + np.flatnonzero(wrong[starts[0] : starts[-1]])
        rows[np.searchsorted(starts, entries, side="right") - 1] = True
    return rows


def _numbers(values: pa.Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Look at an Arrow array's own buffer.

    Arrow's `to_numpy` imports pandas where it is installed: two seconds of a worker's first chunk.
    """
    if not len(values):
        return np.zeros(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype, len(values), dtype.itemsize * values.offset)
