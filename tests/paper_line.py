"""Run charging on paper: the journal is a list, the warehouse a dictionary, a crash a method call.

It does what `streams.line` does around the pure core, step by step and without a broker: a step
is appended to the journal, and published some steps later. So every order of crash, take-over and
late write can be tried in microseconds. The integration tests try them with real processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from tests.strategies import BOUNDS, Record, chunk_of
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import by_minute, fold_usage
from tokenline.charging.journal import epoch_of
from tokenline.charging.packs import Message, pack_names
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovered, Recovery
from tokenline.charging.replay import ChargedRange, OrdersBefore
from tokenline.charging.step import Commanded, Flush, Step
from tokenline.metering.home import Home

WINDOW_KEY = ("slot", "subscriber_id", "provider", "model", "window_start")


class Journal:
    """Be one partition of the state topic: all records ever appended, in order."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []

    def survivors(self) -> dict[bytes, tuple[int, bytes]]:
        """Return what compaction may not remove, which is what a reader makes of the topic."""
        last: dict[bytes, tuple[int, bytes]] = {}
        for offset, (key, value) in enumerate(self.records):
            if value is None:
                last.pop(key, None)
            else:
                last[key] = (offset, value)
        return last


def recover(state: PartitionState, survivors: Mapping[bytes, tuple[int, bytes]]) -> Recovered:
    """Read a journal of which compaction has left only the last value of each key."""
    recovery = Recovery(state)
    for key, (offset, value) in sorted(survivors.items(), key=itemgetter(1)):
        recovery.take(offset, key, value)
    return recovery.finish()


def recover_all(state: PartitionState, journal: Journal) -> Recovered:
    """Read a journal that compaction has not touched."""
    recovery = Recovery(state)
    for offset, (key, value) in enumerate(journal.records):
        recovery.take(offset, key, value)
    return recovery.finish()


class Books:
    """Be everybody who reads what charging publishes; the newest version of a row wins."""

    def __init__(self) -> None:
        self.windows: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
        self.months: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
        self.verdicts: dict[int, str] = {}
        self.decisions: dict[tuple[str, int], dict[str, Any]] = {}
        self.dead_letters: dict[int, str] = {}
        self.changes: dict[tuple[str, int], dict[str, Any]] = {}
        self.burns: dict[tuple[str, int, int], int] = {}
        self.replies: dict[tuple[str, int], dict[str, Any]] = {}
        self.ranges: dict[int, ChargedRange] = {}
        self.sent: dict[str, dict[str, Any]] = {}

    def take(self, message: Message) -> None:
        """Read one message; one that says something else than before is an error."""
        assert message.value is not None
        said = json.loads(message.value)
        if message.topic == "decisions":
            old = self.decisions.setdefault((said["account"], said["version"]), said)
            assert old == said
        elif message.topic == "balances":
            old = self.changes.setdefault((said["account"], said["number"]), said)
            assert old == said
        elif message.topic == "replies":
            assert self.replies.setdefault((said["topic"], said["offset"]), said) == said
        elif message.topic == "commands":
            assert self.sent.setdefault(said["command_id"], said) == said
        elif message.topic == "dead-letters":
            assert self.dead_letters.setdefault(said["offset"], said["reason"]) == said["reason"]
        else:
            before = OrdersBefore(said["commands_next"], said["holds_next"], tuple(said["turns"]))
            charged = ChargedRange(said["lo"], said["hi"], before)
            assert self.ranges.setdefault(said["lo"], charged) == charged
            for offset in range(said["lo"], said["hi"] + 1):
                self._judge(offset, said)

    def _judge(self, offset: int, said: dict[str, Any]) -> None:
        kinds = ("late", "duplicate", "rejected")
        verdict = next((kind for kind in kinds if offset in said[kind]), "counted")
        assert self.verdicts.setdefault(offset, verdict) == verdict

    def take_flush(self, flush: Flush, keys: Sequence[str]) -> None:
        """Read absolute totals."""
        for row in flush.windows.iter_rows(named=True):
            key = (keys[row["slot"]], *(row[name] for name in WINDOW_KEY[1:]))
            _replace(self.windows, (*key, flush.segment_start_ms), row)
        for slot, bucket, amount in flush.burns.tolist():
            name = keys[slot], bucket, flush.segment_start_ms
            self.burns[name] = max(amount, self.burns.get(name, 0))
        for row in flush.months.iter_rows(named=True):
            _replace(self.months, (keys[row["slot"]], row["window_start"]), row)

    def window_totals(self) -> dict[tuple[Any, ...], tuple[int, int]]:
        """Return (events, tokens) of each minute window, its segments summed."""
        sums: dict[tuple[Any, ...], tuple[int, int]] = {}
        for (*key, _), (_, row) in self.windows.items():
            events, tokens = sums.get(tuple(key), (0, 0))
            sums[tuple(key)] = (events + row["events"], tokens + row["total_tokens"])
        return sums

    def month_totals(self) -> dict[tuple[Any, ...], tuple[int, int]]:
        """Return (events, tokens) of each account and month."""
        return {key: (row["events"], row["total_tokens"]) for key, (_, row) in self.months.items()}

    def balances(self) -> dict[tuple[str, int], int]:
        """Return what the entries of each account's bucket come to: its total less what was used."""
        sums: Counter[tuple[str, int]] = Counter()
        for (account, _), said in self.changes.items():
            sums[account, said["bucket"]] += said["amount_utok"]
        for (account, bucket, _), amount in self.burns.items():
            sums[account, bucket] -= amount
        return {name: amount for name, amount in sums.items() if amount}

    def offsets(self, verdict: str) -> set[int]:
        """Return the offsets judged so."""
        return {offset for offset, said in self.verdicts.items() if said == verdict}


