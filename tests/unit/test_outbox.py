"""The outbox keeps what it accepted, whatever moment a crash or a full disk picks.

The crash points are numbered as in the docstring of `tokenline.wire.outbox`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenline.errors import OutboxFull, SettingsError
from tokenline.wire import outbox as outbox_module
from tokenline.wire import outbox_life
from tokenline.wire.outbox import Outbox
from tokenline.wire.outbox_frames import (
    Segment,
    acks_frame,
    event_frame,
    read_segment,
    runs_of,
    start_frame,
)


@pytest.fixture
def open_box(tmp_path):
    """Open the one outbox of a test; closing its files without a word is the crash."""
    opened = []

    def opener(**options):
        box = Outbox(tmp_path / "box", "gw-1", **options)
        opened.append(box)
        return box

    yield opener
    for box in opened:
        crash(box)


def crash(box):
    """Let go of everything as a killed process does: nothing more is written."""
    for fd in (box._fd, box._lock_fd):
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
    box._fd = box._lock_fd = -1


def fill(box, count, size=20):
    return [box.append(b"t/a", bytes([at % 256]) * size) for at in range(count)]


def segments(box):
    return sorted(box.directory.glob("*.seg"))


def positions(box):
    return [position for position, _, _ in box.take_recovered()]


def test_what_is_appended_comes_back_after_a_crash_byte_for_byte(open_box):
    box = open_box()
    epoch = box.life.gateway_epoch
    box.append(b"t/a", b"one")
    box.append(b"t/b", b"two")
    crash(box)

    again = open_box()
    assert again.take_recovered() == [(1, b"t/a", b"one"), (2, b"t/b", b"two")]
    assert (again.life.gateway_epoch, again.next_seq) == (epoch, 3)
    assert (again.emitted, again.acknowledged, again.unacked) == (2, 0, 2)


def test_what_is_acknowledged_does_not_come_back(open_box):
    box = open_box()
    fill(box, 10)
    box.ack([2, 3, 9])
    box.flush_acks()
    crash(box)

    again = open_box()
    assert positions(again) == [1, 4, 5, 6, 7, 8, 10]
    assert (again.emitted, again.acknowledged) == (10, 3)


def test_seqs_go_on_without_a_gap_even_when_everything_was_acknowledged(open_box):
    box = open_box()
    for _ in range(3):
        box.ack(fill(box, 5))
        box.close()
        box = open_box()

    assert (box.next_seq, box.unacked, len(segments(box))) == (16, 0, 1)


def test_1_a_crash_before_the_write_leaves_the_seq_to_the_next_event(open_box):
    box = open_box()
    fill(box, 3)
    assert box.next_seq == 4
    crash(box)

    assert open_box().append(b"k", b"v") == 4


@pytest.mark.parametrize("kept", [1, 8, 24, 25, 26, 43])
def test_2_a_torn_event_is_cut_off_and_its_seq_used_again(open_box, kept):
    box = open_box()
    fill(box, 3)
    whole = event_frame(4, b"t/a", b"never promised")
    os.write(box._fd, whole[:kept])
    assert kept < len(whole)
    crash(box)

    again = open_box()
    assert positions(again) == [1, 2, 3]
    assert again.append(b"t/a", b"new") == 4
    crash(again)
    assert open_box().take_recovered()[-1] == (4, b"t/a", b"new")


def test_5_unwritten_acks_mean_the_events_are_sent_again(open_box):
    box = open_box()
    fill(box, 3)
    box.ack([1, 2, 3])
    crash(box)

    assert positions(open_box()) == [1, 2, 3]


def test_6_torn_acks_mean_the_events_are_sent_again(open_box):
    box = open_box()
    fill(box, 3)
    os.write(box._fd, acks_frame([(1, 3)], 4)[:-2])
    crash(box)

    assert positions(open_box()) == [1, 2, 3]


@pytest.mark.parametrize("kept", [0, 5, 16])
def test_7_a_segment_without_a_whole_start_is_removed(open_box, kept):
    box = open_box()
    fill(box, 3)
    (box.directory / "00000002-4.seg").write_bytes(start_frame(4)[:kept])
    crash(box)

    again = open_box()
    assert positions(again) == [1, 2, 3]
    assert again.next_seq == 4


def test_8_segments_go_oldest_first_so_no_ack_is_lost_before_its_event(open_box, monkeypatch):
    monkeypatch.setattr(outbox_module, "SEGMENT_MAX_BYTES", 4096)
    box = open_box()
    fill(box, 40, size=1000)
    oldest = segments(box)[:9]
    box.ack(range(5, 41))
    box.flush_acks()
    assert segments(box)[:9] == oldest
    crash(box)

    again = open_box()
    assert positions(again) == [1, 2, 3, 4]
    again.ack([1, 2, 3, 4])
    again.flush_acks()
    assert len(segments(again)) == 1
    assert again.size_bytes == sum(path.stat().st_size for path in segments(again))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_of_the_newest_segment_loses_only_what_follows_the_cut(tmp_path_factory, data):
    """A kill between any two bytes: what was whole before it counts, nothing else does."""
    directory = tmp_path_factory.mktemp("cut")
    box = Outbox(directory, "gw-1")
    owed = set()
    states = [(box.size_bytes, [])]
    for _ in range(data.draw(st.integers(1, 12))):
        owed.add(box.append(b"k", b"v" * data.draw(st.integers(0, 30))))
        states.append((box.size_bytes, sorted(owed)))
        if owed and data.draw(st.booleans()):
            one = data.draw(st.sampled_from(sorted(owed)))
            owed.discard(one)
            box.ack([one])
            box.flush_acks()
            states.append((box.size_bytes, sorted(owed)))
    path = segments(box)[-1]
    crash(box)
    cut = data.draw(st.integers(states[0][0], path.stat().st_size))
    os.truncate(path, cut)
    again = Outbox(directory, "gw-1")
    found = positions(again)
    crash(again)

    assert found == [state for size, state in states if size <= cut][-1]


def test_frames_survive_any_content():
    magic = start_frame(1)[:4]
    events = [(1, b"", b""), (2, b"k" * 600, b"\0" * 9), (3, "词元/账户".encode(), b"x")]
    # What would begin a frame, and what stands for it, in any number.
    events += [(4, magic, magic[:3] + b"\0" + event_frame(9, b"", b"")), (5, magic[:3], magic[:2])]
    data = start_frame(1) + b"".join(event_frame(*event) for event in events)
    segment = read_segment(data + acks_frame([(1, 2)], 6))

    assert segment.events == events
    assert (segment.acked, segment.following, segment.damaged) == ([(1, 2)], 6, [])
    assert read_segment(b"") == Segment()


@given(st.sets(st.integers(1, 200)))
def test_runs_are_the_same_positions(positions):
    runs = runs_of(positions)

    assert [at for first, count in runs for at in range(first, first + count)] == sorted(positions)
    assert all(first + count < following for (first, count), (following, _) in pairwise(runs))


def test_a_reboot_without_fsync_begins_a_new_life_and_keeps_the_events(open_box, monkeypatch):
    box = open_box()
    old = box.life.gateway_epoch
    fill(box, 3)
    path = segments(box)[0]
    crash(box)
    # Power loss may leave zeros where the newest data should be.
    path.write_bytes(path.read_bytes() + bytes(100))
    monkeypatch.setattr(outbox_life, "boot_id", lambda: "another")
    monkeypatch.setattr(outbox_module, "boot_id", lambda: "another")

    again = open_box()
    assert again.life.gateway_epoch != old
    assert again.ended == (old, 3, 0)
    assert (again.next_seq, again.emitted, positions(again)) == (1, 0, [1, 2, 3])
    again.append(b"k", b"v")
    assert again.next_seq == 2
    crash(again)
    assert open_box().next_seq == 2


def test_a_reboot_with_fsync_goes_on_counting(open_box, monkeypatch):
    box = open_box(fsync=True)
    fill(box, 3)
    old = box.life.gateway_epoch
    crash(box)
    monkeypatch.setattr(outbox_life, "boot_id", lambda: "another")
    monkeypatch.setattr(outbox_module, "boot_id", lambda: "another")

    again = open_box(fsync=True)
    assert (again.life.gateway_epoch, again.next_seq) == (old, 4)


def test_fsync_waits_for_the_disk_at_each_append(open_box, monkeypatch):
    calls = []
    real = os.fsync
    box = open_box(fsync=True)
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), real(fd)))
    fill(box, 3)

    assert len(calls) == 3


def test_the_number_of_events_is_bounded_and_acks_make_room(open_box):
    box = open_box(max_events=3)
    fill(box, 3)
    with pytest.raises(OutboxFull, match="holds 3 unacknowledged events"):
        box.append(b"k", b"v")
    box.ack([2])

    assert box.append(b"k", b"v") == 4


def test_the_disk_space_is_bounded_and_acks_make_room(open_box):
    box = open_box(max_bytes=40_000)
    with pytest.raises(OutboxFull, match="of 40000 bytes"):
        fill(box, 100, size=1000)
    accepted = box.unacked
    assert 30 < accepted < 40
    assert sum(path.stat().st_size for path in segments(box)) <= 40_000
    box.ack(range(1, accepted + 1))
    box.flush_acks()

    assert fill(box, 20, size=1000)[0] == accepted + 1


def test_a_full_disk_refuses_the_event_and_spoils_nothing(open_box, monkeypatch):
    box = open_box()
    fill(box, 2)
    real = os.write

    def short(fd, data):
        real(fd, data[:7])
        return 7

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OutboxFull, match="disk under outbox"):
        box.append(b"k", b"v")
    monkeypatch.setattr(os, "write", _no_space)
    with pytest.raises(OutboxFull, match="disk under outbox"):
        box.append(b"k", b"v")
    box.ack([1])
    box.flush_acks()
    monkeypatch.setattr(os, "write", real)
    assert box.append(b"k", b"v") == 3
    crash(box)

    assert positions(open_box()) == [1, 2, 3]


def _no_space(fd, data):
    raise OSError(errno.ENOSPC, "no space left")


def test_a_full_disk_at_the_change_of_segments_refuses_the_event(open_box, monkeypatch):
    monkeypatch.setattr(outbox_module, "SEGMENT_MAX_BYTES", 4096)
    box = open_box()
    fill(box, 5, size=1000)
    real = os.write
    monkeypatch.setattr(os, "write", _no_space)
    with pytest.raises(OutboxFull):
        box.append(b"k", b"v")
    monkeypatch.setattr(os, "write", real)

    assert box.append(b"k", b"v") == 6
    assert len(segments(box)) == 2


def test_a_disk_fault_is_no_full_disk(open_box, monkeypatch):
    box = open_box()

    def fault(fd, data):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "write", fault)
    with pytest.raises(OSError, match="input/output"):
        box.append(b"k", b"v")


def test_two_emitters_never_share_a_directory(open_box):
    box = open_box()
    with pytest.raises(SettingsError, match=f"in use by process {os.getpid()}"):
        open_box()
    box.close()

    assert open_box().next_seq == 1


def test_another_process_is_refused_too(open_box):
    box = open_box()
    code = (
        "import sys; from pathlib import Path; from tokenline.wire.outbox import Outbox\n"
        f"try: Outbox(Path({str(box.directory)!r}), 'gw-1')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.startswith("SettingsError outbox")


def test_a_directory_belongs_to_one_gateway(open_box, tmp_path):
    open_box().close()
    with pytest.raises(SettingsError, match="belongs to gateway 'gw-1', not 'gw-2'"):
        Outbox(tmp_path / "box", "gw-2")


def test_a_deleted_directory_begins_a_new_life(tmp_path):
    lives = []
    for number in range(2):
        box = Outbox(tmp_path / f"box{number}", "gw-1")
        lives.append(box.life.gateway_epoch)
        box.close()

    assert lives[0] != lives[1]


def test_segments_lost_while_the_life_is_kept_begin_a_new_life(open_box):
    box = open_box()
    old = box.life.gateway_epoch
    fill(box, 2)
    crash(box)
    for path in segments(box):
        path.unlink()

    again = open_box()
    assert again.life.gateway_epoch != old
    assert json.loads((again.directory / "life.json").read_text())["base"] == 0
