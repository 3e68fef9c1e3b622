"""What a new owner reads is what the last rightful owner knew, whoever wrote too late."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from tests.orders import CATALOG, catalog_version, order
from tests.paper_line import Books, Journal, PaperLine, facts, recover, recover_all
from tests.strategies import BOUNDS, HOUR, MINUTE, NOON, command, record
from tokenline.charging import journal as journal_module
from tokenline.charging.journal import live_records
from tokenline.charging.packs import pack_rows, pack_table, unpack_tables
from tokenline.charging.partition import PartitionState
from tokenline.charging.recover import Recovery
from tokenline.errors import BrokenLog
from tokenline.quota.balance import Balance
from tokenline.quota.cells import Cell
from tokenline.quota.decided import State
from tokenline.rating.catalog import Catalog

ACCOUNTS = [f"a{i}" for i in range(11)]


def commands():
    return [command(i, account_id=name, month_tokens=1000) for i, name in enumerate(ACCOUNTS)]


def usage(count, seed=1, step_ms=7_000, start_ms=NOON):
    """Records over few accounts; one in five was sent before."""
    luck, now_ms = random.Random(seed), start_ms
    records = []
    for offset in range(count):
        now_ms += luck.randrange(step_ms)
        number = luck.randrange(offset) if offset and luck.random() < 0.2 else offset
        who = ACCOUNTS[number % len(ACCOUNTS)]
        fields = {"event_id": f"e{number}", "account_id": who, "occurred_at": now_ms - 500}
        records.append(record(offset, now_ms, **fields))
    return records


def reread(journal):
    return PaperLine(journal, Books())


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Pages of four rows, so that a few events go through several cycles; old keys go three a step."""
    monkeypatch.setattr(journal_module, "PAGE_ROWS", 4)
    monkeypatch.setattr(journal_module, "STALE_A_STEP", 3)


@pytest.mark.parametrize("in_flight", [0, 8])
def test_recovery_after_any_step_gives_the_state_of_the_writer(in_flight):
    journal = Journal()
    line = PaperLine(journal, Books(), in_flight)
    line.command(commands())
    records = usage(200)
    for start in range(0, 200, 5):
        line.charge(records[start : start + 5])
        assert facts(reread(_copy(journal)).state) == facts(line.state)


def test_recovery_after_many_owners_gives_the_state_of_the_last():
    journal, books = Journal(), Books()
    PaperLine(journal, books).command(commands())
    records = usage(300)
    for start in range(0, 300, 10):
        line = PaperLine(journal, books, in_flight=4)
        line.charge(records[start : start + 6])
        line.charge(records[start + 6 : start + 10])
        assert facts(reread(_copy(journal)).state) == facts(line.state)


@pytest.mark.parametrize("seed", range(10))
def test_no_record_of_a_fenced_owner_changes_what_is_recovered(seed):
    """Owners take over at any moment, and all the earlier ones write on for a while."""
    luck = random.Random(seed)
    journal, books = Journal(), Books()
    owners = [PaperLine(journal, books, in_flight=8)]
    owners[0].command(commands())
    records = usage(400, seed, step_ms=luck.choice([100, 7_000, 70_000]))
    at = 0
    for _ in range(60):
        size = luck.randrange(1, 6)
        if luck.random() < 0.15:
            owners.append(PaperLine(journal, books, in_flight=luck.choice([0, 8])))
            at = owners[-1].state.next_offsets["usage"]
        elif len(owners) > 1 and luck.random() < 0.4:
            late = luck.choice(owners[:-1])
            theirs = late.state.next_offsets["usage"]
            late.charge(records[theirs : theirs + size])
        else:
            owners[-1].charge(records[at : at + size])
            at += size
        assert not owners[-1].fenced
        assert facts(reread(_copy(journal)).state) == facts(owners[-1].state)
    _assert_compaction_changes_nothing(journal)


def test_a_late_write_is_dead_even_when_it_follows_only_an_opening():
    journal = Journal()
    old = PaperLine(journal, Books(), in_flight=8)
    old.command(commands())
    records = usage(20)
    old.charge(records[:10])
    new = PaperLine(journal, Books())
    old.charge(records[10:13])
    new.charge(records[10:11])

    _live, dead = live_records(journal.survivors())

    assert dead
    assert facts(reread(journal).state) == facts(new.state)


