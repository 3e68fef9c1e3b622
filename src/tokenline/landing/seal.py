"""Seal landed batches: a digest over their rows, chained, so that nobody edits the ledger unseen.

Pure. A digest is taken over values, column by column, so it can be computed again from what the
warehouse returns, whatever way it keeps them. Digest and chain are lower-case hex of SHA256.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenline.landing.row import LEDGER_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

GENESIS = "0" * 64
# What may have become of an offset.
CLASSES = (
    "counted", "late", "duplicate", "rejected", "absent", "deleted", "unlanded", "unjudged",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """State what landed between two offsets of one partition, both included.

    `counted`, `late`, `duplicate`, `rejected`, `absent`, `deleted`, `unlanded` and `unjudged` are offsets
    and add up to the range (0009_seals.sql says what each is); `tokens` are those of the ledger rows.
    What was deleted was appended between `deleted_since_ms` and `deleted_until_ms`, as far as is known.
    `digest` is of the ledger's rows and `copies_digest` of the duplicates. `as_of_ms` is the append time of
    the last record; `landed_at_ms` is wall time and not part of the chain.
    """

    topic: str
    partition: int
    lo: int
    hi: int
    counted: int
    late: int
    duplicate: int
    rejected: int
    absent: int
    deleted: int = 0
    unlanded: int = 0
    unjudged: int = 0
    tokens: int
    digest: str
    copies_digest: str = ""
    prev: str
    chain: str = ""
    writer_epoch: int
    deleted_since_ms: int = 0
    deleted_until_ms: int = 0
    as_of_ms: int = 0
    landed_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Hold the seals that count, in order, and what is wrong with them."""

    kept: list[Seal] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def next_offset(self) -> int:
        """Return the first offset that is not sealed; 0 when nothing is."""
        return self.kept[-1].hi + 1 if self.kept else 0


def chain_of(seal: Seal) -> str:
    """Return SHA256 over one line: previous chain, digests, place, bounds, counts and moments of records."""
    parts = (
        seal.prev, seal.digest, seal.copies_digest, seal.topic, seal.partition, seal.lo, seal.hi,
        seal.counted, seal.late, seal.duplicate, seal.rejected, seal.absent, seal.deleted,
        seal.unlanded, seal.unjudged, seal.deleted_since_ms, seal.deleted_until_ms, seal.tokens,
        seal.as_of_ms,
    )  # fmt: skip
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def digest_of(rows: pa.Table, schema: pa.Schema = LEDGER_SCHEMA) -> str:
    """Return the digest of rows of a table, the ledger without another schema, that are in offset order.

    Per column, in the schema's order: its name, then 64-bit little-endian values; text as byte
    lengths and then the bytes; a list as lengths and then its values; a map as entry counts, then its
    keys and its values, sorted by key.
    """
    sha = hashlib.sha256(rows.num_rows.to_bytes(8, "little"))
    for item in schema:
        sha.update(item.name.encode())
        column = rows.column(item.name)
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        for part in _parts(array):
            sha.update(part)
    return sha.hexdigest()


def walk(seals: Iterable[Seal]) -> Walk:
    """Follow one partition's seals from the lowest offset; the highest epoch wins at each step.

    Seals of a writer that had lost its partition lie beside the way and are passed over.
    """
    best: dict[int, Seal] = {}
    for seal in seals:
        if seal.lo not in best or seal.writer_epoch > best[seal.lo].writer_epoch:
            best[seal.lo] = seal
    found = Walk()
    at, chain = min(best, default=0), GENESIS
    while at in best:
        seal = best[at]
        found.faults.extend(_faults_of(seal, chain))
        found.kept.append(seal)
        at, chain = seal.hi + 1, seal.chain
    found.faults.extend(_gap(best, found))
    return found


def _faults_of(seal: Seal, chain: str) -> list[str]:
    where = f"{seal.topic}[{seal.partition}] seal {seal.lo}..{seal.hi}"
    faults = []
    if seal.prev != chain:
        faults.append(f"{where}: prev is not the chain of the seal before it")
    if seal.chain != chain_of(seal):
        faults.append(f"{where}: chain does not follow from its own fields")
    if sum(getattr(seal, name) for name in CLASSES) != seal.hi - seal.lo + 1:
        faults.append(f"{where}: counts do not add up to the range")
    return faults


def _gap(best: dict[int, Seal], found: Walk) -> list[str]:
    """Name what lies beyond the end of the way and is not of an older writer that ran ahead."""
    if not found.kept:
        return []
    last = found.kept[-1]
    beyond = sorted(
        lo for lo, seal in best.items() if lo > last.hi and seal.writer_epoch >= last.writer_epoch
    )
    if not beyond:
        return []
    where = f"{last.topic}[{last.partition}]"
    return [f"{where}: no seal starts at {last.hi + 1}, the next one starts at {beyond[0]}"]


def _parts(array: pa.Array) -> Iterable[bytes | memoryview]:
    kind = array.type
    if pa.types.is_map(kind):
        yield from _map_parts(array)
    elif pa.types.is_list(kind):
        yield np.diff(array.offsets.to_numpy()).astype("<i4").tobytes()
        yield from _parts(array.flatten())
    elif pa.types.is_dictionary(kind):
        yield from _parts(array.cast(kind.value_type))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        yield from _text_parts(array)
    elif pa.types.is_timestamp(kind):
        yield _int64_part(array.cast(pa.timestamp("ms", kind.tz)).view(pa.int64()))
    else:
        yield _int64_part(array.cast(pa.int64()))


def _int64_part(array: pa.Array) -> memoryview:
    values = array.to_numpy(zero_copy_only=False).astype("<i8", copy=False)
    return np.ascontiguousarray(values).data


def _text_parts(array: pa.Array) -> Iterable[bytes | memoryview]:
    lengths = pc.binary_length(array).to_numpy(zero_copy_only=False).astype("<i4", copy=False)
    yield lengths.tobytes()
    whole = array.cast(pa.large_binary())
    _, bounds, data = whole.buffers()
    if data is not None and len(whole):
        starts = np.frombuffer(bounds, np.int64)
        yield memoryview(data)[starts[whole.offset] : starts[whole.offset + len(whole)]]


def _map_parts(array: pa.MapArray) -> Iterable[bytes | memoryview]:
    counts = np.diff(array.offsets.to_numpy())
    yield counts.astype("<i4").tobytes()
    total = int(counts.sum())
    if total == 0:
        return
    first = int(array.offsets[0].as_py())
    keys, values = array.keys.slice(first, total), array.items.slice(first, total)
    if int(counts.max()) > 1:
        # The warehouse may return the entries of a map in another order.
        rows = pa.array(np.repeat(np.arange(len(counts)), counts))
        order = pc.sort_indices(
            pa.table({"row": rows, "key": keys}),
            sort_keys=[("row", "ascending"), ("key", "ascending")],
        )
        keys, values = keys.take(order), values.take(order)
    yield from _parts(keys)
    yield from _parts(values)
