"""Journal records come back as they went in, and the journal stays as small as its state."""

from __future__ import annotations

import json
import random
import struct

import numpy as np
import pytest

from tests.paper_line import Books, Journal, PaperLine, facts, recover, recover_all
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, command, record
from tokenline.charging import journal as journal_module
from tokenline.charging.journal import STALE_A_STEP, epoch_of, live_records
from tokenline.charging.packs import (
    Message,
    out_seq,
    pack_out,
    pack_rows,
    pack_seen,
    unpack_out,
    unpack_rows,
    unpack_seen,
)
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovery
from tokenline.errors import BrokenLog
from tokenline.quota.cells import WIDTH

INT64 = np.iinfo(np.int64)


def test_rows_come_back_with_the_names_of_new_slots():
    rows = np.arange(3 * WIDTH).reshape(3, WIDTH)
    rows[0, :2] = INT64.min, INT64.max
    slots = np.array([0, 7, 4_000_000])
    packed = pack_rows(4_000_000, ["t/ä/\0"], slots, rows)
    first_new, names, found_slots, found = unpack_rows(packed)

    assert (first_new, names) == (4_000_000, ["t/ä/\0"])
    assert found_slots.tolist() == slots.tolist()
    assert found.tolist() == rows.tolist()


def test_rows_without_new_names_and_no_rows_at_all_come_back():
    first_new, names, slots, rows = unpack_rows(
        pack_rows(0, [], np.zeros(0, np.int64), np.zeros((0, WIDTH), np.int64))
    )
    assert (first_new, names, len(slots), rows.shape) == (0, [], 0, (0, WIDTH))


def test_rows_of_another_format_are_refused():
    packed = bytearray(pack_rows(0, [], np.array([0]), np.zeros((1, WIDTH), np.int64)))
    packed[0] = 9
    with pytest.raises(BrokenLog, match="format 9"):
        unpack_rows(bytes(packed))


def test_seen_names_come_back():
    names = np.array([[1, 2], [2**64 - 1, 0]], np.uint64)
    minute_ms, found = unpack_seen(pack_seen(NOON, names))
    assert (minute_ms, found.tolist()) == (NOON, names.tolist())


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message("decisions", b"", b"")],
        [Message("decisions", b"k\0", None), Message("dead-letters", b"\xff" * 300, b"\0" * 9)],
    ],
)
def test_messages_come_back_and_a_tombstone_is_not_an_empty_value(messages):
    assert unpack_out(pack_out(2**40, messages)) == (2**40, messages)


def test_a_step_whose_decisions_all_name_the_same_long_scopes_is_one_batch_still():
    """Thousands of accounts may be cut at once, each with 64 KiB of what can be paid."""
    scopes = random.Random(1).randbytes(64 << 10)
    messages = [Message("decisions", b"%d" % at, b"%d" % at + scopes) for at in range(1000)]
    packed = pack_out(1, messages)
    assert len(packed) < 1 << 20
    assert unpack_out(packed) == (1, messages)


GARBAGE = (
    (b"1/riddle", b""),
    (b"hello", b"world"),
    (b"", b"x"),
    (b"\xff\xfe/rows/0", b"x"),
    (b"x/open/1", b"{}"),
    (b"0/open/1", b"{}"),
    (b"9" * 4000 + b"/open/1", b"{}"),
    (b"9000000000000/open/1", b"{}"),
    (b"1/head/1", b"not json"),
    (b"1/head/1", b"{}"),
    (b"1/head/1", b"[]"),
    (b"1/head/2", json.dumps({"epoch": 1, "seq": "x"}).encode()),
    (b"1/rows/0/7", b"junk that is longer than a header"),
    (b"1/page/0/7", b""),
    (b"1/books/0/0", b"\x01" * 9),
    (b"1/leaf/0/0/0", b"junk"),
    (b"1/names/9", b"[1]"),
    (b"1/names/9", b"junk"),
    (b"1/seen/0/0", b"junk"),
    (b"1/part/0/9", b"\x01" + b"\0" * 8 + b"no arrow"),
    (b"1/burn/0/9", b"\x01" + b"\0" * 11),
    (b"1/out/9", b"\x01" + b"\xff" * 30),
    (b"1/out/9", b"k" * 30),
)


