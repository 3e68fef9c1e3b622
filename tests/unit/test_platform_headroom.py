"""The engine is kept away from a full disk, because it takes a refused write for a done one."""

from __future__ import annotations

import threading

import pytest

from tokenline.platform import dialect, headroom
from tokenline.platform.access import Role
from tokenline.platform.engine import Engine, EngineError, Job, Result
from tokenline.platform.headroom import FULL_BYTES, ROOM_BYTES_AGAIN, ROOM_BYTES_MIN, RoomyEngine

PLENTY, SHORT, FULL = ROOM_BYTES_AGAIN, ROOM_BYTES_MIN - 1, FULL_BYTES - 1
WRITE, READ = (
    Job(statement=dialect.split(sql), role=Role.WRITER)
    for sql in (b"INSERT INTO t SELECT 1", b"SELECT 1")
)
STOP, GO = "SYSTEM STOP MERGES", "SYSTEM START MERGES"


class Paper:
    """Be a disk and the engine below: note what is run; `during` says what happens meanwhile."""

    def __init__(self, monkeypatch, free=PLENTY):
        self.free, self.ran, self.merging, self.restarts = free, [], 0, 0
        self.during = lambda: None
        monkeypatch.setattr(headroom, "LOOK_S", 3600)  # looks are the test's
        monkeypatch.setattr(Engine, "__init__", lambda *_: None)
        monkeypatch.setattr(Engine, "run", lambda _, job: self.run(job.statement.sql.decode()))
        self.engine = RoomyEngine(None, self.restart, lambda _: self.free)

    def run(self, sql):
        if "system.merges" in sql:
            return Result(b"%d\n" % self.merging)
        self.ran.append(sql)
        if sql == WRITE.statement.sql.decode():
            self.during()
        return Result(b"done")

    def restart(self):
        self.restarts += 1

    def look(self, free):
        self.free = free
        self.engine.look()


@pytest.fixture
def paper(monkeypatch):
    return Paper(monkeypatch)


def refused(engine, job=WRITE):
    with pytest.raises(EngineError, match="MiB are free") as error:
        engine.run(job)
    assert error.value.code == 243
    return True


def test_below_the_bound_nothing_is_written_merges_stand_still_and_all_is_read(paper):
    assert paper.engine.run(WRITE).body == b"done"
    paper.look(SHORT)
    assert refused(paper.engine)
    assert paper.engine.run(READ).body == b"done"
    paper.look(ROOM_BYTES_AGAIN - 1)
    assert refused(paper.engine), "it does not stop and go in turns"
    paper.look(PLENTY)
    assert paper.engine.run(WRITE).body == b"done"
    writes = [sql for sql in paper.ran if not sql.startswith("SELECT")]
    assert writes == ["INSERT INTO t SELECT 1", STOP, GO, "INSERT INTO t SELECT 1"]
    assert paper.restarts == 0


@pytest.mark.parametrize("frees", [[SHORT], [SHORT, PLENTY], [FULL, PLENTY]])
def test_a_statement_during_which_room_was_short_is_not_answered_done(paper, frees):
    """Its rows may be there or not: the caller has to look."""

    def during():
        for free in frees:
            paper.look(free)

    paper.during = during
    assert refused(paper.engine)


def test_a_disk_that_was_full_while_something_wrote_makes_the_engine_start_anew_at_once(paper):
    def during():
        paper.look(FULL)
        assert paper.restarts == 0, "what runs is let end"

    paper.during = during
    assert refused(paper.engine)
    assert paper.restarts == 1
    paper.look(PLENTY)
    assert refused(paper.engine), "until it ends nothing is written"


def test_a_merge_that_was_under_way_on_a_full_disk_is_looked_at_too(paper):
    paper.merging = 1
    paper.look(SHORT)
    paper.look(FULL)
    paper.look(SHORT)
    assert paper.restarts == 0
    paper.merging = 0
    paper.look(SHORT)
    assert paper.restarts == 1


def test_a_disk_that_fills_up_when_all_stands_still_needs_no_restart(paper):
    paper.look(SHORT)
    paper.look(FULL)
    paper.look(PLENTY)
    assert paper.restarts == 0
    assert paper.engine.run(WRITE).body == b"done"


def test_an_engine_that_starts_on_a_full_disk_waits_for_room_and_does_not_start_over_and_over(
    monkeypatch,
):
    paper = Paper(monkeypatch, free=FULL)
    for _ in range(3):
        paper.look(FULL)
    assert refused(paper.engine)
    paper.look(PLENTY)
    assert paper.engine.run(WRITE).body == b"done"
    assert (paper.restarts, paper.ran) == (0, [STOP, GO, "INSERT INTO t SELECT 1"])


def test_statements_of_several_threads_are_all_waited_for(paper):
    entered, leave = threading.Barrier(3), threading.Event()

    def during():
        entered.wait(5)
        leave.wait(5)

    paper.during = during
    threads = [threading.Thread(target=refused, args=(paper.engine,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(5)
    paper.look(FULL)
    assert paper.restarts == 0
    leave.set()
    for thread in threads:
        thread.join(5)
    assert paper.restarts == 1
