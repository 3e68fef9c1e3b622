r"""Fold a chunk of usage, or one account command, into the state of its partition.

    decode failed?   -> refused                     \\
    breaks a rule?   -> refused                      | dead letters
    account unknown? -> refused                     /
    late?            -> ledger only
    seen before?     -> duplicate, counted nowhere
    else             -> counted: windows, cells, decisions

A refused event is not remembered, so sending it again after its account was applied counts it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokenline.charging.step import Commanded, Judged, Refused, Step, UsageChunk
from tokenline.errors import BadData
from tokenline.metering.calendar import month_starts, zone_of
from tokenline.metering.identity import identities
from tokenline.metering.judge import (
    DETAILS,
    Judgement,
    arrow_int64s,
    int64_column,
    judge,
    token_matrix,
)
from tokenline.metering.tally import lines_of
from tokenline.quota.cells import NO_LIMIT, AccountCells, Cell
from tokenline.quota.decide import decide
from tokenline.quota.usage import Counted, add_usage, roll_rates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from tokenline.charging.partition import PartitionState

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
LIMIT_FIELDS = {
    "month_tokens": Cell.MONTH_TOKENS_LIMIT,
    "minute_tokens": Cell.MINUTE_TOKENS_LIMIT,
    "hour_tokens": Cell.HOUR_TOKENS_LIMIT,
    "day_tokens": Cell.DAY_TOKENS_LIMIT,
    "minute_requests": Cell.MINUTE_REQUESTS_LIMIT,
    "hour_requests": Cell.HOUR_REQUESTS_LIMIT,
    "day_requests": Cell.DAY_REQUESTS_LIMIT,
}


def fold_usage(state: PartitionState, chunk: UsageChunk) -> Step:
    """Apply a chunk whose records were all appended in one minute (see `by_minute`)."""
    as_of_ms = _newest_ms(chunk)
    step = state.begin_step(as_of_ms)
    step.as_of_ms, step.cause = as_of_ms, ("usage", chunk.hi)
    step.refused = list(chunk.refused)
    late: list[int] = []
    duplicate: list[int] = []
    if len(chunk.offsets):
        tokens = token_matrix(chunk.batch)
        verdict, slots, names = _judge(state, chunk, tokens)
        step.refused += _refusals(verdict, chunk)
        late = chunk.offsets[verdict == Judgement.LATE].tolist()
        duplicate = chunk.offsets[verdict == Judgement.DUPLICATE].tolist()
        fit = verdict == Judgement.COUNTED
        if fit.any():
            # Nearly always all of them are: then nothing is copied.
            at = slice(None) if fit.all() else np.flatnonzero(fit)
            step.names = names[at]
            state.seen.remember(step.names, as_of_ms)
            batch = chunk.batch if isinstance(at, slice) else chunk.batch.take(arrow_int64s(at))
            totals = tokens[at].sum(axis=1)
            _count(state, step, batch, totals, slots[at], chunk.offsets[at])
    rejected = sorted(refused.offset for refused in step.refused)
    step.judged = Judged(
        lo=chunk.lo,
        hi=chunk.hi,
        as_of_ms=as_of_ms,
        late=late,
        duplicate=duplicate,
        rejected=rejected,
    )
    state.next_offsets["usage"] = chunk.hi + 1
    _add_totals(state, step)
    return step


def fold_commands(state: PartitionState, commands: Sequence[Commanded], hi: int) -> Step:
    """Apply account commands up to `hi`: set limits and decide anew; the last of an account wins.

    A command that names no zone of this world, or a limit below -1, is refused and changes nothing.
    Only usage moves the minute in hand. Usage may be waiting that was appended hours before the
    command: it belongs into the minutes, rate windows and horizon of its own time.
    """
    newest_ms = max((command.appended_ms for command in commands), default=state.minute_ms)
    step = state.begin_step(state.minute_ms)
    step.as_of_ms, step.cause = newest_ms, ("commands", hi)
    minute_ms = state.minute_ms or newest_ms // 60_000 * 60_000
    known, touched = len(state.cells), []
    for command in commands:
        try:
            touched.append(_set_account(state.cells, command.fields))
        except BadData as error:
            step.refused.append(_refused_command(command, str(error)))
    step.new_keys = state.cells.keys[known:]
    step.touched = np.unique(np.array(touched, np.int64))
    roll_rates(state.cells, step.touched, minute_ms)
    step.decisions = decide(state.cells, step.touched, minute_ms, state.epoch, announce=True)
    state.next_offsets["commands"] = hi + 1
    return step


def _set_account(cells: AccountCells, command: Mapping[str, object]) -> int:
    zone = str(command["time_zone"])
    zone_of(zone)
    limits = {name: int(str(command[name])) for name in LIMIT_FIELDS}
    key = f"{command['tenant_id']}/{command['account_id']}"
    if wrong := next((name for name, value in limits.items() if value < NO_LIMIT), None):
        raise BadData(f"{key}: {wrong} is {limits[wrong]}; it is -1 for none, or 0 and more")
    if not (command["tenant_id"] and command["account_id"]):
        raise BadData("a command names no tenant_id or no account_id")
    if "/" in str(command["tenant_id"]):
        raise BadData(f"{key}: tenant_id has a slash, so the key could mean another account")
    slot = cells.open(key)
    row = cells.matrix[slot]
    row[Cell.ZONE] = cells.zone_code(zone)
    row[list(LIMIT_FIELDS.values())] = list(limits.values())
    return slot


def _refused_command(command: Commanded, detail: str) -> Refused:
    names = ("tenant_id", "account_id")
    return Refused(
        offset=command.offset,
        appended_ms=command.appended_ms,
        reason="bad_command",
        detail=detail,
        identity={name: str(command.fields[name]) for name in names},
    )


def by_minute(chunk: UsageChunk) -> Iterator[UsageChunk]:
    """Split a chunk where its append minute moves on; most chunks come back as they are."""
    minutes = chunk.appended_ms // 60_000
    if not chunk.refused and (minutes == minutes[0]).all():
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
    verdict[(slots < 0) & (verdict <= Judgement.DUPLICATE)] = Judgement.UNKNOWN_ACCOUNT
    names = identities(*(batch.column(name) for name in ("tenant_id", "source", "event_id")))
    fit = np.flatnonzero(verdict == Judgement.COUNTED)
    verdict[fit[state.seen.find(names[fit])]] = Judgement.DUPLICATE
    return verdict, slots, names


def _count(
    state: PartitionState,
    step: Step,
    batch: pa.RecordBatch,
    totals: Int64s,
    slots: Int64s,
    offsets: Int64s,
) -> None:
    """Add events, all to be counted, to windows and cells, and decide."""
    cells = state.cells
    occurred_ms = int64_column(batch, "occurred_at")
    months_ms = month_starts(cells.zones, cells.matrix[slots, Cell.ZONE], occurred_ms)
    step.lines = lines_of(batch, slots, offsets, totals)
    state.tally.add(step.lines)
    counted = Counted(slots=slots, tokens=totals, months_ms=months_ms, offsets=offsets)
    step.touched = add_usage(cells, counted, step.minute_ms)
    state.mark_months(step.touched)
    step.decisions = decide(cells, step.touched, step.minute_ms, state.epoch)
    step.counted, step.tokens = len(slots), int(totals.sum())


def _refusals(verdict: Int8s, chunk: UsageChunk) -> list[Refused]:
    rows = np.flatnonzero(verdict > Judgement.DUPLICATE)
    if not rows.size:
        return []
    readable = chunk.batch.select(IDENTITY_COLUMNS).take(arrow_int64s(rows)).to_pylist()
    return [
        Refused(
            offset=int(chunk.offsets[row]),
            appended_ms=int(chunk.appended_ms[row]),
            reason=(kind := Judgement(int(verdict[row]))).name.lower(),
            detail=DETAILS[kind],
            identity=identity,
        )
        for row, identity in zip(rows, readable, strict=True)
    ]


def _add_totals(state: PartitionState, step: Step) -> None:
    judged = step.judged
    assert judged is not None  # noqa: S101  # set just above
    state.totals.counted += step.counted
    state.totals.tokens += step.tokens
    state.totals.late += len(judged.late)
    state.totals.duplicate += len(judged.duplicate)
    state.totals.rejected += len(judged.rejected)
