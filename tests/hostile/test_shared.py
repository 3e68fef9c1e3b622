"""One event id for two accounts: both stand, and a person learns of the pair."""

from __future__ import annotations

import time

import pytest
from stand import Stand, account_key, event

SHARED = (
    "SELECT tenant_id, source, event_id, arraySort(accounts), events FROM {db}.v_shared_identities"
)


@pytest.fixture
def stand(line_settings, tmp_path):
    with Stand(line_settings(partitions=2), tmp_path) as one:
        one.apply(*one.accounts)
        one.start()
        yield one


def test_an_id_of_two_accounts_is_named_within_ten_seconds(stand):
    stand.use(2)
    for account in stand.accounts:
        frame = event(account, event_id="e-1")
        stand.put("usage", [(account_key("default", account), frame)] * 2, stand.home(account))
    sent_s = time.monotonic()
    pair = ("default", "gw", "e-1", sorted(stand.accounts), 2)
    stand.until(lambda: stand.ask(SHARED) == [pair], within_s=10, what="the pair")
    assert time.monotonic() - sent_s < 10
    for partition in range(2):
        stand.all_sealed(partition)
    report = stand.reconcile()
    assert report.ok, report.to_json()
    assert report.shared == [
        "event e-1 of source gw, tenant default, was charged 2 times, to "
        + ", ".join(sorted(stand.accounts))
    ]
    assert stand.seals("counted", "duplicate", partition=0) == (3, 1)
