"""`tokenline sql`, `emit` and `quota` take what people type."""

from __future__ import annotations

import pytest

from tests.paper_orders import run_command
from tokenline.cli import ask, send
from tokenline.errors import BadData
from tokenline.landing import connect, queries


@pytest.fixture
def asked(monkeypatch):
    """What the warehouse was asked, and in which format."""
    found = []
    monkeypatch.setattr(ask, "line_settings", lambda data: data)
    monkeypatch.setattr(queries, "sql", lambda _, query, fmt: found.append((query, fmt)) or "1\n")
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("-- how many\nSELECT 1", "--format", "csv"),
        ("--format", "csv", "-- how many\nSELECT 1"),
        ("--format=csv", "--how many\nSELECT 1"),
        ("--format", "csv", "--", "-- how many\nSELECT 1"),
    ],
)
def test_a_query_that_begins_with_a_remark_is_a_query(capsys, asked, words):
    code, out, _ = run_command(capsys, "sql", *words)
    assert (code, out) == (0, "1\n")
    assert asked == [(words[-1] if words[-1].startswith("--") else words[0], "csv")]


def test_an_option_that_does_not_exist_is_none_still(capsys, asked):
    code, _, (said,) = run_command(capsys, "sql", "--fromat", "csv", "SELECT 1")
    assert code == 2
    assert "No such option: --fromat" in said
    assert asked == []


class Server(Exception):
    code = 62


def test_what_the_server_says_is_told_without_the_clients_wrapping():
    error = Server(
        "Received ClickHouse exception, code: 62, server response: Code: 62. DB::Exception: Syntax error: "
        "failed at position 1 (SELEC)\nhere. (SYNTAX_ERROR) (for url http://u:secret@127.0.0.1:1)"
    )
    told = connect._ours("the query failed", error)
    assert isinstance(told, BadData)
    assert str(told) == (
        "the query failed: Syntax error: failed at position 1 (SELEC) here. (SYNTAX_ERROR)"
    )


class PaperEmitter:
    """Keep what is emitted."""

    sent = None

    def __init__(self, _settings, **identity):
        self.identity = identity

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        """Stop nothing."""

    async def emit(self, event):
        self.sent.append((self.identity, event))
        return event


@pytest.fixture
def emitted(monkeypatch):
    monkeypatch.setattr("tokenline.Emitter", PaperEmitter, raising=False)
    monkeypatch.setattr(send, "line_settings", lambda data, role: (data, role)[0])
    monkeypatch.setattr(PaperEmitter, "sent", [])
    return PaperEmitter.sent


def test_an_event_by_hand_says_all_that_names_it(capsys, emitted):
    names = ("--tenant", "t", "--subscriber", "kim", "--event-id", "e1", "--source", "gw")
    more = ("--model-requested", "auto", "--corrects", "e0")
    when = ("--occurred-at", "2026-11-22T07:00:00+08:00")
    code, out, _ = run_command(capsys, "emit", "acme", *names, *more, *when)
    assert (code, out) == (0, "e1\n")
    ((identity, event),) = emitted
    assert identity["source"] == "gw"
    assert (event.tenant_id, event.account_id, event.subscriber_id) == ("t", "acme", "kim")
    assert (event.model_requested, event.corrects) == ("auto", "e0")
    assert event.occurred_at == 1_795_302_000_000


@pytest.mark.parametrize("text", ["yesterday", "2026-11-22T07:00:00", "1795302000000"])
def test_a_time_without_a_zone_is_not_guessed(capsys, emitted, text):
    code, _, (said,) = run_command(capsys, "emit", "acme", "--occurred-at", text)
    assert code == 2
    assert "--occurred-at" in said
    assert emitted == []


def test_without_an_id_each_event_is_another(capsys, emitted):
    ids = {run_command(capsys, "emit", "acme")[1] for _ in range(2)}
    assert len(ids) == 2


def test_a_slash_is_part_of_an_account_and_no_tenant(capsys, monkeypatch):
    """As in `account show`: another tenant is named by --tenant."""
    seen = []
    monkeypatch.setattr(ask, "line_settings", lambda data: data)
    monkeypatch.setattr(ask, "_ask_charging", lambda *_: (None, ""))
    nobody = queries.QuotaView(
        tenant_id="", account_id="", known=False, plan="", used=0, limit=-1, late_used=0, state="open",
        rule="", reason="", month_start_ms=0, resets_at_ms=0, as_of_ms=0,
    )  # fmt: skip
    monkeypatch.setattr(queries, "quota", lambda _, *who: seen.append(who) or nobody)
    code, _, (said,) = run_command(capsys, "quota", "a/b")
    assert (code, seen) == (1, [("default", "a/b")])
    assert "default/a/b" in said
    assert "--tenant" in said
    run_command(capsys, "quota", "b", "--tenant", "a")
    assert seen[1] == ("a", "b")
