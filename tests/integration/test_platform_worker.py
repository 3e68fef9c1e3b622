"""The real workers as processes: how they start, and how they end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokenline.platform.environment import worker_environment
from tokenline.platform.prepare import prepare
from tokenline.platform.processes import free_port
from tokenline.platform.worker_process import WorkerProcess, ask_health
from tokenline.settings import Settings

PROGRAM = (sys.executable, "-m", "tokenline.platform.worker")


def test_workers_become_ready_and_end_with_code_0_when_told_to(settings, tmp_path):
    said = []
    prepare(settings, said.append)
    prepare(settings, said.append)
    assert len(said) == 1, "what is prepared is not prepared again"
    workers = [
        WorkerProcess(role, settings, tmp_path / f"{role}.log", port=free_port())
        for role in ("charging", "landing")
    ]
    for worker in workers:
        worker.spawn()
    try:
        for worker in workers:
            worker.await_ready(60)
            assert ask_health(worker.port, "/healthz")[0] == 200
    finally:
        for worker in workers:
            worker.stop()
    assert [worker.process.returncode for worker in workers] == [0, 0]


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"TOKENLINE_PARTITIONS": "many"}, 2, "TOKENLINE_PARTITIONS"),
        ({"TOKENLINE_NO_SUCH": "1"}, 2, "TOKENLINE_NO_SUCH is not a setting"),
    ],
)
def test_a_wrong_setting_is_named_and_refused(change, code, text):
    ended = subprocess.run(
        [*PROGRAM, "charging"],
        env=worker_environment("charging", Settings()) | change,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [*PROGRAM, "charging"],
        env=worker_environment("charging", Settings(data_dir=tmp_path / "file" / "data")),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "TOKENLINE_DATA_DIR" in ended.stderr


def test_without_the_worker_extra_it_says_what_to_install(tmp_path):
    (tmp_path / "faust.py").write_text("raise ModuleNotFoundError('no', name='faust')")
    plain = worker_environment("landing", Settings())
    ended = subprocess.run(
        [*PROGRAM, "landing"],
        env=plain | {"PYTHONPATH": f"{tmp_path}:{plain['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "tokenline[worker]" in ended.stderr