def with_balances(offset, name):
    """Return what makes a plan, a bucket, an answer and a scope of the name's own."""
    grant = {"kind": "grant", "amount_utok": 7, "subscribers": [name]}
    return [
        order(offset, NOON, kind="open", plan="strict", account_id=name),
        order(offset + 1, NOON, account_id=name, **grant),
    ]


@pytest.mark.parametrize("unread", [0, 1, 3])
@pytest.mark.parametrize("late", [0, 1, 12])
def test_an_opening_behind_steps_its_owner_did_not_read_takes_nothing_back(unread, late):
    """The old owner still writes while the new one reads; some of it lands behind the opening."""
    journal, books = Journal(), Books()
    old = PaperLine(journal, books, in_flight=12)
    old.command([catalog_version(0, NOON, CATALOG), *with_balances(1, "b0")])
    opening = recover(PartitionState(BOUNDS), journal.survivors()).writer().opening("new")
    records = usage(20)
    for turn in range(unread):
        old.command(with_balances(3 + 2 * turn, f"b{turn + 1}"))
        old.charge(records[turn : turn + 1])
    wanted, told, written = facts(old.state), list(old.found.out), old.state.seq
    journal.records.extend(opening)
    for turn in range(unread, unread + late):
        old.command(with_balances(3 + 2 * turn, f"b{turn + 1}"))
        old.charge(records[turn : turn + 1])

    for read in (recover_all, lambda state, log: recover(state, log.survivors())):
        state = PartitionState(BOUNDS)
        found = read(state, journal)
        assert (facts(state), state.epoch) == (wanted, 3)
        assert [seq for seq, _ in found.out] == list(range(1, written + 1))
    assert told == []
    new = PaperLine(journal, books)
    new.command(with_balances(3 + 2 * unread, "c"))
    new.charge(records[unread:])
    new.rest()
    assert facts(reread(_copy(journal)).state) == facts(new.state)
    assert books.verdicts.keys() == set(range(20))


@pytest.mark.parametrize("seed", range(10))
def test_openings_that_land_at_any_later_moment_take_nothing_back(seed):
    luck = random.Random(seed)
    journal, books = Journal(), Books()
    line = PaperLine(journal, books, in_flight=luck.choice([0, 8]))
    line.command([catalog_version(0, NOON, CATALOG), *commands_from(1)])
    records, at, read = usage(400, seed, step_ms=luck.choice([100, 7_000, 70_000])), 0, []
    for turn in range(60):
        line.charge(records[at : at + (size := luck.randrange(1, 6))])
        at += size
        line.command(with_balances(100 + 2 * turn, f"b{turn % 20}"))
        if luck.random() < 0.3:
            read.append(recover(PartitionState(BOUNDS), journal.survivors()).writer())
        if read and luck.random() < 0.3:
            wanted, fenced = facts(line.state), line
            journal.records.extend(luck.choice(read).opening(f"{turn}"))
            for late in range(at, at + luck.randrange(9)):
                fenced.charge(records[late : late + 1])
            _assert_compaction_changes_nothing(journal)
            line, read = PaperLine(journal, books, in_flight=luck.choice([0, 8])), []
            at = line.state.next_offsets["usage"]
            assert facts(line.state) == wanted
    assert facts(reread(_copy(journal)).state) == facts(line.state)


def commands_from(first):
    return [dataclasses.replace(one, offset=first + one.offset) for one in commands()]


def test_of_two_openings_of_one_epoch_the_first_closes_the_older_ones():
    """Else compaction would take it away, and what came between the two would be history again."""
    journal = Journal()
    old = PaperLine(journal, Books(), in_flight=8)
    old.command(commands())
    records = usage(20)
    old.charge(records[:10])
    wanted = facts(old.state)
    writers = [recover(PartitionState(BOUNDS), journal.survivors()).writer() for _ in range(2)]
    for owner, writer in enumerate(writers):
        journal.records.extend(writer.opening(str(owner)))
        old.charge(records[10 + owner : 11 + owner])

    _assert_compaction_changes_nothing(journal)
    assert facts(reread(journal).state) == wanted


