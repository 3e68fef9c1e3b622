"""Give freed memory back to the system.

glibc keeps what was freed below the top of its heaps, and Arrow keeps pages it may use again: what
a recovery needed for a moment, or one large batch, would be counted as the worker's for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from pathlib import Path

import pyarrow as pa

LOOK_S = 5.0
# What a worker may have grown since memory was given back; less is not worth the look through its heaps.
GROWN_BYTES = 64 << 20
_STATM = Path("/proc/self/statm")


def give_back() -> None:
    """Return free pages to the system; where there is no glibc, only Arrow's."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def keep_giving_back() -> None:
    """Look for ever whether the process has grown, and give back what it does not use."""
    after_bytes = resident_bytes()
    while True:
        await asyncio.sleep(LOOK_S)
        if resident_bytes() - after_bytes >= GROWN_BYTES:
            await asyncio.to_thread(give_back)
            after_bytes = resident_bytes()
        after_bytes = min(after_bytes, resident_bytes())


def resident_bytes() -> int:
    """Return how much memory this process holds; 0 where the system does not say (no Linux)."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE
