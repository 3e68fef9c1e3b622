"""The demo and the proof by kill -9 end with balanced books."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tokenline.platform.processes import wait_for

TOKENLINE = Path(sys.executable).parent / "tokenline"
KEYS = {
    "emitted", "ledger", "duplicates", "dead_letters", "late", "cut_offs", "resumed", "tokens",
    "decision_latency_ms", "overshoot_tokens", "conservation", "stories",
}  # fmt: skip


def run(*arguments, timeout):
    return subprocess.run(
        [TOKENLINE, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ,
    )


@pytest.mark.timeout(240)
def test_the_demo_balances_its_books(tmp_path):
    file = tmp_path / "demo.json"

    done = run(
        "demo",
        "--seconds",
        "16",
        "--rate",
        "120",
        "--accounts",
        "60",
        "--json",
        str(file),
        timeout=200,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(file.read_text())
    assert set(result) >= KEYS
    assert result["conservation"] is True
    assert result["emitted"] == result["ledger"] + result["duplicates"] + result["dead_letters"]
    assert result["emitted"] > 500
    assert result["cut_offs"] > 0
    assert result["tokens"] > 0
    stories = {story["plan"]: story for story in result["stories"]}
    assert set(stories) == {"agent", "person", "developer", "family"}
    for story in stories.values():
        assert story["cut"]
        assert story["topped_up"]
        assert story["resumed"]
    assert stories["agent"]["overshoot_tokens"] == 0


@pytest.mark.timeout(280)
def test_kill_9_of_each_part_under_load_loses_nothing(tmp_path):
    """A worker of each kind, a gateway, the warehouse and the broker die while gateways send."""
    file = tmp_path / "prove.json"

    done = run(
        "prove", "--rounds", "7", "--pause", "2", "--rate", "80", "--json", str(file), timeout=260
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(file.read_text())
    assert result["conservation"] is True
    assert len(result["kills"]) == 7
    assert result["totals"]["ledger"] > 200
    assert result["totals"]["charged_utok"] > 0
    orders = result["orders"]
    assert orders["orders"] == 7 * 5
    assert orders["answered_otherwise"] == 0
    assert orders["granted_tokens"] == orders["paid_tokens"] > 0
    assert orders["overshoot_tokens"]["story-agent"] == 0
    assert orders["held_tokens"] == 0
    assert result["proven"] is True


@pytest.mark.timeout(120)
def test_a_proof_that_is_told_to_end_leaves_nothing_behind(tmp_path):
    mark = str(tmp_path)  # servers get a plain environment; where temporary files go is part of it
    with subprocess.Popen(
        [TOKENLINE, "prove"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": mark},
    ) as proof:
        assert wait_for(
            lambda: "tokenline.demo.gateway" in words(mark) or proof.poll(), timeout_s=60
        )
        proof.terminate()
        told = proof.communicate(timeout=60)[1]
    assert told.strip() == "tokenline: stopped"
    assert proof.returncode == 130
    assert wait_for(lambda: not words(mark), timeout_s=10)
    assert list(tmp_path.iterdir()) == []


def words(mark):
    """Return the words of all commands that run with the mark in their environment."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ().values():
                found.update(process.cmdline())
    return found
