"""A disk that fills up ends nothing for good: with room again all goes on, and the books are exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = str(Path(__file__).with_name("full_disk.py"))
OWN_MOUNTS = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def may_mount():
    """Say whether this user may have a small disk of its own."""
    probe = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_disk_is_survived_told_and_leaves_the_books_exact(tmp_path):
    """Landing died of the log line that told of it, and the engine answered "done" and wrote nothing."""
    how = [*OWN_MOUNTS, sys.executable, PROGRAM, str(tmp_path), "mount"]
    if not may_mount():
        how = [sys.executable, PROGRAM, str(tmp_path), "limit"]
    ended = subprocess.run(how, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["during"]["kafka"] != "ready"
    assert any(line.startswith("cannot write") for line in found["said"])
    assert found["back"], found
    assert found["ok"], found
    assert found["report"]["totals"]["records_in_kafka"] > 100
    assert "died" not in found["after"]["charging"] + found["after"]["landing"]
