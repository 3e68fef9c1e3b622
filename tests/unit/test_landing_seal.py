from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenline.landing.row import LEDGER_SCHEMA
from tokenline.landing.seal import CLASSES, GENESIS, Seal, chain_of, digest_of, walk


def row(**fields):
    return {field.name: _zero(field.type) for field in LEDGER_SCHEMA} | fields


def _zero(kind):
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


def table(*rows):
    return pa.Table.from_pylist(list(rows), schema=LEDGER_SCHEMA)


def seal(lo, hi, prev=GENESIS, epoch=1, **fields):
    one = Seal(
        topic="u",
        partition=0,
        lo=lo,
        hi=hi,
        counted=hi - lo + 1,
        late=0,
        duplicate=0,
        rejected=0,
        absent=0,
        tokens=1,
        digest="d",
        prev=prev,
        writer_epoch=epoch,
    )
    one = replace(one, **fields)
    return replace(one, chain=chain_of(one))


def chain(*bounds, epoch=1, prev=GENESIS):
    seals = []
    for lo, hi in bounds:
        seals.append(seal(lo, hi, prev, epoch))
        prev = seals[-1].chain
    return seals


def test_the_chain_can_be_recomputed_with_any_sha256():
    one = seal(3, 9)
    line = f"{GENESIS}|d||u|0|3|9|7|0|0|0|0|0|0|0|0|0|1|0"

    assert hashlib.sha256(line.encode()).hexdigest() == one.chain


def test_a_digest_does_not_depend_on_how_arrow_holds_the_values():
    rows = [
        row(event_id=f"e{i}", tags=[("x", str(i))] * (i % 2), paid_utok=[i] * (i % 3))
        for i in range(6)
    ]
    whole = table(*rows)
    chunked = pa.concat_tables([table(*rows[:2]), table(*rows[2:])])
    index = whole.schema.get_field_index("account_id")
    encoded = whole.set_column(
        index, "account_id", whole.column("account_id").combine_chunks().dictionary_encode()
    )
    sliced = table(row(event_id="before"), *rows, row(event_id="after")).slice(1, 6)

    assert {digest_of(one) for one in (whole, chunked, encoded, sliced)} == {digest_of(whole)}


def test_the_order_of_a_maps_entries_does_not_matter():
    first = table(row(tags=[("a", "1"), ("b", "2")]), row(tags=[("c", "3")]))
    second = table(row(tags=[("b", "2"), ("a", "1")]), row(tags=[("c", "3")]))

    assert digest_of(first) == digest_of(second)


@pytest.mark.parametrize("name", LEDGER_SCHEMA.names)
def test_every_column_is_under_the_digest(name):
    kind = LEDGER_SCHEMA.field(name).type
    changed = "x" if pa.types.is_string(kind) else 1
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        changed = [("k", "1")] if pa.types.is_map(kind) else [1]
    if name == "other_units":
        changed = [("k", 1)]

    assert digest_of(table(row())) != digest_of(table(row(**{name: changed})))


@given(st.text(), st.text())
def test_text_cannot_move_between_rows_or_columns(left, right):
    joined = table(row(source=left + right, event_id=""))
    apart = table(row(source=left, event_id=right))

    assert (digest_of(joined) == digest_of(apart)) == (right == "")


def test_a_walk_takes_every_seal_of_one_writer():
    seals = chain((0, 4), (5, 5), (6, 9))

    assert walk(reversed(seals)).kept == seals
    assert walk(seals).next_offset == 10
    assert walk([]).next_offset == 0


#  epoch 1   0..4  5..20  21..30        a writer that lost its partition after 4 and did not know
#  epoch 2         5..9  10..12
def test_a_walk_passes_a_lost_writer_over():
    lost = chain((0, 4), (5, 20), (21, 30))
    owner = chain((5, 9), (10, 12), epoch=2, prev=lost[0].chain)
    found = walk([*lost, *owner])

    assert [lost[0], *owner] == found.kept
    assert found.faults == []


def test_a_removed_seal_is_found():
    seals = chain((0, 4), (5, 9), (10, 14))
    del seals[1]

    assert walk(seals).faults == ["u[0]: no seal starts at 5, the next one starts at 10"]


def test_a_removed_first_seal_is_found():
    seals = chain((0, 4), (5, 9))[1:]

    assert "prev is not the chain" in walk(seals).faults[0]


@pytest.mark.parametrize(
    "name", ["digest", "hi", "tokens", *CLASSES, "deleted_since_ms", "deleted_until_ms"]
)
def test_a_changed_seal_is_found(name):
    seals = chain((0, 4), (5, 9))
    value = "e" if name == "digest" else getattr(seals[0], name) + 1
    seals[0] = replace(seals[0], **{name: value})

    assert any("chain does not follow" in fault for fault in walk(seals).faults)


def test_a_chain_made_anew_behind_a_change_is_found_at_the_next_seal():
    seals = chain((0, 4), (5, 9))
    forged = replace(seals[0], tokens=99)
    seals[0] = replace(forged, chain=chain_of(forged))

    assert walk(seals).faults == ["u[0] seal 5..9: prev is not the chain of the seal before it"]
