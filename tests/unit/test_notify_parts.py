"""What a webhook says, how it is signed and verified, when it is tried again, and who is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokenline import cli
from tokenline.errors import InvalidSignature, SettingsError
from tokenline.notify import Secret, sign, verify
from tokenline.notify.backoff import RETRY_AFTER_MAX_MS, Answer, answer_of, retry_after_ms, wait_ms
from tokenline.notify.endpoints import read_webhooks
from tokenline.notify.notification import Kind, notification_of
from tokenline.quota.terms import LAST_DATE_MS

# The vector with which the specification's own libraries are tested.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE, AT_S, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes here!").decode()
NOW_MS = 1_790_000_000_000


def decision(**fields):
    return {
        "tenant_id": "default",
        "account_id": "acme",
        "subscriber_id": "",
        "state": "cut",
        "rule": "balance",
        "reason": "limit_reached",
        "threshold_percent": 100,
        "used": 15_000_000_000_001,
        "limit": 15_000_000_000_000,
        "window_start": NOW_MS,
        "resets_at": 0,
        "version": 7,
        "epoch": 3,
        "as_of": NOW_MS + 1,
        "model_group": "",
        "models": [],
        "unit": "utok",
        "overage_utok": 0,
        "written_off_utok": 0,
        "covers": [],
        "cause_topic": "usage",
        "cause_partition": 0,
        "cause_offset": 9,
    } | fields


def test_the_published_vector_is_signed_and_verified():
    headers = sign([Secret(SECRET)], MESSAGE, AT_S, BODY)
    assert headers == {
        "webhook-id": MESSAGE,
        "webhook-timestamp": str(AT_S),
        "webhook-signature": SIGNATURE,
    }
    assert verify(SECRET, headers, BODY, AT_S) == MESSAGE


@given(body=st.binary(max_size=200), at_s=st.integers(0, 10**11))
def test_a_signature_is_the_hmac_of_id_time_and_body(body, at_s):
    signed = sign([Secret(OTHER)], "msg_1", at_s, body)["webhook-signature"]
    key = base64.b64decode(OTHER.removeprefix("whsec_"))
    mac = hmac.new(key, b"msg_1.%d.%s" % (at_s, body), hashlib.sha256).digest()
    assert signed == "v1," + base64.b64encode(mac).decode()


def test_while_a_secret_is_replaced_both_sign_and_either_fits():
    headers = sign([Secret(OTHER), Secret(SECRET)], MESSAGE, AT_S, BODY)
    assert headers["webhook-signature"].split(" ")[1] == SIGNATURE
    for known in (SECRET, OTHER, [SECRET, OTHER]):
        assert verify(known, headers, BODY, AT_S) == MESSAGE


@pytest.mark.parametrize(
    ("change", "body", "now_s", "says"),
    [
        ({"webhook-id": "msg_2"}, BODY, AT_S, "no signature"),
        ({"webhook-timestamp": str(AT_S + 1)}, BODY, AT_S, "no signature"),
        ({}, BODY + b" ", AT_S, "no signature"),
        ({"webhook-signature": SIGNATURE.replace("v1", "v1a")}, BODY, AT_S, "no signature"),
        ({"webhook-signature": "v1,ü \udcff"}, BODY, AT_S, "no signature"),
        ({"webhook-id": "\udcff"}, BODY, AT_S, "no signature"),
        ({}, BODY, AT_S + 301, "300 s"),
        ({}, BODY, AT_S - 301, "300 s"),
        ({"webhook-timestamp": "-1"}, BODY, AT_S, "whole number"),
        ({"webhook-timestamp": "9" * 5000}, BODY, AT_S, "whole number"),
    ],
)
def test_what_is_not_authentic_or_not_fresh_is_refused(change, body, now_s, says):
    headers = sign([Secret(SECRET)], MESSAGE, AT_S, BODY) | change
    with pytest.raises(InvalidSignature, match=says):
        verify(SECRET, headers, body, now_s)


def test_a_missing_header_is_named_and_their_case_does_not_matter():
    headers = sign([Secret(SECRET)], MESSAGE, AT_S, BODY)
    assert verify(SECRET, {name.title(): one for name, one in headers.items()}, BODY, AT_S)
    del headers["webhook-id"]
    with pytest.raises(InvalidSignature, match="webhook-id"):
        verify(SECRET, headers, BODY, AT_S)


@pytest.mark.parametrize(
    "text", ["", "whsec_", SECRET[6:], "whsec_c2hvcnQ=", "whsec_!!", SECRET + "A"]
)
def test_a_malformed_secret_is_refused_and_not_shown(text):
    with pytest.raises(SettingsError) as refused:
        Secret(text)
    assert len(text) < 10 or text not in str(refused.value)
    assert SECRET[8:] not in repr(Secret(SECRET))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, Kind.CUT),
        ({"state": "warned", "reason": "threshold_reached", "threshold_percent": 80}, Kind.THRESHOLD),
        ({"state": "warned", "reason": "account_set", "threshold_percent": 80}, Kind.THRESHOLD),
        ({"state": "open", "reason": "resumed", "threshold_percent": 0}, Kind.RESUMED),
        ({"state": "warned", "reason": "resumed", "threshold_percent": 0}, Kind.RESUMED),
        ({"reason": "account_set", "threshold_percent": 0}, None),
        ({"reason": "covers_changed", "threshold_percent": 0}, None),
        ({"state": "open", "reason": "covers_changed", "threshold_percent": 0}, None),
        ({"state": "open", "reason": "window_reset", "threshold_percent": 0}, None),
        ({"state": "warned", "reason": "threshold_reached", "threshold_percent": 0}, None),
    ],
)  # fmt: skip
def test_what_is_worth_telling(fields, kind):
    found = notification_of(decision(**fields))
    assert (found and found.kind) == kind


def test_the_body_has_whole_numbers_and_times_in_utc():
    said = json.loads(notification_of(decision()).body)
    assert said["type"] == "account.cut"
    assert said["timestamp"] == "2026-09-21T14:13:20.001Z"
    data = said["data"]
    assert (data["used"], data["limit"]) == (15_000_000_000_001, 15_000_000_000_000)
    assert (data["unit"], data["overage_utok"], data["written_off_utok"]) == ("utok", 0, 0)
    assert (data["window_start"], data["resets_at"]) == ("2026-09-21T14:13:20.000Z", None)


@given(moment_ms=st.integers(-(1 << 63), (1 << 63) - 1))
@example(moment_ms=LAST_DATE_MS)
@example(moment_ms=LAST_DATE_MS + 1)
def test_a_moment_beyond_the_calendar_is_told_as_one_within(moment_ms):
    said = json.loads(notification_of(decision(resets_at=moment_ms or 1, as_of=moment_ms)).body)
    assert datetime.fromisoformat(said["timestamp"]).tzinfo == UTC
    if moment_ms >= LAST_DATE_MS:
        assert said["data"]["resets_at"] == "9999-12-31T23:59:59.999Z"


def test_a_decision_has_one_id_for_ever_and_no_other_has_it():
    one = notification_of(decision())
    named = hashlib.sha256(b'["default", "acme", "", 3, 7]').hexdigest()
    assert one.message_id == f"msg_{named[:40]}"
    assert notification_of(decision(used=1, as_of=5)).message_id == one.message_id
    others = [
        decision(version=8),
        decision(epoch=4),
        decision(account_id="acme2"),
        decision(tenant_id="north"),
        decision(subscriber_id="ann"),
    ]
    ids = {notification_of(other).message_id for other in others} | {one.message_id}
    assert len(ids) == 6
    assert all("." not in name for name in ids), "a dot would blur what is signed"


def test_the_wait_doubles_up_to_a_bound_and_differs_by_message():
    waits = [wait_ms(attempt, "msg_1", 1000, 60_000) for attempt in range(1, 200)]
    for attempt, wait in enumerate(waits, 1):
        whole = min(1000 * 2 ** (attempt - 1), 60_000)
        assert whole * 3 // 4 <= wait <= whole
    assert waits == [wait_ms(attempt, "msg_1", 1000, 60_000) for attempt in range(1, 200)]
    assert len({wait_ms(10, f"msg_{n}", 1000, 60_000) for n in range(50)}) > 40


def test_what_an_answer_means():
    means = {200: "DELIVERED", 204: "DELIVERED", 299: "DELIVERED", 410: "GONE"}
    means |= dict.fromkeys((0, 100, 301, 304, 400, 404, 408, 429, 500, 503), "RETRY")
    assert {code: answer_of(code) for code in means} == {c: Answer[m] for c, m in means.items()}


def test_a_receiver_may_ask_for_patience_of_an_hour_at_most():
    assert retry_after_ms("7", NOW_MS) == 7000
    later = datetime.fromtimestamp(NOW_MS // 1000 + 90, UTC)
    assert retry_after_ms(format_datetime(later, usegmt=True), NOW_MS) == 90_000
    assert retry_after_ms("Mon, 21 Sep 2020 00:00:00 GMT", NOW_MS) == 0
    for absurd in ("999999999999999999", "Fri, 31 Dec 2999 00:00:00 GMT"):
        assert retry_after_ms(absurd, NOW_MS) == RETRY_AFTER_MAX_MS
    for nonsense in ("", "soon", "-5", "1.5", "²", "Mon, 01 Jan 2024 00:00:00 +" + "9" * 17):
        assert retry_after_ms(nonsense, NOW_MS) == 0


def write(tmp_path, **fields):
    said = {"name": '"crm"', "url": '"https://x.example/h"', "secret_env": '["CRM"]'} | fields
    file = tmp_path / "webhooks.toml"
    lines = [f"{name} = {value}" for name, value in said.items() if value]
    file.write_text("[[endpoints]]\n" + "\n".join(lines))
    return file


def test_endpoints_are_read_with_secrets_that_nothing_shows(tmp_path):
    (tmp_path / "new.key").write_text(OTHER + "\n")
    file = write(tmp_path, secret_file='["new.key"]', kinds='["cut"]', tenants='["north"]')
    [(endpoint, secrets)] = read_webhooks(file, {"CRM": SECRET})
    assert [one.key for one in secrets] == [Secret(SECRET).key, Secret(OTHER).key]
    assert SECRET not in repr((endpoint, secrets))
    assert endpoint.wants(notification_of(decision(tenant_id="north")))
    assert not endpoint.wants(notification_of(decision()))
    opened = decision(tenant_id="north", state="open", reason="resumed", threshold_percent=0)
    assert not endpoint.wants(notification_of(opened))


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:8080"])
def test_this_machine_may_be_told_without_tls(tmp_path, host):
    assert read_webhooks(write(tmp_path, url=f'"http://{host}/h"'), {"CRM": SECRET})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"url": '"http://x.example/h"'}, "this machine"),
        ({"url": '"http://127.0.0.1.evil.example/"'}, "this machine"),
        ({"url": '"ftp://x.example/h"'}, "https://"),
        ({"url": '"https:///h"'}, "https://"),
        ({"url": '"https://x.example:99999/"'}, "https://"),
        ({"url": '"https://me:hush@x.example/"'}, "password"),
        ({"kinds": '["cuts"]'}, "kinds"),
        ({"kinds": "[]"}, "kinds"),
        ({"name": '"CRM/1"'}, "name"),
        ({"secret_env": ""}, "secret_env or secret_file"),
        ({"secret_env": '["NONE"]'}, "variable NONE"),
        ({"secret_env": '["WEAK"]'}, "WEAK"),
        ({"secret_file": '["none.key"]'}, "none.key"),
        ({"secret": f'"{SECRET}"'}, "secret"),
        ({"x": "= ="}, "webhooks.toml"),
        ({"x": '1\n[[endpoints]]\nname = "crm"'}, "endpoints"),
    ],
)
def test_a_wrong_file_is_refused_and_shows_no_secret(tmp_path, fields, says):
    with pytest.raises(SettingsError) as refused:
        read_webhooks(write(tmp_path, **fields), {"CRM": SECRET, "WEAK": "whsec_aHVzaA=="})
    assert says in str(refused.value)
    chain = f"{refused.value!r} {refused.value.__cause__!r}"
    assert not any(secret in chain for secret in (SECRET, "hush", "aHVzaA"))


def test_two_endpoints_of_one_name_are_refused(tmp_path):
    file = write(tmp_path)
    file.write_text(file.read_text() + "\n" + file.read_text())
    with pytest.raises(SettingsError, match="two endpoints are called crm"):
        read_webhooks(file, {"CRM": SECRET})


@pytest.fixture
def typed(monkeypatch):
    """Run a command in this process with the endpoint's secret in the environment."""
    monkeypatch.setenv("CRM", SECRET)
    return lambda *arguments: CliRunner().invoke(cli.app, ["webhooks", *map(str, arguments)])


