"""Say which partition a key belongs into, for many keys at once.

An account has one owner only if all that is keyed by it stands in one partition. The hash is murmur2
of the Java client; `wire.kafka.partition_of` says the same of one key, for all that is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64s = npt.NDArray[np.int64]
UInt32s = npt.NDArray[np.uint32]

PARTITIONER = "murmur2, the Java client's default (librdkafka: partitioner=murmur2_random)"
_SEED, _M, _R = 0x9747B28C, np.uint32(0x5BD1E995), np.uint32(24)
_POSITIVE = 0x7FFFFFFF
GROUP_BYTES = 32
AT_ONCE = 8192
MOST_KEY_BYTES = 4096
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Home:
    """Name one partition of so many; of one partition it is everybody's home."""

    partition: int = 0
    partitions: int = 1

    def strays(self, keys: Sequence[str | None]) -> list[int]:
        """Return the positions of keys that belong elsewhere; None is nobody's key."""
        if self.partitions == 1:
            return []
        found: list[int] = []
        # A few at a time stay in the processor's cache: all of a million took twice as long.
        for first in range(0, len(keys), AT_ONCE):
            some = [(key or "").encode() for key in keys[first : first + AT_ONCE]]
            where = partitions_of(some, self.partitions)
            found += (first + np.flatnonzero(where != self.partition)).tolist()
        return found

    def detail(self, key: str) -> str:
        """Return the words of a dead letter for a key that belongs elsewhere."""
        belongs = partitions_of([key.encode()], self.partitions)[0]
        return (
            f"its key stands in partition {self.partition} and belongs into {belongs} of "
            f"{self.partitions}: the partition of a key is by {PARTITIONER}"
        )


def partitions_of(keys: Sequence[bytes], partitions: int) -> Int64s:
    """Return the partition of each key, about 1 µs a key when there are many; NOWHERE of what is no key.

    No account has a name as long as that, and hashing it would take as long as it is.
    """
    found = np.full(len(keys), NOWHERE, np.int64)
    at = [at for at, key in enumerate(keys) if len(key) <= MOST_KEY_BYTES]
    if at:
        hashes = murmur2s([keys[one] for one in at]) & np.uint32(_POSITIVE)
        found[at] = hashes.astype(np.int64) % partitions
    return found


def murmur2s(keys: Sequence[bytes]) -> UInt32s:
    """Return the hash of each key; what is 32 bits wide overflows, as it does in Java."""
    sizes = np.fromiter(map(len, keys), np.int64, len(keys))
    # Long ones apart: a row is as wide as the longest of its group.
    group = sizes // GROUP_BYTES
    hashes = np.zeros(len(keys), np.uint32)
    for one in np.unique(group):
        part = np.flatnonzero(group == one)
        hashes[part] = _hashed([keys[at] for at in part.tolist()], sizes[part])
    return hashes


def _hashed(keys: Sequence[bytes], sizes: Int64s) -> UInt32s:
    width = -(-int(sizes.max()) // 4) * 4 or 4
    padded = b"".join(key.ljust(width, b"\0") for key in keys)
    words = np.frombuffer(padded, "<u4").reshape(len(keys), width // 4)
    found = np.uint32(_SEED) ^ sizes.astype(np.uint32)
    whole = sizes // 4
    for at in range(width // 4):
        mixed = words[:, at] * _M
        mixed = (mixed ^ (mixed >> _R)) * _M
        inner, last = at < whole, (at == whole) & (sizes % 4 > 0)
        # The bytes behind the last whole word: what is padded is 0, and xor with 0 changes nothing.
        found = np.where(inner, (found * _M) ^ mixed, found)
        found = np.where(last, (found ^ words[:, at]) * _M, found)
    found = (found ^ (found >> np.uint32(13))) * _M
    return found ^ (found >> np.uint32(15))