def _replace(
    rows: dict[tuple[Any, ...], tuple[int, dict[str, Any]]],
    key: tuple[Any, ...],
    row: dict[str, Any],
) -> None:
    """Do as ReplacingMergeTree(version): the highest version stays, of equals the last inserted."""
    if key not in rows or rows[key][0] <= row["version"]:
        rows[key] = (row["version"], row)


class PaperLine:
    """Own the partition, as `PartitionLine` does; `in_flight` steps are journaled ahead of publishing.

    With steps in flight a minute's totals are published as late as may be: when the next minute ends.
    """

    def __init__(
        self, journal: Journal, books: Books, in_flight: int = 0, home: Home | None = None
    ) -> None:
        self.journal, self.books, self.in_flight = journal, books, in_flight
        self.fenced = self.ended = False
        self._waiting: deque[tuple[Step, list[Message]]] = deque()
        self._flushes: deque[Flush] = deque()
        self.state = PartitionState(BOUNDS, home or Home())
        self.found = recover(self.state, journal.survivors())
        self.writer = self.found.writer()
        journal.records.extend(self.writer.opening())
        self._end = len(journal.records)
        self._publish_again(self.found)

    def charge(self, records: Sequence[Record]) -> None:
        """Fold records that may have been folded before; each of them once."""
        due = [one for one in records if one.offset >= self.state.next_offsets["usage"]]
        if due and not self.ended:
            for part in by_minute(chunk_of(due)):
                self._commit(fold_usage(self.state, part))

    def command(self, commands: Sequence[Commanded]) -> None:
        """Fold commands of one topic, which may have been folded before."""
        topic = topic_of(commands[0])
        due = [one for one in commands if one.offset >= self.state.next_offsets[topic]]
        if due:
            self._commit(fold_commands(self.state, due, due[-1].offset, topic))

    def rest(self) -> None:
        """Be idle: publish all that waits and the totals of the open minute."""
        self.publish(0)
        self._flush_all()
        flush = self.state.flush()
        if flush is not None and not self.fenced:
            self._publish_flush(flush)

    def publish(self, leave: int) -> None:
        """Publish steps in order until `leave` wait."""
        while len(self._waiting) > leave and not self.fenced:
            step, out = self._waiting.popleft()
            for message in out:
                self.books.take(message)
            self.state.published_seq = step.seq
            if step.flush is not None:
                self._flushes.append(step.flush)
                if not self.in_flight:
                    self._flush_all()

    def _flush_all(self) -> None:
        while self._flushes and not self.fenced:
            self._publish_flush(self._flushes.popleft())

    def _commit(self, step: Step) -> None:
        out = list(_messages(self.state, step))
        if step.flush is not None:
            # The worker waits here for every ack, so a fenced one ends here at the latest.
            self.ended = self.ended or self.fenced
            self.publish(0)
            self._flush_all()
        if self.ended:
            return
        # A newer owner wrote in between: the answer to every append from here on says so.
        between = self.journal.records[self._end :]
        self.fenced = self.fenced or any(epoch_of(key) > self.state.epoch for key, _ in between)
        self.journal.records.extend(self.writer.records(self.state, step, out))
        if not self.fenced:
            self._end = len(self.journal.records)
            self._waiting.append((step, out))
            self.publish(self.in_flight)

    def _publish_again(self, found: Recovered) -> None:
        for seq, messages in found.out:
            for message in messages:
                self.books.take(message)
            self.state.published_seq = seq
        for flush in found.unflushed:
            self._publish_flush(flush)

    def _publish_flush(self, flush: Flush) -> None:
        self.books.take_flush(flush, self.state.cells.keys)
        self.state.note_flushed(flush)


def topic_of(command: Commanded) -> str:
    """Return the topic that a command stands on."""
    return "holds" if command.name == "hold_order" else "commands"


def facts(state: PartitionState) -> dict[str, Any]:
    """Return all that a recovery must bring back, in a form that compares."""
    head = dict(state.head())
    for progress in ("epoch", "published_seq", "flushed_minute_ms", "flushed_offset"):
        head.pop(progress)
    cells = {key: state.cells.matrix[slot].tolist() for slot, key in enumerate(state.cells.keys)}
    tally = state.tally
    rows = tally.rows()
    windows = sorted(map(str, rows.sort(WINDOW_KEY).rows())) if len(rows) else []
    tables = {name: table.matrix.tolist() for name, table in state.books.named_tables.items()}
    names = json.loads(pack_names(state)), tally.burns().tolist()
    return {
        "head": head,
        "cells": cells,
        "windows": windows,
        "seen": len(state.seen),
        "tables": tables,
        "names": names,
    }


def _messages(state: PartitionState, step: Step) -> Iterator[Message]:
    for decided in step.decisions:
        said = dataclasses.asdict(decided) | {"account": state.cells.keys[decided.slot]}
        yield Message("decisions", b"k", json.dumps(said).encode())
    for refused in step.refused:
        if step.cause[0] == "usage":
            said = {"offset": refused.offset, "reason": refused.reason}
            yield Message("dead-letters", b"k", json.dumps(said).encode())
    for change in step.changes:
        said = dataclasses.asdict(change) | {"account": state.cells.keys[change.slot]}
        yield Message("balances", b"k", json.dumps(said).encode())
    for replied in step.replies:
        said = dataclasses.asdict(replied.answer) | {"offset": replied.command.offset}
        said |= {"topic": topic_of(replied.command)}
        said |= {"split": list(said.get("split", ()))}
        yield Message("replies", b"k", json.dumps(said).encode())
    for sent in step.sent:
        yield Message("commands", b"k", json.dumps(sent.fields).encode())
    if step.judged is not None:
        yield Message("charged", b"k", json.dumps(dataclasses.asdict(step.judged)).encode())
