r"""Fold a chunk of usage into the state of its partition.

    decode failed?   -> refused                     \\
    breaks a rule?   -> refused                      | dead letters
    account unknown? -> refused                      |
      and not ours?  -> refused                      |
    model unknown?   -> refused                     /
    late?            -> ledger only
    seen before?     -> duplicate, counted nowhere
    else             -> counted: windows, cells, balances, decisions

An offset without a record is judged too: absent, or deleted before it was read. So what was charged
has no gaps, whatever the topic has.

A refused event is not remembered, so sending it again after its account was applied counts it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.balances import charge_usage, rate_usage
from tokenline.charging.step import Judged, Refused, Step, UsageChunk
from tokenline.metering.calendar import month_starts
from tokenline.metering.identity import identities
from tokenline.metering.judge import (
    DETAILS,
    Judgement,
    arrow_int64s,
    int64_column,
    judge,
    token_matrix,
)
from tokenline.metering.spans import clipped, size_of, spans_of
from tokenline.metering.tally import LineNumbers, lines_of
from tokenline.names import EVENT_NAMES, EVENT_NAMES_OR_NONE, why_bad_of
from tokenline.quota.cells import Cell
from tokenline.quota.charge import begin_minute
from tokenline.quota.decide import decide
from tokenline.quota.limit_decisions import limit_decisions
from tokenline.quota.usage import Counted, add_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from tokenline.charging.partition import PartitionState
    from tokenline.quota.decided import Decided

Int64s = npt.NDArray[np.int64]
Int8s = npt.NDArray[np.int8]
UInt64s = npt.NDArray[np.uint64]

IDENTITY_COLUMNS = (
    "tenant_id",
    "account_id",
    "source",
    "event_id",
    "gateway_id",
    "gateway_epoch",
    "gateway_seq",
)


def fold_usage(state: PartitionState, chunk: UsageChunk) -> Step:
    """Apply a chunk whose records were all appended in one minute (see `by_minute`)."""
    # Where there is no record, nothing says what time it is.
    as_of_ms, known_ms = _newest_ms(chunk) or state.minute_ms, state.minute_ms
    step = state.begin_step(as_of_ms)
    step.as_of_ms, step.cause = as_of_ms, ("usage", chunk.hi)
    step.refused = list(chunk.refused)
    late: list[int] = []
    duplicate: list[int] = []
    if len(chunk.offsets):
        tokens = token_matrix(chunk.batch)
        verdict, slots, names = _judge(state, chunk, tokens)
        charges, versions = rate_usage(state, chunk.batch, tokens, slots, verdict)
        step.refused += _refusals(state, verdict, chunk)
        late = chunk.offsets[verdict == Judgement.LATE].tolist()
        duplicate = chunk.offsets[verdict == Judgement.DUPLICATE].tolist()
        fit = verdict == Judgement.COUNTED
        if fit.any():
            # Nearly always all of them are: then nothing is copied.
            at = slice(None) if fit.all() else np.flatnonzero(fit)
            step.names = names[at]
            state.seen.remember(step.names, as_of_ms)
            batch = chunk.batch if isinstance(at, slice) else chunk.batch.take(arrow_int64s(at))
            numbers = LineNumbers(
                slots=slots[at],
                offsets=chunk.offsets[at],
                totals=tokens[at].sum(axis=1),
                charge_utok=charges[at],
                catalog_version=versions[at],
            )
            # A broker's clock that was set back takes no account back.
            newest_ms = np.maximum.accumulate(chunk.appended_ms)
            appended_ms = np.maximum(newest_ms, step.minute_ms)[at]
            _count(state, step, batch, numbers, appended_ms)
    rejected = sorted(refused.offset for refused in step.refused)
    step.judged = Judged(
        lo=chunk.lo,
        hi=chunk.hi,
        as_of_ms=as_of_ms,
        late=late,
        duplicate=duplicate,
        rejected=rejected,
        absent=chunk.absent.ravel().tolist(),
        deleted=chunk.deleted.ravel().tolist(),
        deleted_since_ms=known_ms if len(chunk.deleted) else 0,
        deleted_until_ms=chunk.deleted_until_ms if len(chunk.deleted) else 0,
        commands_next=state.next_offsets["commands"],
        holds_next=state.next_offsets["holds"],
        turns=state.turns.take(state.next_offsets),
    )
    state.next_offsets["usage"] = chunk.hi + 1
    state.usage_ms = max(state.usage_ms, as_of_ms)
    _add_totals(state, step)
    return step


def by_minute(chunk: UsageChunk) -> Iterator[UsageChunk]:
    """Split a chunk where its append minute moves on; most chunks come back as they are."""
    minutes = chunk.appended_ms // 60_000
    if not chunk.refused and (minutes == minutes[:1]).all():
        yield chunk
        return
    refused = np.array([(one.offset, one.appended_ms) for one in chunk.refused], np.int64).reshape(
        -1, 2
    )
    offsets = np.concatenate((chunk.offsets, refused[:, 0]))
    order = np.argsort(offsets, kind="stable")
    newest = np.maximum.accumulate(
        np.concatenate((chunk.appended_ms, refused[:, 1]))[order] // 60_000
    )
    cuts = offsets[order][1:][np.diff(newest) > 0].tolist()
    if not cuts:
        yield chunk
        return
    for lo, end in pairwise([chunk.lo, *cuts, chunk.hi + 1]):
        yield _part(chunk, lo, end - 1)


def _part(chunk: UsageChunk, lo: int, hi: int) -> UsageChunk:
    first, end = np.searchsorted(chunk.offsets, [lo, hi + 1])
    return UsageChunk(
        lo=lo,
        hi=hi,
        batch=chunk.batch.slice(first, end - first),
        keys=chunk.keys[first:end],
        offsets=chunk.offsets[first:end],
        appended_ms=chunk.appended_ms[first:end],
        refused=[refused for refused in chunk.refused if lo <= refused.offset <= hi],
        absent=clipped(chunk.absent, lo, hi),
        deleted=clipped(chunk.deleted, lo, hi),
        deleted_until_ms=chunk.deleted_until_ms,
    )


def _newest_ms(chunk: UsageChunk) -> int:
    newest = int(chunk.appended_ms.max()) if len(chunk.appended_ms) else 0
    return max([newest, *(refused.appended_ms for refused in chunk.refused)])


def _judge(
    state: PartitionState, chunk: UsageChunk, tokens: Int64s
) -> tuple[Int8s, Int64s, UInt64s]:
    """Judge every event, also by account and history; return judgements, slots and names."""
    batch = chunk.batch
    verdict = judge(batch, tokens, chunk.keys, chunk.appended_ms, state.bounds)
    slots = state.cells.slots(chunk.keys)
    unknown = np.flatnonzero((slots < 0) & (verdict <= Judgement.DUPLICATE))
    if unknown.size:
        verdict[unknown] = Judgement.UNKNOWN_ACCOUNT
        # Only these: an account has a slot because its key belongs here.
        verdict[unknown[_strays(state, chunk, unknown)]] = Judgement.WRONG_PARTITION
    names = identities(*(batch.column(name) for name in ("tenant_id", "source", "event_id")))
    fit = np.flatnonzero(verdict == Judgement.COUNTED)
    verdict[fit[state.seen.find(names[fit])]] = Judgement.DUPLICATE
    return verdict, slots, names


def _strays(state: PartitionState, chunk: UsageChunk, rows: Int64s) -> list[int]:
    """Return which of these rows have a key that belongs into another partition."""
    keys = [chunk.keys[row] for row in rows.tolist()]
    found = state.home.strays(distinct := list(dict.fromkeys(keys)))
    strays = {distinct[at] for at in found}
    return [at for at, key in enumerate(keys) if key in strays]


def _count(
    state: PartitionState,
    step: Step,
    batch: pa.RecordBatch,
    numbers: LineNumbers,
    appended_ms: Int64s,
) -> None:
    """Add events, all to be counted, to windows, cells and balances, and decide."""
    cells, slots = state.cells, numbers.slots
    occurred_ms = int64_column(batch, "occurred_at")
    months_ms = month_starts(cells.zones, cells.matrix[slots, Cell.ZONE], occurred_ms)
    months_ms = cells.moves.months(slots, months_ms, occurred_ms)
    step.lines = lines_of(batch, numbers)
    state.tally.add(step.lines)
    counted = Counted(
        slots=slots, tokens=numbers.totals, months_ms=months_ms, offsets=numbers.offsets
    )
    begin_minute(state.books, slots, step.minute_ms)
    step.touched = add_usage(cells, counted, step.minute_ms)
    state.mark_months(step.touched)
    charge_usage(state, step, batch, numbers, appended_ms)
    decided = _decide(state, step)
    step.decisions = limit_decisions(state.books, decided, state.clock_ms, state.epoch)
    step.counted, step.tokens = len(slots), int(numbers.totals.sum())


def _decide(state: PartitionState, step: Step) -> list[Decided]:
    minute_ms = state.decision_minute(step.minute_ms)
    # Whoever admits calls goes by what was told of an account's terms.
    told = np.array(sorted(state.books.take_retermed()), np.int64)
    others = np.setdiff1d(step.touched, told) if told.size else step.touched
    decided: list[Decided] = []
    for slots, announce in ((others, False), (told, True)):
        if slots.size:
            decided += decide(
                state.cells,
                slots,
                minute_ms,
                state.epoch,
                books=state.books,
                announce=announce,
                rolls=minute_ms > step.minute_ms,
            )
    state.note_told(decided)
    return decided


def _refusals(state: PartitionState, verdict: Int8s, chunk: UsageChunk) -> list[Refused]:
    rows = np.flatnonzero(verdict > Judgement.DUPLICATE)
    if not rows.size:
        return []
    taken = chunk.batch.take(arrow_int64s(rows))
    readable = taken.select(IDENTITY_COLUMNS).to_pylist()
    names = taken.select([*EVENT_NAMES, *EVENT_NAMES_OR_NONE]).to_pylist()
    return [
        Refused(
            offset=int(chunk.offsets[row]),
            appended_ms=int(chunk.appended_ms[row]),
            reason=(kind := Judgement(int(verdict[row]))).name.lower(),
            detail=_detail(state, kind, chunk.keys[row], named),
            identity=identity,
        )
        for row, identity, named in zip(rows, readable, names, strict=True)
    ]


def _detail(
    state: PartitionState, kind: Judgement, key: str | None, names: Mapping[str, str]
) -> str:
    """Return the words of a dead letter for one event with these names."""
    if kind is Judgement.WRONG_PARTITION:
        return state.home.detail(str(key))
    if kind is Judgement.BAD_NAME:
        return next(
            f"{field} {why}"
            for field, name in names.items()
            if (name or field not in EVENT_NAMES_OR_NONE) and (why := why_bad_of(field, name))
        )
    return DETAILS[kind]


def _add_totals(state: PartitionState, step: Step) -> None:
    judged = step.judged
    assert judged is not None  # noqa: S101  # set just above
    state.totals.counted += step.counted
    state.totals.tokens += step.tokens
    state.totals.late += len(judged.late)
    state.totals.duplicate += len(judged.duplicate)
    state.totals.rejected += len(judged.rejected)
    state.totals.deleted += size_of(spans_of(judged.deleted))
