"""`tokenline status --secrets` says how people log in at the servers of a stack."""

from __future__ import annotations

import json

import pytest

from tests.paper_orders import run_command
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.secrets import FILE, make_secrets
from tokenline.platform.stack_file import StackFile, find_stack
from tokenline.wire.rights import ROLES


@pytest.fixture
def passwords(tmp_path):
    make_secrets(tmp_path, "kafka", ROLES)
    return make_secrets(tmp_path, "warehouse", Role)


def test_it_shows_each_user_with_its_password(capsys, tmp_path, passwords):
    code, out, _ = run_command(capsys, "status", "--secrets", "--json", "--data", str(tmp_path))
    assert code == 0
    said = json.loads(out)
    assert said["gateway"] == {}, "nothing runs there"
    shown = {one["user"]: one["password"] for one in said["users"] if one["server"] == "warehouse"}
    assert shown == passwords
    code, out, _ = run_command(capsys, "status", "--secrets", "--data", str(tmp_path))
    assert code == 0
    assert all(password in out for password in passwords.values())


def test_a_folder_without_a_stack_is_one_line(capsys, tmp_path):
    code, out, (said,) = run_command(capsys, "status", "--secrets", "--data", str(tmp_path))
    assert (code, out) == (1, "")
    assert "no stack was ever started" in said


def test_a_file_that_others_can_read_is_refused(capsys, tmp_path, passwords):
    (tmp_path / FILE).chmod(0o644)
    code, out, (said,) = run_command(capsys, "status", "--secrets", "--data", str(tmp_path))
    assert (code, out) == (1, "")
    assert "chmod 600" in said


def test_a_command_gets_the_least_role_unless_it_says_more(tmp_path, passwords):
    StackFile((), {"TOKENLINE_CLICKHOUSE_USERNAME": "writer"}).write(tmp_path)
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0
    with processes.hold(tmp_path, "stack"):
        for role in Role:
            found = find_stack(tmp_path, warehouse=role)
            assert (found.clickhouse_username, found.clickhouse_password) == (role, passwords[role])
        found = find_stack(tmp_path)
        assert (found.clickhouse_username, found.kafka_username) == ("reader", "operator")