@pytest.mark.parametrize(("key", "value"), GARBAGE)
@pytest.mark.parametrize("last", [False, True])
def test_a_record_that_is_not_ours_changes_nothing_and_is_counted(key, value, last):
    """A garbage key ended charging at every start: `invalid literal for int() with base 10`."""
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([command()])
    line.charge([record(0), record(1, event_id="e2")])
    clean = recover_all(PartitionState(BOUNDS), journal)
    journal.records.insert(len(journal.records) if last else 1, (key, value))
    found = recover_all(PartitionState(BOUNDS), journal)

    assert (found.ignored, clean.ignored) == (1, 0)
    assert "offset" in found.ignored_first
    assert facts(found.state) == facts(clean.state)
    assert (found.state.epoch, found.out) == (clean.state.epoch, clean.out)


def test_a_key_that_nobody_has_is_none_of_the_journals():
    recovery = Recovery(PartitionState(BOUNDS))
    recovery.take(0, None, b"x")
    assert recovery.finish().ignored == 1


def test_keys_that_are_not_ours_are_removed_with_the_first_cycle_unless_they_are_long(monkeypatch):
    """They would be read, and told of, at each start for ever."""
    monkeypatch.setattr(journal_module, "PAGE_ROWS", 1)
    journal = Journal()
    PaperLine(journal, Books()).command([command()])
    journal.records += [(b"hello", b"x"), (b"l" * 300, b"x")]
    line = PaperLine(journal, Books())
    for number in range(200):
        line.charge([record(number, event_id=f"e{number}")])
    line.rest()

    assert b"hello" not in journal.survivors()
    assert recover_all(PartitionState(BOUNDS), journal).ignored == 2


def test_a_record_of_a_newer_worker_stops_the_recovery():
    with pytest.raises(BrokenLog, match="format 9"):
        Recovery(PartitionState(BOUNDS)).take(0, b"1/rows/0/0", b"\x09" + b"\0" * 40)


def test_slots_without_names_stop_the_recovery():
    packed = pack_rows(5, ["t/a"], np.array([5]), np.zeros((1, WIDTH), np.int64))
    with pytest.raises(BrokenLog, match="gaps"):
        recover(PartitionState(BOUNDS), {b"1/rows/0/0": (0, packed)})


def test_records_after_a_newer_opening_are_dead():
    survivors = {
        b"1/rows/0/0": (0, b"a"),
        b"2/open": (1, b""),
        b"1/rows/0/1": (2, b"late"),
        b"2/rows/0/0": (3, b"b"),
        b"10/open": (4, b""),
        b"2/head": (5, b"late"),
    }
    live, dead = live_records(survivors)
    assert [key for key, _ in live] == [b"1/rows/0/0", b"2/open", b"2/rows/0/0", b"10/open"]
    assert dead == [b"1/rows/0/1", b"2/head"]
    assert epoch_of(b"10/open") == 10


def kinds_of(records):
    return [key.split(b"/")[1].decode() for key, value in records if value is not None]


def test_a_step_ends_with_the_head_and_the_head_says_where_it_read_to():
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([command()])
    before = len(journal.records)
    line.charge([record(0), record(1, event_id="e2")])

    assert kinds_of(journal.records[before:]) == ["rows", "seen", "part", "out", "head"]
    head = json.loads(journal.records[-1][1])
    assert head["next_offsets"] == {"usage": 2, "commands": 1, "holds": 0}


def test_nothing_is_written_of_seen_names_and_windows_when_nothing_was_counted():
    journal = Journal()
    line = PaperLine(journal, Books())
    line.charge([record(0)])
    assert kinds_of(journal.records) == ["open", "out", "head"]


def long_line(monkeypatch, accounts, steps, per_step, in_flight=0):
    monkeypatch.setattr(journal_module, "PAGE_ROWS", 8)
    journal = Journal()
    line = PaperLine(journal, Books(), in_flight)
    names = [f"a{number}" for number in range(accounts)]
    line.command([command(i, account_id=name) for i, name in enumerate(names)])
    offset = 0
    for step in range(steps):
        records = []
        for _ in range(per_step):
            who = names[offset * 7 % accounts]
            now = NOON + step * 100
            records.append(record(offset, now, event_id=f"e{offset}", account_id=who))
            offset += 1
        line.charge(records)
    return journal, line


def rows_kept(journal):
    kept = 0
    for key, (_, value) in journal.survivors().items():
        if key.split(b"/")[1] in (b"rows", b"page"):
            kept += len(unpack_rows(value)[2])
    return kept


@pytest.mark.parametrize("in_flight", [0, 8])
def test_the_rows_kept_do_not_grow_with_the_number_of_steps(monkeypatch, in_flight):
    short, _ = long_line(monkeypatch, 30, 60, 6, in_flight)
    long, _ = long_line(monkeypatch, 30, 240, 6, in_flight)
    assert rows_kept(long) <= 1.5 * rows_kept(short)


