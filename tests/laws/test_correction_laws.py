"""Whatever comes twice, late or corrected, and whoever dies: each event counts once, for what it says last."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.reference import Reference, month_start_ms
from tests.orders import CATALOG, catalog_version, order
from tests.paper_landing import STEPS, PaperLanding, tokens_of
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import DAY, HOUR, MINUTE, NOON, Record, command, event, key_of
from tokenline.quota.buckets import Bucket
from tokenline.quota.pseudo import COUNTERS

law = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
ZONE = "Asia/Shanghai"
ZONES = dict.fromkeys(("t/a", "t/b", "t/c"), ZONE)
FIRST = [
    catalog_version(0, NOON, CATALOG),
    order(1, NOON, kind="open", account_id="a", plan="strict"),
    order(2, NOON, kind="open", account_id="b", plan="postpaid"),
    command(3, NOON, account_id="c"),  # without a balance
]
JUMPS_MS = st.sampled_from([0, 500, 20_000, MINUTE, 20 * MINUTE, 2 * HOUR, DAY, 35 * DAY])
AGES_MS = st.sampled_from([0, 0, 300, 10 * MINUTE, 2 * HOUR, 3 * DAY, 40 * DAY])
IDS = st.integers(0, 9).map("e{}".format)


@st.composite
def walks(draw):
    """Draw what happens, in order: usage and what is done about it."""
    now_ms, offset, walk = NOON, 0, []
    for _ in range(draw(st.integers(2, 14))):
        now_ms += draw(JUMPS_MS)
        kind = draw(
            st.sampled_from(["use", "use", "use", "land", "die", "die", "deliver", "crash"])
        )
        if kind == "use":
            count = draw(st.integers(1, 4))
            walk.append((kind, [draw(used(offset + i, now_ms)) for i in range(count)]))
            offset += count
        elif kind == "die":
            walk.append(
                (kind, draw(st.sampled_from([*STEPS, "orders", "orders"])), draw(st.integers(0, 3)))
            )
        else:
            walk.append((kind,))
    return walk


@st.composite
def used(draw, offset, now_ms):
    """Draw an event: new, or of an id that may be another's, and perhaps a correction of any id."""
    said = event(
        event_id=draw(st.one_of(st.just(f"e{offset}"), IDS)),
        account_id=draw(st.sampled_from("aabbc")),
        model=draw(st.sampled_from(["max", "mini"])),
        subscriber_id=draw(st.sampled_from(["", "kid"])),
        corrects=draw(st.one_of(st.just(""), st.just(""), IDS)),
        occurred_at=now_ms - draw(AGES_MS),
        input_tokens=draw(st.integers(0, 60)),
        output_tokens=draw(st.integers(0, 60)),
    )
    return Record(offset, now_ms, key_of(said), said)


class World:
    """Run charging and landing against each other, dying where the walk says so."""

    def __init__(self, walk, *, dies):
        self.usage = [one for what, *more in walk if what == "use" for one in more[0]]
        self.commands = list(FIRST)
        self.journal, self.books = Journal(), Books()
        self.line = PaperLine(self.journal, self.books, 3 if dies else 0)
        self.landing = PaperLanding(self.books, self.usage, self.commands)
        self.line.command(FIRST)
        self.dies = dies
        for what, *more in walk:
            getattr(self, what)(*more)
        self.rest()

    def use(self, records):
        self.line.charge(records)

    def land(self):
        self.line.publish(0)
        self.landing.land(most=2)

    def die(self, step, sends):
        """Land all, and die once on the way."""
        self.line.publish(0)
        self.landing.land(die=step if self.dies else "", sends=sends)

    def deliver(self):
        self.line.command(list(self.commands))
        self.landing.take_tables()

    def crash(self):
        if self.dies:
            self.line = PaperLine(self.journal, self.books, 3)
            self.line.charge(self.usage[: self.line.state.next_offsets["usage"]])

    def rest(self):
        """Come to rest: all is landed, all that landing ordered is carried out."""
        for _ in range(2):
            self.line.publish(0)
            self.landing.land()
            self.line.command(list(self.commands))
            self.line.rest()
            self.landing.take_tables()
        self.state = self.line.state


