"""What leaves one account for another arrives once, or comes back: in any order, however often told."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.orders import CATALOG, catalog_version, order
from tests.strategies import BOUNDS, NOON
from tokenline.charging.commands import fold_commands
from tokenline.charging.partition import PartitionState
from tokenline.charging.step import Commanded
from tokenline.quota.buckets import Bucket
from tokenline.quota.entries import ChangeKind

MILLION = 1_000_000
DAY = 86_400_000
SCOPES = ([], ["p/mini"])
TRANSFERS = (ChangeKind.TRANSFER_OUT, ChangeKind.TRANSFER_IN, ChangeKind.TRANSFER_RETURN)
PLACES = {"a": 0, "b": 1, "c": 0, "nobody": 1}

law = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class TwoPartitions:
    """Own accounts a and c in one partition and b in another; what is sent waits on `way`.

    `seen` is called with the state and each step of it.
    """

    def __init__(self):
        self.now = NOON
        self.states = [PartitionState(BOUNDS), PartitionState(BOUNDS)]
        self.way, self.moved, self.parts = [], Counter(), {}
        self.seen = lambda *_: None
        for place in (0, 1):
            self._fold(place, catalog_version(0, NOON, CATALOG))
        for account in ("a", "b", "c"):
            self.ask(account, kind="open", plan="strict")

    def ask(self, account, **fields):
        """Have an order carried out and return its answer."""
        place = PLACES[account]
        offset = self.states[place].next_offsets["commands"]
        return self._fold(place, order(offset, self.now, account_id=account, **fields))

    def deliver(self, fields):
        """Bring what was sent to its account's partition, be it again."""
        place = PLACES[fields["account_id"]]
        offset = self.states[place].next_offsets["commands"]
        plain = order(offset, self.now).fields
        said = Commanded(
            offset=offset, appended_ms=self.now, fields={**plain, **fields}, name="account_order"
        )
        return self._fold(place, said)

    def quiesce(self):
        """Deliver all that is on its way, and what that sends."""
        while self.way:
            self.deliver(self.way.pop())

    def _fold(self, place, command):
        state = self.states[place]
        step = fold_commands(state, [command], command.offset)
        for change in step.changes:
            if change.kind in TRANSFERS:
                self.moved[change.kind] += change.amount_utok
        self.seen(state, step)
        for sent in step.sent:
            self.parts[sent.fields["command_id"]] = sent.fields
            self.way.append(sent.fields)
        self.refused = step.refused
        return step.replies[0].answer if step.replies else None

    def on_the_way(self):
        """Return what was taken out and has no counter entry."""
        out, taken, back = (self.moved[kind] for kind in TRANSFERS)
        return -out - taken - back

    def balance(self, account):
        """Return total less used of all buckets of an account."""
        books = self.states[PLACES[account]].books
        slot = self.states[PLACES[account]].cells.slot(f"t/{account}")
        matrix = books.buckets.matrix
        own = matrix[matrix[:, Bucket.OWNER] == slot]
        return int((own[:, Bucket.TOTAL] - own[:, Bucket.USED]).sum())


accounts = st.sampled_from(["a", "b", "c"])
actions = st.one_of(
    st.tuples(st.just("give"), accounts, st.sampled_from([*PLACES]), st.integers(1, 60)),
    st.tuples(st.just("grant"), accounts, st.sampled_from([1, 40]), st.sampled_from([0, 1])),
    st.tuples(st.just("deliver"), st.integers(0, 9), st.booleans()),
    st.tuples(st.sampled_from(["suspend", "resume", "close"]), accounts),
    st.tuples(st.just("wait"), st.sampled_from([1, 3_600_000, DAY])),
)


def act(line, number, action):
    """Do one thing to the line."""
    kind, *rest = action
    if kind == "give":
        giver, receiver, tokens = rest
        line.ask(
            giver,
            kind="transfer",
            to_account=receiver,
            amount_utok=tokens * MILLION,
            command_id=f"t{number % 4}",
        )
    elif kind == "grant":
        account, days, scope = rest
        line.ask(
            account,
            kind="grant",
            amount_utok=30 * MILLION,
            valid_to=line.now + days * DAY,
            models=SCOPES[scope],
            transferable=1,
            command_id=f"g{number}",
        )
    elif kind == "deliver" and line.way:
        index, again = rest[0] % len(line.way), rest[1]
        line.deliver(line.way[index])
        if not again:
            del line.way[index]
    elif kind == "wait":
        line.now += rest[0]
    elif kind in ("suspend", "resume", "close"):
        line.ask(rest[0], kind=kind, command_id=f"l{number}")


@law
@given(st.lists(actions, min_size=4, max_size=25))
def test_out_is_in_and_returned_and_on_the_way_and_at_last_nothing_is(todo):
    line = TwoPartitions()
    for number, action in enumerate(todo):
        # Nothing waits for so long that it cannot be taken; that has a test of its own.
        if line.now - NOON > 4 * DAY:
            break
        act(line, number, action)
        assert line.on_the_way() >= 0
        known = sum(one["amount_utok"] for one in line.parts.values())
        assert known >= line.on_the_way()
    line.quiesce()
    assert line.on_the_way() == 0
    before = line.moved.copy(), [line.balance(name) for name in ("a", "b", "c")]
    for fields in list(line.parts.values()):
        line.deliver(fields)
    assert (line.moved, [line.balance(name) for name in ("a", "b", "c")]) == before
    for place in (0, 1):
        matrix = line.states[place].books.buckets.matrix
        assert (matrix[:, Bucket.TOTAL] >= 0).all() or not len(matrix)
