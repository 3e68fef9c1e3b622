"""Decompress a record batch within bounds: a batch of 3 kB may hold 100 MiB of zeros.

A topic bounds what a batch takes on the wire, and nothing bounds what it becomes. aiokafka decompresses
a batch as a whole, so whoever may write to a topic could have its readers take any amount of memory.

    from tokenline.wire.inflate import bound_inflation
    bound_inflation()  # from here on, of all consumers of this process
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cramjam

from tokenline.errors import Undecodable
from tokenline.wire.topics import STATE_MAX_BYTES

# The largest batch there is of ours is one of the journal. On the wire other topics take 1 MiB.
INFLATED_MAX_BYTES = STATE_MAX_BYTES
# A record that says anything takes more than 64 bytes; each becomes an object of some hundred.
RECORDS_MAX = INFLATED_MAX_BYTES // 64
# What a batch becomes is not known before. Nearly all fit the buffer that each thread keeps; for others one
# is made, larger each time.
_KEPT_BYTES = 1 << 20
_GROWTH = 4
# As snappy's Java library writes it: blocks behind a header, each behind its length.
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16
_MODULES = ("_crecords.default_records", "_crecords.legacy_records", "default_records")


def bound_inflation() -> None:
    """Let aiokafka decompress no more than `INFLATED_MAX_BYTES` of a batch (aiokafka 0.14, pinned).

    Its parsers look their decoders up by these names. A batch beyond the bound raises `Undecodable`.
    """
    for module in map(import_module, (f"aiokafka.record.{name}" for name in _MODULES)):
        for name, decode in DECODERS.items():
            setattr(module, name, decode)


class _Thread(threading.local):
    """Hold a thread's buffer, and how large the last batch became that it decompressed."""

    def __init__(self) -> None:
        self.buffer = bytearray(_KEPT_BYTES)
        self.inflated_bytes = 0


_thread = _Thread()


@dataclass(frozen=True, slots=True)
class Opened:
    """Hold the records of a batch, and how many bytes it takes beside what was sent."""

    records: Iterator[Any]
    inflated_bytes: int


def opened(batch: Any) -> Opened:  # noqa: ANN401  aiokafka ships no types for it
    """Open a batch.

    Raises:
        Undecodable: it holds more than a batch may; other errors of its parser, now or while it is read.
    """
    if (count := batch.next_offset - batch.base_offset) > RECORDS_MAX:
        raise Undecodable(f"a batch of {count} records; {RECORDS_MAX} is the most")
    _thread.inflated_bytes = 0
    return Opened(iter(batch), _thread.inflated_bytes)


def _into(inflate: Callable[[Any, bytearray], int]) -> Callable[[Any], bytes]:
    """Return a decoder that writes into a buffer, which is never larger than the bound."""

    def decode(payload: Any) -> bytes:  # noqa: ANN401  any buffer
        buffer = _thread.buffer
        while True:
            try:
                size = _thread.inflated_bytes = inflate(payload, buffer)
            except cramjam.DecompressionError as error:
                if len(buffer) >= INFLATED_MAX_BYTES:
                    raise Undecodable(
                        f"a batch of {len(payload)} bytes is damaged or becomes more than "
                        f"{INFLATED_MAX_BYTES} bytes: {error}"
                    ) from error
                buffer = bytearray(min(len(buffer) * _GROWTH, INFLATED_MAX_BYTES))
            else:
                return bytes(memoryview(buffer)[:size])

    return decode


def _snappy(payload: Any) -> bytes:  # noqa: ANN401  any buffer
    """Decode snappy, whose every block says first how large it becomes."""
    blocks = list(_snappy_blocks(memoryview(payload)))
    try:
        size = _thread.inflated_bytes = sum(map(cramjam.snappy.decompress_raw_len, blocks))
        if size > INFLATED_MAX_BYTES:
            raise Undecodable(
                f"a batch of {len(payload)} bytes becomes more than {INFLATED_MAX_BYTES} bytes"
            )
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except cramjam.DecompressionError as error:
        raise Undecodable(f"a batch of {len(payload)} bytes is damaged: {error}") from error


def _snappy_blocks(payload: memoryview) -> Iterator[memoryview]:
    if payload[: len(_XERIAL)] != _XERIAL:
        yield payload
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(payload):
        try:
            (size,) = struct.unpack_from("!I", payload, at)
        except struct.error as error:
            raise Undecodable(f"a batch of {len(payload)} bytes is damaged: {error}") from error
        yield payload[at + 4 : at + 4 + size]
        at += 4 + size


DECODERS: dict[str, Callable[[Any], bytes]] = {
    "zstd_decode": _into(cramjam.zstd.decompress_into),
    "lz4_decode": _into(cramjam.lz4.decompress_into),
    "gzip_decode": _into(cramjam.gzip.decompress_into),
    "snappy_decode": _snappy,
}
