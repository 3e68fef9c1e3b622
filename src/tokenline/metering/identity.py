"""Name each event by 128 bits of its identity, (source, event_id).

XXH3-128 is fast and its output is fixed for ever, so names survive restarts and upgrades. It is not
a defence: who chooses an event_id can repeat one anyway, and then the event counts once, as it should.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

UInt64s = npt.NDArray[np.uint64]


def identities(tenants: Sequence[str], sources: Sequence[str], event_ids: Sequence[str]) -> UInt64s:
    """Return one row of two 64-bit words for each event; never (0, anything), which marks a free slot."""
    joined = [
        xxh3_128_digest(f"{len(tenant)} {len(source)} {tenant}{source}{event_id}".encode())
        for tenant, source, event_id in zip(tenants, sources, event_ids, strict=True)
    ]
    words = np.frombuffer(b"".join(joined), dtype="<u8").reshape(-1, 2).astype(np.uint64)
    words[words[:, 0] == 0, 0] = 1
    return words
