"""The schema registry goes away, or hangs: workers start, go on and answer; who reads registers nothing."""

from __future__ import annotations

import time

import pytest
from stand import Stand, account_command, event

from tests.registry_stand import running
from tokenline.platform.worker_process import ask_health
from tokenline.wire.avro import Codec, header_of
from tokenline.wire.kafka import account_key
from tokenline.wire.registry_server import ConfluentRegistry

# What charging and landing write; usage and commands are registered by who sends them.
OF_OTHERS = ("usage-value", "commands-value", "holds-value", "catalog-value", "control-value")


@pytest.fixture
def registry():
    with running() as server:
        yield server


@pytest.fixture
def stand(line_settings, tmp_path, registry, monkeypatch):
    settings = line_settings(partitions=1)
    settings = settings.model_copy(
        update={"schema_registry_url": registry.url, "data_dir": tmp_path / "worker"}
    )
    sender = settings.model_copy(update={"data_dir": tmp_path / "sender"})
    codec = Codec(ConfluentRegistry(sender))
    monkeypatch.setattr("stand.CODEC", codec)
    with Stand(settings, tmp_path) as one:
        yield one


def use(stand, count=1):
    key = account_key("default", stand.account)
    stand.put("usage", [(key, event(stand.account)) for _ in range(count)])


def begun(stand):
    key = account_key("default", stand.account)
    stand.put("commands", [(key, account_command(stand.account))])
    stand.start("charging", "landing")
    use(stand, 2)
    stand.all_sealed()


def answers_within_s(stand, role):
    began = time.monotonic()
    status, _ = ask_health(stand.workers[role].port, "/healthz")
    assert status == 200
    return time.monotonic() - began


def test_charging_goes_on_and_starts_while_the_registry_is_away(stand, registry):
    begun(stand)
    registry.failing = 503
    stand.put("usage", [(b"k", header_of(4242) + b"xyz")])
    use(stand, 2)
    stand.all_sealed()
    assert stand.seals("counted", "rejected") == (4, 1)
    stand.until(lambda: stand.letters() == {"unknown_schema": 1}, what="letter")
    stand.stop("charging", "landing")
    stand.start("charging", "landing")
    use(stand, 2)
    stand.put("usage", [(b"k", header_of(4243) + b"xyz")])
    stand.all_sealed()
    assert stand.seals("counted", "rejected") == (6, 2)
    assert stand.reconcile().ok


def test_a_registry_that_hangs_holds_up_no_loop(stand, registry):
    begun(stand)
    registry.hangs_s = 30
    for number in range(3):
        stand.put("usage", [(b"k", header_of(5000 + number) + b"xyz")])
    slowest_s = max(answers_within_s(stand, "charging") for _ in range(20))
    assert slowest_s < 1
    use(stand, 2)
    stand.all_sealed(within_s=20)
    assert stand.seals("counted", "rejected") == (4, 3)
    registry.hangs_s = 0


def test_who_only_reads_registers_nothing(stand, registry):
    """Charging registered the schemas of usage and commands because it read them."""
    key = account_key("default", stand.account)
    frames = [(key, account_command(stand.account))], [(key, event(stand.account))]
    registry.subjects.clear()
    stand.put("commands", frames[0])
    stand.start("charging", "landing")
    stand.put("usage", frames[1])
    stand.all_sealed()
    assert registry.subjects
    of_others = [name for name in registry.subjects if name.endswith(OF_OTHERS)]
    assert of_others == []
