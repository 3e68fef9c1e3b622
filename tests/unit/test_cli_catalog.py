"""The catalog commands say before anybody is charged what a version means for who is on its plans."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime

import pytest

from tests.paper_orders import run_command
from tests.unit.test_offers_in_force import CATALOG
from tokenline.cli import catalog as command
from tokenline.clock import FrozenClock, SystemClock
from tokenline.errors import BadData
from tokenline.rating.book import CatalogBook
from tokenline.rating.catalog import Catalog
from tokenline.rating.succession import check_succession, renewed

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
    monkeypatch.setattr(command, "_published", lambda _: [CATALOG])
    monkeypatch.setattr(command, "line_settings", lambda _: None)
    at = datetime(2030, 12, 1, tzinfo=UTC)
    monkeypatch.setattr(
        "tokenline.clock.SystemClock", lambda: FrozenClock(int(at.timestamp()) * 1000)
    )
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
    monkeypatch.setattr(command, "_published", lambda _: [same])
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


DAY_MS = 86_400_000


@pytest.fixture
def published(monkeypatch):
    """Return what is published; what `withdraw` publishes is added."""
    now_ms = SystemClock().wall_ms() // 60_000 * 60_000
    known = [
        renewed(CATALOG, at, now_ms + days * DAY_MS)
        for at, days in ((1, -2), (2, -1), (3, 100), (4, 200))
    ]
    monkeypatch.setattr(command, "line_settings", lambda _: None)
    monkeypatch.setattr(command, "_published", lambda _: known)
    monkeypatch.setattr(command, "_publish", lambda _, catalog: known.append(catalog))
    return known


def test_a_version_that_is_not_in_force_is_withdrawn_by_one_like_that_in_force(capsys, published):
    code, out, _ = run_command(capsys, "catalog", "withdraw", "3")
    assert code == 0
    assert "version 5 has the terms of version 2; version 3 is withdrawn" in out
    last = published[-1]
    book = CatalogBook()
    for one in published:
        book.add(one)
    assert [one.version for one in book.versions] == [1, 2, 5]
    assert last.rates == published[1].rates
    assert last.effective_ms - SystemClock().wall_ms() < 700_000


@pytest.mark.parametrize(
    ("version", "why"), [("2", "is in force"), ("9", "no catalog version 9 was published")]
)
def test_what_cannot_be_withdrawn_is_named(capsys, published, version, why):
    code, _, err = run_command(capsys, "catalog", "withdraw", version)
    assert (code != 0, len(err)) == (True, 1)
    assert why in err[0]
    assert len(published) == 4


def test_the_first_version_may_begin_at_any_time_and_leaves_room_for_others():
    check_succession([], CATALOG, CATALOG.effective_ms + DAY_MS, 60_000)
    last = renewed(CATALOG, 2**31 - 1, CATALOG.effective_ms)
    with pytest.raises(BadData, match="leaves no room"):
        check_succession([], last, CATALOG.effective_ms, 60_000)
    far = renewed(CATALOG, 1, CATALOG.effective_ms + 401 * DAY_MS)
    with pytest.raises(BadData, match="more than 400 days ahead"):
        check_succession([], far, CATALOG.effective_ms, 60_000)


def test_charging_lets_nobody_withdraw_what_is_in_force():
    known = [renewed(CATALOG, at, at * DAY_MS) for at in (1, 5)]
    late = renewed(CATALOG, 6, 2 * DAY_MS)
    check_succession(known, late, 2 * DAY_MS - 1)
    with pytest.raises(BadData, match="is not 0 s ahead"):
        check_succession(known, late, 2 * DAY_MS)
