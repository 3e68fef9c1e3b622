"""Let what ends by time be told by time: write a tick when something is due and nothing else tells it.

A tick is a record of the partition's own commands, so its moment is the broker's, and whoever reads
the log again decides the same. It is read back like any command. There are none while nothing is due, and
none while usage waits that came before it: that moves time by itself. A tick takes a slice of what is due;
when it leaves work, the next one follows at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError

from tokenline.charging.commands import TICK_ACCOUNTS
from tokenline.wire.topics import COMMANDS, USAGE, tick_key

if TYPE_CHECKING:
    from streams.charging import ChargingWorker
    from streams.line import PartitionLine

# No sooner after another, unless that one left work.
TICK_EVERY_S = 0.05
# What is due next may be noted meanwhile.
LOOK_EVERY_S = 0.25
# So long a tick may be on its way; one that is lost is written again.
ON_ITS_WAY_S = 5.0

log = structlog.get_logger(__name__)


class Ticker:
    """Watch the clock of one partition for the line that owns it."""

    def __init__(self, worker: ChargingWorker, line: PartitionLine) -> None:
        self._worker = worker
        self._line = line

    async def run(self) -> None:
        """Tick for ever; a broker that is away is waited for."""
        while True:
            await asyncio.sleep(self._pause_s())
            if not self._is_due():
                continue
            try:
                offset = await self._write()
            except KafkaError as error:
                log.warning("no tick: the broker is away", error=repr(error))
                continue
            await self._folded(offset)

    def _pause_s(self) -> float:
        state = self._line.state
        if state.tick_took >= TICK_ACCOUNTS:
            return 0.0
        due_s = (state.first_due_ms - self._now_ms()) * 0.001
        return min(max(due_s, TICK_EVERY_S), LOOK_EVERY_S)

    def _is_due(self) -> bool:
        """Say whether something is due, as far as usage that was here before now is charged."""
        line, state = self._line, self._line.state
        usage = self._worker.settings.topic(USAGE)
        caught_up = self._worker.ends.of(usage, line.partition) <= state.next_offsets[USAGE]
        state.tick_took = 0
        return caught_up and not line.held and state.is_due(self._now_ms())

    def _now_ms(self) -> int:
        """Return the time; a clock of ours that is behind the broker's is not waited for."""
        return max(self._worker.clock.wall_ms(), self._line.state.clock_ms)

    async def _write(self) -> int:
        """Write a tick and return its offset.

        Raises:
            KafkaError: the broker did not take it.
        """
        worker, partition = self._worker, self._line.partition
        fields = {
            "partition": partition,
            "written_at": worker.clock.wall_ms(),
            "epoch": self._line.state.epoch,
        }
        value = worker.codec.encode("clock_tick", fields)
        topic = worker.settings.topic(COMMANDS)
        sent = await worker.producer.send_and_wait(
            topic, value, key=tick_key(partition), partition=partition
        )
        return int(sent.offset)

    async def _folded(self, offset: int) -> None:
        """Wait until a tick was taken in, or seems to be lost."""
        line = self._line
        try:
            async with asyncio.timeout(ON_ITS_WAY_S):
                while line.state.next_offsets[COMMANDS] <= offset:
                    line.commands_folded.clear()
                    await line.commands_folded.wait()
        except TimeoutError:
            log.warning("a tick was not read back", partition=line.partition, offset=offset)
