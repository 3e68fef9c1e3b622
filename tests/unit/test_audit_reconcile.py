from __future__ import annotations

from dataclasses import replace

import pytest

from tokenline.audit.reconcile import (
    AccountSides,
    ChargeSides,
    EntrySides,
    GatewaySides,
    Landed,
    Lost,
    PartitionSides,
    Tally,
    TransferSides,
    account_differences,
    charge_differences,
    entry_differences,
    gateway_differences,
    loss_differences,
    partition_differences,
    quarantine_differences,
    transfer_differences,
)

TALLY = Tally(events=3, tokens=900)
LANDED = Landed(counted=7, late=1, duplicates=1, dead_letters=1, tokens=900)


def account(**sides):
    same = {"ledger": TALLY, "windows": TALLY, "counters": TALLY}
    return AccountSides(tenant_id="cm", account_id="a", **(same | sides))


def gateway(**fields):
    same = {
        "stated": True,
        "emitted": 5,
        "acknowledged": 5,
        "records": 6,
        "distinct": 5,
        "highest": 5,
    }
    return GatewaySides(gateway_id="g", gateway_epoch="e", **(same | fields))


def partition(**fields):
    same = {
        "begin": 0,
        "end": 10,
        "sealed_lo": 0,
        "sealed_next": 10,
        "sealed": LANDED,
        "landed": LANDED,
    }
    return PartitionSides(partition=2, **(same | fields))


def test_equal_sides_differ_in_nothing():
    assert list(account_differences([account()])) == []
    assert list(gateway_differences([gateway()])) == []
    assert list(partition_differences([partition()])) == []


def test_one_token_in_one_account_is_a_difference():
    (found,) = account_differences([account(windows=Tally(events=3, tokens=899))])

    assert str(found) == "cm/a: tokens in ledger and windows: 900 and 899 (+1)"


def test_a_lost_event_of_a_gateway_is_a_difference():
    (found,) = gateway_differences([gateway(distinct=4)])

    assert (found.left, found.right) == (5, 4)


def test_what_a_gateway_still_holds_is_said():
    (found,) = gateway_differences([gateway(emitted=9, acknowledged=5)])

    assert "4 not acknowledged yet" in str(found)


def test_what_a_disk_lost_is_a_difference_of_its_own_kind_and_no_more_than_it_says():
    (found,) = gateway_differences([gateway(distinct=3, acknowledged=3, lost=2)])
    assert (found.kind, found.left, found.right) == ("disk", 2, 0)
    assert not list(gateway_differences([gateway(distinct=3, acknowledged=3, lost=2)], 2))
    found = list(gateway_differences([gateway(distinct=3, acknowledged=3, lost=2)], 1))
    assert [(one.left, one.right) for one in found] == [(2, 1), (2, 0)]
    assert len(list(gateway_differences([gateway()], 1))) == 1
    # An acknowledgement was spoilt, and the event had arrived.
    assert not list(gateway_differences([gateway(acknowledged=3, lost=2)]))
    (found,) = gateway_differences([gateway(distinct=2, acknowledged=3, lost=2)])
    assert (found.kind, found.left, found.right) == ("gateway", 5, 2)


def test_a_total_behind_what_landed_is_no_difference_but_a_gap_is():
    assert list(gateway_differences([gateway(emitted=3, acknowledged=3)])) == []
    assert len(list(gateway_differences([gateway(emitted=3, distinct=4, highest=5)]))) == 1


def test_a_producer_without_a_total_is_not_held_to_one():
    assert list(gateway_differences([gateway(stated=False, emitted=0, highest=9)])) == []


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"sealed_next": 9}, "lag"),
        ({"end": 11}, "lag"),
        ({"sealed_lo": 3}, "seal"),
        ({"landed": LANDED + Landed(late=1)}, "partition"),
        ({"landed": LANDED + Landed(tokens=-1)}, "partition"),
    ],
)
def test_seals_kafka_and_tables_are_held_together(fields, kind):
    assert [one.kind for one in partition_differences([partition(**fields)])] == [kind]


def test_offsets_dropped_by_retention_after_they_were_sealed_are_no_difference():
    assert list(partition_differences([partition(begin=4)])) == []


def test_records_are_what_became_of_them():
    assert (LANDED.ledger, LANDED.records) == (8, 10)


def test_a_charge_that_no_bucket_paid_is_named():
    sides = {"tenant_id": "cm", "account_id": "a"}
    assert not list(charge_differences([ChargeSides(**sides, windows_utok=7, buckets_utok=7)]))
    (found,) = charge_differences([ChargeSides(**sides, windows_utok=7, buckets_utok=5)])
    assert str(found) == "cm/a: µtok that windows cost and buckets paid: 7 and 5 (+2)"


def test_an_entry_of_a_balance_that_is_gone_is_missed():
    sides = {"tenant_id": "cm", "account_id": "a"}
    assert not list(entry_differences([EntrySides(**sides, newest=5, landed=5)]))
    (found,) = entry_differences([EntrySides(**sides, newest=5, landed=4)])
    assert str(found) == "cm/a: entries numbered and landed: 5 and 4 (+1)"


def test_a_part_of_a_transfer_that_did_not_arrive_or_arrived_twice_is_named():
    sides = {"tenant_id": "cm", "giver": "a", "entry": 4, "given_utok": 9}
    assert not list(transfer_differences([TransferSides(**sides, arrived_utok=9)]))
    found = transfer_differences([TransferSides(**sides, arrived_utok=n) for n in (0, 18)])
    assert [str(one) for one in found] == [
        "cm/a entry 4: µtok given away and arrived or returned: 9 and 0 (+9)",
        "cm/a entry 4: µtok given away and arrived or returned: 9 and 18 (-9)",
    ]


LOST = Lost(deleted=5, unlanded=2, unjudged=1, since_ms=0, until_ms=1_790_000_000_000)


def losses(accepted=0, **fields):
    one = partition(lost=replace(LOST, **fields))
    return [str(found) for found in loss_differences([partition(), one], accepted)]


def test_what_is_lost_is_said_with_how_much_and_from_when_to_when():
    assert losses() == [
        (
            "usage[2]: offsets deleted before they were charged, appended from an unknown moment to "
            "2026-09-21T14:13:20+00:00: 5 and 0 (+5)"
        ),
        "usage[2]: offsets charged, and gone before they landed: 2 and 0 (+2)",
        "usage[2]: offsets of which no charged range speaks: 1 and 0 (+1)",
    ]


def test_what_was_deleted_may_be_accepted_by_its_exact_number_and_nothing_else_may():
    none = {"unlanded": 0, "unjudged": 0}
    assert losses(5, **none) == []
    assert len(losses(5)) == 2
    assert losses(4, **none)[0] == "usage: offsets deleted and accepted: 5 and 4 (+1)"
    assert len(losses(4, **none)) == 2
    assert losses(4, deleted=0, **none) == ["usage: offsets deleted and accepted: 0 and 4 (-4)"]


def test_what_is_quarantined_is_a_difference_until_its_exact_number_is_accepted():
    aside = {"l.windows": 1, "l.charged": 2}
    assert [str(one) for one in quarantine_differences(aside, 0)] == [
        "l.charged: records quarantined: 2 and 0 (+2)",
        "l.windows: records quarantined: 1 and 0 (+1)",
    ]
    assert list(quarantine_differences(aside, 3)) == []
    assert len(list(quarantine_differences(aside, 2))) == 3
    assert list(quarantine_differences({}, 0)) == []
