"""End a charging worker, as kill -9 would, at an exact point between two arrows of the line.

Each point is a wrapper around one method that production code really calls; nothing in production
code knows of it. Points that need a full page or a half published flush make those smaller first.
"""

from __future__ import annotations

import itertools
import os

EXIT = 9


def arm(point):
    """Make this process end at `point`; `stall` makes it hang there instead."""
    (POINTS | TRANSFER_POINTS)[point]()


def _end():
    os._exit(EXIT)


def _after(owner, name, *, times=1, when=lambda *_: True):
    """End after the `times`-th call of an async method for which `when(result, *arguments)`."""
    inner, calls = getattr(owner, name), itertools.count(1)

    async def wrapped(*arguments, **options):
        result = await inner(*arguments, **options)
        if when(result, *arguments) and next(calls) == times:
            _end()
        return result

    setattr(owner, name, wrapped)


def _appended():
    """The batch is handed to the client; whether the broker has it, nobody knows."""
    from streams.state import JournalLog

    _after(JournalLog, "append", times=12)


def _durable():
    """The broker has the batch, nothing of it is published."""
    from streams.state import JournalLog

    _after(JournalLog, "settle", times=12)


def _half_published():
    """Of a step's outputs one topic has its share on the broker and the others may not."""
    from streams.outputs import Outputs

    begin, calls = Outputs._begin_send, itertools.count(1)

    async def begin_and_end(self, stem, records):
        acks = await begin(self, stem, records)
        if stem == "charged" and next(calls) == 12:
            for ack in acks:
                await ack
            _end()
        return acks

    Outputs._begin_send = begin_and_end


def _published():
    """All outputs of a step are out, the offset is not committed."""
    from streams.line import PartitionLine

    note, calls = PartitionLine._note_published, itertools.count(1)

    def note_and_end(self, commit):
        if next(calls) == 12:
            _end()
        note(self, commit)

    PartitionLine._note_published = note_and_end


def _half_flushed():
    """Some windows of a flush are published, the others are not."""
    from streams import outputs, totals

    totals.FLUSH_ROWS = 3
    _after(outputs.Outputs, "_begin_send", times=2, when=lambda _, __, stem, ___: stem == "windows")


def _in_page_cycle():
    """Pages of two rows, so that cycles end all the time; the end comes inside one."""
    from streams.state import JournalLog
    from tokenline.charging import journal

    journal.PAGE_ROWS = 2

    def has_page(_, __, records):
        return any(b"/page/" in key for key, _ in records)

    _after(JournalLog, "append", times=12, when=has_page)


def _opened():
    """The epoch is open; what the last owner left unpublished still is."""
    from streams.state import JournalLog

    _after(JournalLog, "open_epoch", times=2)


def _republishing():
    """What the last owner left is published in part."""
    from streams.line import PartitionLine
    from streams.outputs import Outputs

    async def once(self, found):
        for _, messages in found.out[:1]:
            await Outputs.publish(self.outputs, messages)
        if found.out:
            _end()

    PartitionLine._publish_again = once


def _before_publishing(word):
    """End when a step that sends `word` to another account is durable, nothing of it published."""
    from streams.outputs import Outputs

    begin = Outputs.begin

    async def begin_or_end(self, messages):
        if any(one.topic == "commands" and word in one.value for one in messages):
            _end()
        return await begin(self, messages)

    Outputs.begin = begin_or_end


def _sent(word):
    """End when the order with `word` is on the other partition, before anybody notes that it is."""
    from streams.outputs import Outputs

    begin = Outputs._begin_send

    async def send_and_end(self, stem, records):
        acks = await begin(self, stem, records)
        if stem == "commands" and any(word in value for _, value in records):
            for ack in acks:
                await ack
            _end()
        return acks

    Outputs._begin_send = send_and_end


def _journaled(word, topic):
    """End when the batch of a step is handed to the client that will say `word` on a topic."""
    from streams.state import JournalLog
    from tokenline.charging.packs import unpack_out

    def is_it(_, __, records):
        out = [unpack_out(value)[1] for key, value in records if value and b"/out/" in key]
        return any(one.topic == topic and word in one.value for each in out for one in each)

    _after(JournalLog, "append", when=is_it)


def _stall():
    """One line hangs in its fold of usage for ever, the process lives."""
    from streams.line import PartitionLine

    fold = PartitionLine._fold

    async def hang(self, delivery):
        if delivery.stem == "usage":
            await __import__("asyncio").Event().wait()
        await fold(self, delivery)

    PartitionLine._fold = hang


def _slow_commands():
    """Commands are delivered long after usage."""
    from streams.charging import ChargingWorker

    deliver = ChargingWorker.deliver

    def late(self, partition, delivery):
        wait_s = 5 if delivery.stem == "commands" else 0
        __import__("asyncio").get_running_loop().call_later(
            wait_s, deliver, self, partition, delivery
        )

    ChargingWorker.deliver = late


def _slow_rest():
    """Steps in flight take 3 s to end when the group deals partitions out, and the others wait."""
    from streams.charging import ChargingWorker

    hold = ChargingWorker.hold

    async def slow(self):
        await hold(self)
        await __import__("asyncio").sleep(3)

    ChargingWorker.hold = slow


def _slow_catch_up():
    """Partition 0 takes half a minute to take up what waited for it."""
    from streams.line import PartitionLine

    catch_up = PartitionLine._catch_up

    async def slow(self):
        if self.partition == 0:
            await __import__("asyncio").sleep(30)
        await catch_up(self)

    PartitionLine._catch_up = slow


HINDRANCES = ("stall", "slow-commands", "slow-rest", "slow-catch-up")  # nothing ends at these
POINTS = {
    "slow-catch-up": _slow_catch_up,
    "slow-rest": _slow_rest,
    "slow-commands": _slow_commands,
    "appended": _appended,
    "durable": _durable,
    "half-published": _half_published,
    "published": _published,
    "half-flushed": _half_flushed,
    "page-cycle": _in_page_cycle,
    "opened": _opened,
    "republishing": _republishing,
    "stall": _stall,
}
IN, RETURN = b"transfer_in", b"transfer_return"
TRANSFER_POINTS = {
    "moved-appended": lambda: _journaled(IN, "commands"),
    "moved-durable": lambda: _before_publishing(IN),
    "moved-sent": lambda: _sent(IN),
    "taken-appended": lambda: _journaled(IN, "balances"),
    "refused-durable": lambda: _before_publishing(RETURN),
    "return-sent": lambda: _sent(RETURN),
    "returned-appended": lambda: _journaled(RETURN, "balances"),
}
