"""Read from Kafka what gateways say of themselves, to hold against what landed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from tokenline.errors import BadData
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import start_reader, stop_consumer
from tokenline.wire.registry import open_registry
from tokenline.wire.topics import CONTROL

if TYPE_CHECKING:
    from tokenline.audit.tampering import Life
    from tokenline.settings import Settings
    from tokenline.wire.line import Line


async def stated_totals(settings: Settings, line: Line) -> dict[Life, int]:
    """Return what each life of a gateway has emitted for this line, as its control total in Kafka says.

    The topic is compacted, so the newest total of each life is there for ever.

    Raises:
        BrokerUnavailable: no broker answers.
    """
    codec, found = Codec(open_registry(settings)), {}
    place = TopicPartition(settings.topic(CONTROL), 0)
    try:
        consumer = await start_reader(settings, place, auto_offset_reset="earliest")
        try:
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=500)).get(place, []):
                    total = _total_of(codec, record.value)
                    if total is not None and total["line_id"] in ("", line.line_id):
                        life = str(total["gateway_id"]), str(total["gateway_epoch"])
                        found[life] = int(str(total["emitted"]))
        finally:
            await stop_consumer(consumer)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    return found


def _total_of(codec: Codec, frame: bytes | None) -> dict[str, object] | None:
    """Return the fields of a control total; None of what landing does not take for one."""
    if frame is None:
        return None
    try:
        total = codec.decode_as("gateway_total", frame)
    except BadData:
        return None
    fits = all(int(str(total[name])) >= 0 for name in ("emitted", "acknowledged", "lost"))
    return total if fits else None