def test_a_scope_that_usage_brings_about_comes_back():
    """A cycle may begin with usage, by a newer catalog whose plan covers other models."""
    said = json.loads(CATALOG.to_json()) | {"version": 2, "groups": {"minis": ["p/mini", "p/max"]}}
    newer = Catalog.from_json(json.dumps(said))
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    line.command(
        [
            catalog_version(0, NOON, CATALOG),
            order(1, NOON, kind="open", account_id="c", plan="small"),
            catalog_version(2, NOON, newer),
        ]
    )
    scopes = len(line.state.books.scopes.scopes)
    later = NOON + 40 * 24 * HOUR
    use = {"account_id": "c", "model": "mini", "occurred_at": later}
    line.charge([record(0, later, event_id="e0", **use)])
    assert len(line.state.books.scopes.scopes) > scopes

    again = PaperLine(_copy(journal), books)
    assert facts(again.state) == facts(line.state)
    for each in (line, again):
        each.charge([record(1, later + 1, event_id="e1", **use | {"model": "max"})])
    assert facts(again.state) == facts(line.state)


def test_names_are_kept_once_when_the_next_are_settled():
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([catalog_version(0, NOON, CATALOG)])
    for turn in range(9):
        line.command(with_balances(1 + 2 * turn, f"b{turn}"))
    line.charge(usage(1))
    assert [key for key in journal.survivors() if b"/names/" in key] == [b"1/names/9"]


def test_windows_of_a_quiet_minute_survive_a_later_restart():
    """Each minute is published while idle; three minutes on, its journal keys are used again."""
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    line.command([command(month_tokens=1000)])
    for offset in range(9):
        minute, second = divmod(offset, 3)
        now = NOON + minute * 3 * MINUTE + second * 1000
        if minute == 2 and second:
            break
        line.charge([record(offset, now, event_id=f"e{offset}", occurred_at=NOON)])
        line.rest()
    counted = sum(events for events, _ in books.window_totals().values())

    PaperLine(journal, books).rest()

    assert counted == 7
    assert sum(events for events, _ in books.window_totals().values()) == 7


def test_windows_survive_a_crash_three_minutes_after_a_minute_was_left_unpublished():
    journal, books = Journal(), Books()
    line = PaperLine(journal, books, in_flight=8)
    line.command([command(month_tokens=1000)])
    for offset, minute in enumerate([0, 0, 0, 3]):
        line.charge([record(offset, NOON + minute * MINUTE, event_id=f"e{offset}")])

    PaperLine(journal, books).rest()

    assert sum(events for events, _ in books.window_totals().values()) == 4


