"""A catalog's file says on paper what it prices, in the past too."""

from __future__ import annotations

from tests.paper_orders import run_command

HEAD = """
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
    plain.write_text(HEAD.format(1))
    more.write_text(HEAD.format(2) + MORE)

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
    file.write_text(HEAD.format(1) + "applies_from = 2026-12-01T00:00:00+08:00\n")

    code, _, err = run_command(capsys, "catalog", "check", str(file))
    assert code != 0
    assert len(err) == 1
    assert "p/m: applies_from is not before effective_from" in err[0]
