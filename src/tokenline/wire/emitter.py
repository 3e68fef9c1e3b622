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
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import structlog

from tokenline.clock import Clock, SystemClock
from tokenline.counts import duration_of, shown
from tokenline.errors import (
    BrokerUnavailable,
    InvalidEvent,
    OutboxFull,
    TokenlineError,
    Unavailable,
)
from tokenline.event import UsageEvent
from tokenline.wire.avro import Codec
from tokenline.wire.delivery import Delivery, Parcel
from tokenline.wire.event_writer import EventWriter
from tokenline.wire.kafka import account_key
from tokenline.wire.outbox import Outbox
from tokenline.wire.outbox_life import check_names
from tokenline.wire.outbox_line import join
from tokenline.wire.promises import Promise, Promises
from tokenline.wire.receipt import EmitterStats, Receipt, stats_of
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.sane import check_sane, check_size
from tokenline.wire.set_aside import SetAside
from tokenline.wire.tasks import end_tasks
from tokenline.wire.totals import ControlTotals

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tokenline.settings import Settings
    from tokenline.wire.line import Line

ACK_FLUSH_S = 0.05
# How often a full disk is asked whether it has room again.
ASIDE_EVERY_S = 1.0
TOTAL_EVERY_S = 2.0

_log = structlog.get_logger(__name__)


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
        ForeignLine: events wait in the outbox for another line; with "spool" each later call raises it.
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
        deadline_ms: float = 5_000,
        on_outage: Literal["raise", "spool"] = "raise",
        close_ms: float = 5_000,
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
        self._open_outbox = partial(
            Outbox,
            self._outbox_dir,
            gateway_id,
            max_events=outbox_max_events,
            max_bytes=outbox_max_bytes,
            fsync=fsync,
        )
        self._deadline_s = duration_of("deadline_ms", deadline_ms) / 1000
        self._on_outage = on_outage
        self._close_s = duration_of("close_ms", close_ms) / 1000
        self._promises = Promises()
        self._aside = SetAside(self._outbox_dir, self._on_aside)
        self._loop: asyncio.AbstractEventLoop | None = None
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
        self._loop = asyncio.get_running_loop()
        # Ask a registry server now, so that no emit waits for it.
        self._codec.warm("usage_event", "gateway_total")
        outbox = self._open_outbox()
        delivery = Delivery(
            self._settings,
            on_acked=self._on_acked,
            on_refused=self._on_refused,
            on_line=self._on_line,
            registry=self._registry,
        )
        self._outbox, self._delivery = outbox, delivery
        self._writer = self._new_writer(outbox)
        self._totals = ControlTotals(
            outbox, delivery, self._codec, self._clock, source=self._identity["source"]
        )
        self._totals.refused = self._aside.count_since(outbox.life.base)
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

    async def emit(self, event: UsageEvent, *, deadline_ms: float | None = None) -> Receipt:
        """Return when the broker has the event, or after the deadline as `on_outage` says.

        Cancelling the call does not take the event back. A full outbox is waited for, within the
        same deadline.

        Raises:
            InvalidEvent: refused; nothing was kept.
            OutboxFull: no room within the deadline; nothing was kept.
            BrokerUnavailable: no ack within the deadline; the event is kept and will be sent.
        """
        wait_s = self._deadline_s
        if deadline_ms is not None:
            wait_s = duration_of("deadline_ms", deadline_ms) / 1000
        until = self._clock.monotonic_s() + wait_s
        promise = await self._accept_within(event, until)
        rest_s = max(0.0, until - self._clock.monotonic_s())
        await asyncio.wait((promise.done,), timeout=rest_s)
        if promise.done.done():
            return promise.done.result()
        if self._on_outage == "spool":
            return promise.spooled(self.gateway_epoch)
        raise promise.overdue(wait_s, self._delivery.last_error if self._delivery else "")

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

    def _accept(self, event: UsageEvent) -> Promise:
        outbox, delivery = self._running()
        if not isinstance(event, UsageEvent):
            raise InvalidEvent(f"what is emitted must be a UsageEvent, not {shown(event)}")
        key = account_key(event.tenant_id, event.account_id)
        seq = outbox.next_seq
        value = self._encode(event, seq)
        position = outbox.append(key, value)
        promise = self._promises.add(position, event.event_id, seq, self._loop)
        # A loop that has ended sends nothing any more: then the next start does.
        if not promise.done.get_loop().is_closed():
            delivery.submit(Parcel(position, key, value))
        return promise

    def check_room(self) -> None:
        """Refuse to begin what could not be reported: look before a call whether its event has room.

        Raises:
            OutboxFull: the outbox is at a bound, or its disk was full just now.
            Unavailable: the emitter is not started or is closed.
        """
        outbox, _ = self._running()
        outbox.check_room()
        if outbox.disk_full:
            raise OutboxFull(f"the disk under outbox {outbox.directory} is full")

    async def flush(self, within_ms: float | None = None) -> bool:
        """Wait until the broker has everything; False when it has not within the time.

        Raises:
            SettingsError: the topic does not fit the settings; nothing will ever be sent.
        """
        outbox, _ = self._running()
        end = math.inf
        if within_ms is not None:
            end = self._clock.monotonic_s() + duration_of("within_ms", within_ms) / 1000
        while outbox.unacked and (rest_s := end - self._clock.monotonic_s()) > 0:
            # Look up now and then: a fatal fault raises instead of being waited for.
            self._running()
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(rest_s, 1.0)):
                    await self._idle.wait()
        return not outbox.unacked

    async def close(self) -> None:
        """Flush within the closing deadline, publish the control total, free the outbox.

        It raises nothing, whatever is away; a log line says what is left in the outbox.
        """
        if self._outbox is None or self._totals is None:
            return
        try:
            # What no retry heals was said to each call: the events are kept.
            with contextlib.suppress(TokenlineError, TimeoutError):
                await self.flush(within_ms=self._close_s * 1000)
                async with asyncio.timeout(self._close_s):
                    await self._totals.publish()
        finally:
            await self._shut()

    @property
    def gateway_epoch(self) -> str:
        """The name of this life."""
        return self._running()[0].life.gateway_epoch

    @property
    def stats(self) -> EmitterStats:
        """The counts of this life."""
        outbox, delivery = self._running()
        return stats_of(outbox, delivery, self._totals.refused if self._totals else 0)

    def _running(self) -> tuple[Outbox, Delivery]:
        if self._outbox is None or self._delivery is None:
            raise Unavailable("the emitter is not started or is closed")
        if self._delivery.fatal is not None:
            raise self._delivery.fatal
        return self._outbox, self._delivery

    async def reach(self, within_s: float) -> bool:
        """Say whether a broker is there within the time; the line it holds was met then.

        Raises:
            SettingsError: the line does not fit: another count of partitions, or another line's outbox.
        """
        _, delivery = self._running()
        return await delivery.connected(within_s)

    async def _await_broker(self, delivery: Delivery) -> None:
        if self._on_outage == "spool":
            return
        if not await delivery.connected(self._deadline_s):
            raise BrokerUnavailable(
                f"no broker at {self._settings.kafka_bootstrap} within {self._deadline_s:.1f} s: "
                f"{delivery.last_error or 'no answer'}"
            )

    async def _accept_within(self, event: UsageEvent, until: float) -> Promise:
        while True:
            self._room.clear()
            try:
                return self._accept(event)
            except OutboxFull:
                rest_s = until - self._clock.monotonic_s()
                if rest_s <= 0:
                    raise
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._room.wait()

    def _encode(self, event: UsageEvent, seq: int) -> bytes:
        now_ms = self._clock.wall_ms()
        check_sane(event, self._settings, now_ms)
        value = self._writer.write(event, seq, now_ms) if self._writer else b""
        check_size(event, value)
        return value

    def _on_acked(self, parcels: list[Parcel], partition: int, base_offset: int) -> None:
        if self._outbox is None:
            return
        self._outbox.ack([parcel.position for parcel in parcels])
        epoch = self._outbox.life.gateway_epoch
        self._promises.acknowledge(parcels, epoch, partition, base_offset)
        self._room.set()
        if not self._outbox.unacked:
            self._idle.set()

    def _new_writer(self, outbox: Outbox) -> EventWriter:
        life = self._identity | {"gateway_epoch": outbox.life.gateway_epoch}
        return EventWriter(self._registry, life)

    def _on_line(self, line: Line) -> None:
        """Meet the line: events that wait for another one are not for it, and a life counts for one."""
        if self._outbox is None or self._totals is None:
            return
        if join(self._outbox, line):
            self._writer = self._new_writer(self._outbox)
        self._totals.line_id = line.line_id

    def _on_refused(self, parcel: Parcel, text: str) -> None:
        """Set aside an event that the broker will never take: its seq stays missing, visibly."""
        if self._outbox is None:
            return
        aside = self._aside.path(parcel.position)
        _log.error("event_refused", file=str(aside), error=text)
        self._aside.add(parcel)
        self._promises.refuse(parcel.position, InvalidEvent(f"{text}; it is kept in {aside}"))

    def _on_aside(self, position: int) -> None:
        """Let go of an event that is in a file of its own."""
        if self._outbox is not None and self._totals is not None:
            self._totals.refused += 1
            self._outbox.ack([position])

    async def _flush_acks(self) -> None:
        aside_s = self._clock.monotonic_s()
        while self._outbox is not None:
            await asyncio.sleep(ACK_FLUSH_S)
            if self._clock.monotonic_s() - aside_s >= ASIDE_EVERY_S:
                aside_s = self._clock.monotonic_s()
                self._aside.write()
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
        await end_tasks(self._tasks)
        if self._delivery is not None:
            await self._delivery.stop()
        outbox, delivery = self._outbox, self._delivery
        self._outbox = self._delivery = None
        if outbox is None or delivery is None:
            return
        if outbox.unacked:
            error = delivery.last_error or "none"
            _log.warning("outbox_keeps", events=outbox.unacked, last_error=error)
        outbox.close()
        self._promises.close(outbox.life.gateway_epoch)
