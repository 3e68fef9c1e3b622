"""What charging does with events sent again, late, early, misdirected, unknown or unreadable."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from charging_helpers import (
    RUBBISH,
    Line,
    account_name,
    command,
    frame,
    line_settings,
    usage,
)
from charging_oracle import CODEC, key_of, last_decisions, verdicts

from tokenline.platform.worker_process import ask_health

HOUR_MS = 3_600_000


@pytest.fixture
def settings(kafka, tmp_path):
    return line_settings(kafka, tmp_path, partitions=4)


def reasons(line):
    """Return the reason of each dead letter, sorted."""
    return sorted(letter["reason"] for letter in line.books.dead)


def state_of(line, account):
    """Return the state of the decision in force."""
    return last_decisions(line.books)[account]["state"]


async def test_accounts_applied_while_no_worker_ran_are_known_to_the_first_event(
    settings, tmp_path
):
    async with Line(settings, tmp_path) as line:
        names = [account_name(number) for number in range(8)]
        await line.apply(*(command(name) for name in names))
        await line.send([usage(name, seq=number) for number, name in enumerate(names)])
        await line.started(point="slow-commands")
        await line.settled()
        assert list(verdicts(line.books).values()) == ["counted"] * 8


async def test_every_kind_of_input_in_one_worker(settings, tmp_path):
    async with Line(settings, tmp_path) as line:
        accounts = [account_name(number) for number in range(8)]
        await line.apply(*(command(name) for name in accounts))
        worker = await line.started()
        await line.known(*accounts)
        await sent_again_in_another_order(line, accounts)
        await late_future_and_misdirected(line, accounts[0])
        await unknown_then_applied(line)
        await unreadable(line, accounts[0])
        await health_of(worker)


async def sent_again_in_another_order(line, accounts):
    now = time.time_ns() // 1_000_000
    events = [
        usage(account, seq=number, input_tokens=number + 1, occurred_at=now - number)
        for number, account in enumerate(accounts * 10)
    ]
    await line.send(events)
    again = [event | {"gateway_id": "gw-2", "gateway_epoch": "other"} for event in reversed(events)]
    await line.send(again)
    await line.settled()
    said = list(verdicts(line.books).values())
    assert said.count("counted") == said.count("duplicate") == len(events)


async def late_future_and_misdirected(line, account):
    now = time.time_ns() // 1_000_000
    known = len(line.books.usage)
    at_horizon = usage(account, input_tokens=5, occurred_at=now - HOUR_MS + 60_000)
    await line.send([at_horizon])
    await line.send([usage(account, input_tokens=7, occurred_at=now - HOUR_MS - 60_000)])
    await line.send([usage(account, input_tokens=11, occurred_at=now + 200_000)])
    await line.send([usage(account, input_tokens=13, occurred_at=now + 400_000)])
    stray = usage(account, input_tokens=17)
    await line.send_raw([(b"default/another", frame(stray))])
    await line.send_raw([(b"\xff\xfe", frame(stray)), (b"", frame(stray))])
    await line.send([negative(account)])
    await line.settled()
    said = [verdict for at, verdict in sorted(verdicts(line.books).items())]
    assert len(said) == known + 8
    assert said.count("late") == 1
    assert reasons(line) == [
        "future_time",
        "key_mismatch",
        "key_mismatch",
        "key_mismatch",
        "negative_count",
    ]


def negative(account):
    """Return an event no emitter would send."""
    return usage(account, input_tokens=1) | {"output_tokens": -5}


async def unknown_then_applied(line):
    events = [usage("unknown-1", seq=number, input_tokens=100) for number in range(5)]
    await line.send(events)
    await line.settled()
    assert reasons(line).count("unknown_account") == 5
    await line.apply(command("unknown-1", month_tokens=1000))
    await line.known("unknown-1")
    await line.send(events)
    await line.send(events)
    await line.settled()
    decision = last_decisions(line.books)["unknown-1"]
    assert (decision["state"], decision["used"], decision["threshold_percent"]) == (
        "warned",
        500,
        50,
    )


async def unreadable(line, account):
    before = len(line.books.dead)
    key = key_of(usage(account))
    other = CODEC.encode("account_command", command(account))
    huge = b"\0\0\0\0\1" + os.urandom(990_000)
    await line.send_raw([(key, value) for value in (*RUBBISH, None, other, huge)])
    await line.send([usage(account, input_tokens=3)])
    await line.settled()
    found = [letter["reason"] for letter in line.books.dead[before:]]
    assert len(found) == len(RUBBISH) + 3
    assert set(found) == {"undecodable", "unknown_schema"}


async def health_of(worker):
    answers = {path: await asyncio.to_thread(ask_health, worker.port, path) for path in PAGES}
    assert {path: status for path, (status, _) in answers.items()} == dict.fromkeys(PAGES, 200)
    assert 'tokenline_dead_letters_total{reason="unknown_account"} 5.0' in answers["/metrics"][1]
    assert "tokenline_lag_records" in answers["/metrics"][1]


PAGES = ("/healthz", "/readyz", "/metrics")


async def test_no_number_of_unreadable_records_ends_the_worker(settings, tmp_path):
    """A thousand of them in a row ended it, and the stack with it, until somebody raised a setting."""
    strict = settings.model_copy(update={"bad_records_per_minute": 20})
    async with Line(strict, tmp_path) as line:
        await line.apply(command(account_name(0)))
        worker = await line.started()
        await line.known(account_name(0))
        key = key_of(usage(account_name(0)))
        await line.send_raw([(key, b"rubbish")] * 1500)
        await line.send([usage(account_name(0), input_tokens=1)])
        await line.settled()
        letters = line.books.dead
        assert sum(letter["records"] for letter in letters) == 1500
        assert sum(1 for letter in letters if letter["records"] == 1) <= 40  # one or two minutes
        assert "too many bad records" in worker.log.read_text()


async def test_a_stalled_line_is_unhealthy_and_a_quiet_one_is_not(settings, tmp_path):
    impatient = settings.model_copy(update={"stall_s": 1})
    async with Line(impatient, tmp_path) as line:
        await line.apply(command(account_name(0)))
        worker = line.worker(point="stall")
        worker.spawn()
        await asyncio.to_thread(worker.await_ready, 40)
        status, _ = await asyncio.to_thread(ask_health, worker.port, "/healthz")
        assert status == 200
        await line.send([usage(account_name(0), input_tokens=1)])
        deadline = time.monotonic() + 15
        while (answer := await asyncio.to_thread(ask_health, worker.port, "/healthz"))[0] != 503:
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.05)
        assert "stands at" in answer[1]


async def test_thresholds_are_told_once_and_at_once_across_restarts(settings, tmp_path):
    async with Line(settings, tmp_path) as line:
        account = account_name(0)
        await line.apply(command(account, month_tokens=1000))
        worker = await line.started()
        await line.known(account)
        for tokens, state in ((400, "open"), (150, "warned"), (100, "warned"), (200, "warned")):
            await line.send([usage(account, input_tokens=tokens)])
            await line.charging()
            await line.until(lambda want=state: state_of(line, account) == want, what=state)
        worker.kill()
        await line.started()
        await line.send([usage(account, input_tokens=1)] * 3)
        await line.charging()
        began = time.monotonic()
        await line.send([usage(account, input_tokens=200)])
        await line.until(lambda: state_of(line, account) == "cut", 5, "cut")
        took = time.monotonic() - began
        assert took < 1, f"{took:.2f} s from the crossing to the cut"
        await line.settled()
        told = {row["version"]: row["threshold_percent"] for row in line.books.decisions}
        told = [percent for _, percent in sorted(told.items()) if percent]
        assert told == [50, 80, 100]
