"""Say in Avro what a step decided, and publish it."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from streams.letters import Letters, Note, nobody
from streams.replies import refusals_of, replies_of
from streams.totals import (
    changes_of,
    encode_totals,
    split_key,
    totals_of,
    window_changes_of,
)
from tokenline.charging.journal import Record
from tokenline.charging.packs import Message
from tokenline.charging.terms import decision_terms
from tokenline.clock import SystemClock
from tokenline.wire.kafka import account_key, client_options, partition_of
from tokenline.wire.topics import (
    CHARGED,
    COMMANDS,
    DECISIONS,
    REPLIES,
    decision_key,
    heartbeat_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokenline.charging.partition import PartitionState
    from tokenline.charging.step import Charges, Flush, Sent, Step
    from tokenline.quota.decided import Decided
    from tokenline.settings import Settings
    from tokenline.wire.avro import Codec
    from tokenline.wire.columns import ColumnCodec

RawRecord = Any

ELSEWHERE = (REPLIES, COMMANDS)  # not our partition: that of the key


def output_producer(settings: Settings) -> AIOKafkaProducer:
    """Return the producer of decisions and all else that follows a step; nothing waits for company."""
    return AIOKafkaProducer(
        **client_options(settings),
        acks="all",
        enable_idempotence=True,
        compression_type="snappy",
        linger_ms=0,
        max_batch_size=1 << 20,
        max_request_size=8 << 20,
        request_timeout_ms=30_000,
    )


class Outputs:
    """Encode and publish for one partition."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        columns: ColumnCodec,
        producer: AIOKafkaProducer,
        partition: int,
        note_grouped: Note = nobody,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._columns = columns
        self._producer = producer
        self._partition = partition
        self._letters = Letters(settings, codec, partition, note_grouped)
        self._clock = SystemClock()

    def messages(
        self, state: PartitionState, step: Step, records: Sequence[RawRecord]
    ) -> list[Message]:
        """Return what must be published once `step`, made of `records`, is durable; cut-offs first."""
        raw = {record.offset: record for record in records} if step.refused else {}
        found = [
            message
            for decided in step.decisions
            for message in self._decision(state, step, decided)
        ]
        found += self._letters.of(step.cause[0], step.refused, raw) if step.refused else []
        found += changes_of(self._codec, state, step, self._partition)
        found += window_changes_of(self._codec, state, step, self._partition)
        found += replies_of(self._codec, step.replies)
        found += [self._sent(sent) for sent in step.sent]
        found += refusals_of(self._codec, step.refused)
        if step.judged is not None:
            found.append(self._charged(state, step))
        return found

    async def publish(self, messages: Iterable[Message]) -> None:
        """Send the messages, each topic in order, and return when all are acknowledged."""
        await asyncio.gather(*await self.begin(messages))

    async def begin(self, messages: Iterable[Message]) -> list[asyncio.Future[Any]]:
        """Send the messages, each topic in order, and return what is done when they are acknowledged."""
        by_topic = groupby(sorted(messages, key=_topic_of), key=_topic_of)
        sends = [
            (topic, [(message.key, message.value) for message in group])
            for topic, group in by_topic
        ]
        if len(sends) == 1:
            return await self._begin_send(*sends[0])
        begun = await asyncio.gather(
            *(self._begin_send(topic, records) for topic, records in sends)
        )
        return [ack for acks in begun for ack in acks]

    async def publish_flush(self, state: PartitionState, flush: Flush) -> int:
        """Publish totals of windows and of buckets; gives other work a turn between slices."""
        # Sums of a whole minute are the longest work there is: a cut-off must not wait for them.
        rows = await asyncio.to_thread(totals_of, self._columns, state, flush, self._partition)
        sent, count = [], 0
        for stem, records in encode_totals(self._columns, rows):
            # Waits while an earlier slice is not on its way yet, so little is held at a time.
            sent += await self._begin_send(stem, records)
            count += len(records)
        await asyncio.gather(*sent)
        return count

    async def publish_heartbeat(self, next_offset: int, as_of_ms: int, epoch: int) -> None:
        """Tell guards that everything appended before `as_of_ms` is decided."""
        fields = {
            "partition": self._partition,
            "as_of": as_of_ms,
            "next_offset": next_offset,
            "epoch": epoch,
        }
        value = self._codec.encode("charging_heartbeat", fields)
        await self._send(DECISIONS, [(heartbeat_key(self._partition, epoch), value)])

    async def _send(self, stem: str, records: Iterable[Record]) -> None:
        await asyncio.gather(*await self._begin_send(stem, records))

    async def _begin_send(self, stem: str, records: Iterable[Record]) -> list[asyncio.Future[Any]]:
        if stem in ELSEWHERE:
            return await self._begin_elsewhere(stem, records)
        topic = self._settings.topic(stem)
        return [
            await self._producer.send_batch(batch, topic, partition=self._partition)
            for batch in self._batches(records)
        ]

    async def _begin_elsewhere(
        self, stem: str, records: Iterable[Record]
    ) -> list[asyncio.Future[Any]]:
        """Send each record to the partition of its key: an asker's, or another account's.

        Lines share these partitions, and a batch of one's own waits until the one before it is sent:
        lines that answer one gateway would wait for each other, 10 ms a step (measured at 500 answers
        a second). One by one the records of all lines travel in whatever batch leaves next.
        """
        topic, partitions = self._settings.topic(stem), self._settings.partitions
        return [
            await self._producer.send(
                topic, value, key=key, partition=partition_of(key, partitions)
            )
            for key, value in records
        ]

    def _batches(self, records: Iterable[Record]) -> Iterator[Any]:
        batch = self._producer.create_batch()
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                yield batch
                batch = self._producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        yield batch

    def _decision(self, state: PartitionState, step: Step, decided: Decided) -> Iterator[Message]:
        tenant, account = split_key(state.cells.keys[decided.slot])
        topic, offset = step.cause
        fields = {
            "tenant_id": tenant,
            "account_id": account,
            "subscriber_id": decided.subscriber,
            "state": decided.state.name.lower(),
            "rule": decided.limit_name or (decided.rule.name.lower() if decided.rule else ""),
            "reason": decided.reason,
            "threshold_percent": decided.threshold_percent,
            "used": decided.used,
            "limit": decided.limit,
            "window_start": decided.window_start_ms,
            "resets_at": decided.resets_at_ms,
            "plan": state.books.plan_of(decided.slot),
            "unit": decided.unit,
            "overage_utok": decided.overage_utok,
            "written_off_utok": decided.written_off_utok,
            "covers": [
                {"models": list(one.models), "subscribers": list(one.subscribers)}
                for one in decided.covers
            ],
            **decision_terms(state, decided.slot),
            "version": decided.version,
            "epoch": state.epoch,
            "as_of": step.as_of_ms,
            "cause_topic": self._settings.topic(topic),
            "cause_partition": self._partition,
            "cause_offset": offset,
            "model_group": decided.group,
            "models": list(decided.models),
        }
        whom = decided.subscriber, decided.group
        key = decision_key(tenant, account, state.epoch, *whom)
        yield Message(DECISIONS, key, self._codec.encode("quota_decision", fields))
        if decided.old_epoch not in (0, state.epoch):
            # The new owner's word stands: the old one's key would be kept for ever otherwise.
            old = decision_key(tenant, account, decided.old_epoch, *whom)
            yield Message(DECISIONS, old, None)

    def _sent(self, sent: Sent) -> Message:
        """Stamp an order of charging's own with the time of this worker, not of what caused it.

        A transfer may have waited for a week for its giver's worker. What counts for its parts is since
        when there could be a copy of them.
        """
        fields = {**sent.fields, "issued_at": self._clock.wall_ms()}
        key = account_key(fields["tenant_id"], fields["account_id"])
        return Message(COMMANDS, key, self._codec.encode("account_order", fields))

    def _charged(self, state: PartitionState, step: Step) -> Message:
        judged = step.judged
        assert judged is not None  # noqa: S101  # the caller looked
        fields = {
            "topic": self._settings.topic("usage"),
            "partition": self._partition,
            "lo_offset": judged.lo,
            "hi_offset": judged.hi,
            "as_of": judged.as_of_ms,
            "epoch": state.epoch,
            "late_offsets": judged.late,
            "duplicate_offsets": judged.duplicate,
            "rejected_offsets": judged.rejected,
            "absent_offsets": judged.absent,
            "deleted_offsets": judged.deleted,
            "deleted_since": judged.deleted_since_ms,
            "deleted_until": judged.deleted_until_ms,
            "commands_next": judged.commands_next,
            "holds_next": judged.holds_next,
            "order_turns": judged.turns,
            "correction_offsets": judged.correction,
            **_charges_of(judged.charges),
        }
        return Message(
            CHARGED, b"%d" % self._partition, self._columns.encode_flat("charged_range", fields)
        )


def _charges_of(charges: Charges) -> dict[str, Any]:
    """Return the fields that say who paid; empty lists where nothing was to be paid."""
    fields: dict[str, Any] = {}
    if charges.versions.any():
        fields["catalog_versions"] = charges.version_runs
    if charges.utok.any():
        fields |= {"charges_utok": charges.utok, "paid_buckets": charges.buckets}
        fields["splits"] = charges.splits.ravel()
    return fields


def _topic_of(message: Message) -> str:
    return message.topic
