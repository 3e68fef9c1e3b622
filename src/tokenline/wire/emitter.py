"""Hand usage events over: what a gateway calls.

    async with Emitter(settings, source="gateway", gateway_id="gw-1") as emitter:
        receipt = await emitter.emit(UsageEvent(account_id="acct-7", provider="p", model="m"))

Every event is in the on-disk outbox before anything else happens to it, so it outlives a crash of
the gateway and an outage of the broker (see `outbox` for every crash point). Delivery is at least
once; identity (tenant_id, source, event_id) makes it count once. Not thread-safe: one event loop, one emitter.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import structlog

from tokenline.clock import Clock, SystemClock
from tokenline.errors import BrokerUnavailable, InvalidEvent, OutboxFull, Unavailable
from tokenline.wire.avro import Codec
from tokenline.wire.delivery import Delivery, Parcel
from tokenline.wire.event_writer import EventWriter
from tokenline.wire.kafka import account_key
from tokenline.wire.outbox import Outbox
from tokenline.wire.receipt import EmitterStats, Receipt
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.totals import ControlTotals

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tokenline.event import UsageEvent
    from tokenline.settings import Settings

EVENT_MAX_BYTES = 128 * 1024
ACK_FLUSH_S = 0.05
TOTAL_EVERY_S = 2.0
_DAY_MS = 86_400_000

_log = structlog.get_logger(__name__)


class _Pending(NamedTuple):
    event_id: str
    seq: int
    done: asyncio.Future[Receipt]

    def spooled(self, epoch: str) -> Receipt:
        return Receipt(self.event_id, epoch, self.seq, "spooled")


class Emitter:
    """Send usage events of one gateway instance; an async context manager.

    `source` is the logical producer that all instances share, `gateway_id` this instance. One
    outbox directory belongs to one emitter; its default is `<data_dir>/outbox/<gateway_id>`.
    `deadline_ms` bounds every wait of `emit` and of the start. When the broker does not answer in
    time, `on_outage="raise"` raises BrokerUnavailable and `"spool"` returns a receipt that says so;
    the event is kept and sent in both cases. With "spool" the start does not wait for a broker.
    `fsync=True` also survives power loss, at the price of a disk flush an event (0.1 to 10 ms).

    Raises:
        SettingsError: the outbox is in use or another gateway's; the topic's partitions differ.
        BrokerUnavailable: at the start, with "raise", when no broker answered within the deadline.
        RegistryUnavailable: at the start, when a registry server is set and does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: str,
        gateway_id: str,
        gateway_version: str = "",
        outbox_dir: Path | None = None,
        outbox_max_events: int = 200_000,
        outbox_max_bytes: int = 256 * 1024 * 1024,
        fsync: bool = False,
        deadline_ms: int = 5_000,
        on_outage: Literal["raise", "spool"] = "raise",
        close_ms: int = 5_000,
        registry: Registry | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_names(source, gateway_id, gateway_version)
        self._settings = settings
        self._clock = clock or SystemClock()
        self._registry = registry or open_registry(settings)
        self._codec = Codec(self._registry)
        self._identity = {
            "source": source,
            "gateway_id": gateway_id,
            "gateway_version": gateway_version,
        }
        self._outbox_dir = outbox_dir or settings.data_dir / "outbox" / gateway_id
        self._outbox_max_events = outbox_max_events
        self._outbox_max_bytes = outbox_max_bytes
        self._fsync = fsync
        self._deadline_s = deadline_ms / 1000
        self._on_outage = on_outage
        self._close_s = close_ms / 1000
        self._pending: dict[int, _Pending] = {}
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._totals: ControlTotals | None = None
        self._writer: EventWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: Outbox | None = None
        self._delivery: Delivery | None = None

    async def __aenter__(self) -> Self:
        """Open the outbox, send what earlier runs left, and connect."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush within the closing deadline; the rest stays in the outbox."""
        await self.close()

    async def start(self) -> None:
        """Open the outbox, send what earlier runs left, and connect; see the class for errors."""
        # Ask a registry server now, so that no emit waits for it.
        self._codec.warm("usage_event", "gateway_total")
        outbox = Outbox(
            self._outbox_dir,
            self._identity["gateway_id"],
            max_events=self._outbox_max_events,
            max_bytes=self._outbox_max_bytes,
            fsync=self._fsync,
        )
        delivery = Delivery(self._settings, on_acked=self._on_acked, on_refused=self._on_refused)
        self._outbox, self._delivery = outbox, delivery
        life = self._identity | {"gateway_epoch": outbox.life.gateway_epoch}
        self._writer = EventWriter(self._registry, life)
        self._totals = ControlTotals(
            outbox, delivery, self._codec, self._clock, source=self._identity["source"]
        )
        for parcel in outbox.take_recovered():
            delivery.submit(Parcel(*parcel))
        delivery.start()
        self._tasks = [
            asyncio.create_task(self._flush_acks(), name="tokenline-acks"),
            asyncio.create_task(self._publish_totals(), name="tokenline-totals"),
        ]
        for task in self._tasks:
            task.add_done_callback(delivery.note_end)
        try:
            await self._await_broker(delivery)
        except BaseException:
            await self._shut()
            raise

    async def emit(self, event: UsageEvent, *, deadline_ms: int | None = None) -> Receipt:
        """Return when the broker has the event, or after the deadline as `on_outage` says.

        Cancelling the call does not take the event back. A full outbox is waited for, within the
        same deadline.

        Raises:
            InvalidEvent: refused; nothing was kept.
            OutboxFull: no room within the deadline; nothing was kept.
            BrokerUnavailable: no ack within the deadline; the event is kept and will be sent.
        """
        wait_s = self._deadline_s if deadline_ms is None else deadline_ms / 1000
        until = self._clock.monotonic_s() + wait_s
        pending = await self._accept_within(event, until)
        rest_s = max(0.0, until - self._clock.monotonic_s())
        await asyncio.wait((pending.done,), timeout=rest_s)
        if pending.done.done():
            return pending.done.result()
        if self._on_outage == "spool":
            return pending.spooled(self.gateway_epoch)
        error = self._delivery.last_error if self._delivery else ""
        raise BrokerUnavailable(
            f"no ack for event {event.event_id} within {wait_s:.3f} s; it is in the outbox and "
            f"will be sent. Last error: {error or 'none'}",
            event_id=event.event_id,
        )

    def emit_nowait(self, event: UsageEvent) -> asyncio.Future[Receipt]:
        """Keep the event on disk and return at once; the future resolves when the broker has it.

        The future may be dropped: delivery does not depend on it. At the close of the emitter,
        futures still open resolve to a "spooled" receipt. It fails, with InvalidEvent, only when
        the broker will never take the event.

        Raises:
            InvalidEvent: refused; nothing was kept.
            OutboxFull: the outbox is at its bound; nothing was kept: wait or shed.
        """
        return self._accept(event).done

    def _accept(self, event: UsageEvent) -> _Pending:
        outbox, delivery = self._running()
        key = account_key(event.tenant_id, event.account_id)
        seq = outbox.next_seq
        value = self._encode(event, seq)
        position = outbox.append(key, value)
        done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        pending = _Pending(event.event_id, seq, done)
        self._pending[position] = pending
        delivery.submit(Parcel(position, key, value))
        return pending

    async def flush(self, within_ms: int | None = None) -> bool:
        """Wait until the broker has everything; False when it has not within the time.

        Raises:
            SettingsError: the topic does not fit the settings; nothing will ever be sent.
        """
        outbox, _ = self._running()
        end = math.inf if within_ms is None else self._clock.monotonic_s() + within_ms / 1000
        while outbox.unacked and (rest_s := end - self._clock.monotonic_s()) > 0:
            # Look up now and then: a fatal fault raises instead of being waited for.
            self._running()
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), min(rest_s, 1.0))
        return not outbox.unacked

    async def close(self) -> None:
        """Flush within the closing deadline, publish the control total, free the outbox."""
        if self._outbox is None or self._delivery is None:
            return
        if self._delivery.fatal is None:
            await self.flush(within_ms=int(self._close_s * 1000))
            if self._totals is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._totals.publish(), self._close_s)
        await self._shut()

    @property
    def gateway_epoch(self) -> str:
        """The name of this life."""
        return self._running()[0].life.gateway_epoch

    @property
    def stats(self) -> EmitterStats:
        """The counts of this life."""
        outbox, delivery = self._running()
        return EmitterStats(
            emitted=outbox.emitted,
            acknowledged=outbox.acknowledged,
            lost=outbox.lost,
            waiting=outbox.unacked,
            outbox_bytes=outbox.size_bytes,
            refused=self._totals.refused if self._totals else 0,
            producers_started=delivery.producers_started,
            last_error=delivery.last_error,
        )

    def _running(self) -> tuple[Outbox, Delivery]:
        if self._outbox is None or self._delivery is None:
            raise Unavailable("the emitter is not started or is closed")
        if self._delivery.fatal is not None:
            raise self._delivery.fatal
        return self._outbox, self._delivery

    async def _await_broker(self, delivery: Delivery) -> None:
        if self._on_outage == "spool":
            return
        if not await delivery.connected(self._deadline_s):
            raise BrokerUnavailable(
                f"no broker at {self._settings.kafka_bootstrap} within {self._deadline_s:.1f} s: "
                f"{delivery.last_error or 'no answer'}"
            )

    async def _accept_within(self, event: UsageEvent, until: float) -> _Pending:
        while True:
            self._room.clear()
            try:
                return self._accept(event)
            except OutboxFull:
                rest_s = until - self._clock.monotonic_s()
                if rest_s <= 0:
                    raise
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), rest_s)

    def _encode(self, event: UsageEvent, seq: int) -> bytes:
        now_ms = self._clock.wall_ms()
        self._check_sane(event, now_ms)
        value = self._writer.write(event, seq, now_ms) if self._writer else b""
        if len(value) > EVENT_MAX_BYTES:
            raise InvalidEvent(
                f"event {event.event_id} has {len(value)} bytes, at most {EVENT_MAX_BYTES}"
            )
        return value

    def _check_sane(self, event: UsageEvent, now_ms: int) -> None:
        """Refuse here what charging would refuse by the same settings."""
        most = self._settings.max_tokens_per_event
        if max(event.kinds()) > most:
            raise InvalidEvent(f"event {event.event_id} has a count above {most}: {event.kinds()}")
        if event.occurred_at:
            ahead_ms = event.occurred_at - now_ms
            if ahead_ms > self._settings.future_skew_s * 1000:
                raise InvalidEvent(f"occurred_at is {ahead_ms} ms in the future")
            if -ahead_ms > self._settings.max_age_days * _DAY_MS:
                raise InvalidEvent(f"occurred_at is {-ahead_ms} ms in the past")

    def _on_acked(self, parcels: list[Parcel], partition: int, base_offset: int) -> None:
        if self._outbox is None:
            return
        self._outbox.ack([parcel.position for parcel in parcels])
        epoch = self._outbox.life.gateway_epoch
        for index, parcel in enumerate(parcels):
            pending = self._pending.pop(parcel.position, None)
            if pending is not None and not pending.done.done():
                offset = base_offset + index if base_offset >= 0 else -1
                pending.done.set_result(
                    Receipt(pending.event_id, epoch, pending.seq, "acknowledged", partition, offset)
                )
        self._room.set()
        if not self._outbox.unacked:
            self._idle.set()

    def _on_refused(self, parcel: Parcel, text: str) -> None:
        """Set aside an event that the broker will never take: its seq stays missing, visibly."""
        if self._outbox is None:
            return
        if self._totals is not None:
            self._totals.refused += 1
        aside = self._outbox_dir / f"refused-{parcel.position}.avro"
        aside.write_bytes(parcel.value)
        _log.error("event_refused", file=str(aside), error=text)
        self._outbox.ack([parcel.position])
        pending = self._pending.pop(parcel.position, None)
        if pending is not None and not pending.done.done():
            pending.done.set_exception(InvalidEvent(f"{text}; it is kept in {aside}"))
            # The caller may have dropped the future; the log line above has said it.
            pending.done.exception()

    async def _flush_acks(self) -> None:
        while self._outbox is not None:
            await asyncio.sleep(ACK_FLUSH_S)
            try:
                self._outbox.flush_acks()
            except OSError as error:
                # They are kept and written later; unwritten they cost a re-send after a crash.
                _log.warning("outbox_acks_not_written", error=repr(error))
            # Removed segments are room as well.
            self._room.set()

    async def _publish_totals(self) -> None:
        while self._totals is not None:
            await asyncio.sleep(TOTAL_EVERY_S)
            await self._totals.publish()

    async def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._delivery is not None:
            await self._delivery.stop()
        outbox, self._outbox, self._delivery = self._outbox, None, None
        if outbox is None:
            return
        outbox.close()
        for pending in self._pending.values():
            if not pending.done.done():
                pending.done.set_result(pending.spooled(outbox.life.gateway_epoch))
        self._pending.clear()


def check_names(source: str, gateway_id: str, gateway_version: str) -> None:
    """Refuse names that could not be a key, a directory or a field.

    Raises:
        InvalidEvent: the text says which.
    """
    probe = {"source": source, "gateway_id": gateway_id, "gateway_version": gateway_version}
    for name, value in probe.items():
        if not value.isprintable() or len(value) > 256 or (not value and name != "gateway_version"):
            raise InvalidEvent(f"{name} must be 1 to 256 printable characters, not {value!r}")
    if "/" in gateway_id or gateway_id.startswith("."):
        raise InvalidEvent(f"gateway_id {gateway_id!r} must not have '/' nor begin with '.'")