def test_an_event_is_still_a_duplicate_after_a_restart_up_to_the_last_moment_it_is_not_late():
    """Occurred at the edge of the future, appended at the end of a minute, sent again an hour on."""
    journal, books = Journal(), Books()
    first_ms = (NOON // (975_000) + 1) * 975_000 + 1
    occurred_ms = first_ms + BOUNDS.future_skew_ms
    line = PaperLine(journal, books)
    line.command([command(appended_ms=first_ms - HOUR)])
    line.charge([record(0, first_ms, occurred_at=occurred_ms)])
    line = PaperLine(journal, books)
    last_ms = occurred_ms + BOUNDS.horizon_ms
    line.charge([record(1, last_ms - 1, event_id="other", occurred_at=last_ms)])
    line.charge([record(2, last_ms, occurred_at=occurred_ms)])

    assert books.offsets("duplicate") == {2}


def test_recover_of_nothing_is_an_empty_state_of_epoch_one():
    state = PartitionState(BOUNDS)
    found = recover(state, {})

    assert (state.epoch, len(state.cells), found.out, found.unflushed) == (1, 0, [], [])


def _assert_compaction_changes_nothing(journal):
    whole, compacted = PartitionState(BOUNDS), PartitionState(BOUNDS)
    found = [recover_all(whole, journal), recover(compacted, journal.survivors())]

    assert facts(whole) == facts(compacted)
    assert whole.epoch == compacted.epoch
    for name in ("out", "stale_keys", "timed_keys"):
        assert getattr(found[0], name) == getattr(found[1], name)
    assert len(found[0].unflushed) == len(found[1].unflushed)


def test_of_messages_only_those_not_yet_published_come_back():
    journal = Journal()
    line = PaperLine(journal, Books(), in_flight=3)
    line.command(commands())
    for one in usage(20):
        line.charge([one])

    out = recover(PartitionState(BOUNDS), journal.survivors()).out

    assert [seq for seq, _ in out] == [line.state.seq - 3 + i for i in range(4)]
    _assert_compaction_changes_nothing(journal)


def _copy(journal):
    copied = Journal()
    copied.records = list(journal.records)
    return copied


@pytest.mark.parametrize("waiting_command", [False, True])
@pytest.mark.parametrize("crash", [False, True])
def test_a_command_newer_than_waiting_usage_moves_no_horizon(waiting_command, crash):
    journal, books = Journal(), Books()
    line = PaperLine(journal, books)
    line.command([command(0, account_id="a0"), command(1, account_id="a1")])
    line.charge([record(0, NOON, event_id="e0", account_id="a0")])
    # Nobody works for two hours; meanwhile e0 is sent again, and later an account is applied.
    line = PaperLine(journal, books)
    if waiting_command:
        line.command([command(2, appended_ms=NOON + 2 * HOUR, account_id="a2")])
    other_ms, again_ms = NOON + 4 * MINUTE, NOON + 5 * MINUTE
    line.charge([record(1, other_ms, event_id="x", account_id="a1", occurred_at=other_ms)])
    if crash:
        line = PaperLine(journal, books)
    line.charge([record(2, again_ms, event_id="e0", account_id="a0", occurred_at=NOON)])
    assert books.verdicts == {0: "counted", 1: "counted", 2: "duplicate"}
    assert line.state.minute_ms == again_ms


def test_a_command_newer_than_waiting_usage_gathers_no_minutes_into_one():
    line = PaperLine(Journal(), Books())
    line.command([command(0, account_id="a0", minute_requests=3)])
    line.command([command(1, appended_ms=NOON + 30 * MINUTE, account_id="a1")])
    moments = [NOON + i * MINUTE for i in range(10)]
    line.charge(
        [
            record(i, at, event_id=f"e{i}", account_id="a0", occurred_at=at)
            for i, at in enumerate(moments)
        ]
    )
    row = line.state.cells.matrix[0]
    assert (row[Cell.MINUTE_REQUESTS], row[Cell.STATE]) == (1, State.OPEN)


def test_a_journal_compacted_only_up_to_any_record_says_the_same():
    journal = Journal()
    first = PaperLine(journal, Books(), in_flight=8)
    first.command(commands()[:4])
    first.charge(usage(3))
    PaperLine(journal, Books())
    # Fenced by now: the account it opens is not history.
    first.command(commands()[:5])
    third = PaperLine(journal, Books())
    third.command(commands()[:4])
    for one in usage(80)[3:]:
        third.charge([one])
    records = list(enumerate(journal.records))
    last = {key: offset for offset, (key, _) in records}
    wanted = facts(third.state)
    for cleaned in range(len(records) + 1):
        view = [at for at in records if at[0] >= cleaned or last[at[1][0]] == at[0]]
        state = PartitionState(BOUNDS)
        recovery = Recovery(state)
        for offset, (key, value) in view:
            recovery.take(offset, key, value)
        recovery.finish()
        assert facts(state) == wanted, cleaned


def test_a_minute_that_ended_while_the_one_before_was_on_its_way_is_still_needed():
    state = PartitionState(BOUNDS)
    state.begin_step(NOON)
    first, second = (state.begin_step(NOON + turn * MINUTE).flush for turn in (1, 2))
    state.published_seq = state.seq
    state.note_flushed(first)
    assert state.settled_seq == state.seq - 1
    state.note_flushed(second)
    assert state.settled_seq == state.seq


class Narrow:
    """Be a table as an older worker had it: without the last columns."""

    def __init__(self, matrix, less):
        self.matrix = matrix[:, : matrix.shape[1] - less]
        self.width = self.matrix.shape[1]


def test_rows_of_an_older_worker_are_read_and_what_they_lack_is_nothing():
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([catalog_version(0, NOON, CATALOG), *with_balances(1, "b0")])
    state = PartitionState(BOUNDS)
    tables = [table.matrix.copy() for table in line.state.books.tables]
    recovery = Recovery(state)
    for offset, (key, value) in enumerate(journal.records):
        of_books = value and key.split(b"/")[1] in (b"books", b"leaf")
        recovery.take(offset, key, narrowed(value) if of_books else value)
    back = recovery.finish().state.books
    for number, (mine, theirs) in enumerate(zip(back.tables, tables, strict=True)):
        theirs[:, -1] *= number not in (0, 3)
        assert mine.matrix.tolist() == theirs.tolist()


def narrowed(value):
    return b"".join(
        pack_table(number, Narrow(wide(rows, values), number in (0, 3)), rows)
        for number, rows, values in unpack_tables(value)
    )


def wide(rows, values):
    matrix = np.zeros((int(rows.max()) + 1, values.shape[1]), np.int64)
    matrix[rows] = values
    return matrix


def test_rows_of_a_newer_worker_are_not_guessed_at():
    state = PartitionState(BOUNDS)
    newer = Narrow(np.zeros((1, len(Balance) + 1), np.int64), 0)
    with pytest.raises(BrokenLog, match="newer worker"):
        Recovery(state).take(0, b"1/books/0", pack_table(0, newer, np.array([0])))


def changed_head(value, change):
    return value if value is None else json.dumps(change(json.loads(value))).encode()


def read_with(journal, change):
    """Read a journal whose heads are changed before."""
    recovery = Recovery(PartitionState(BOUNDS))
    for offset, (key, value) in enumerate(journal.records):
        of_head = key.split(b"/")[1] == b"head"
        recovery.take(offset, key, changed_head(value, change) if of_head else value)
    return recovery.finish().state


def test_a_table_that_the_head_does_not_name_yet_is_empty():
    """A worker that has one table more than the one that wrote the journal starts after it."""
    journal = Journal()
    line = PaperLine(journal, Books())
    line.command([catalog_version(0, NOON, CATALOG), *with_balances(1, "b0")])

    def without_told(head):
        return head | {"tables": {k: v for k, v in head["tables"].items() if k != "told"}}

    back = read_with(journal, without_told).books
    assert back.balances.matrix.tolist() == line.state.books.balances.matrix.tolist()
    assert len(back.told) == 0


def test_a_table_of_a_newer_worker_is_refused_by_name_and_by_number():
    journal = Journal()
    PaperLine(journal, Books()).command(commands())
    with pytest.raises(BrokenLog, match="a table of a newer worker"):
        read_with(journal, lambda head: head | {"tables": head["tables"] | {"newer": 1}})
    newer = Narrow(np.zeros((1, 3), np.int64), 0)
    with pytest.raises(BrokenLog, match="a table of a newer worker"):
        Recovery(PartitionState(BOUNDS)).take(0, b"1/books/0", pack_table(99, newer, np.array([0])))


def test_account_rows_of_another_width_are_read_when_older_and_refused_when_newer():
    slots = np.array([0, 1])
    older = np.arange(2 * (len(Cell) - 1)).reshape(2, -1)
    recovery = Recovery(PartitionState(BOUNDS))
    recovery.take(0, b"1/rows/0/0", pack_rows(0, ["t/a", "t/b"], slots, older))
    assert recovery._rows.matrix[:2, :-1].tolist() == older.tolist()
    assert recovery._rows.matrix[:2, -1].tolist() == [0, 0]
    newer = np.zeros((2, len(Cell) + 1), np.int64)
    with pytest.raises(BrokenLog, match="rows of accounts of a newer worker"):
        recovery.take(1, b"1/rows/0/1", pack_rows(0, [], slots, newer))
