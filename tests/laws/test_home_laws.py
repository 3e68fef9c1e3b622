"""Whatever a producer puts where, an account has one owner: across crashes, and from any journal."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.orders import CATALOG, catalog_version, hold_order, order
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import MINUTE, NOON, command, record
from tokenline.metering.home import Home
from tokenline.wire.kafka import partition_of

PARTITIONS = 3
ACCOUNTS = ("a", "b", "c", "d", "e", "x/y")
law = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
ACTS = st.tuples(
    st.integers(0, PARTITIONS - 1),
    st.sampled_from(ACCOUNTS),
    st.sampled_from(["set", "open", "grant", "hold", "use", "use", "use", "crash"]),
)


class Line:
    """Be charging of all partitions; anybody writes anywhere."""

    def __init__(self):
        self.journals = [Journal() for _ in range(PARTITIONS)]
        self.books = [Books() for _ in range(PARTITIONS)]
        self.owners = [self._owner(at) for at in range(PARTITIONS)]
        self.usage = Counter()
        for at, owner in enumerate(self.owners):
            owner.command([catalog_version(self._next(at), NOON, CATALOG)])

    def do(self, place, account, act, number):
        owner, now = self.owners[place], NOON + number * MINUTE // 4
        offset = self._next(place)
        if act == "crash":
            self.owners[place] = self._owner(place)
        elif act == "set":
            owner.command([command(offset, now, account_id=account)])
        elif act == "hold":
            owner.command([hold_order(offset, now, account_id=account, session=f"s{number}")])
        elif act == "use":
            at = owner.state.next_offsets["usage"]
            said = {"account_id": account, "event_id": f"e{number}", "occurred_at": now}
            owner.charge([record(at, now, **said)])
            self.usage[account, place] += 1
        else:
            fields = {"plan": "strict"} if act == "open" else {"amount_utok": 1_000_000}
            asked = order(offset, now, kind=act, account_id=account, **fields)
            owner.command([asked])

    def rest(self):
        for at in range(PARTITIONS):
            self.owners[at].rest()
            self.owners[at] = self._owner(at)
            self.owners[at].rest()

    def _owner(self, at):
        return PaperLine(self.journals[at], self.books[at], home=Home(at, PARTITIONS))

    def _next(self, at):
        return self.owners[at].state.next_offsets["commands"]


def home_of(key):
    return partition_of(key.encode(), PARTITIONS)


@law
@given(st.lists(ACTS, max_size=40))
def test_an_account_is_in_its_home_or_nowhere(acts):
    line = Line()
    for number, (place, account, act) in enumerate(acts):
        line.do(place, account, act, number)
        for at, owner in enumerate(line.owners):
            assert {home_of(key) for key in owner.state.cells.keys} <= {at}
    line.rest()

    owned = Counter(key for owner in line.owners for key in owner.state.cells.keys)
    assert set(owned.values()) <= {1}
    for at, books in enumerate(line.books):
        assert {home_of(key) for key, *_ in books.window_totals()} <= {at}
        assert {home_of(account) for account, _ in books.changes} <= {at}
        assert {home_of(account) for account, _ in books.decisions} <= {at}
    for (account, place), count in line.usage.items():
        if home_of(f"t/{account}") != place:
            letters = Counter(line.books[place].dead_letters.values())
            assert letters["wrong_partition"] >= count


@law
@given(st.lists(ACTS, max_size=30), st.integers(1, PARTITIONS - 1))
def test_a_journal_that_knew_no_homes_gives_no_account_a_second_owner(acts, shift):
    """It was written with another number of partitions, or before homes were known."""
    line = Line()
    for number, (place, account, act) in enumerate(acts):
        line.do(place, account, act, number)
    line.rest()
    for at, journal in enumerate(line.journals):
        place = (at + shift) % PARTITIONS
        home = Home(place, PARTITIONS + 1)
        heir = PaperLine(journal, Books(), home=home)
        again = PaperLine(journal, Books(), home=home)
        keys = heir.state.cells.keys
        strays = [key for key in keys if partition_of(key.encode(), PARTITIONS + 1) != place]

        for state in (heir.state, again.state):
            assert state.strays == len(strays)
            assert [state.cells.slot(key) for key in strays] == [None] * len(strays)
            assert state.cells.keys == keys
        used = record(heir.state.next_offsets["usage"], NOON, account_id="new", event_id="n")
        heir.charge([used])
        heir.rest()
        last = PaperLine(journal, Books(), home=home)
        assert last.state.strays == len(strays)
        assert all(last.state.cells.slot(key) is None for key in strays)