class Ledger:
    """Say by hand which events are rows, and which of them stand."""

    def __init__(self, usage):
        said = Reference(ZONES).read(usage)
        self.rows, self.duplicates, self.letters = {}, {}, {}
        self.replaced_by = {}
        for one in usage:
            verdict = said.verdicts[one.offset]
            if verdict == "duplicate":
                self.duplicates[one.offset] = "copy"
            elif verdict != "rejected":
                self._take(one, verdict)

    def _take(self, one, verdict):
        fields = one.event
        owner = fields["account_id"], fields["source"]
        name, late = (*owner, fields["event_id"]), one.appended_ms - fields["occurred_at"] > HOUR
        if verdict in ("late", "correction") and self._of(name):
            self.duplicates[one.offset] = "copy"
            return
        if verdict == "late" and name in self.replaced_by:
            self.duplicates[one.offset] = "corrected"
            return
        if verdict == "correction":
            wrong = (*owner, fields["corrects"])
            originals = self._of(wrong)
            elsewhere = any(
                other["name"][1:] == wrong[1:] and other["name"] != wrong
                for other in self.rows.values()
            )
            if wrong in self.replaced_by:
                self.duplicates[one.offset] = "already_corrected"
                return
            if not originals and elsewhere:
                self.letters[one.offset] = "correction_of_another_account"
                return
            self.replaced_by[wrong] = one.offset
            late = originals[0]["late"] if originals else late
        self.rows[one.offset] = {"name": name, "late": late, "event": fields, "judged": verdict}

    def _of(self, name):
        return [row for row in self.rows.values() if row["name"] == name]

    def standing(self):
        return {
            offset: row
            for offset, row in self.rows.items()
            if self.replaced_by.get(row["name"], -1) < offset
        }

    def windows(self):
        sums = defaultdict(lambda: (0, 0))
        for row in self.standing().values():
            if not row["late"]:
                said = row["event"]
                key = (
                    *(key_of(said), said["subscriber_id"], said["provider"], said["model"]),
                    said["occurred_at"] // MINUTE * MINUTE,
                )
                sums[key] = sums[key][0] + 1, sums[key][1] + tokens_of(said)
        return dict(sums)

    def months(self):
        sums = defaultdict(lambda: (0, 0))
        for row in self.standing().values():
            if not row["late"]:
                said = row["event"]
                key = key_of(said), month_start_ms(ZONE, said["occurred_at"])
                sums[key] = sums[key][0] + 1, sums[key][1] + tokens_of(said)
        return dict(sums)


def there(sums):
    return {key: value for key, value in sums.items() if value != (0, 0)}


@law
@given(walks())
def test_ledger_windows_and_months_say_what_counting_by_hand_says(walk):
    world, by_hand = (
        World(walk, dies=True),
        Ledger([r for w in walk if w[0] == "use" for r in w[1]]),
    )
    store = world.landing.store

    assert sorted(row["offset"] for row in store.rows("ledger")) == sorted(by_hand.rows)
    assert {row["offset"]: row["reason"] for row in store.rows("duplicates")} == by_hand.duplicates
    assert world.landing.letters == by_hand.letters
    late = {row["offset"]: bool(row["late"]) for row in store.rows("ledger")}
    assert late == {offset: row["late"] for offset, row in by_hand.rows.items()}
    assert there(world.books.window_totals()) == by_hand.windows()
    assert there(world.books.month_totals()) == by_hand.months()


@law
@given(walks())
def test_what_stands_in_the_ledger_is_what_buckets_and_counters_paid(walk):
    world, by_hand = (
        World(walk, dies=True),
        Ledger([r for w in walk if w[0] == "use" for r in w[1]]),
    )
    charges = {
        cause.removesuffix(" in"): said["charge_utok"]
        for (cause, grain), said in world.books.window_changes.items()
        if cause.endswith(" in") and grain != "month"
    }
    stands: Counter[str] = Counter()
    for offset, row in by_hand.standing().items():
        told = row["judged"] == "correction"
        charge = charges[f"correct/0/{offset}"] if told else world.books.paid[offset][0]
        stands[key_of(row["event"])] += charge
    paid: Counter[str] = Counter()
    for (account, _), said in world.books.changes.items():
        if said["kind"] >= 15:  # void, correction_out, correction_in
            paid[account] -= said["amount_utok"]
    for entries in (world.books.burns, world.books.late):
        for (account, _, _), amount in entries.items():
            paid[account] += amount

    assert +stands == +paid
    assert min(paid.values(), default=0) >= 0


@law
@given(walks())
def test_entries_explain_every_bucket_and_counter_to_the_last_utok(walk):
    world = World(walk, dies=True)
    state, found = world.state, {}
    for slot, key in enumerate(state.cells.keys):
        row = state.books.row(slot)
        if row < 0:
            continue
        for bucket in state.books.chain(row):
            total, used, held = state.books.buckets.matrix[bucket, Bucket.TOTAL : Bucket.SCOPE]
            assert 0 <= used <= used + held <= total
            found[key, state.books.buckets.get(bucket, Bucket.NUMBER)] = int(total - used)
        for pseudo, column in COUNTERS.items():
            found[key, int(pseudo)] = -state.books.get(row, column)

    assert world.books.balances() == {name: amount for name, amount in found.items() if amount}


@law
@given(walks())
def test_deaths_change_no_balance_and_no_window(walk):
    calm, world = World(walk, dies=False), World(walk, dies=True)

    assert world.books.balances() == calm.books.balances()
    assert there(world.books.window_totals()) == there(calm.books.window_totals())
    assert set(world.landing.told) == set(calm.landing.told)
