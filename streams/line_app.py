"""Run a worker: wait for its servers, start what runs beside the agents, deliver micro-batches, stop in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.errors import KafkaError
from faust.tables import TableManager

from streams.readiness import SPARE, UNASSIGNED, Readiness
from streams.room import BATCHES_MAX
from streams.servers import ServerWait
from streams.transport import FETCH_MIN_BYTES, FETCH_WAIT_MS, MicroBatchTransport
from tokenline.errors import BrokerUnavailable, TokenlineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from faust.types.tuples import TP

    from streams.servers import Server


class PromptTables(TableManager):
    """Start without the second that Faust waits for tables to turn up: there are none."""

    async def on_start(self) -> None:
        """Let the conductor subscribe, and rebalances begin."""
        await self._update_channels()
        await self.recovery.start()


@dataclass(slots=True)
class _Part:
    """Hold what runs beside the agents; only what was started is stopped."""

    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    _started: bool = False

    async def begin(self) -> None:
        """Start it."""
        self._started = True
        await self.start()

    async def end(self) -> None:
        """Stop it, once."""
        if self._started:
            self._started = False
            await self.stop()


class LineApp(faust.App):
    """Be a Faust app whose topics deliver micro-batches, with work that runs beside the agents."""

    def __init__(
        self,
        *args: Any,
        fatal: Callable[[BaseException], None],
        fetch_wait_ms: int = FETCH_WAIT_MS,
        fetch_min_bytes: int = FETCH_MIN_BYTES,
        **kwargs: Any,
    ) -> None:
        # Never full: the consumer gives each partition no more than it takes, and nobody waits there.
        kwargs["stream_buffer_maxsize"] = 2 * BATCHES_MAX * kwargs.get("topic_partitions", 1)
        super().__init__(*args, TableManager=PromptTables, **kwargs)
        self.fetch_wait_ms, self.fetch_min_bytes = fetch_wait_ms, fetch_min_bytes
        self._fatal = fatal
        self._kept: list[Any] = []
        self._first: list[_Part] = []
        self._beside: list[_Part] = []
        self._wait = ServerWait((), self.sleep)
        self._tasks: list[asyncio.Task[None]] = []
        self._loops: list[Callable[[], Awaitable[None]]] = []

    def taken(self, message: Any) -> None:
        """Say that work on a micro-batch begins, or that it is dropped; the consumer fetches more then."""
        self.consumer.taken(message)

    def keep(self, thing: Any) -> None:
        """Hold a strong reference for the life of the app."""
        self._kept.append(thing)

    def run_beside(
        self,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        *loops: Callable[[], Awaitable[None]],
    ) -> None:
        """Call `start` before any record is delivered, keep `loops` running, call `stop` before leaving the group.

        An error in one of `loops` ends the process.
        """
        self._beside.append(_Part(start, stop))
        self._loops.extend(loops)

    def run_first(
        self, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
    ) -> None:
        """Call `start` before any server is waited for, and `stop` at the very end."""
        self._first.append(_Part(start, stop))

    def keep_running(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` beside the agents; an error in it ends the process."""
        self._loops.append(loop)

    def wait_for(self, *servers: Server) -> None:
        """Wait for these before anything else begins; one that is away ends nothing."""
        self._wait = ServerWait(servers, self.sleep)

    def standing(self) -> Readiness | None:
        """Say why this worker owns no partition; None when it owns some."""
        if self._wait.why:
            return Readiness(ready=False, why=self._wait.why)
        if not self.joined:
            return UNASSIGNED
        return SPARE if self.unassigned and not self.rebalancing else None

    @property
    def joined(self) -> bool:
        """Whether the group has dealt out partitions at least once, to us or others."""
        return self._assignment is not None

    def take_by(self, topic: Any, name: str, agent: Callable[[Any], Awaitable[None]]) -> None:
        """Let `agent` take the micro-batches of `topic`; an error in it ends the process.

        Faust would start it again behind the micro-batch it failed at, which is then done by nobody.
        """

        async def watched(stream: Any) -> None:
            await self._watched(partial(agent, stream))

        self.agent(topic, name=name, concurrency=1)(watched)

    async def on_start(self) -> None:
        """Wait for the servers, start what runs beside, then Faust. Who is asked to stop starts nothing more."""
        try:
            for part in self._first:
                await part.begin()
            await self._wait.run(lambda: self.should_stop)
            for part in self._beside if not self.should_stop else ():
                await part.begin()
        except KafkaError as error:
            self._fatal(
                BrokerUnavailable(f"the broker went away while the worker began: {error!r}")
            )
        except TokenlineError as error:
            self._fatal(error)
        if not self.should_stop:
            await super().on_start()
            self._tasks = [asyncio.create_task(self._watched(loop)) for loop in self._loops]

    async def on_stop(self) -> None:
        """Finish what is in flight while the partitions are still ours, then let Faust go."""
        for task in self._tasks:
            task.cancel()
        for part in self._beside:
            await part.end()
        await super().on_stop()
        for part in self._first:
            await part.end()

    async def _watched(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  the worker's edge: no work of a worker must end unseen
            self._fatal(error)

    def _new_transport(self) -> MicroBatchTransport:
        return MicroBatchTransport(self.conf.broker_consumer, self, loop=self.loop)


def position_of(app: LineApp, tp: TP, done: int | None) -> tuple[int, int] | None:
    """Return the first offset of a partition that is not done and what lies behind it; None: unknown.

    `done` is what the caller knows; before its first ack Faust's memory of what was committed is all
    there is.
    """
    next_offset = app.consumer._committed_offset.get(tp) if done is None else done
    if next_offset is None:
        return None
    return next_offset, max((app.consumer.highwater(tp) or 0) - next_offset, 0)


def tps_of(topic: str, assigned: Iterable[TP]) -> set[int]:
    """Return the partitions of `topic` among the assigned ones."""
    return {tp.partition for tp in assigned if tp.topic == topic}
