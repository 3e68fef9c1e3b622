"""Say whether what charging published is exact; integers against integers.

It shares no code with charging: it judges the usage topic in plain Python.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from tokenline.event import TOKEN_KINDS
from tokenline.wire.avro import Codec
from tokenline.wire.kafka import account_key
from tokenline.wire.registry import FileRegistry

CODEC = Codec(FileRegistry())
ZONE = "Asia/Shanghai"
HORIZON_MS, FUTURE_MS = 3_600_000, 300_000


@dataclass
class Books:
    """Hold everything the topics say, decoded."""

    usage: dict = field(default_factory=dict)  # (partition, offset) -> record
    decoded: dict = field(default_factory=dict)  # (partition, offset) -> event or None
    charged: list = field(default_factory=list)
    windows: list = field(default_factory=list)
    decisions: list = field(default_factory=list)
    heartbeats: list = field(default_factory=list)
    dead: list = field(default_factory=list)
    applied: list = field(default_factory=list)
    moments: dict = field(default_factory=dict)  # id(decision) -> append time


class Unflushed(AssertionError):
    """What was found is right; the rest is not published yet, or never will be. The text names it.

    Charging publishes each topic by itself: who follows them may see a range before its letters.
    """


def key_of(record):
    """Return the Kafka key of an event or a command."""
    return account_key(record["tenant_id"], record["account_id"])


def event_of(record):
    try:
        name, fields = CODEC.decode(record.value)
    except Exception:  # noqa: BLE001  whatever cannot be read is one thing here
        return None
    return fields if name == "usage_event" else None


def charged_to(books, partition):
    ranges = [r for r in books.charged if r["partition"] == partition]
    return max((r["hi_offset"] + 1 for r in ranges), default=0)


def verdicts(books):
    """Return what charging said of each offset; published twice, it must have said the same."""
    found = {}
    for r in books.charged:
        special = {
            offset: name
            for name in ("late", "duplicate", "rejected")
            for offset in r[f"{name}_offsets"]
        }
        for offset in range(r["lo_offset"], r["hi_offset"] + 1):
            at, verdict = (r["partition"], offset), special.get(offset, "counted")
            assert found.setdefault(at, verdict) == verdict, f"{at}: {found[at]}, then {verdict}"
    return found


def expected(books, said):
    """Judge every usage record as charging must; accounts become known when charging first knew."""
    seen, found = set(), {}
    for at in sorted(books.usage):
        record, event = books.usage[at], books.decoded[at]
        found[at] = _judge(record, event, seen, said.get(at))
    return found


def _judge(record, event, seen, said):
    if event is None or record.key != key_of(event):
        return "rejected"
    age = record.timestamp - event["occurred_at"]
    if age < -FUTURE_MS or any(event[kind] < 0 for kind in TOKEN_KINDS):
        return "rejected"
    if event["account_id"].startswith("unknown") and said == "rejected":
        return "rejected"  # when an account becomes known is charging's to say
    if age > HORIZON_MS:
        return "late"
    name = event["tenant_id"], event["source"], event["event_id"]
    if name in seen:
        return "duplicate"
    seen.add(name)
    return "counted"


def newest(rows, key, content):
    """Return the row of the highest version for each key; equal versions must say the same."""
    found = {}
    for row in rows:
        held = found.get(key(row))
        if held is not None and held["version"] == row["version"]:
            same = content(held) == content(row)
            assert same, f"{key(row)} version {row['version']}: {content(held)} and {content(row)}"
        if held is None or row["version"] > held["version"]:
            found[key(row)] = row
    return found


def _window_key(row):
    names = ("tenant_id", "account_id", "subscriber_id", "provider", "model", "window_start")
    return tuple(row[name] for name in names)


def _sums(row):
    return Counter({name: row[name] for name in ("events", "total_tokens", *TOKEN_KINDS)})


def window_totals(books):
    """Return the minute windows as a reader of v_windows sees them."""
    rows = [row for row in books.windows if row["grain"] == "minute"]
    segments = newest(rows, lambda row: (*_window_key(row), row["segment_start"]), _sums)
    totals = defaultdict(Counter)
    for key, row in segments.items():
        totals[key[:-1]].update(_sums(row))
    return {key: +total for key, total in totals.items()}


def month_totals(books):
    """Return (events, tokens) of each account and month."""
    rows = [row for row in books.windows if row["grain"] == "month"]

    def key(row):
        return row["tenant_id"], row["account_id"], row["window_start"]

    def content(row):
        return row["events"], row["total_tokens"]

    return {at: content(row) for at, row in newest(rows, key, content).items()}


def counted_events(books, said):
    """Return the events that count."""
    return [books.decoded[at] for at, verdict in said.items() if verdict == "counted"]


def expected_windows(events):
    """Return what the minute windows must be."""
    totals = defaultdict(Counter)
    for event in events:
        key = _window_key(event | {"window_start": event["occurred_at"] // 60_000 * 60_000})
        kinds = {kind: event[kind] for kind in TOKEN_KINDS}
        totals[key].update(kinds | {"events": 1, "total_tokens": sum(kinds.values())})
    return {key: +total for key, total in totals.items()}


def expected_months(events):
    """Return what the month counters must be."""
    totals = defaultdict(lambda: (0, 0))
    for event in events:
        key = event["tenant_id"], event["account_id"], month_start(event["occurred_at"])
        number, tokens = totals[key]
        totals[key] = number + 1, tokens + sum(event[kind] for kind in TOKEN_KINDS)
    return dict(totals)


def month_start(moment_ms):
    """Return the first moment of a month in the zone of all test accounts."""
    local = datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(ZONE))
    first = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(first.timestamp() * 1000)


def differences(books):
    """Return for each place where totals differ: key, expected, found; at most ten."""
    events = counted_events(books, verdicts(books))
    found = []
    for want, have in (
        (expected_windows(events), window_totals(books)),
        (expected_months(events), month_totals(books)),
    ):
        keys = sorted(want.keys() | have.keys())
        found += [
            (key, want.get(key), have.get(key)) for key in keys if want.get(key) != have.get(key)
        ]
    return found[:10]


def check(books):
    """Compare everything with everything, in integers.

    Raises:
        Unflushed: something is missing that may still come.
        AssertionError: charging judged wrongly, contradicted itself, or said too much.
    """
    said = verdicts(books)
    if unmatched := said.keys() ^ books.usage.keys():
        raise Unflushed(f"usage and charged differ in {few(unmatched)}")
    wanted = expected(books, said)
    wrong = {at: (wanted[at], said[at]) for at in said if wanted[at] != said[at]}
    assert not wrong, f"judged wrongly (expected, found): {few(wrong.items())}"
    check_decisions(books)
    check_dead(books, said)
    if found := differences(books):
        raise Unflushed(f"totals differ (key, expected, found): {found}")


def check_dead(books, said):
    """Every rejected record is in the dead letters, alone with its own bytes, and nothing else is.

    Raises:
        Unflushed: letters are missing.
    """
    letters = [letter for letter in books.dead if letter["topic"].endswith(".usage")]
    rejected = {at for at, verdict in said.items() if verdict == "rejected"}
    found = {(letter["partition"], at) for letter in letters for at in offsets_of(letter)}
    assert found <= rejected, f"letters of what was not rejected: {few(found - rejected)}"
    for letter in letters:
        at = letter["partition"], letter["offset"]
        if letter["records"] > 1 or letter["offsets"]:
            assert letter["value_base64"] == letter["key_base64"] == ""
            continue
        for part, bytes_sent in (("value", books.usage[at].value), ("key", books.usage[at].key)):
            kept = base64.b64decode(letter[f"{part}_base64"])
            assert kept == (bytes_sent or b""), f"{at}: the letter's {part} is not the record's"
    if missing := rejected - found:
        raise Unflushed(f"rejected without a letter: {few(missing)}")


def offsets_of(letter):
    """Return the offsets that a letter is of."""
    runs = letter["offsets"] or [letter["offset"]] * 2
    offsets = [
        at
        for first, last in zip(runs[::2], runs[1::2], strict=True)
        for at in range(first, last + 1)
    ]
    assert len(offsets) == letter["records"]
    return offsets


def few(found):
    """Return how many there are and the first ten, for an error's text."""
    return f"{len(found)}, as {sorted(found)[:10]}"


def check_decisions(books):
    """Versions have no gaps, each says one thing, and each threshold of a month is told once.

    An account's decisions lie in one partition in order, so what is read so far has no gaps either.
    """
    by_account = defaultdict(dict)
    for row in books.decisions:
        content = {name: value for name, value in row.items() if name != "epoch"}
        held = by_account[row["tenant_id"], row["account_id"]].setdefault(row["version"], content)
        assert held == content, f"version {row['version']} was {held}, then {content}"
    for account, rows in by_account.items():
        assert sorted(rows) == list(range(1, len(rows) + 1)), f"{account}: {sorted(rows)}"
        told = Counter(row["threshold_percent"] for row in rows.values())
        repeated = {percent: times for percent, times in told.items() if percent and times > 1}
        assert not repeated, f"{account} was told thresholds again: {repeated}"


def last_decisions(books):
    """Return the decision in force for each account."""
    found = {}
    for row in sorted(books.decisions, key=lambda row: row["version"]):
        found[row["account_id"]] = row
    return found
