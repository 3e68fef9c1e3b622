"""Whatever is asked of the engine in whatever order, it equals the slow model to the last µtok."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.laws.balance_model import MILLION, ModelAccount, Refused, cycle
from tests.laws.paying_laws import FREE, PayingLaws
from tests.strategies import DAY, HOUR, MINUTE, NOON
from tokenline.errors import Declined
from tokenline.metering.calendar import day_of_month
from tokenline.quota import orders
from tokenline.quota.balance import Balance
from tokenline.quota.books import Books
from tokenline.quota.buckets import Bucket, Scopes
from tokenline.quota.cells import AccountCells, Cell
from tokenline.quota.charge import NOTHING_PAID, SEVERAL_PAID, Rated, charge_chunk
from tokenline.quota.decided import State
from tokenline.quota.hold_rows import Outcome
from tokenline.quota.holds import HoldOrder
from tokenline.quota.limit_decisions import limit_decisions
from tokenline.quota.limit_specs import Specs
from tokenline.quota.limit_windows import rolled
from tokenline.quota.limits import EACH, Limit
from tokenline.quota.paying import claimable_utok, split
from tokenline.quota.pseudo import COUNTERS
from tokenline.quota.standing import figures_of
from tokenline.quota.table import NONE
from tokenline.quota.terms import (
    NEVER_MS,
    SUBSCRIBER_CAP,
    Grant,
    HoldExpiry,
    LimitSpec,
    Mode,
    Per,
    Scope,
    Source,
    Terms,
    Unit,
    Use,
)

LINGER = HOUR
CHEAP = Scope(models=("glm/*", "qwen/max"))
MOTHER = Scope(subscribers=("mother",))


def limit(name, unit, per, **more):
    return LimitSpec(name=name, unit=unit, per=per, **more)


PLANS = {
    "strict": Terms(mode=Mode.STRICT, allowance_utok=90 * MILLION, rollover_utok=20 * MILLION),
    "prepaid": Terms(
        mode=Mode.PREPAID,
        allowance_utok=31 * MILLION + 7,
        prorated=False,
        hold_validity_ms=30_000,
        hold_expiry=HoldExpiry.RELEASE,
    ),
    "postpaid": Terms(
        allowance_utok=50 * MILLION,
        overage=True,
        rollover_utok=10**15,
        hold_expiry=HoldExpiry.CHARGE_GRANTED,
        # The same by name as of another plan, of other models; one of nothing cuts from the start.
        limits=(
            (limit("month_utok:cheap", Unit.UTOK, Per.MONTH, models=("qwen/*",)), 20 * MILLION),
            (limit("none:mini", Unit.REQUESTS, Per.HOUR, models=("glm/mini",)), 0),
        ),
    ),
    "scoped": Terms(
        mode=Mode.STRICT,
        allowance_utok=40 * MILLION,
        scope=CHEAP,
        priority=5,
        zero_rated_needs_balance=True,
        thresholds=(10, 90),
        least_call_utok=2 * MILLION,
    ),
    "empty": Terms(mode=Mode.STRICT, change="now"),
    "whole": Terms(allowance_utok=70 * MILLION, prorated=False, change="next_cycle"),
    "family": Terms(
        mode=Mode.STRICT,
        allowance_utok=60 * MILLION,
        limits=(
            (SUBSCRIBER_CAP, 25 * MILLION),
            (limit("day_requests", Unit.REQUESTS, Per.DAY), 12),
        ),
    ),
    "limited": Terms(
        mode=Mode.PREPAID,
        allowance_utok=90 * MILLION,
        hold_validity_ms=30_000,
        hold_expiry=HoldExpiry.CHARGE_GRANTED,
        limits=(
            (limit("week_utok", Unit.UTOK, Per.WEEK), 70 * MILLION),
            (limit("rolling_hour_utok", Unit.UTOK, Per.HOUR, rolling=True), 40 * MILLION),
            (limit("month_utok:cheap", Unit.UTOK, Per.MONTH, models=CHEAP.models), 30 * MILLION),
            (limit("tens", Unit.REQUESTS, Per.DAY, each=True, models=("glm/*",)), 5),
            (limit("cycle_tokens", Unit.TOKENS, Per.CYCLE), 2000),
            (SUBSCRIBER_CAP, 35 * MILLION),
            (limit("hour_tokens", Unit.TOKENS, Per.HOUR, each=True), 500),
            (limit("son", Unit.UTOK, Per.DAY, each=True, subscriber="son"), 10 * MILLION),
            (limit("minute", Unit.REQUESTS, Per.MINUTE, each=True, rolling=True), 3),
        ),
    ),
    # More than a hold's own row has room for, and more than one row behind it.
    "crowded": Terms(
        mode=Mode.STRICT,
        allowance_utok=90 * MILLION,
        limits=tuple(
            (limit(f"{at}", Unit.UTOK, per, each=at % 3 == 0), (99 - at) * MILLION // 2)
            for at, per in zip(range(90), itertools.cycle(Per), strict=False)
        ),
    ),
}
LIMITED = ("family", "limited", "crowded")
SLOTS = (0, 1)
ZONES = ("Asia/Shanghai", "America/New_York")
slots = st.sampled_from(SLOTS)
plans = st.one_of(st.sampled_from(sorted(PLANS)), st.sampled_from(LIMITED))
amounts = st.one_of(st.integers(0, 30 * MILLION), st.sampled_from([1, MILLION, 10**12]))
uses = st.builds(
    Use,
    st.sampled_from(["glm", "qwen"]),
    st.sampled_from(["max", "mini"]),
    st.sampled_from(["", "mother", "son"]),
)
times = st.one_of(
    st.integers(0, 5_000),
    st.sampled_from([30_000, MINUTE, 2 * MINUTE, HOUR, HOUR + 1, DAY, 9 * DAY, 31 * DAY, 70 * DAY]),
)
ends = st.sampled_from([NEVER_MS, 1, MINUTE, 3 * HOUR, DAY, 20 * DAY])
sources = st.sampled_from([Source.PACK, Source.GIFT, Source.TOP_UP, Source.TRANSFER])
scopes = st.sampled_from([Scope(), Scope(), CHEAP, MOTHER])
sessions = st.tuples(st.integers(0, 2), st.just(7))
chunk_events = st.tuples(
    slots,
    st.integers(0, 3 * MILLION),
    # Above an hour it is late.
    st.sampled_from([0, 0, 0, -5_000, 1, HOUR - 1, HOUR + 1, 3 * HOUR, 20 * DAY, 40 * DAY]),
    uses,
    st.one_of(st.none(), st.none(), st.none(), sessions),
    # How long after the one before it was appended.
    st.sampled_from([0, 0, 1, 900, 4_000, 30_000]),
)


def part_of(granted):
    amount = Fraction(granted.amount_utok, MILLION)
    return amount, granted.priority, granted.valid_from_ms, granted.valid_to_ms, granted.scope


def find_terms(plan, _):
    return PLANS.get(plan)


def payers_of(paid, charges):
    """Return of each event the buckets that paid, and how much."""
    found = [
        {} if bucket in (NOTHING_PAID, SEVERAL_PAID) else {bucket: charge}
        for bucket, charge in zip(paid.buckets.tolist(), charges, strict=True)
    ]
    for event, bucket, amount in paid.splits.tolist():
        assert paid.buckets[event] == SEVERAL_PAID
        found[event][bucket] = amount
    return found


class EngineAndModel(PayingLaws, RuleBasedStateMachine):
    @initialize(zone=st.sampled_from(ZONES), data=st.data())
    def begin(self, zone, data):
        self.now = NOON
        cells = AccountCells()
        for name in ("t/a", "t/b"):
            slot = cells.open(name)
            cells.matrix[slot, Cell.ZONE] = cells.zone_code(zone)
        self.zone = zone
        self.books = Books(cells, find_terms, LINGER, free_models=lambda _: FREE)
        self.begin_paying()
        self.model = {}
        self.ledger = {}
        self.told = {}
        for slot in data.draw(st.sampled_from([(0,), (0, 1), (0, 1)])):
            self.open_both(slot, data.draw(plans), data.draw(st.sampled_from([0, 1, 31])))

    def both(self, slot, engine, model):
        """Do the same on both sides; both go ahead, or both refuse for the same reason."""
        try:
            got = engine()
        except Declined as declined:
            got = str(declined)
        wanted = "unknown_account"
        if slot in self.model:
            self.advance(slot, self.now)
            try:
                wanted = model(self.model[slot])
            except Refused as refused:
                wanted = str(refused)
        assert got == wanted
        self.note_changes()

    def advance(self, slot, now):
        account = self.model[slot]
        account.advance(now)
        account.looked = max(account.looked, now)
        return account

    def note_changes(self):
        changes, burns = self.books.take()
        for one in changes:
            key = one.slot, one.bucket
            self.ledger[key] = self.ledger.get(key, 0) + one.amount_utok
        burns = np.concatenate((burns, self.books.take_late()))
        for slot, bucket, amount in burns.tolist():
            self.ledger[slot, bucket] = self.ledger.get((slot, bucket), 0) - amount
        self.note_burns(burns)
        numbers = [one.number for one in changes]
        assert all(one.amount_utok for one in changes)
        assert len({(one.slot, one.number) for one in changes}) == len(numbers)

    def working(self, account):
        if account.status == "closed":
            raise Refused("closed")

    @rule(wait=times)
    def time_passes(self, wait):
        self.now += wait

    @rule(slot=slots, plan=st.one_of(plans, st.just("gone")), day=st.sampled_from([0, 1, 15, 31]))
    def open_account(self, slot, plan, day):
        self.open_both(slot, plan, day)

    def open_both(self, slot, plan, day):
        try:
            got = orders.open_account(self.books, slot, plan, day, self.now)
        except Declined as declined:
            got = str(declined)
        if slot in self.model or plan == "gone":
            assert got == ("already_open" if slot in self.model else "unknown_plan")
            return
        assert got == self.books.row(slot)
        day = day or day_of_month(self.zone, self.now)
        span = cycle(self.zone, day, self.now)
        account = ModelAccount(PLANS, LINGER, self.zone, plan, day, *span)
        account.grant_plan(account.share(plan, self.now) * MILLION, self.now)
        self.model[slot] = account
        self.note_changes()

    @rule(
        slot=slots,
        names=st.lists(st.sampled_from(["mother", "son"]), min_size=1, max_size=3),
        ceiling=st.one_of(amounts, st.none()),
    )
    def cap(self, slot, names, ceiling):
        def model(account):
            self.working(account)
            if ceiling is None and not set(names) <= set(account.limits.own):
                raise Refused("unknown_cap")
            for name in set(names):
                account.limits.cap(name, ceiling)

        self.both(
            slot, lambda: orders.cap_subscribers(self.books, slot, names, ceiling, self.now), model
        )

    @rule(slot=slots, plan=plans, when=st.sampled_from(["", "now", "now", "next_cycle"]))
    def change_plan(self, slot, plan, when):
        def model(account):
            self.working(account)
            account.change_plan(plan, when, self.now)

        self.both(slot, lambda: orders.change_plan(self.books, slot, plan, self.now, when), model)

    @rule(slot=slots, day=st.sampled_from([0, 1, 8, 28, 31]))
    def change_cycle(self, slot, day):
        def model(account):
            self.working(account)
            if not day:
                raise Refused("bad_amount")
            account.change_cycle(day, self.now)

        self.both(slot, lambda: orders.change_cycle(self.books, slot, day, self.now), model)

    @rule(slot=slots)
    def suspend(self, slot):
        self.set_status(slot, orders.suspend, "active", "suspended", "suspended")

    @rule(slot=slots)
    def resume(self, slot):
        self.set_status(slot, orders.resume, "suspended", "active", "not_suspended")

    def set_status(self, slot, order, was, now, reason):
        def model(account):
            self.working(account)
            if account.status != was:
                raise Refused(reason)
            account.status = now

        self.both(slot, lambda: order(self.books, slot, self.now), model)

    @rule(slot=slots, sure=st.integers(0, 9))
    def close(self, slot, sure):
        if sure:
            return

        def model(account):
            self.working(account)
            account.status = "closed"

        self.both(slot, lambda: orders.close_account(self.books, slot, self.now), model)

    @rule(slot=slots, amount=amounts, source=sources, lasts=ends, scope=scopes, data=st.data())
    def grant(self, slot, amount, source, lasts, scope, data):
        end = lasts if lasts == NEVER_MS else self.now + lasts
        start = data.draw(st.sampled_from([0, 0, self.now, self.now + HOUR]))
        granted = Grant(
            amount_utok=amount,
            source=source,
            priority=data.draw(st.sampled_from([1, 100, 100])),
            valid_from_ms=start,
            valid_to_ms=end,
            scope=scope,
            transferable=data.draw(st.booleans()),
        )

        self.grant_both(slot, granted)

    def grant_both(self, slot, granted):
        def model(account):
            self.working(account)
            if not granted.amount_utok or granted.valid_from_ms >= granted.valid_to_ms:
                raise Refused("bad_amount")
            return account.add(
                Fraction(granted.amount_utok, MILLION),
                granted.source,
                granted.priority,
                granted.valid_from_ms,
                granted.valid_to_ms,
                self.now,
                granted.scope,
                granted.transferable,
            )

        orders.bring_up_to(self.books, slot, self.now)
        used = self.figures(slot)
        self.both(slot, lambda: orders.grant(self.books, slot, granted, self.now), model)
        # Of a grant to an account that others know by now nobody has used anything.
        assert used is None or self.figures(slot) == used

    @rule(slot=slots, number=st.integers(0, 6), amount=amounts, sign=st.sampled_from([1, -1]))
    def adjust(self, slot, number, amount, sign):
        def model(account):
            self.working(account)
            if number not in account.buckets:
                raise Refused("unknown_bucket")
            bucket, delta = account.buckets[number], Fraction(sign * amount, MILLION)
            if bucket.end <= self.now:
                raise Refused("expired")
            if not amount or account.rest(bucket) + delta < 0:
                raise Refused("bad_amount")
            bucket.total += delta
            bucket.adjusted += delta

        self.both(
            slot, lambda: orders.adjust(self.books, slot, number, sign * amount, self.now), model
        )

    @rule(slot=slots, amount=amounts)
    def transfer(self, slot, amount):
        def model(account):
            self.working(account)
            if account.status != "active":
                raise Refused("suspended")
            found = [
                one
                for one in account.in_order()
                if one.start <= self.now < one.end and one.transferable and account.rest(one)
            ]
            left, parts = Fraction(amount, MILLION), []
            if not amount or sum(map(account.rest, found)) < left:
                raise Refused("bad_amount")
            for one in found:
                taken = min(left, account.rest(one))
                if taken:
                    parts.append((taken, one.priority, one.start, one.end, one.scope))
                    one.total, left = one.total - taken, left - taken
            return parts

        def engine():
            moved = orders.transfer_out(self.books, slot, amount, self.now)
            return [part_of(one.granted) for one in moved]

        self.both(slot, engine, model)

    @rule(
        slot=slots,
        use=uses,
        amount=amounts,
        ago=st.sampled_from([0, 0, -5_000, 1, MINUTE, HOUR - 1]),
        tokens=st.integers(0, 400),
    )
    def use_up(self, slot, use, amount, ago, tokens):
        def engine():
            return orders.charge(
                self.books,
                slot,
                use,
                amount,
                occurred_ms=self.now - ago,
                now_ms=self.now,
                tokens=tokens,
            )

        def model(account):
            self.note_charged(slot, use, amount)
            account.limits.count(use, tokens, amount, self.now)
            account.burn(use, Fraction(amount, MILLION), min(self.now - ago, self.now))
            return False

        self.both(slot, engine, model)

    @rule(events=st.lists(chunk_events, min_size=1, max_size=12))
    def use_many(self, events):
        """Charge a chunk at once; the model charges one event after the other, each when it came."""
        owners, charges, agos, used, named, waits = zip(*events, strict=True)
        # A chunk ends with its minute.
        last = self.now // MINUTE * MINUTE + MINUTE - 1
        came = [min(self.now + wait, last) for wait in itertools.accumulate(waits)]
        tokens = [charge // 7919 for charge in charges]
        rated = Rated(
            slots=np.array(owners, np.int64),
            charges_utok=np.array(charges, np.int64),
            occurred_ms=np.array(came) - np.array(agos, np.int64),
            appended_ms=np.array(came),
            named=np.array([session is not None for session in named]),
            late=np.array([ago > HOUR for ago in agos]),
            uses=lambda events: [used[event] for event in events],
            session=named.__getitem__,
            tokens=np.array(tokens, np.int64),
        )
        paid = charge_chunk(self.books, rated)
        wanted = [{} for _ in events]
        for event, (now, said) in enumerate(zip(came, events, strict=True)):
            slot, amount, ago, use, session, _ = said
            if slot in self.model:
                self.charged[slot] += amount
                account, charged = self.advance(slot, now), Fraction(amount, MILLION)
                aged = ago > HOUR
                if not aged:
                    account.limits.count(use, amount // 7919, amount, now)
                account.paid = {}
                if session in account.holds:
                    account.draw(account.holds[session], use, charged, now - ago, now, aged)
                elif aged:
                    account.burn_late(use, charged, now - ago, now)
                else:
                    account.burn(use, charged, min(now - ago, now))
                wanted[event] = {n: int(part * MILLION) for n, part in account.paid.items()}
        self.now = came[-1]
        assert payers_of(paid, charges) == wanted
        self.note_changes()

    @rule(
        slot=slots,
        session=sessions,
        use=uses,
        amount=amounts,
        ago=st.sampled_from([0, 0, -5_000, 1, HOUR - 1]),
    )
    def use_held(self, slot, session, use, amount, ago):
        self.use_both(slot, session, use, amount, ago)

    def use_both(self, slot, session, use, amount, ago=0):
        def engine():
            return orders.charge(
                self.books,
                slot,
                use,
                amount,
                occurred_ms=self.now - ago,
                now_ms=self.now,
                session=session,
            )

        def model(account):
            self.note_charged(slot, use, amount)
            account.limits.count(use, 0, amount, self.now)
            one = account.holds.get(session)
            if one is None:
                account.burn(use, Fraction(amount, MILLION), min(self.now - ago, self.now))
                return False
            return account.draw(one, use, Fraction(amount, MILLION), self.now - ago, self.now)

        self.both(slot, engine, model)

    @rule(
        slot=slots,
        session=sessions,
        seq=st.integers(0, 3),
        use=uses,
        wanted=amounts,
        reported=amounts,
        data=st.data(),
    )
    def hold(self, slot, session, seq, use, wanted, reported, data):
        order = HoldOrder(
            session=session,
            seq=seq,
            use=use,
            lease=data.draw(st.booleans()),
            reported_utok=reported if seq else 0,
            wanted_utok=wanted,
            needed_utok=data.draw(st.integers(0, wanted)),
            first_utok=data.draw(st.sampled_from([0, wanted // 2, wanted])),
            keep_utok=data.draw(st.sampled_from([0, wanted // 2, wanted])),
            prompt_utok=data.draw(st.integers(0, MILLION)),
            prompt_tokens=data.draw(st.integers(0, 9)),
            output_utok=data.draw(st.sampled_from([0, 250_000, 2 * MILLION])),
            max_tokens=data.draw(st.integers(1, 1000)),
            settles=data.draw(st.integers(0, 3)) == 0,
        )

        self.ask(slot, order)

    def ask(self, slot, order):
        def engine():
            answer = orders.hold(self.books, slot, order, self.now)
            assert (answer.outcome is Outcome.REFUSED) == (answer.reason != 0)
            return (
                answer.reason.name.lower(),
                Fraction(answer.granted_utok, MILLION),
                answer.max_tokens,
                answer.final,
                answer.late,
                {number: Fraction(amount, MILLION) for number, amount in answer.split},
            )

        self.both(slot, engine, lambda account: account.ask(order, self.now))
        if slot in self.model:
            before = [one.matrix.copy() for one in self.tables(self.books)]
            again = orders.hold(self.books, slot, order, self.now)
            assert again.reason.name == "STALE_SEQ" or again == orders.hold(
                self.books, slot, order, self.now
            )
            after = [one.matrix for one in self.tables(self.books)]
            assert all(map(np.array_equal, before, after))

    @rule(slot=slots, use=uses, data=st.data())
    def forsake(self, slot, use, data):
        """Hold, report, say no more until the policy speaks; then tell what was used after all."""
        session, amount = (data.draw(st.integers(3, 4)), 7), data.draw(amounts)
        told = data.draw(st.sampled_from([0, 1, amount // 2, amount]))
        fields = {"session": session, "use": use, "wanted_utok": amount, "max_tokens": 9}
        self.ask(slot, HoldOrder(**fields, seq=0))
        self.ask(slot, HoldOrder(**fields, seq=1, reported_utok=told))
        self.now += data.draw(st.sampled_from([MINUTE, 2 * MINUTE, HOUR, HOUR + 3 * MINUTE]))
        if data.draw(st.booleans()):
            self.use_both(slot, session, use, data.draw(st.sampled_from([1, amount // 2, amount])))
        if data.draw(st.booleans()):
            self.ask(slot, HoldOrder(session=session, seq=2, settles=True, reported_utok=told))

    @rule(slot=slots, small=st.integers(1, MILLION), count=st.integers(2, 30), use=uses)
    def hold_crumbs(self, slot, small, count, use):
        """Ask for more than eight buckets can give together, and settle some of it."""
        for _ in range(count):
            granted = Grant(amount_utok=small, source=Source.PACK)
            self.grant_both(slot, granted)
        session = (count % 4, 8)
        self.ask(slot, HoldOrder(session=session, seq=0, use=use, wanted_utok=10**12))
        self.use_both(slot, session, use, small * (count // 2))
        self.ask(slot, HoldOrder(session=session, seq=1, use=use, wanted_utok=small * (count // 3)))

    @rule(slot=slots, use=uses, other=uses, amount=amounts, data=st.data())
    def use_beyond(self, slot, use, other, amount, data):
        """Use what others hold: it is claimed, and paid, lost or waits on as the session goes on."""
        draw = data.draw
        sessions = [(draw(st.integers(0, 1)), 9), (2, 9)]
        for at, session in enumerate(sessions[: draw(st.integers(1, 2))]):
            share = 10**12 if at else draw(st.sampled_from([10**12, 7 * MILLION]))
            seq = draw(st.integers(0, 2))
            self.ask(slot, HoldOrder(session=session, seq=seq, use=use, wanted_utok=share))
        self.use_both(slot, draw(st.sampled_from([None, *sessions])), other, amount)
        then = draw(st.sampled_from(["wait", "use", "report", "shrink", "settle", "expire"]))
        if then in ("use", "report"):
            self.use_both(slot, sessions[0], use, draw(amounts))
        if then in ("report", "shrink", "settle"):
            told = draw(amounts) if then == "report" else 0
            order = HoldOrder(
                session=sessions[0],
                seq=3 + draw(st.integers(0, 3)),
                use=use,
                reported_utok=told,
                wanted_utok=0 if then == "settle" else draw(amounts),
                settles=then == "settle",
            )
            self.ask(slot, order)
        if then == "expire":
            self.now += draw(st.sampled_from([MINUTE, 2 * MINUTE, HOUR]))

    @rule()
    def restart(self):
        """Lose everything but the rows, as a worker does that reads its journal."""
        old = self.books
        self.books = Books(old.cells, find_terms, LINGER, free_models=lambda _: FREE)
        self.books.thresholds = list(old.thresholds)
        self.books.plans = list(old.plans)
        self.books.kept_terms.load(old.kept_terms.to_json())
        self.books.scopes = Scopes.from_json(old.scopes.to_json())
        self.books.limits.specs = Specs.from_json(old.limits.specs.to_json())
        for table, rows in zip(self.tables(self.books), self.tables(old), strict=True):
            table.adopt(copy.deepcopy(rows.matrix))
        self.books.adopt()

    def tables(self, books):
        return (
            *(books.balances, books.buckets, books.holds),
            *(books.limits, books.subscribers, books.told),
        )

    @invariant()
    def balances_are_equal(self):
        for slot, account in getattr(self, "model", {}).items():
            row, buckets = self.books.row(slot), self.books.buckets
            columns = Bucket.TOTAL, Bucket.USED, Bucket.HELD, Bucket.CLAIMED, Bucket.BEFORE
            found = {
                buckets.get(one, Bucket.NUMBER): tuple(
                    Fraction(buckets.get(one, column), MILLION) for column in columns
                )
                for one in self.books.chain(row)
            }
            assert list(found) == [one.number for one in account.in_order()]
            assert found == {
                number: (one.total, one.used, account.held(number), one.claimed, one.before)
                for number, one in account.buckets.items()
            }
            assert self.books.get(row, Balance.DEBT) == account.debt * MILLION
            assert (self.books.plan(row), self.books.pending_plan(row)) == (
                account.plan,
                account.pending,
            )
            unpaid = {+pseudo: self.books.get(row, at) for pseudo, at in COUNTERS.items()}
            assert unpaid == {number: amount * MILLION for number, amount in account.unpaid.items()}
            assert self.books.get(row, Balance.OVERAGE_HELD) == account.held(0) * MILLION

    @invariant()
    def figures_are_equal(self):
        """Of the present cycle, at the moment at which an account was last looked at."""
        for slot, account in getattr(self, "model", {}).items():
            row = self.books.row(slot)
            if self.now < self.books.get(row, Balance.DUE_AT):
                told = figures_of(self.books, row)
                found = told.allowance_utok, told.used_utok, told.overage_utok
                assert found == tuple(one * MILLION for one in account.used_now(self.now))
                assert told.written_off_utok == (account.unpaid[-1] - account.bases[-1]) * MILLION

    @invariant()
    def limits_are_equal(self):
        """Every counter, whether it was ever made or not; and each knows what is held against it."""
        for slot, account in getattr(self, "model", {}).items():
            limits, found = self.books.limits, {}
            for row in limits.of_owner(slot):
                if limits.get(row, Limit.SUBSCRIBER) != EACH and limits.in_force(row):
                    values = rolled(self.books, row, self.now)
                    who = limits.get(row, Limit.SUBSCRIBER)
                    name = limits.subscribers.name(who) if who >= 0 else ""
                    amounts = values[Limit.USED], values[Limit.HELD]
                    found[*limits.spec(row).identity, name] = amounts
            wanted = {
                key: (account.limits.used(spec, key, self.now), account.limits.held(key))
                for name in ("", "mother", "son")
                for spec, _, key in account.limits.every(name)
            }
            assert {key: both for key, both in found.items() if any(both)} == {
                key: both for key, both in wanted.items() if any(both)
            }

    @invariant()
    def who_has_reached_a_limit_is_told_so(self):
        told = limit_decisions(self.books, (), self.now, 1)
        for one in told:
            assert bool(one.group) == bool(one.models)
            self.told[one.slot, one.subscriber, one.group] = one
        for slot, account in getattr(self, "model", {}).items():
            for name in ("mother", "son"):
                assert self.is_cut(slot, name, "") == account.limits.cuts(name, self.now)
            groups = account.limits.cut_groups(("", "mother", "son"), self.now)
            for who, group in {(*key[1:],) for key in self.told if key[0] == slot and key[2]}:
                assert self.is_cut(slot, who, group) == ((who, group) in groups)
            assert all(self.is_cut(slot, *whom) for whom in groups)
            row = self.books.row(slot)
            if self.now < self.books.get(row, Balance.DUE_AT):
                resets = self.books.get(row, Balance.LIMIT_RESETS)
                assert (resets > self.now) == account.limits.cuts("", self.now)

    def is_cut(self, slot, subscriber, group):
        """Say what a guard makes of what it was told."""
        one = self.told.get((slot, subscriber, group))
        cut = one is not None and one.state is State.CUT
        return cut and not 0 < one.resets_at_ms <= self.now

    @invariant()
    def nobody_holds_or_uses_what_is_not_there(self):
        for slot in getattr(self, "model", ()):
            for one in self.books.chain(self.books.row(slot)):
                total, used, held = self.books.buckets.matrix[one, Bucket.TOTAL : Bucket.SCOPE]
                claimed, before = self.books.buckets.matrix[one, Bucket.CLAIMED : Bucket.ADJUSTED]
                assert used >= before >= 0
                assert held >= claimed >= 0
                assert used + held <= total

    @invariant()
    def the_ledger_explains_every_balance(self):
        for slot in getattr(self, "model", ()):
            row, buckets = self.books.row(slot), self.books.buckets
            found = {
                (slot, buckets.get(one, Bucket.NUMBER)): buckets.get(one, Bucket.TOTAL)
                - buckets.get(one, Bucket.USED)
                for one in self.books.chain(row)
            }
            found |= {(slot, +each): -self.books.get(row, at) for each, at in COUNTERS.items()}
            told = {key: amount for key, amount in self.ledger.items() if key[0] == slot and amount}
            assert told == {key: amount for key, amount in found.items() if amount}

    def claimable(self, bucket):
        """Return what may be claimed of a bucket that is valid now."""
        values = self.books.buckets.matrix[bucket].tolist()
        valid = values[Bucket.VALID_FROM] <= self.now < values[Bucket.VALID_TO]
        return claimable_utok(values) if valid else 0

    @invariant()
    def the_head_pays_what_the_order_says(self):
        """What fast charging would do is what slow charging does."""
        for slot in getattr(self, "model", ()):
            row = self.books.row(slot)
            if self.now >= self.books.get(row, Balance.DUE_AT):
                continue
            head, left, since, until = (
                self.books.get(row, column)
                for column in (
                    Balance.HEAD,
                    Balance.HEAD_LEFT,
                    Balance.HEAD_FROM,
                    Balance.HEAD_UNTIL,
                )
            )
            for at in {max(since, self.now - HOUR), self.now, min(until - 1, self.now + MINUTE)}:
                if left and since <= at < until:
                    parts = split(self.books, row, Use(), min(left, 10**15), at)
                    assert [part.row for part in parts] == ([] if head == NONE else [head])
                    if head == NONE and self.books.get(row, Balance.STOPS):
                        claimable = (self.claimable(one) for one in self.books.chain(row))
                        assert not any(claimable) or at != self.now


EngineAndModel.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, print_blob=True
)
TestEngineAgainstModel = EngineAndModel.TestCase
