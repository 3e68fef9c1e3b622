"""Own one partition: open its journal, fold what comes, publish what is durable.

inbox -> fold -> journal batch --ack--> publish outputs --ack--> commit offset
            |                      |                        |
crash here: nothing happened       published again           skipped by offset
                                   from the journal          (next_offsets)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from streams.catchup import BEHIND_SHARE, Waiting, by_turns
from streams.commit import Commit
from streams.gather import Gatherer
from streams.inbox import Delivery, Inbox
from streams.intake import decode_commands, decode_usage
from streams.memory import give_back
from streams.opening import tell_opened
from streams.outputs import Outputs
from streams.positions import Standing
from streams.reread import read_waiting
from streams.state import JournalLog
from streams.stretch import VALUE, Stretch, parts_of
from streams.ticks import Ticker
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovered, Recovery
from tokenline.charging.step import Flush, Step, UsageChunk
from tokenline.errors import FencedOut
from tokenline.metering.home import Home
from tokenline.wire.topics import COMMANDS, HOLDS, USAGE

if TYPE_CHECKING:
    from streams.charging import ChargingWorker

STEPS_IN_FLIGHT = 8
DRAIN_S = 5.0
DECODE_BESIDE = 1000
ASTRAY_LOOK_S = 1.0

log = structlog.get_logger(__name__)


class PartitionLine:
    """Be the single writer of one partition's accounts."""

    def __init__(self, worker: ChargingWorker, partition: int) -> None:
        self._worker = worker
        self.partition = partition
        self.log = JournalLog(worker.settings, worker.journal, partition)
        self.outputs = Outputs(
            worker.settings,
            worker.codec,
            worker.columns,
            worker.producer,
            partition,
            worker.metrics.grouped_bad.inc,
        )
        self.inbox = Inbox()
        self._commits: asyncio.Queue[Commit | Callable[[], Any]] = asyncio.Queue(STEPS_IN_FLIGHT)
        # Steps whose outputs are on their way; `_commits` counts a step until it is out of here.
        self._told: asyncio.Queue[
            tuple[Commit | Callable[[], Any], Sequence[asyncio.Future[Any]]]
        ] = asyncio.Queue(STEPS_IN_FLIGHT)
        self._unsettled = 0
        self._settled = asyncio.Event()
        self.home = Home(partition, worker.settings.partitions)
        self.state = PartitionState(worker.bounds, self.home)
        self.ready = asyncio.Event()
        self.standing = Standing(worker.settings, worker.clock, worker.metrics, partition)
        self._gatherer = Gatherer(worker.settings, worker.clock, worker.metrics, partition)
        self._stood_at = -1
        self.published_next = 0
        self.published_ms = 0
        # Set when commands were taken in.
        self.commands_folded = asyncio.Event()
        self._folding = asyncio.Lock()
        self._flushes: asyncio.Queue[Flush] = asyncio.Queue()
        self._held = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to recover and, once that is done, to work."""
        self._tasks = [asyncio.create_task(self._guarded(self._run()))]

    async def hold(self) -> None:
        """Fold nothing more and finish the steps in flight, while the group deals partitions out anew."""
        try:
            async with asyncio.timeout(DRAIN_S):
                if not self._held:
                    await self._folding.acquire()
                    self._held = True
                await self._commits.join()
                await self._flushes.join()
        except TimeoutError:
            log.warning("steps in flight are left to the next owner", partition=self.partition)

    def resume(self) -> None:
        """Fold on: the partition is still ours."""
        if self._held:
            self._held = False
            self._folding.release()

    async def stop(self) -> None:
        """Finish the steps in flight, for a while, and end."""
        await self.hold()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def held(self) -> bool:
        """Say whether nothing is folded because the group deals partitions out anew."""
        return self._held

    @property
    def idle(self) -> bool:
        """Say whether nothing waits to be folded or published."""
        return self.inbox.empty() and self._commits.empty() and self._told.empty()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  the worker's edge: any error here ends the process
            if isinstance(error, FencedOut) and self._worker.lines.get(self.partition) is not self:
                log.info("the next owner was faster than our last steps", partition=self.partition)
                return
            self._worker.fatal(error)

    async def _run(self) -> None:
        await self._open()
        self._tasks.append(asyncio.create_task(self._guarded(self._commit_steps())))
        self._tasks.append(asyncio.create_task(self._guarded(self._note_told())))
        self._tasks.append(asyncio.create_task(self._guarded(self._publish_flushes())))
        while await self.standing.check(self.state):  # noqa: ASYNC110  a broker has no event for it
            await asyncio.sleep(ASTRAY_LOOK_S)
        await self._catch_up()
        self._worker.feed.follow(self.partition, self.state.next_offsets)
        self.ready.set()
        self._tasks.append(asyncio.create_task(self._guarded(Ticker(self._worker, self).run())))
        while True:
            delivery = await self.inbox.get()
            if self.standing.astray:
                continue  # and it is not acknowledged
            if delivery.stem != USAGE:
                delivery = await self._with_company(delivery)
            async with self._folding:
                await self._fold(delivery)
            # Folding is pure CPU: let heartbeats and other partitions in between.
            await asyncio.sleep(0)

    async def _with_company(self, orders: Delivery) -> Delivery:
        """Return orders with all that came while steps were settling: at most one waits for its ack.

        More steps in flight would not be answered sooner, each waits for the one before it; and each
        costs the same for one order as for ten.
        """
        while self._unsettled > 1:
            self._settled.clear()
            await self._settled.wait()
        return self.inbox.all_orders(orders)

    # Recovery

    async def _open(self) -> None:
        """Read the journal, open the next epoch and publish what the last owner may not have."""
        clock, began = self._worker.clock, self._worker.clock.monotonic_s()
        while True:
            self.state = PartitionState(self._worker.bounds, self.home)
            found = await self._recover()
            self._join(found.state)
            self._writer = found.writer()
            if await self.log.open_epoch(self._writer.opening(uuid4().hex)):
                break
            log.info(
                "another worker wrote while this one read; reading again", partition=self.partition
            )
        await self._publish_again(found)
        self.published_next, self.published_ms = (
            self.state.next_offsets["usage"],
            self.state.minute_ms,
        )
        tell_opened(self._worker.metrics, self.partition, found, began, clock.monotonic_s())

    def _join(self, state: PartitionState) -> None:
        """Refuse a journal of another line, whose offsets mean nothing here; one without an id is ours."""
        line = self._worker.line
        what = f"the journal {self.log.topic}[{self.partition}]"
        line.require(state.line_id, what, "its topics were put together from two lines")
        state.line_id = line.line_id

    async def _recover(self) -> Recovered:
        recovery = Recovery(self.state)
        await self.log.read(recovery.take)
        found = await asyncio.to_thread(recovery.finish)
        await asyncio.to_thread(give_back)
        return found

    async def _publish_again(self, found: Recovered) -> None:
        for seq, messages in found.out:
            await self.outputs.publish(messages)
            self.state.published_seq = seq
        for flush in found.unflushed:
            await self._publish_flush(flush)

    # Folding

    async def _fold(self, delivery: Delivery) -> None:
        due = self.state.next_offsets[delivery.stem]
        stretch = await self._gatherer.stretch(delivery, due)
        most = self._worker.settings.max_chunk_records
        if stretch is not None:
            await self._worker.codec.meet(map(VALUE, stretch.records))
        for part in parts_of(stretch, most) if stretch is not None else ():
            if delivery.stem == USAGE:
                steps = self._usage_steps(part, await self._decoded_beside(part))
            else:
                steps = self._command_steps(delivery.stem, part)
            while (step := await self._worker.take_turn(steps)) is not None:
                await self._commits.put(await self._journal(step, part.records))
        await self._commits.put(delivery.done)
        self.commands_folded.set()

    async def _catch_up(self) -> None:
        """Apply what waits on `commands` and `holds` before any usage, and usage that is far behind with it.

        The topics are read side by side; after a time away usage could come first, and be refused for
        an account that was applied long before it, or so late that its hold is forgotten. If this takes
        so long that usage is far behind again, it is done again for what came meanwhile.
        """
        clock, far_s = self._worker.clock, self.state.books.linger_ms / 1000 / BEHIND_SHARE
        took_s = far_s
        while took_s >= far_s:
            began_s = clock.monotonic_s()
            await self._take_turns()
            took_s = clock.monotonic_s() - began_s

    async def _take_turns(self) -> None:
        """Apply what waits now."""
        now_ms = self._worker.clock.wall_ms()
        async with (
            aclosing(self._waiting(COMMANDS)) as commands,
            aclosing(self._waiting(HOLDS)) as holds,
            aclosing(self._waiting(USAGE)) as usage,
            aclosing(
                by_turns(
                    {COMMANDS: Waiting(commands), HOLDS: Waiting(holds)},
                    Waiting(usage),
                    now_ms,
                    self.state.books.linger_ms,
                )
            ) as turns,
        ):
            async for stem, records in turns:
                async with self._folding:
                    await self._fold(Delivery(stem, records))

    def _waiting(self, stem: str) -> AsyncGenerator[list[Any], None]:
        settings, due = self._worker.settings, self.state.next_offsets[stem]
        return read_waiting(settings, settings.topic(stem), self.partition, due)

    async def _decoded_beside(self, stretch: Stretch) -> UsageChunk | None:
        """Decode many records in a thread, while another partition folds; few are not worth the way."""
        if len(stretch.records) < DECODE_BESIDE:
            return None
        return await asyncio.to_thread(decode_usage, self._worker.columns, stretch)

    def _usage_steps(self, stretch: Stretch, decoded: UsageChunk | None = None) -> Iterator[Step]:
        chunk = decoded or decode_usage(self._worker.columns, stretch)
        for part in by_minute(chunk):
            yield fold_usage(self.state, part)

    def _command_steps(self, stem: str, stretch: Stretch) -> Iterator[Step]:
        worker = self._worker
        commands, refused = decode_commands(worker.columns, worker.codec, stretch.records, stem)
        step = fold_commands(self.state, commands, stretch.hi, stem)
        step.refused = refused + step.refused
        yield step

    async def _journal(self, step: Step, records: Sequence[Any]) -> Commit:
        out = self.outputs.messages(self.state, step, records)
        if step.flush is not None:
            # One closed minute at a time: the keys of its `part` records are used again in three minutes.
            await self._commits.join()
            await self._flushes.join()
        written = self._writer.records(self.state, step, out)
        sent = await self.log.append(written)
        self._unsettled += 1
        return Commit(step, out, sent, len(written), self.state.next_offsets["usage"])

    def look_behind(self, end: int) -> None:
        """Look what lies before the end, when we have stood still before it since the last look.

        A transaction leaves a marker there, and what is deleted leaves nothing: no record tells of either.
        """
        stands, self._stood_at = self._stood_at == self.published_next, self.published_next
        if stands and self.idle and self.published_next < end:
            self._stood_at = -1
            self._tasks.append(asyncio.create_task(self._guarded(self._look_behind(end))))

    async def _look_behind(self, end: int) -> None:
        nobody = await self._gatherer.nothing_before(end, self.state.next_offsets[USAGE])
        if nobody is not None:
            self.inbox.put(nobody)

    # Publishing

    async def _commit_steps(self) -> None:
        """Tell each step when it is durable; its outputs are on their way while the next one settles."""
        while True:
            commit = await self._commits.get()
            acks: Sequence[asyncio.Future[Any]] = ()
            if isinstance(commit, Commit):
                await self.log.settle(commit.sent, commit.records, self.state.epoch)
                self._unsettled -= 1
                self._settled.set()
                acks = await self.outputs.begin(commit.out)
            await self._told.put((commit, acks))

    async def _note_told(self) -> None:
        """Note, in the order of the steps, what is published; only then is anything committed."""
        while True:
            commit, acks = await self._told.get()
            if isinstance(commit, Commit):
                await asyncio.gather(*acks)
                self._note_published(commit)
            else:
                commit()
            self._commits.task_done()

    def _note_published(self, commit: Commit) -> None:
        self.state.published_seq = commit.step.seq
        if commit.step.flush is not None:
            # Beside: the next cut-off need not wait for a whole minute's totals.
            self._flushes.put_nowait(commit.step.flush)
        if commit.step.judged is not None:
            self.published_ms = max(self.published_ms, commit.step.as_of_ms)
        self.published_next = commit.next_usage
        for slot in commit.step.alarms:
            name = self.state.cells.keys[slot]
            log.error("an account used absurdly much that no bucket paid", account=name)
        self._worker.metrics.charged(commit.step, self._worker.clock.wall_ms())

    async def _publish_flushes(self) -> None:
        """Publish totals: of each minute that is over, and of the open one when it has been quiet.

        In the order they were taken: the journal keeps only how far the last one went.
        """
        quiet_s = self._worker.settings.idle_flush_ms / 1000
        while True:
            seq = self.state.seq
            try:
                async with asyncio.timeout(quiet_s):
                    flush = await self._flushes.get()
            except TimeoutError:
                # Nothing is awaited before it is taken: a step folded meanwhile may not be durable yet.
                idle_flush = self.state.flush() if self._quiet_since(seq) else None
                if idle_flush is not None:
                    await self._publish_flush(idle_flush)
            else:
                await self._publish_flush(flush)
                self._flushes.task_done()

    async def _publish_flush(self, flush: Flush) -> None:
        async with self._worker.flush_turn:
            rows = await self.outputs.publish_flush(self.state, flush)
        self._worker.metrics.flushed_rows.inc(rows)
        self.state.note_flushed(flush)

    def _quiet_since(self, seq: int) -> bool:
        # A closed minute may have come in the very moment the wait for one ended: it goes out first.
        quiet = self.idle and self._flushes.empty()
        return quiet and self.state.seq == seq and self.state.published_seq == seq
