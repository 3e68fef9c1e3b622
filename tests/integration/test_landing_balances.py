"""Ask a real warehouse what balances were charged, and find what somebody edited."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import clickhouse_connect
import pyarrow as pa
import pytest

from streams.totals import changes_of
from tests.laws.test_transfer_laws import TwoPartitions
from tokenline.audit.reconcile import charge_differences, transfer_differences
from tokenline.landing import migrate, reconcile
from tokenline.landing.balances import charged, transferred, unequal_charges, unequal_transfers
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.progress import LandingProgress
from tokenline.landing.queries import Asker
from tokenline.landing.topics import TopicLander
from tokenline.settings import Settings
from tokenline.wire import line as wire_line
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

NOON_MS = 1_790_000_000_000
MONTH_MS = 31 * 86_400_000
CODEC = ColumnCodec(FileRegistry())


class Killed(BaseException):
    """Stand for kill -9 of the runner: nothing of ours catches it."""


class Line:
    """Land rows as the landing worker does, and ask."""

    def __init__(self, settings):
        self.settings = settings
        self.store, self.asker = ClickHouseStore(settings), Asker(settings)

    def window(self, account, charge_utok, at=0, version=1, grain="minute", **fields):
        row = {"tenant_id": "cm", "account_id": account, "grain": grain, "version": version}
        row |= {"window_start": NOON_MS + at, "segment_start": NOON_MS + at}
        row |= {"charge_utok": charge_utok, "catalog_version": 2} | fields
        self._insert("windows", "account_window", row)

    def usage(self, account, bucket, amount_utok, at=0, version=None):
        self.entry(
            account,
            bucket,
            f"usage/{NOON_MS + at}",
            "usage",
            -amount_utok,
            version=version or amount_utok,
            at=at,
        )

    def entry(self, account, bucket, entry, kind, amount_utok, version=1, at=0, **facts):
        row = {"tenant_id": "cm", "account_id": account, "bucket": bucket, "entry": entry}
        row |= {"kind": kind, "amount_utok": amount_utok, "version": version, "at": NOON_MS + at}
        row |= facts
        self._insert("balance_changes", "balance_change", row)

    def ask(self, text):
        return [tuple(row) for row in self.asker.rows(text)]

    def differences(self):
        return [str(one) for one in charge_differences(unequal_charges(self.asker))]

    def edit(self, text):
        self.store._client().command(
            text.format(db=self.settings.clickhouse_database), settings={"mutations_sync": 1}
        )

    def _insert(self, table, name, row):
        blank = CODEC.empty(name).schema
        zero = {one.name: "" if pa.types.is_string(one.type) else 0 for one in blank}
        self.store.insert(table, pa.Table.from_pylist([zero | row], schema=blank))


def fresh(warehouse):
    return Settings(clickhouse_url=warehouse, clickhouse_database=f"b_{uuid.uuid4().hex[:10]}")


@pytest.fixture
def line(warehouse):
    settings = fresh(warehouse)
    migrate.apply(settings)
    line = Line(settings)
    yield line
    line.edit("DROP DATABASE {db} SYNC")
    line.store.close()
    line.asker.close()


@pytest.fixture
def charged_line(line):
    """Account a pays 70 from two buckets and from none, over two months; b pays 9; c has no balance."""
    line.entry("a", 1, "1", "grant", 50)
    line.entry("a", 2, "2", "grant", 100)
    line.entry("a", 2, "3", "adjustment", -30)
    line.window("a", 20)
    line.window("a", 50, at=MONTH_MS)
    line.usage("a", 1, 20)
    line.usage("a", 1, 30, at=MONTH_MS)
    line.usage("a", 2, 13, at=MONTH_MS)
    line.usage("a", 0, 7, at=MONTH_MS)
    # A hold that fell silent was charged and given back: neither is usage.
    line.entry("a", 2, "4", "hold_charge", -5)
    line.entry("a", 2, "5", "hold_refund", 5)
    line.entry("b", 1, "1", "grant", 9)
    line.window("b", 9)
    line.usage("b", 1, 9)
    line.window("c", 0)
    # A month's counter is no window: it is not added to the minutes.
    line.window("b", 9, grain="month")
    return line


def test_without_plans_there_is_nothing_to_compare(line):
    assert (charged(line.asker), line.differences()) == (0, [])
    line.window("c", 0)
    line.window("c", 0, grain="month")
    assert (charged(line.asker), line.differences()) == (0, [])


def test_what_windows_cost_is_what_buckets_paid_and_bucket_0(charged_line):
    assert (charged(charged_line.asker), charged_line.differences()) == (79, [])


ONE_MORE = (
    "ALTER TABLE {db}.balance_changes UPDATE amount_utok = amount_utok + 1 "
    "WHERE account_id = 'a' AND bucket = 0"
)
OTHER_KIND = (
    "ALTER TABLE {db}.balance_changes UPDATE kind = 'expiry' "
    "WHERE account_id = 'b' AND kind = 'usage'"
)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            ONE_MORE,
            "cm/a: µtok that windows cost and buckets paid: 70 and 69 (+1)",
        ),
        (
            "ALTER TABLE {db}.windows UPDATE charge_utok = charge_utok - 1 WHERE account_id = 'b'",
            "cm/b: µtok that windows cost and buckets paid: 8 and 9 (-1)",
        ),
        (
            "DELETE FROM {db}.balance_changes WHERE account_id = 'b'",
            "cm/b: µtok that windows cost and buckets paid: 9 and 0 (+9)",
        ),
        (
            "DELETE FROM {db}.windows WHERE account_id = 'b'",
            "cm/b: µtok that windows cost and buckets paid: 0 and 9 (-9)",
        ),
        (
            OTHER_KIND,
            "cm/b: µtok that windows cost and buckets paid: 9 and 0 (+9)",
        ),
    ],
)
def test_an_edited_or_deleted_row_is_named_to_the_utok(charged_line, edit, said):
    charged_line.edit(edit)

    assert charged_line.differences() == [said]


def test_reconcile_is_green_until_a_row_is_edited(charged_line, monkeypatch):
    async def no_usage(_):
        return {}

    async def no_totals(*_):
        return {}

    async def no_faults(_):
        return []

    async def a_line(_):
        return wire_line.Line(line_id="0" * 32)

    monkeypatch.setattr(reconcile, "usage_bounds", no_usage)
    monkeypatch.setattr(reconcile, "read_line", a_line)
    monkeypatch.setattr(reconcile, "stated_totals", no_totals)
    monkeypatch.setattr(reconcile, "kafka_faults", no_faults)
    # There are no events here, so windows and entries have nothing that they could follow from.
    monkeypatch.setattr(reconcile, "unequal_kinds", lambda _: [])
    monkeypatch.setattr(reconcile, "unequal_buckets", lambda _: [])
    report = reconcile.reconcile(charged_line.settings, 0)
    assert (report.ok, report.totals["charged_utok"]) == (True, 79), report.to_json()

    charged_line.edit(ONE_MORE)
    report = reconcile.reconcile(charged_line.settings, 0)
    assert not report.ok
    assert [(one.kind, one.where, one.left, one.right) for one in report.differences] == [
        ("charge", "cm/a", 70, 69)
    ]


GIVEN = {"command_id": "t1", "source": "gift"}


@pytest.fixture
def moved_line(line):
    """Account a gave 30 of two buckets to b, who took 20 and sent 10 back."""
    line.entry("a", 1, "1", "grant", 50, source="gift")
    line.entry("a", 1, "2", "transfer_out", -20, counterpart="b", **GIVEN)
    line.entry("a", 2, "3", "transfer_out", -10, counterpart="b", **GIVEN)
    arrived = {"source": "transfer", "command_id": "t1"}
    line.entry("b", 5, "1", "transfer_in", 20, counterpart="a", giver_entry=2, **arrived)
    line.entry("a", 3, "4", "transfer_return", 10, counterpart="b", giver_entry=3, **arrived)
    return line


def transfers(line):
    return [str(one) for one in transfer_differences(unequal_transfers(line.asker))]


def test_what_was_given_was_taken_or_came_back(moved_line):
    assert (transferred(moved_line.asker), transfers(moved_line)) == ((30, 0), [])
    assert moved_line.ask(
        "SELECT giver, part, receiver, command_id, given_utok, taken_utok, returned_utok "
        "FROM {db}.v_transfers ORDER BY part"
    ) == [("a", 2, "b", "t1", 20, 20, 0), ("a", 3, "b", "t1", 10, 0, 10)]


def test_a_part_on_the_way_is_named_until_it_arrives(moved_line):
    moved_line.entry("b", 6, "2", "transfer_out", -7, counterpart="c", command_id="t9")
    assert transferred(moved_line.asker) == (37, 7)
    assert transfers(moved_line) == [
        "cm/b entry 2: µtok given away and arrived or returned: 7 and 0 (+7)"
    ]
    moved_line.entry("c", 1, "1", "transfer_in", 7, counterpart="b", giver_entry=2)
    assert (transferred(moved_line.asker), transfers(moved_line)) == ((37, 0), [])


def test_what_charging_enters_of_transfers_lands_and_agrees(line):
    """Three parts of the engine itself: one is taken, one comes back, one is on its way."""
    paper, codec = TwoPartitions(), Codec(FileRegistry())
    lander = TopicLander(line.store, CODEC, LandingProgress(), 1)

    def land(state, step):
        values = [message.value for message in changes_of(codec, state, step, 0)]
        records = [
            SimpleNamespace(key=b"k", value=value, offset=0, timestamp=0) for value in values
        ]
        if records:
            lander.balances([SimpleNamespace(topic="balances", partition=0, value=records)])

    paper.seen = land
    granted = {"kind": "grant", "amount_utok": 30, "transferable": 1, "command_id": "g1"}
    paper.ask("a", **granted)
    for number, receiver in enumerate(("b", "nobody", "b")):
        asked = {"kind": "transfer", "to_account": receiver, "amount_utok": 7}
        paper.ask("a", command_id=f"t{number}", **asked)
        paper.quiesce() if number < 2 else None

    assert transferred(line.asker) == (21, 7)
    assert [one.split(":")[0] for one in transfers(line)] == ["t/a entry 6"]
    paper.quiesce()
    assert (transferred(line.asker), transfers(line)) == ((21, 0), [])
    assert line.ask(
        "SELECT kind, source, command_id, counterpart, catalog_version FROM {db}.v_balance_changes "
        "WHERE account_id = 'a' AND kind != 'grant' ORDER BY toUInt64(entry)"
    ) == [
        ("transfer_out", "top_up", "t0", "b", 1),
        ("transfer_out", "top_up", "t1", "nobody", 1),
        ("transfer_return", "transfer", "t1", "nobody", 1),
        ("transfer_out", "top_up", "t2", "b", 1),
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            ("b", 6, "2", "transfer_in", 20, 2),
            "cm/a entry 2: µtok given away and arrived or returned: 20 and 40 (-20)",
        ),
        (
            ("a", 6, "5", "transfer_return", 20, 2),
            "cm/a entry 2: µtok given away and arrived or returned: 20 and 40 (-20)",
        ),
        (
            ("b", 6, "2", "transfer_in", 3, 9),
            "cm/a entry 9: µtok given away and arrived or returned: 0 and 3 (-3)",
        ),
    ],
)
def test_a_credit_that_came_twice_or_from_nowhere_is_named(moved_line, entry, said):
    account, bucket, number, kind, amount, giver_entry = entry
    counterpart = "a" if account == "b" else "b"
    facts = {"counterpart": counterpart, "giver_entry": giver_entry}
    moved_line.entry(account, bucket, number, kind, amount, **facts)
    assert transfers(moved_line) == [said]
    assert transferred(moved_line.asker)[1] == 0, "nothing is on the way"


def test_a_minute_that_grew_and_came_again_counts_once(charged_line):
    for amount in (13, 4, 13, 9):
        charged_line.usage("a", 2, amount, at=MONTH_MS)

    assert charged_line.differences() == []
    assert charged_line.ask(
        "SELECT amount_utok FROM {db}.v_balance_changes "
        f"WHERE account_id = 'a' AND bucket = 2 AND entry = 'usage/{NOON_MS + MONTH_MS}'"
    ) == [(-13,)]


def test_amounts_no_float_can_hold_stay_exact(line):
    most = 2**62
    line.window("a", most + 1)
    line.usage("a", 1, most)
    assert line.differences() == [
        f"cm/a: µtok that windows cost and buckets paid: {most + 1} and {most} (+1)"
    ]


def test_v_balances_is_what_the_entries_of_each_bucket_come_to(charged_line):
    assert charged_line.ask(
        "SELECT account_id, bucket, granted_utok, used_utok, other_utok, balance_utok "
        "FROM {db}.v_balances ORDER BY account_id, bucket"
    ) == [
        ("a", 0, 0, 7, 0, -7),
        ("a", 1, 50, 50, 0, 0),
        ("a", 2, 100, 13, -30, 57),
        ("b", 1, 9, 9, 0, 0),
    ]


def test_sums_beyond_64_bits_stay_right(line):
    most = 2**62
    for at in range(3):
        line.window("a", most, at=at * 60_000)
        line.usage("a", 1, most, at=at * 60_000)
    assert (charged(line.asker), line.differences()) == (3 * most, [])
    assert line.ask("SELECT used_utok, balance_utok FROM {db}.v_balances") == [
        (3 * most, -3 * most)
    ]
    assert line.ask("SELECT sum(charge_utok) FROM {db}.v_windows") == [(3 * most,)]
    line.entry("a", 1, "1", "transfer_out", -most)
    line.entry("a", 1, "2", "transfer_out", -most)
    line.entry("a", 1, "3", "transfer_out", -most)
    assert transferred(line.asker) == (3 * most, 3 * most)


def test_what_no_bucket_paid_is_in_v_balances_by_number_and_name(line):
    """An account whose plan stopped: of 100 used beyond, 60 were claimed, 45 of these paid, 15 lost."""
    line.entry("a", 1, "1", "grant", 200, source="plan")
    line.usage("a", 1, 155)
    line.usage("a", -1, 40)
    line.usage("a", -3, 60)
    line.window("a", 255)
    for at, (bucket, kind, amount) in enumerate(
        [
            (1, "claim_paid", -45),
            (-3, "claim_paid", 45),
            (-3, "claim_lost", 15),
            (-1, "claim_lost", -15),
        ]
    ):
        line.entry("a", bucket, f"{at + 2}", kind, amount)
    assert line.ask(
        "SELECT bucket, source, granted_utok, used_utok, other_utok, balance_utok "
        "FROM {db}.v_balances ORDER BY bucket"
    ) == [
        (-3, "claim", 0, 0, 0, 0),
        (-1, "written_off", 0, 55, 0, -55),
        (1, "plan", 200, 200, 0, 0),
    ]
    # What windows cost is what went to all of them as it was used.
    assert (charged(line.asker), line.differences()) == (255, [])


def test_a_decision_lands_with_what_can_be_paid_its_figures_and_the_terms(line):
    covers = [
        {"models": ["p/pp", "q/*"], "subscribers": []},
        {"models": [], "subscribers": ["kid"]},
    ]
    said = {"tenant_id": "cm", "account_id": "a", "state": "open", "rule": "", "reason": "resumed"}
    said |= dict.fromkeys(("threshold_percent", "used", "window_start", "resets_at"), 0)
    said |= {"limit": 9, "version": 1, "epoch": 1, "as_of": NOON_MS, "cause_topic": "u"}
    said |= {"cause_partition": 0, "cause_offset": 0, "unit": "utok", "overage_utok": 10**17}
    said |= {"covers": covers, "written_off_utok": 7, "mode": "strict", "terms_version": 3}
    frame = Codec(FileRegistry()).encode("quota_decision", said)
    record = SimpleNamespace(value=frame, key=b"cm/a#1", offset=0)
    batch = SimpleNamespace(topic="decisions", partition=0, value=[record])
    TopicLander(line.store, CODEC, LandingProgress(), 1).decisions([batch])
    columns = "unit, overage_utok, written_off_utok, mode, terms_version, least_call_utok"
    assert line.ask(f"SELECT {columns} FROM {{db}}.v_decisions") == [
        ("utok", 10**17, 7, "strict", 3, -1)
    ]
    assert line.ask(
        "SELECT cover.models, cover.subscribers FROM {db}.v_decisions ARRAY JOIN covers AS cover"
    ) == [(["p/pp", "q/*"], []), ([], ["kid"])]


def test_v_windows_adds_up_what_the_segments_of_a_minute_cost(line):
    for segment, charge, version, catalog in ((0, 20, 1, 2), (0, 25, 4, 2), (1, 8, 9, 3)):
        at = {"segment_start": NOON_MS + segment, "catalog_version": catalog}
        line.window("a", charge, version=version, **at)
    line.window("a", 20, version=1, segment_start=NOON_MS)
    line.window("a", 99, grain="month")
    columns = "account_id, charge_utok, catalog_version, version"

    assert line.ask(f"SELECT {columns} FROM {{db}}.v_windows") == [("a", 33, 3, 9)]


def test_windows_that_landed_before_there_were_charges_cost_nothing(warehouse):
    settings = fresh(warehouse)

    def die_before_charges(name):
        if name == "0013_window_charges 1 before":
            raise Killed

    with pytest.raises(Killed):
        migrate.apply(settings, step=die_before_charges)
    name = settings.clickhouse_database
    with clickhouse_connect.get_client(dsn=warehouse, database=name) as client:
        row = {"account_id": "old", "grain": "minute", "total_tokens": 7, "version": 3}
        client.insert("windows", [list(row.values())], column_names=list(row))
        migrate.apply(settings)
        found = client.query("SELECT account_id, total_tokens, charge_utok FROM v_windows")
        client.command(f"DROP DATABASE {name} SYNC")

    assert [tuple(one) for one in found.result_rows] == [("old", 7, 0)]


def test_entries_that_landed_before_causes_were_kept_say_nothing(warehouse):
    settings = fresh(warehouse)

    def die_before_causes(name):
        if name == "0014_balance_causes 1 before":
            raise Killed

    with pytest.raises(Killed):
        migrate.apply(settings, step=die_before_causes)
    name = settings.clickhouse_database
    with clickhouse_connect.get_client(dsn=warehouse, database=name) as client:
        row = {"account_id": "old", "entry": "1", "kind": "grant", "amount_utok": 7, "version": 1}
        client.insert("balance_changes", [list(row.values())], column_names=list(row))
        migrate.apply(settings)
        found = client.query(
            "SELECT amount_utok, source, command_id, counterpart, giver_entry, catalog_version "
            "FROM v_balance_changes"
        )
        client.command(f"DROP DATABASE {name} SYNC")

    assert [tuple(one) for one in found.result_rows] == [(7, "", "", "", 0, 0)]