def test_check_shows_a_file_and_no_secret(tmp_path, typed):
    done = typed("check", write(tmp_path, kinds='["cut"]'), "--json")
    assert done.exit_code == 0, done.output
    [row] = json.loads(done.output)
    assert (row["endpoint"], row["kinds"], row["secrets"]) == ("crm", "cut", 1)
    assert SECRET not in done.output


def test_test_sends_a_signed_message_and_says_who_took_it(tmp_path, typed):
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append(verify(SECRET, self.headers, body, int(time.time())))
            self.send_response(204 if self.path == "/h" else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        good = typed("test", write(tmp_path, url=f'"{url}/h"'), "--json")
        bad = typed("test", write(tmp_path, url=f'"{url}/x"'))
        server.shutdown()
    none = typed("test", write(tmp_path), "--endpoint", "other")
    assert (good.exit_code, json.loads(good.output)[0]["answer"]) == (0, "HTTP 204")
    assert (bad.exit_code, len(taken)) == (1, 2)
    assert isinstance(none.exception, SettingsError)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nbad\x1b[2J header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx\xe2\x80\xae: \x1b]0;title\x07\r\n\r\n",
        b"\x1b]0;title\x07" + b"x" * 9000 + b"\r\n\r\n",
    ],
)
def test_what_a_receiver_answers_cannot_steer_the_terminal(tmp_path, typed, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            link, _ = server.accept()
            with link:
                link.recv(65_536)
                link.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f'"http://127.0.0.1:{server.getsockname()[1]}/?token=hush"'
        done = typed("test", write(tmp_path, url=url), "--json")
    [told] = json.loads(done.output)
    assert (done.exit_code, told["taken"]) == (1, False)
    assert told["answer"].isprintable()
    assert len(told["answer"]) < 300
    assert "hush" not in told["answer"]


def test_the_readme_shows_a_webhooks_file(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [shown] = [one for one in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL) if "hooks" in one]
    (tmp_path / "webhooks.toml").write_text(shown)
    [(endpoint, _)] = read_webhooks(tmp_path / "webhooks.toml", {"CRM_HOOK_SECRET": SECRET})
    assert endpoint.name == "crm"