def test_pages_are_kept_once_when_their_cycles_are_acknowledged(monkeypatch):
    journal, line = long_line(monkeypatch, 30, 200, 6)
    line.charge([record(1200, NOON + 30_000, event_id="last", account_id="a0")])
    pages = [key for key in journal.survivors() if b"/page/" in key]
    assert len({key.rsplit(b"/")[-1] for key in pages}) == 4
    assert len(pages) <= 5


def test_no_step_writes_more_than_a_few_pages(monkeypatch):
    journal, _line = long_line(monkeypatch, 200, 20, 100, in_flight=8)
    steps, pages = [], 0
    for key, value in journal.records:
        pages += value is not None and b"/page/" in key
        if b"/head/" in key:
            steps.append(pages)
            pages = 0
    assert 0 < max(steps) <= journal_module.PAGES_A_STEP


def test_an_old_epoch_leaves_nothing_behind_once_a_cycle_has_covered_it(monkeypatch):
    journal, _ = long_line(monkeypatch, 30, 20, 6)
    line = PaperLine(journal, Books())
    for offset in range(120, 240):
        who = f"a{offset * 7 % 30}"
        line.charge([record(offset, NOON + 5000, event_id=f"e{offset}", account_id=who)])
    left = [key for key in journal.survivors() if key.startswith(b"1/")]

    assert {key.split(b"/")[1] for key in left} <= {b"seen", b"part"}


def test_no_step_removes_more_of_an_old_epoch_than_fits_and_what_closed_it_goes_last(monkeypatch):
    """An owner that was asked 200,000 times left more keys than one batch can remove."""
    journal, _ = long_line(monkeypatch, 30, 20, 6)
    line = PaperLine(journal, Books())
    older = [b"1/rows/0/%d" % number for number in range(5 * STALE_A_STEP // 2)]
    line.writer.stale_keys += [b"1/open/late", *older]
    known, removed = set(line.writer.stale_keys), []
    for offset in range(120, 260):
        who, start = f"a{offset * 7 % 30}", len(journal.records)
        line.charge([record(offset, NOON + 5000, event_id=f"e{offset}", account_id=who)])
        gone = [key for key, value in journal.records[start:] if value is None]
        removed += [[key for key in gone if key in known]]

    slices = [one for one in removed if one]
    assert [len(one) for one in slices[:2]] == [STALE_A_STEP] * 2
    assert sorted(slices[-1]) == [b"1/open/", b"1/open/late"]
    assert {key for one in slices for key in one} == known


def test_names_and_parts_leave_the_journal_after_the_horizon():
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([command()])
    for offset in range(30):
        now = NOON + offset * 10 * MINUTE
        line.charge([record(offset, now, event_id=f"e{offset}", occurred_at=now)])
    minutes = [
        struct.unpack_from("<Bq", value)[1]
        for key, (_, value) in journal.survivors().items()
        if b"/seen/" in key
    ]
    newest = NOON + 29 * 10 * MINUTE
    assert min(minutes) >= newest - HOUR - 20 * MINUTE
    assert len(minutes) >= 6


def test_a_minute_on_its_way_keeps_its_parts_however_old_it_is():
    """A quiet night, a restart in it, and an end while the minute of the evening before goes out."""
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    line.command([command()])
    line.charge([record(0, NOON, event_id="evening", occurred_at=NOON)])
    for in_flight in (4, 0):
        line = PaperLine(journal, books, in_flight)
        for offset in range(1, 12):
            now = NOON + 10 * HOUR + offset
            line.charge([record(offset, now, event_id=f"e{offset}", occurred_at=now)])
    line.rest()
    assert sum(events for events, _ in books.window_totals().values()) == 12


def test_many_messages_are_packed_small_and_come_back():
    """One step may cut off ten thousand accounts, three decisions each; a batch holds 16 MiB."""
    many = [
        Message("decisions", b"tenant/account-%06d" % number, b"limit reached " * 30)
        for number in range(30_000)
    ]
    many[7] = Message("decisions", b"gone", None)
    packed = pack_out(9, many)

    assert len(packed) < 2 << 20
    assert out_seq(packed) == 9
    assert unpack_out(packed) == (9, many)


@pytest.mark.parametrize(
    ("unpack", "packed"),
    [
        (unpack_out, pack_out(1, [])),
        (unpack_seen, pack_seen(1, np.zeros((1, 2), np.uint64))),
    ],
)
def test_a_format_of_tomorrow_is_not_guessed_at(unpack, packed):
    with pytest.raises(BrokenLog):
        unpack(b"\x09" + packed[1:])
