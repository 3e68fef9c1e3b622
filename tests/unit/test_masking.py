from __future__ import annotations

import json

import pytest
import structlog

from tokenline.errors import SettingsError
from tokenline.masking import mask_event, mask_logs, printable, without_secrets
from tokenline.settings import Settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host:8123/x",
        f"https://user:{SECRET}@a@host",
        f"https://user:a/{SECRET}@host/x?y=1",
        f"https://{SECRET}@host",
        f"http://host:1/?user=a&password={SECRET}&x=1",
        f"http://host/?access_token={SECRET}",
        f"http://host/?sslPassword={SECRET};x",
        f"connecting to 'kafka://u:{SECRET}@b:1': refused",
    ],
)
def test_no_secret_of_an_address_is_shown(text):
    shown = without_secrets(text)
    assert SECRET not in shown
    assert "***" in shown
    assert "host" in shown or "refused" in shown


@pytest.mark.parametrize("text", ["http://host:1/x?y=1", "no address, a@b", "", "tokens=5"])
def test_what_holds_no_secret_stays_as_it_is(text):
    assert without_secrets(text) == text


def test_settings_show_no_secret_whichever_way_they_are_shown():
    settings = Settings(
        kafka_security="SASL_SSL",
        kafka_username="u",
        kafka_password=SECRET,
        clickhouse_password=SECRET,
        schema_registry_password=SECRET,
        clickhouse_url=f"http://u:{SECRET}@h:1",
        schema_registry_url=f"http://h/?password={SECRET}",
    )
    assert SECRET not in json.dumps(settings.shown())
    assert SECRET not in repr(settings) + str(settings)
    assert settings.shown()["clickhouse_url"] == "http://***@h:1"
    assert Settings().shown()["kafka_password"] == ""


def test_each_setting_that_sounds_like_a_secret_is_one():
    told = ("password", "secret", "credential", "passphrase")
    sounds = {name for name in Settings.model_fields if any(word in name for word in told)}
    secrets = {name for name in sounds if not name.endswith("_file")}
    assert {name for name in secrets if Settings.model_fields[name].repr} == set()


def test_a_refused_setting_shows_no_secret():
    given = {"TOKENLINE_PARTITIONS": "many", "TOKENLINE_KAFKA_PASSWORD": SECRET}
    with pytest.raises(SettingsError, match="PARTITIONS='many'") as caught:
        Settings.from_env(given)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_workers_logs_are_masked(capsys):
    before = structlog.get_config()["processors"]
    try:
        mask_logs()
        mask_logs()
        assert structlog.get_config()["processors"].count(mask_event) == 1
        structlog.get_logger("x").warning("away", error=f"http://u:{SECRET}@h is away")
    finally:
        structlog.configure(processors=before)
    shown = capsys.readouterr().out
    assert "***@h is away" in shown
    assert SECRET not in shown


def test_a_log_event_is_masked():
    event = {"event": f"away: http://u:{SECRET}@h", "n": 5}
    assert mask_event(None, "info", event) == {"event": "away: http://***@h", "n": 5}


def test_what_a_stranger_sent_is_one_line_without_control_characters():
    shown = printable("400, \x1b[31mred\x1b]0;title\x07\r\n\u202e\u200b" + "x" * 500, 100)
    assert shown.isprintable()
    assert "\\x1b[31mred" in shown
    assert "\\u202e" in shown
    assert len(shown) < 150
    assert printable("词元 ok") == "词元 ok"
