"""What a step and a minute come to is said in Avro, lands, and adds up; said again it changes nothing."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from dataclasses import dataclass

import fastavro
import pytest

from streams import totals
from streams.totals import changes_of, encode_totals, totals_of
from tests.orders import CATALOG, catalog_version, order
from tests.strategies import BOUNDS, MINUTE, NOON, chunk_of, command, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.landing.memory import MemoryStore
from tokenline.landing.progress import LandingProgress
from tokenline.landing.topics import TopicLander
from tokenline.quota.buckets import Bucket
from tokenline.quota.pseudo import COUNTERS
from tokenline.wire.avro import Codec, header_of, parse
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.kafka import account_key
from tokenline.wire.registry import FileRegistry

REGISTRY = FileRegistry()
CODEC, COLUMNS = Codec(REGISTRY), ColumnCodec(REGISTRY)
PARTITION = 0  # of one
MILLION = 1_000_000
SEGMENT = NOON // MINUTE * MINUTE


@dataclass
class Raw:
    """Be a record of a topic."""

    value: bytes
    offset: int = 0
    timestamp: int = 0
    key: bytes = b""


@dataclass
class MicroBatch:
    value: list[Raw]
    topic: str = "t"
    partition: int = PARTITION


class Line:
    """Fold, and keep what would be published of it, by topic, in order."""

    def __init__(self):
        self.state = PartitionState(BOUNDS)
        self.told = {"balances": [], "windows": []}
        self.keys = set()
        self.asked = self.used = 0
        self.command(catalog_version(0, NOON, CATALOG))

    def command(self, *commands):
        step = fold_commands(self.state, commands, commands[-1].offset)
        assert step.refused == []
        self._tell(step)

    def order(self, **fields):
        self.asked += 1
        self.command(order(self.asked, NOON, **fields))

    def use(self, appended_ms=NOON, **fields):
        fields |= {"occurred_at": appended_ms, "event_id": f"e{self.used}"}
        step = fold_usage(self.state, chunk_of([record(self.used, appended_ms, **fields)]))
        assert step.refused == []
        self.used += 1
        self._tell(step)

    def flush(self):
        flush = self.state.flush()
        if flush is not None:
            self._flush(flush)

    def _tell(self, step):
        for message in changes_of(CODEC, self.state, step, PARTITION):
            self.keys.add(message.key)
            self.told[message.topic].append(message.value)
        if step.flush is not None:
            self._flush(step.flush)

    def _flush(self, flush):
        rows = totals_of(COLUMNS, self.state, flush, PARTITION)
        for topic, records in encode_totals(COLUMNS, rows):
            self.keys.update(key for key, _ in records)
            self.told[topic] += [value for _, value in records]

    def left(self):
        """What the books say each bucket has, less what was used; those that have or lack something."""
        found, books = {}, self.state.books
        for slot, key in enumerate(self.state.cells.keys):
            if (row := books.row(slot)) >= 0:
                for pseudo, counter in COUNTERS.items():
                    found[key, +pseudo] = -books.get(row, counter)
                for bucket in books.chain(row):
                    number = books.buckets.get(bucket, Bucket.NUMBER)
                    total = books.buckets.get(bucket, Bucket.TOTAL)
                    found[key, number] = total - books.buckets.get(bucket, Bucket.USED)
        return {name: amount for name, amount in found.items() if amount}


def landed(told):
    """Land frames, of each topic in the order given, and return the store."""
    store = MemoryStore()
    lander = TopicLander(store, COLUMNS, LandingProgress(), 1)
    for topic, land in (("balances", lander.balances), ("windows", lander.windows)):
        land([MicroBatch([Raw(frame, at) for at, frame in enumerate(told.get(topic, []))])])
    return store


def balances(store):
    sums = Counter()
    for row in store.rows("balance_changes"):
        sums[f"{row['tenant_id']}/{row['account_id']}", row["bucket"]] += row["amount_utok"]
    return {name: amount for name, amount in sums.items() if amount}


def usage_by_account(store):
    sums = Counter()
    for row in store.rows("balance_changes"):
        if row["kind"] == "usage":
            sums[row["account_id"]] -= row["amount_utok"]
    return sums


def charges_by_account(store):
    sums = Counter()
    for row in store.rows("windows"):
        sums[row["account_id"]] += row["charge_utok"]
    return sums


@pytest.fixture
def line():
    return Line()


def test_landed_entries_come_to_what_every_bucket_has_left_and_usage_to_what_windows_cost(line):
    line.order(kind="open", account_id="a", plan="strict", cycle_day=1)
    line.order(kind="open", account_id="b", plan="postpaid")
    line.order(kind="grant", account_id="a", amount_utok=5 * MILLION)
    line.order(kind="adjust", account_id="a", bucket=2, amount_utok=-MILLION)
    for minute in range(3):
        line.use(NOON + minute * MINUTE, account_id="a", model="max", input_tokens=4)
        # More than the plan has for a day of its month: the rest is overage.
        spoken = {"model": "max", "input_tokens": 0, "output_tokens": 80}
        line.use(NOON + minute * MINUTE, account_id="b", **spoken)
    line.flush()
    store = landed(line.told)

    assert balances(store) == line.left()
    assert usage_by_account(store) == {"a": 12 * MILLION, "b": 480 * MILLION}
    assert charges_by_account(store) == usage_by_account(store)
    entries = [row for row in store.rows("balance_changes") if row["account_id"] == "b"]
    assert {row["bucket"] for row in entries} == {0, 1}
    assert {row["partition"] for row in store.rows("balance_changes")} == {PARTITION}
    minutes = [row for row in store.rows("windows") if row["grain"] == "minute"]
    assert {row["catalog_version"] for row in minutes} == {CATALOG.version}


def test_an_entry_says_what_it_is_and_when(line):
    line.order(kind="open", account_id="b", plan="postpaid")
    line.use(NOON + 1_500, account_id="b", model="max", input_tokens=2)
    line.flush()
    grant, usage = (CODEC.decode(frame)[1] for frame in line.told["balances"])

    assert (grant["kind"], grant["entry"], grant["version"], grant["at"]) == ("grant", "1", 1, NOON)
    assert grant["amount_utok"] > 0
    assert (grant["source"], grant["command_id"] != "", grant["catalog_version"]) == (
        "plan",
        True,
        1,
    )
    assert usage == grant | {
        "kind": "usage",
        "source": "",
        "command_id": "",
        "catalog_version": 0,
        "entry": f"usage/{SEGMENT}",
        "amount_utok": -2 * MILLION,
        "version": 2 * MILLION,
        "at": SEGMENT,
    }


@pytest.mark.parametrize("turns", list(itertools.permutations(range(3))))
def test_a_minute_said_while_it_grew_counts_once_in_whatever_order_it_lands(line, turns):
    line.order(kind="open", account_id="b", plan="postpaid")
    cuts = [len(line.told["balances"])]
    for tokens in (3, 5, 7):
        line.use(account_id="b", model="max", input_tokens=tokens)
        line.flush()
        cuts.append(len(line.told["balances"]))
    parts = [line.told["balances"][lo:hi] for lo, hi in itertools.pairwise(cuts)]
    grown = [line.told["balances"][0], *itertools.chain(*(parts[at] for at in turns)), *parts[0]]
    store = landed({"balances": grown, "windows": line.told["windows"][::-1]})

    # At first the plan's bucket pays, then the overage too.
    assert [len(part) for part in parts] == [1, 2, 2]
    assert usage_by_account(store) == charges_by_account(store) == {"b": 15 * MILLION}
    assert balances(store) == line.left()


def test_all_that_was_said_lands_twice_as_once(line):
    line.order(kind="open", account_id="a", plan="strict")
    line.use(account_id="a", model="mini", input_tokens=40)
    line.use(NOON + MINUTE, account_id="a", model="max", input_tokens=3)
    line.flush()
    once = landed(line.told)
    twice = landed({topic: frames * 2 for topic, frames in line.told.items()})

    assert sorted(map(str, twice.rows("balance_changes"))) == sorted(
        map(str, once.rows("balance_changes"))
    )
    assert len(once.rows("balance_changes")) == 3


def test_usage_without_a_balance_costs_nothing_and_enters_nothing(line):
    line.command(command(1, account_id="plain"))
    line.use(account_id="plain", model="max", input_tokens=9)
    line.flush()
    store = landed(line.told)

    assert line.told["balances"] == []
    assert [row["charge_utok"] for row in store.rows("windows")] == [0, 0]
    assert {row["grain"]: row["total_tokens"] for row in store.rows("windows")} == {
        "minute": 9,
        "month": 9,
    }


def test_usage_that_is_free_enters_nothing(line):
    line.order(kind="open", account_id="a", plan="strict")
    line.use(account_id="a", model="max", input_tokens=0)
    line.flush()

    assert [CODEC.decode(frame)[1]["kind"] for frame in line.told["balances"]] == ["grant"]
    assert len(line.told["windows"]) == 2


def test_an_account_with_a_slash_keeps_its_name_and_its_key(line):
    line.order(kind="open", account_id="a/b", plan="strict")
    line.use(account_id="a/b", model="max", input_tokens=1)
    line.flush()
    rows = landed(line.told).rows("balance_changes")

    assert {(row["tenant_id"], row["account_id"]) for row in rows} == {("t", "a/b")}
    assert line.keys == {account_key("t", "a/b")}


def test_totals_go_out_in_slices_and_none_is_lost(line, monkeypatch):
    for number in range(5):
        line.order(kind="open", account_id=f"a{number}", plan="strict")
        line.use(account_id=f"a{number}", model="max", input_tokens=number + 1)
    monkeypatch.setattr(totals, "FLUSH_ROWS", 2)
    rows = totals_of(COLUMNS, line.state, line.state.flush(), PARTITION)
    slices = [(topic, len(records)) for topic, records in encode_totals(COLUMNS, rows)]

    assert slices == [
        *[("windows", count) for count in (2, 2, 1)] * 2,
        *[("balances", count) for count in (2, 2, 1)],
    ]


def test_a_window_of_before_there_were_charges_lands_with_none():
    versions = dict(REGISTRY.versions("account_window"))
    old = json.loads(versions[1])
    said = {one["name"]: "" if one["type"] == "string" else 7 for one in old["fields"]}
    said |= {
        "grain": "minute",
        "window_start": NOON,
        "segment_start": SEGMENT,
        "partition": PARTITION,
    }
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parse(versions[1]), said)
    ids = json.loads((REGISTRY.directory / "ids.json").read_text())
    (old_id,) = (int(at) for at, stem in ids.items() if stem == "account_window.v1")
    (row,) = landed({"windows": [header_of(old_id) + out.getvalue()]}).rows("windows")

    assert (row["charge_utok"], row["catalog_version"], row["total_tokens"]) == (0, 0, 7)
