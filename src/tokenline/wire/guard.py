"""Answer at once whether an account may go on: what a gateway asks before and during a call.

    async with Guard(settings) as guard:
        verdict = guard.check("acct-7")          # a dictionary look-up
        decision = await guard.wait_cut("acct-7")  # stop a stream that is running

A guard follows the decisions topic by itself, without a consumer group, and keeps everything in
memory (about 700 bytes an account). It never asks the line, so it works through any outage; how old
its knowledge is, is part of each answer. Not thread-safe: one event loop, one guard.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tokenline.clock import Clock, SystemClock
from tokenline.errors import BadData, BrokerUnavailable, SettingsError, StaleView, Unavailable
from tokenline.wire.avro import Codec
from tokenline.wire.faults import fault_of
from tokenline.wire.guard_stats import GuardStats
from tokenline.wire.kafka import client_options, places_in, stop_consumer
from tokenline.wire.line import SameLine
from tokenline.wire.registry import Registry, open_registry
from tokenline.wire.tasks import end_tasks
from tokenline.wire.topics import DECISIONS
from tokenline.wire.view import RESET, UNKNOWN, Decision, Identity, Served, Verdict, View

if TYPE_CHECKING:
    from types import TracebackType

    from aiokafka.structs import ConsumerRecord

    from tokenline.settings import Settings

Policy = Literal["open", "closed"]

POLL_MS = 200
FETCH_WAIT_MS = 10
HEALTHY_S = 30.0
# No two clocks are so far apart.
AHEAD_MS = 86_400_000
LATENCIES_KEPT = 100_000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
# The line speaks every second; after such a silence a new connection is tried.
SILENCE_S = 30.0
# Records applied before other tasks of the gateway get their turn (about 10 ms).
SLICE = 500

_log = structlog.get_logger(__name__)


class Guard:
    """Follow the line's decisions; an async context manager whose start returns when caught up.

    `stale_after_ms`: with no word from the line for so long, the view of an account is stale; the
    default outlasts the 15 s in which a killed charging worker is back. Then `on_stale="closed"`
    allows nothing, and "open" goes on with the last known word (a known cut stays a cut).
    `on_unknown` rules accounts the line has never spoken of; it is "closed" because every account
    that may spend has a decision from the moment it is set up, so the others are mistyped, foreign
    or not paid for.

    Raises:
        BrokerUnavailable: at the start, when the view was not complete within `start_ms` (it reads
            about 20,000 decisions a second).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stale_after_ms: int = 20_000,
        on_stale: Policy = "closed",
        on_unknown: Policy = "closed",
        start_ms: int = 60_000,
        registry: Registry | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._stale_after_ms = stale_after_ms
        self._open_when_stale = on_stale == "open"
        self._open_when_unknown = on_unknown == "open"
        self._start_s = start_ms / 1000
        self._clock = clock or SystemClock()
        registry = registry or open_registry(settings)
        self._codec = Codec(registry)
        self._same_line = SameLine(settings, registry, "what this guard knows of accounts")
        self._topic = settings.topic(DECISIONS)
        self._view = View()
        # Bound once: two calls less in each check.
        self._find = self._view.rows.get
        self._heard_ms = self._view.heard_by_partition.get
        self._positions: dict[int, int] = {}
        # When each partition's last heartbeat came in, by a clock that nobody sets.
        self._spoke_s: dict[int, float] = {}
        self._caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stats = GuardStats()
        # Wall ms from the broker's append of the cause to the decision's arrival here, live only.
        self.latency: deque[int] = deque(maxlen=LATENCIES_KEPT)

    async def __aenter__(self) -> Self:
        """Read all decisions."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop following."""
        await self.close()

    async def start(self) -> None:
        """Return when every decision that was on the topic at the start is in the view."""
        self._task = asyncio.create_task(self._follow_for_ever(), name="tokenline-guard")
        self._task.add_done_callback(self._note_end)
        ready = asyncio.create_task(self._caught_up.wait())
        await asyncio.wait(
            (ready, self._task), timeout=self._start_s, return_when=asyncio.FIRST_COMPLETED
        )
        if ready.done():
            return
        ready.cancel()
        if self._task.done():
            self._task.result()
        await self.close()
        raise BrokerUnavailable(
            f"decisions were not read within {self._start_s:.1f} s from "
            f"{self._settings.kafka_bootstrap}: {self._stats.last_error or 'no answer yet'}"
        )

    async def close(self) -> None:
        """Stop following; `check` keeps answering and turns stale."""
        if self._task is not None:
            await end_tasks([self._task])

    def check(
        self,
        account: str,
        subscriber: str | None = None,
        tenant: str = "default",
        *,
        provider: str = "",
        model: str = "",
    ) -> Verdict:
        """Answer from memory: no I/O, no wait, about 2 µs.

        A cut of the account or of the subscriber denies, and one of a group of models where the model
        that is to serve is named and in it; a cut whose window has ended by the wall clock does not.
        Where not every use can be paid, a use that cannot is denied as if the account were cut, and of an
        account that is cut by its balance one passes that needs none. Without a model the state of the
        account alone answers. `stale` answers follow `on_stale`.
        """
        now_ms = self._clock.wall_ms()
        decision = self._find((tenant, account, ""))
        if model and decision is not None and decision.covers:
            decision = decision.of(Served(subscriber or "", provider, model), now_ms)
        if subscriber:
            own = self._find((tenant, account, subscriber))
            if own is not None and (decision is None or not decision.cuts(now_ms)):
                decision = own if decision is None or own.cuts(now_ms) else decision
        cut = decision is not None and decision.cuts(now_ms)
        if model and not cut and self._view.has_groups(tenant, account):
            served = Served(subscriber or "", provider, model)
            decision = self._view.find_group_cut(tenant, account, served, now_ms) or decision
        if decision is None:
            return self._unknown(now_ms)
        return self._judge(decision, now_ms)

    def require(
        self,
        account: str,
        subscriber: str | None = None,
        tenant: str = "default",
        *,
        provider: str = "",
        model: str = "",
    ) -> Verdict:
        """Answer like `check`, but raise when staleness alone is what denies.

        Raises:
            StaleView: the view is stale and the guard fails closed.
        """
        verdict = self.check(account, subscriber, tenant, provider=provider, model=model)
        if verdict.stale and not verdict.allowed and verdict.state != "cut":
            raise StaleView(f"the view of {tenant}/{account} is {verdict.fresh_ms} ms old")
        return verdict

    async def wait_cut(
        self,
        account: str,
        subscriber: str | None = None,
        tenant: str = "default",
        *,
        provider: str = "",
        model: str = "",
    ) -> Decision:
        """Return the decision that cuts the account, subscriber or model, at once if it is cut now.

        One is also that which says of the model that it cannot be paid any more.
        Cancel it when the call ends. It says nothing of staleness: ask `check` now and then.
        """
        identities: tuple[Identity, ...] = ((tenant, account, ""),)
        if subscriber:
            identities += ((tenant, account, subscriber),)
        served = Served(subscriber or "", provider, model) if model else None
        return await self._view.wait_cut(identities, self._clock.wall_ms(), served)

    @property
    def oldest_fresh_ms(self) -> int:
        """Return how far the least fresh partition lies behind now; -1 when one was never heard."""
        heard_ms = self._view.oldest_heard_ms(max(1, len(self._positions)))
        return self._age_ms(heard_ms, self._oldest_spoke_s(), self._clock.wall_ms())

    @property
    def stats(self) -> GuardStats:
        """The counts so far."""
        stats = self._stats
        stats.accounts = len(self._view)
        stats.caught_up = self._caught_up.is_set()
        stats.partitions = len(self._positions)
        stats.oldest_as_of_ms = self._view.oldest_heard_ms(max(1, stats.partitions))
        return stats

    def _judge(self, decision: Decision, now_ms: int) -> Verdict:
        heard_ms = self._heard_ms(decision.partition, 0)
        fresh_ms = self._age_ms(heard_ms, self._spoke_s.get(decision.partition), now_ms)
        stale = not heard_ms or fresh_ms > self._stale_after_ms
        state, reason = decision.state, decision.reason
        if 0 < decision.resets_at_ms <= now_ms and state != "open":
            state, reason = "open", RESET
        allowed = state != "cut" and (not stale or self._open_when_stale)
        return Verdict(
            allowed,
            state,
            reason,
            decision.rule,
            decision.used,
            decision.limit,
            decision.resets_at_ms,
            decision.as_of_ms,
            fresh_ms,
            stale,
            decision.terms,
            decision.unit,
        )

    def _age_ms(self, heard_ms: int, spoke_s: float | None, now_ms: int) -> int:
        """Return how far what was heard lies behind now; -1 when nothing was.

        A clock of ours that is behind the line's would count no silence, so that is measured as well.
        One that is ahead makes us stale for good, and says so: it cannot be told from a line that is away.
        """
        if not heard_ms:
            return -1
        silent_s = 0.0 if spoke_s is None else self._clock.monotonic_s() - spoke_s
        return max(0, now_ms - heard_ms, int(silent_s * 1000))

    def _oldest_spoke_s(self) -> float | None:
        """Return when that partition spoke which is silent for longest; a heartbeat may name one that is none."""
        partitions = range(max(1, len(self._positions)))
        spoke_s = (self._spoke_s[each] for each in partitions if each in self._spoke_s)
        return min(spoke_s, default=None)

    def _unknown(self, now_ms: int) -> Verdict:
        heard_ms = self._view.oldest_heard_ms(max(1, len(self._positions)))
        fresh_ms = self._age_ms(heard_ms, self._oldest_spoke_s(), now_ms)
        stale = not heard_ms or fresh_ms > self._stale_after_ms
        allowed = self._open_when_unknown and (not stale or self._open_when_stale)
        return Verdict(allowed, "unknown", UNKNOWN, "", 0, -1, 0, heard_ms, fresh_ms, stale)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Say why following ended; from then on the view gets old, and `check` says so."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stats.last_error = repr(error)
            _log.error("guard_stopped", error=repr(error))

    async def _follow_for_ever(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while True:
            began_s = self._clock.monotonic_s()
            try:
                await self._follow()
            # A registry that is away says nothing about the record: it is read again from where we are.
            except (KafkaError, Unavailable, OSError, TimeoutError, AssertionError) as error:
                if self._clock.monotonic_s() - began_s > HEALTHY_S:
                    backoff_s = BACKOFF_MIN_S
                self._stats.reconnects += 1
                self._stats.last_error = await self._said(error)
                _log.warning("guard_reconnects", error=self._stats.last_error, retry_s=backoff_s)
            except SettingsError as error:
                # At the start the caller must hear of it; later it may pass: a token or file renewed.
                if not self._caught_up.is_set():
                    raise
                self._stats.last_error = repr(error)
                _log.error("guard_refused", error=repr(error), retry_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _said(self, error: BaseException) -> str:
        of_the_broker = isinstance(error, KafkaError)
        return str(await fault_of(self._settings, error)) if of_the_broker else repr(error)

    async def _follow(self) -> None:
        """Read from where we are until something breaks; aiokafka itself rides out most outages."""
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            group_id=None,
            enable_auto_commit=False,
            # A place that is gone is an error: what is there now may be another line's.
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        try:
            await consumer.start()
            # Versions of another line begin anew: the view would take none of them.
            await self._same_line.check()
            ends = await self._assign(consumer)
            heard_s = self._clock.monotonic_s()
            while True:
                fetched = await consumer.getmany(timeout_ms=POLL_MS)
                if fetched:
                    heard_s = self._clock.monotonic_s()
                elif self._clock.monotonic_s() - heard_s > SILENCE_S:
                    raise TimeoutError(f"no word from the line for {SILENCE_S:.0f} s")
                for partition, records in fetched.items():
                    await self._apply(partition.partition, records)
                if not self._caught_up.is_set():
                    await self._note_progress(consumer, ends)
        finally:
            await stop_consumer(consumer)

    async def _assign(self, consumer: AIOKafkaConsumer) -> dict[Any, int]:
        found = await consumer._client._wait_on_metadata(self._topic)  # the public call only peeks
        partitions = [TopicPartition(self._topic, number) for number in sorted(found)]
        consumer.assign(partitions)
        places, ends = await places_in(consumer, partitions, self._positions)
        for partition, at in places.items():
            self._positions[partition.partition] = at
            consumer.seek(partition, at)
        return ends

    async def _note_progress(self, consumer: AIOKafkaConsumer, ends: dict[Any, int]) -> None:
        for partition, end in ends.items():
            if await consumer.position(partition) < end:
                return
        self._caught_up.set()

    async def _apply(self, partition: int, records: list[ConsumerRecord]) -> None:
        await self._codec.meet(record.value for record in records)
        for index, record in enumerate(records, start=1):
            try:
                self._apply_one(partition, record)
            except (BadData, TypeError, KeyError) as error:
                self._stats.bad_records += 1
                where = f"{self._topic}[{partition}]@{record.offset}"
                _log.warning("guard_skips_record", at=where, error=str(error))
            self._positions[partition] = record.offset + 1
            if index % SLICE == 0:
                await asyncio.sleep(0)

    def _apply_one(self, partition: int, record: ConsumerRecord) -> None:
        now_ms = self._clock.wall_ms()
        if record.value is None:
            self._stats.tombstones += 1
            self._view.apply_tombstone(record.key or b"")
            return
        name, fields = self._codec.decode(record.value)
        if name == "charging_heartbeat":
            of = int(str(fields["partition"]))
            epoch, as_of_ms = int(str(fields["epoch"])), int(str(fields["as_of"]))
            if of != partition or as_of_ms > now_ms + AHEAD_MS:
                # It would make another partition, or this one for ever, look fresh.
                raise BadData(
                    f"a heartbeat of partition {of}, as of {as_of_ms}, is none of the line's"
                )
            self._stats.heartbeats += 1
            if taken := self._view.apply_heartbeat(of, epoch, as_of_ms):
                self._spoke_s[of] = self._clock.monotonic_s()
        elif name == "quota_decision":
            self._stats.decisions += 1
            taken = self._view.apply_decision(partition, fields, now_ms)
            if taken and self._caught_up.is_set():
                self.latency.append(now_ms - int(str(fields["as_of"])))
        else:
            raise BadData(f"{name} does not belong on the decisions topic")
        self._stats.ignored_old += not taken
