"""What a new catalog changes is said in a line each, and the command says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenline.cli.catalog import app
from tokenline.clock import FrozenClock
from tokenline.errors import BadData
from tokenline.rating.catalog import read_catalog
from tokenline.rating.diff import diff

SAMPLE = Path(__file__).parents[2] / "schemas" / "catalog.toml"
TEXT = SAMPLE.read_text(encoding="utf-8")
NEXT = TEXT.replace("version = 1\n", "version = 2\n")


def changed(folder, *replacements, text=NEXT):
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    file = folder / "next.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("version = 2", "version = 5", ["catalog: version 1 -> 5"]),
        (
            "2026-06-01T00:00:00+08:00",
            "2026-06-01T10:00:00Z",
            ["catalog: effective_from 2026-06-01T00:00+08:00 -> 2026-06-01T18:00+08:00"],
        ),
        ('fee = "29.9"', "fee = 31", ["plans.personal-40m: fee 29.9 yuan -> 31 yuan"]),
        (
            'overage_price = "2.66"',
            'overage_price = "2.5"',
            ["plans.developer-15m: overage_price 2.66 yuan -> 2.5 yuan"],
        ),
        (
            "subscriber_tokens = 30_000_000",
            "",
            ["plans.family-80m: subscriber_tokens 30,000,000 -> none"],
        ),
        (
            'limits = [{ requests = 600, per = "minute" }]',
            'limits = [{ requests = 9, per = "hour", rolling = true, group = "flagship" }]',
            [
                (
                    "plans.developer-15m: limits 600 requests a minute of account -> "
                    "9 requests a rolling hour of account for flagship"
                )
            ],
        ),
        ("transferable = true", "", ["packs.mobile-400k: transferable true -> false"]),
        (
            "output_tokens = 4\n",
            'output_tokens = 4\nreasoning_tokens = "4.5"\n',
            ["rates telecom/GLM-5: reasoning_tokens 4 -> 4.5"],
        ),
        (
            'to = "08:00", multiply = "0.5"',
            'to = "08:00", multiply = "0.25"',
            ["rates telecom/GLM-5: hours 23:00 to 08:00 times 1/2 -> times 1/4"],
        ),
        (
            'telecom = ["telecom/*"]',
            'telecom = ["telecom/*", "qwen/*"]',
            ["groups.telecom: models telecom/* -> qwen/*, telecom/*"],
        ),
    ],
)
def test_a_change_is_one_line(tmp_path, old, new, lines):
    found = diff(read_catalog(SAMPLE), read_catalog(changed(tmp_path, (old, new))))
    expected = lines if old == "version = 2" else ["catalog: version 1 -> 2", *lines]
    assert [str(change) for change in found] == expected


def test_what_comes_and_goes_is_named_as_a_whole(tmp_path):
    file = changed(
        tmp_path,
        ("[plans.personal-10m]", "[plans.personal-11m]"),
        ('model = "TeleChat"', 'model = "TeleChat-2"'),
    )
    lines = [str(change) for change in diff(read_catalog(SAMPLE), read_catalog(file))]
    assert lines[1].startswith("rates telecom/TeleChat-2: added: input_tokens 0.5, cache_read")
    assert lines[2].startswith(
        "plans.personal-11m: added: title Personal, 10 million tokens, fee 9.9 yuan"
    )
    assert lines[3:] == ["rates telecom/TeleChat: removed", "plans.personal-10m: removed"]


def test_the_default_rate_is_a_thing_of_its_own(tmp_path):
    default = "[default_rate]\ninput_tokens = 9\noutput_tokens = 9\n[groups]"
    unknown = ('unknown_model = "reject"', 'unknown_model = "default"')
    file = changed(tmp_path, unknown, ("[groups]", default))
    lines = [str(change) for change in diff(read_catalog(SAMPLE), read_catalog(file))]
    assert lines[1] == "catalog: unknown_model reject -> default"
    assert lines[2].startswith("default_rate: added: input_tokens 9, ")


def test_without_an_old_catalog_all_is_added_and_the_same_changes_nothing():
    sample = read_catalog(SAMPLE)
    assert diff(sample, sample) == []
    lines = [str(change) for change in diff(None, sample)]
    assert all(": added: " in line for line in lines)
    assert len(lines) == 1 + 5 + 2 + len(sample.plans) + len(sample.packs)


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done


def test_check_shows_what_a_file_says(tmp_path):
    shown = run("check", SAMPLE).stdout
    assert "catalog version 1, in force from 2026-06-01 00:00 +0800 (Asia/Shanghai)" in shown
    assert "telecom/GLM-5" in shown
    assert "family-80m" in shown
    default = "[default_rate]\ninput_tokens = 9\noutput_tokens = 9\n[groups]"
    unknown = ('unknown_model = "reject"', 'unknown_model = "default"')
    assert "any other" in run("check", changed(tmp_path, unknown, ("[groups]", default))).stdout


def test_check_tells_programs_in_json():
    said = json.loads(run("check", SAMPLE, "--json").stdout)
    assert said["version"] == 1
    assert said["digest"] == read_catalog(SAMPLE).digest
    assert said["plans"]["personal-10m"]["fee_nano"] == 9_900_000_000
    assert said["packs"]["mobile-400k"]["tokens"] == 400_000


def test_check_refuses_a_wrong_file(tmp_path):
    file = changed(tmp_path, ("output_tokens = 4", "output_tokens = 4.5"))
    assert "rates.1 (telecom/GLM-5): output_tokens" in str(run("check", file, code=1).exception)


def test_diff_shows_each_change_and_whether_it_may_follow(tmp_path):
    file = changed(tmp_path, ('fee = "29.9"', "fee = 31"))
    assert run("diff", SAMPLE, file).stdout.splitlines()[1] == (
        "plans.personal-40m: fee 29.9 yuan -> 31 yuan"
    )
    assert json.loads(run("diff", SAMPLE, file, "--json").stdout)[1] == {
        "place": "plans.personal-40m",
        "field": "fee",
        "old": "29.9 yuan",
        "new": "31 yuan",
    }
    assert run("diff", SAMPLE, SAMPLE).stdout == "nothing changes\n"
    forgotten = changed(tmp_path, ('fee = "29.9"', "fee = 31"), text=TEXT)
    refused = run("diff", SAMPLE, forgotten, code=1)
    assert isinstance(refused.exception, BadData)
    assert "29.9 yuan -> 31 yuan" in refused.stdout


@pytest.mark.parametrize("command", ["check", "diff"])
def test_help_has_an_example(command):
    assert "Example: tokenline catalog" in run(command, "--help").stdout


@pytest.mark.parametrize(("early_ms", "says"), [(0, "is not 660 s ahead"), (1, "")])
def test_a_version_is_published_ahead_of_any_call_that_the_one_before_may_price(
    tmp_path, monkeypatch, early_ms, says
):
    """A strict call is held at the dearest price known while it may last."""
    before, file = read_catalog(SAMPLE), changed(tmp_path)
    assert max(plan.priced_ahead_s for plan in before.plans.values()) == 600
    at_ms = read_catalog(file).effective_ms - 660_000 - early_ms
    monkeypatch.setattr("tokenline.cli.catalog._published", lambda _: [before])
    monkeypatch.setattr("tokenline.clock.SystemClock", lambda: FrozenClock(at_ms))
    done = CliRunner().invoke(app, ["apply", str(file), "--dry-run"])
    assert isinstance(done.exception, BadData) is bool(says)
    assert says in str(done.exception)
    if says:
        after = read_catalog(file)
        first = after.moment_text(after.effective_ms + 60_000)
        assert f"it may begin from {first} on" in str(done.exception)
