"""Write the dead letters of a step: of one record each, or of many when one sender has too many.

A record that nobody can read belongs to the producer of its batch, as far as that has an id, else to the
schema id that it names; one that can be read belongs to its tenant and source.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import structlog

from streams.records import PRODUCERS
from streams.replies import MOST_DETAIL_CHARS
from tokenline.charging.floods import Floods, Group, Lot, runs_of
from tokenline.charging.packs import Message
from tokenline.errors import Undecodable
from tokenline.wire.avro import frame_id
from tokenline.wire.topics import COMMANDS, DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenline.charging.step import Refused
    from tokenline.settings import Settings
    from tokenline.wire.avro import Codec

# Of a record that cannot be used, which may have any key and, unpacked, any size. Its letter has it
# whole, in base64, unless that would be more than the topic takes.
MOST_KEY_BYTES = 1024
MOST_VALUE_BYTES = 1 << 20
# What the records of a lot have in common of their identity, when they have any.
SHARED = ("tenant_id", "source", "gateway_id", "gateway_epoch")

Note = Callable[[int], object]

log = structlog.get_logger(__name__)


def nobody(_: int) -> None:
    """Take in a number of bad records that share a letter; for who counts none."""


class Letters:
    """Write the dead letters of one partition."""

    def __init__(
        self, settings: Settings, codec: Codec, partition: int, note_grouped: Note = nobody
    ) -> None:
        self._settings, self._codec, self._partition = settings, codec, partition
        self._note_grouped = note_grouped
        self._floods: dict[str, Floods] = {}

    def of(self, stem: str, refused: Sequence[Refused], raw: Mapping[int, Any]) -> list[Message]:
        """Return the letters of what a step refused of a topic; `raw` has its records by offset."""
        per_minute = self._settings.bad_records_per_minute
        floods = self._floods.setdefault(stem, Floods(per_minute))
        # What sets accounts is read from their letters which commands were refused: each has its own.
        never = {one.offset for one in refused if stem == COMMANDS and one.command is not None}
        found = floods.sort(
            (self._group(stem, one, raw[one.offset]), one)
            for one in refused
            if one.offset not in never
        )
        for name in found.begun:
            log.error(
                "too many bad records: beyond the rate they share dead letters",
                group=name,
                topic=self._settings.topic(stem),
                partition=self._partition,
                per_minute=per_minute,
            )
        alone = {one.offset for one in found.alone} | never
        return [
            *(self._one(stem, one, raw[one.offset]) for one in refused if one.offset in alone),
            *(self._many(stem, lot) for lot in found.lots),
        ]

    def _group(self, stem: str, refused: Refused, record: Any) -> Group:
        said = refused.identity or (refused.command.fields if refused.command else {})
        if said.get("tenant_id"):
            name = f"tenant {said['tenant_id']}, source {said.get('source', '')}"
            if int(said.get("gateway_seq", 0)) > 0:
                return Group(name, str(said["gateway_id"]), str(said["gateway_epoch"]))
            return Group(name)
        producer = PRODUCERS.of(self._settings.topic(stem), self._partition, refused.offset)
        return Group(f"producer id {producer}" if producer >= 0 else _schema_of(record.value))

    def _one(self, stem: str, refused: Refused, record: Any) -> Message:
        whole_key, value = record.key or b"", record.value or b""
        detail = refused.detail[:MOST_DETAIL_CHARS]
        if len(value) > MOST_VALUE_BYTES:
            size, digest = len(value), sha256(value).hexdigest()
            value = value[:MOST_VALUE_BYTES]
            detail = f"{detail}; the beginning of {size} bytes, sha256 {digest}"
        fields = {
            "offset": refused.offset,
            "reason": refused.reason,
            "detail": detail,
            "appended_at": refused.appended_ms,
            "key_base64": base64.b64encode(whole_key[: MOST_VALUE_BYTES // 4]).decode(),
            "value_base64": base64.b64encode(value).decode(),
            **dict(_short(refused.identity)),
        }
        return self._letter(stem, whole_key[:MOST_KEY_BYTES], fields)

    def _many(self, stem: str, lot: Lot) -> Message:
        first, last = lot.refused[0], lot.refused[-1]
        count = len(lot.refused)
        self._note_grouped(count)
        seqs = [int(one.identity.get("gateway_seq", 0)) for one in lot.refused]
        fields = {
            "offset": last.offset,
            "reason": lot.reason,
            "detail": f"{count} records of {lot.group.name} beyond {self._settings.bad_records_per_minute} "
            f"a minute, without their bytes; the last: {last.detail}"[:MOST_DETAIL_CHARS],
            "appended_at": last.appended_ms,
            "key_base64": "",
            "value_base64": "",
            "records": count,
            "grouped_by": lot.group.name[:MOST_KEY_BYTES],
            "offsets": runs_of(one.offset for one in lot.refused),
            "gateway_seqs": runs_of(seq for seq in seqs if seq > 0),
            **{
                name: said
                for name, said in _short(first.identity)
                if name in SHARED and all(one.identity.get(name) == said for one in lot.refused)
            },
        }
        return self._letter(stem, b"", fields)

    def _letter(self, stem: str, key: bytes, fields: dict[str, Any]) -> Message:
        place = {"topic": self._settings.topic(stem), "partition": self._partition}
        return Message(DEAD_LETTERS, key, self._codec.encode("dead_letter", place | fields))


def _short(identity: Mapping[str, str | int]) -> Iterator[tuple[str, str | int]]:
    for name, said in identity.items():
        yield name, said[:MOST_KEY_BYTES] if isinstance(said, str) else said


def _schema_of(frame: bytes | None) -> str:
    try:
        return f"schema id {frame_id(frame)}"
    except Undecodable:
        return "no schema id"
