"""The catalog commands say before anybody is charged what a version means for who is on its plans."""

from __future__ import annotations

import tomllib

import pytest

from tests.paper_orders import run_command
from tests.unit.test_offers_in_force import CATALOG
from tokenline.cli import catalog as command
from tokenline.rating.catalog import Catalog

TEXT = """
version = 2
effective_from = 2031-01-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"
[[rates]]
provider = "p"
model = "max"
input_tokens = 1
output_tokens = 2
[plans.plain]
title = "What a plan is that says no more than it must"
fee = "1"
tokens = 100
mode = "postpaid"
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_newest", lambda _: CATALOG)
    monkeypatch.setattr(command, "line_settings", lambda _: None)
    file = tmp_path / "catalog.toml"
    file.write_text(TEXT)
    return file


def test_a_plan_that_is_sold_no_more_is_named_before_the_version_is_published(capsys, file):
    code, _, said = run_command(capsys, "catalog", "apply", str(file), "--dry-run")
    assert code == 0
    named = [line for line in " ".join(said).split("plans.") if "sold no more" in line]
    assert [line.split()[0] for line in named] == ["endless", "special"]
    assert "keep their terms, allowance included" in named[0]


def test_a_version_with_all_plans_warns_of_none(capsys, file, monkeypatch):
    same = Catalog.model_validate(tomllib.loads(TEXT.replace("version = 2", "version = 1")))
    monkeypatch.setattr(command, "_newest", lambda _: same)
    code, _, said = run_command(capsys, "catalog", "apply", str(file), "--dry-run")
    assert (code, said) == (0, [])


PRICES = """
version = {}
effective_from = 2026-11-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"
[[rates]]
provider = "p"
model = "m"
input_tokens = 1
output_tokens = 2
"""
MORE = """
other_units = { web_search_count = "500" }
applies_from = 2026-10-01T00:00:00+08:00
"""


def test_other_units_and_the_past_are_shown_where_there_are_any(tmp_path, capsys):
    plain, more = tmp_path / "plain.toml", tmp_path / "more.toml"
    plain.write_text(PRICES.format(1))
    more.write_text(PRICES.format(2) + MORE)

    code, out, _ = run_command(capsys, "catalog", "check", str(plain))
    assert (code, "other units" in out, "applies from" in out) == (0, False, False)
    code, out, _ = run_command(capsys, "catalog", "check", str(more))
    assert code == 0
    assert "web_search_count 500" in out
    assert "2026-10-01T00:00+08:00" in out

    code, out, _ = run_command(capsys, "catalog", "diff", str(plain), str(more))
    assert code == 0
    assert "rates p/m: a web_search_count none -> 500" in out
    assert "rates p/m: applies_from none -> 2026-10-01T00:00+08:00" in out


def test_a_rate_that_would_apply_from_after_its_version_is_refused_in_one_line(tmp_path, capsys):
    file = tmp_path / "late.toml"
    file.write_text(PRICES.format(1) + "applies_from = 2026-12-01T00:00:00+08:00\n")

    code, _, err = run_command(capsys, "catalog", "check", str(file))
    assert code != 0
    assert len(err) == 1
    assert "p/m: applies_from is not before effective_from" in err[0]
