"""What the disk spoils of an outbox costs what it hit: the rest is delivered, the loss is counted."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_outbox import crash, fill, open_box, positions, segments
from tokenline.wire import outbox as outbox_module
from tokenline.wire.outbox import Outbox
from tokenline.wire.outbox_frames import event_frame, start_frame

__all__ = ["open_box"]


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_bit_that_flips_in_a_length_costs_nothing_that_stands_behind_it(open_box):
    """All behind it was cut off as a torn tail, without a word, and its numbers were used again."""
    box = open_box()
    fill(box, 10)
    path = segments(box)[0]
    at = path.read_bytes().index(event_frame(4, b"t/a", bytes([3]) * 20))
    crash(box)
    for bit in range(40, 72):  # of the length, in any byte that may hold it
        flip(path, at * 8 + bit)
    for bit in range(41, 72):
        flip(path, at * 8 + bit)
    again = open_box()
    owed = positions(again)
    assert {*range(1, 11)} - {4} <= {*owed}
    assert (again.emitted, again.lost) == (10, 10 - len(owed))
    assert again.append(b"t/a", b"new") == 11


def events_of(data):
    return data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=8))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bit_that_flips_costs_one_event_at_most_and_is_counted(tmp_path_factory, data):
    box = Outbox(tmp_path_factory.mktemp("flip"), "gw-1")
    values = events_of(data)
    for at, value in enumerate(values, start=1):
        box.append(b"t/a", value)
        if data.draw(st.booleans()):
            box.ack([at])
            box.flush_acks()
    owed = sorted({*range(1, len(values) + 1)} - acked_on(box))
    path = segments(box)[0]
    crash(box)
    flip(path, data.draw(st.integers(0, path.stat().st_size * 8 - 1)))
    again = Outbox(box.directory, "gw-1")
    found = again.take_recovered()
    crash(again)
    intact = {position: values[position - 1] for position, _, _ in found}
    # Nothing is delivered that was not emitted.
    assert {position: value for position, _, value in found} == intact
    # An acknowledgement that is spoilt costs a second delivery.
    assert len({*owed} - intact.keys()) == again.lost <= 1
    assert (again.emitted, again.life.gateway_epoch) == (len(values), box.life.gateway_epoch)


def acked_on(box):
    reader = outbox_module.recover(segments(box), doubtful=False)
    return {*range(1, box.emitted + 1)} - reader.unacked.keys()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_piece_cut_out_anywhere_but_at_the_end_is_counted(tmp_path_factory, data):
    """A sector, a page, a whole file: what is whole is delivered, and no number is used twice."""
    directory = tmp_path_factory.mktemp("cut")
    box = Outbox(directory, "gw-1", max_bytes=16_384)
    last = fill(box, 30, size=300)[-1]
    paths = segments(box)
    assert len(paths) > 2
    crash(box)
    path = data.draw(st.sampled_from(paths[:-1]))
    bits = path.read_bytes()
    start = data.draw(st.integers(0, len(bits)))
    end = data.draw(st.integers(start, len(bits)))
    how = data.draw(st.sampled_from([b"", bytes(end - start), os.urandom(end - start)]))
    path.write_bytes(bits[:start] + how + bits[end:])
    again = Outbox(directory, "gw-1", max_bytes=16_384)
    found = positions(again)
    hit = {at for at in range(1, last + 1) if stands_in(bits, at, start, end)}
    assert {*range(1, last + 1)} - hit <= {*found}
    assert len(found) + again.lost == again.emitted == last
    assert again.append(b"t/a", b"new") == last + 1
    crash(again)
    # Said once: it is not counted a second time.
    assert Outbox(directory, "gw-1").lost == last - len(found)


def stands_in(bits, position, start, end):
    frame = event_frame(position, b"t/a", bytes([(position - 1) % 256]) * 300)
    at = bits.find(frame)
    return at >= 0 and at < end and start < at + len(frame)


def test_damage_at_the_very_end_uses_no_number_again(open_box):
    box = open_box()
    fill(box, 5)
    path = segments(box)[0]
    size = path.stat().st_size
    crash(box)
    for bit in range((size - 50) * 8, (size - 25) * 8, 3):
        flip(path, bit)
    again = open_box()
    assert positions(again) == [1, 2, 3, 4]
    assert again.lost >= 1
    assert again.append(b"t/a", b"new") == 5 + again.lost > 5
    assert again.emitted == 5 + again.lost
    crash(again)
    last = open_box()
    assert (last.lost, last.emitted) == (again.lost, again.emitted)


def test_a_frame_inside_an_event_is_never_taken_for_one(open_box):
    """Who names an account may write what he likes: also what would be a frame behind a damaged place."""
    box = open_box()
    forged = start_frame(1) + event_frame(1, b"t/victim", b"forged") * 3
    box.append(b"t/a", forged)
    box.append(b"t/a", b"mine")
    path = segments(box)[0]
    at = path.read_bytes().index(b"t/a") - 27
    crash(box)
    for bit in range(at * 8, at * 8 + 200, 7):
        flip(path, bit)
    assert open_box().take_recovered() == [(2, b"t/a", b"mine")]


def test_a_missing_segment_is_counted_and_the_others_are_delivered(open_box, monkeypatch):
    monkeypatch.setattr(outbox_module, "SEGMENT_MAX_BYTES", 4096)
    box = open_box()
    fill(box, 20, size=1000)
    crash(box)
    segments(box)[1].unlink()
    again = open_box()
    assert len(positions(again)) + again.lost == again.emitted == 20
    assert again.lost == 4


@pytest.mark.parametrize("how", ["gone", "no json", "one bit"])
def test_a_life_that_cannot_be_read_is_over_and_its_events_are_delivered(open_box, how):
    """Its count is nobody's: a new life begins, and the gateway starts."""
    box = open_box()
    fill(box, 3)
    old = box.life.gateway_epoch
    crash(box)
    life = box.directory / "life.json"
    if how == "gone":
        life.unlink()
    elif how == "no json":
        life.write_text("{")
    else:
        text = life.read_text()
        at = text.index(old)
        life.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    again = open_box()
    assert (positions(again), again.next_seq, again.append(b"k", b"v")) == ([1, 2, 3], 1, 4)
    assert again.life.gateway_epoch not in ("", old)
    assert again.life.gateway_epoch[1:] != old[1:]


def test_what_is_lost_is_told_of_in_the_totals_until_the_life_ends(open_box, monkeypatch):
    box = open_box()
    fill(box, 4)
    path = segments(box)[0]
    at = path.read_bytes().index(bytes([1]) * 20)
    crash(box)
    flip(path, at * 8)
    again = open_box()
    assert (again.emitted, again.unacked, again.acknowledged, again.lost) == (4, 3, 0, 1)
    again.ack(positions(again))
    again.flush_acks()
    assert (again.acknowledged, len(segments(again))) == (3, 1)
    crash(again)
    epoch = again.life.gateway_epoch
    for module in ("outbox_life", "outbox"):
        monkeypatch.setattr(f"tokenline.wire.{module}.boot_id", lambda: "another")
    assert open_box().ended == (epoch, 4, 1)
