"""Name each event by 128 bits of its identity, (tenant_id, source, event_id) within its account.

XXH3-128 is fast and its output is fixed for ever, so names survive restarts and upgrades. It is
not a defence: who chooses an event_id can repeat one anyway, and then the event counts once, as it
should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

UInt64s = npt.NDArray[np.uint64]
FEW_ROWS = 128  # fewer are quicker one by one than as Arrow columns
Texts: TypeAlias = "pa.Array | Sequence[str]"


def identities(tenants: Texts, accounts: Texts, sources: Texts, event_ids: Texts) -> UInt64s:
    """Return a row of two 64-bit words for each event; never (0, anything): that is a free slot."""
    tenants, accounts, sources, event_ids = (
        texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
        for texts in (tenants, accounts, sources, event_ids)
    )
    digests = b"".join(map(xxh3_128_digest, _named(tenants, accounts, sources, event_ids)))
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64)
    words[words[:, 0] == 0, 0] = 1
    return words


def _named(
    tenants: pa.Array, accounts: pa.Array, sources: pa.Array, event_ids: pa.Array
) -> list[bytes]:
    """Return the bytes that are hashed; both ways give the same, and few rows are quicker one by one."""
    parts = (tenants, accounts, sources)
    if len(tenants) < FEW_ROWS:
        rows = zip(*(texts.to_pylist() for texts in (*parts, event_ids)), strict=True)
        return [f"{len(t)} {len(a)} {len(s)} {t}{a}{s}{e}".encode() for t, a, s, e in rows]
    lengths = [pc.utf8_length(texts).cast(pa.string()) for texts in parts]
    # The lengths keep ("a", "bc") and ("ab", "c") apart, whatever characters an id holds.
    named = pc.binary_join_element_wise(*lengths, "", " ")
    named = pc.binary_join_element_wise(named, *parts, event_ids, "")
    texts: list[bytes] = named.cast(pa.binary()).to_pylist()
    return texts
