"""A server that was made again under a line that ran: it is said at once, and nothing is lost or mixed."""

from __future__ import annotations

import asyncio
import json
import shutil
import time

import pytest
from typer.testing import CliRunner

from tokenline import Emitter, UsageEvent, cli
from tokenline.accounts.apply import apply_accounts
from tokenline.errors import TokenlineError
from tokenline.platform.stack import Stack
from tokenline.settings import Settings

ACCOUNT = {
    **{f"{at}_{unit}": -1 for at in ("minute", "hour", "day") for unit in ("tokens", "requests")},
    "tenant_id": "default",
    "account_id": "a",
    "plan": "",
    "time_zone": "UTC",
    "month_tokens": -1,
}


def stack_in(folder, **options):
    settings = Settings(session_timeout_ms=4000, idle_flush_ms=200)
    return Stack(settings, folder / "line", free_ports=True, say=lambda _: None, **options)


def use(stack, folder, events=3):
    """Apply an account and emit events of 150 tokens, as a gateway would."""
    asyncio.run(apply_accounts(stack.settings, [ACCOUNT]))
    asyncio.run(emit(stack, folder, events))


async def emit(stack, folder, events):
    from tokenline.platform.kafka_config import as_role

    gateway = as_role(stack.settings, "gateway")
    async with Emitter(gateway, source="s", gateway_id="g", outbox_dir=folder / "box") as emitter:
        for _ in range(events):
            event = UsageEvent(
                account_id="a", provider="p", model="m", input_tokens=100, output_tokens=50
            )
            await emitter.emit(event)


def told(*words):
    done = CliRunner().invoke(cli.app, [*words])
    return done.exit_code, done.stdout


def proof(stack):
    code, out = told("reconcile", "--json", "--data", str(stack.data_dir))
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True), report
    return report


@pytest.mark.timeout(280)
def test_a_kafka_made_again_is_told_at_once_and_may_begin_a_new_line_beside_the_old_books(tmp_path):
    """It said healthy with lag 0, and the next thousands of records of each partition never landed."""
    with stack_in(tmp_path) as stack:
        use(stack, tmp_path)
        first = proof(stack)
        assert told("status", "--data", str(stack.data_dir))[0] == 0
    shutil.rmtree(stack.data_dir / "kafka")

    began_s = time.monotonic()
    with pytest.raises(TokenlineError) as caught:
        stack_in(tmp_path).start()
    assert time.monotonic() - began_s < 60
    for text in (first["line_id"], "database tokenline", "--new-line"):
        assert text in str(caught.value)

    with stack_in(tmp_path, new_line=True) as stack:
        use(stack, tmp_path, events=2)
        second = proof(stack)
    (old,) = second["earlier"]
    assert (old["line_id"], old["database"]) == (first["line_id"], "tokenline")
    assert (old["ledger"], old["tokens"]) == (3, 450)
    assert (second["totals"]["ledger"], second["totals"]["tokens"]) == (2, 300)
    assert second["line_id"] != first["line_id"]

    with stack_in(tmp_path) as stack:
        assert stack.settings.clickhouse_database == f"tokenline_{second['line_id'][:8]}"
        assert proof(stack)["totals"]["ledger"] == 2


@pytest.mark.timeout(200)
def test_a_warehouse_made_again_under_the_same_kafka_gets_all_that_kafka_still_has(tmp_path):
    with stack_in(tmp_path) as stack:
        use(stack, tmp_path)
        first = proof(stack)
    shutil.rmtree(stack.data_dir / "warehouse")
    with stack_in(tmp_path) as stack:
        asyncio.run(emit(stack, tmp_path, 1))
        again = proof(stack)
    assert again["line_id"] == first["line_id"]
    assert (again["totals"]["ledger"], again["totals"]["tokens"]) == (4, 600)
