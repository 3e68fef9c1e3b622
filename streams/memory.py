"""Give freed memory back to the system.

glibc keeps what was freed below the top of its heaps, and Arrow keeps pages it may use again: what
a recovery needed for a moment would be counted as the worker's for ever.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back() -> None:
    """Return free pages to the system; where there is no glibc, only Arrow's."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
