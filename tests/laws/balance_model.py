"""Be what `tokenline.quota` must equal: slow, obvious, with fractions of tokens and no rows at all.

Nothing is remembered that can be looked up: what is held is summed over the holds, what is due is
searched for in everything, the order of burning is sorted anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from tests.laws.limit_model import ModelLimits
from tokenline.quota.terms import NEVER_MS, HoldExpiry, Mode, Source

MILLION = 1_000_000
ZERO = Fraction(0)


class Refused(Exception):
    """Say no, with the name of the reason."""


@dataclass
class ModelBucket:
    number: int
    source: Source
    priority: int
    start: int
    end: int
    total: Fraction
    granted_at: int
    scope: Any = None
    transferable: bool = False
    used: Fraction = ZERO
    claimed: Fraction = ZERO
    # What was used of it when the present cycle began.
    before: Fraction = ZERO
    # Of an allowance: the days it was granted for, and how much of it may roll over.
    days: tuple[int, int] = (0, 0)
    rolls: Fraction = ZERO
    # What it gives for those days, what was taken off that for a debt, and what orders added to it.
    gives: Fraction = ZERO
    paid: Fraction = ZERO
    adjusted: Fraction = ZERO

    @property
    def worth(self) -> Fraction:
        return self.gives + self.adjusted

    def pays(self, use: Any, at: int) -> bool:
        return self.start <= at < self.end and self.covers(use)

    def covers(self, use: Any) -> bool:
        if self.scope is None:
            return True
        models, subscribers = self.scope.models, self.scope.subscribers
        named = not models or any(
            each in models for each in (f"{use.provider}/{use.model}", f"{use.provider}/*")
        )
        return named and (not subscribers or use.subscriber in subscribers)


@dataclass
class ModelHold:
    session: Any
    lease: bool
    opened: int = 0
    seq: int = -1
    status: str = "open"
    policy: HoldExpiry = HoldExpiry.CHARGE_REPORTED
    reported: Fraction = ZERO
    used: Fraction = ZERO
    expires: int = 0
    kept: int = 0
    # Bucket number to amount, in the order taken: held, or charged at the expiry.
    parts: dict[int, Fraction] = field(default_factory=dict)
    bound: list[Any] = field(default_factory=list)
    answer: Any = None

    @property
    def owed(self) -> Fraction:
        return max(ZERO, self.reported - self.used)

    @property
    def holds(self) -> bool:
        return self.status in ("open", "settled")

    @property
    def due(self) -> int:
        return self.expires if self.holds else self.kept


@dataclass
class ModelAccount:
    plans: Any
    linger: int
    zone: str
    plan: str
    day: int
    start: int
    end: int
    status: str = "active"
    buckets: dict[int, ModelBucket] = field(default_factory=dict)
    holds: dict[Any, ModelHold] = field(default_factory=dict)
    numbers: int = 0
    # The last moment at which something happened to it.
    looked: int = 0
    pending: str = ""
    # What was used beyond the days of allowances and not paid; what was so in this cycle, paid or not.
    debt: Fraction = ZERO
    overused: Fraction = ZERO
    # What no bucket paid, by the numbers of RULES: 0 overage, -1 written off, -3 claims; and as of the
    # begin of the cycle.
    unpaid: dict[int, Fraction] = field(
        default_factory=lambda: dict.fromkeys((0, -1, -2, -3), ZERO)
    )
    bases: dict[int, Fraction] = field(default_factory=lambda: dict.fromkeys((0, -1, -2, -3), ZERO))
    stops: bool = True
    needs_balance: bool = False

    def __post_init__(self) -> None:
        self.limits = ModelLimits(self)
        self.take_terms()

    def take_terms(self) -> None:
        self.stops = not self.terms().overage
        self.needs_balance = self.terms().zero_rated_needs_balance
        self.limits.put_in_force()

    # What there is

    def terms(self, plan: str | None = None) -> Any:
        return self.plans[plan or self.plan]

    def start_at(self, now: int) -> int:
        return cycle(self.zone, self.day, now)[0] if self.end <= now else self.start

    def held(self, number: int) -> Fraction:
        return sum((one.parts.get(number, ZERO) for one in self.holds.values() if one.holds), ZERO)

    def rest(self, bucket: ModelBucket) -> Fraction:
        return bucket.total - bucket.used - self.held(bucket.number)

    def named(self, bucket: ModelBucket) -> bool:
        return any(bucket.number in one.parts for one in self.holds.values())

    def used_now(self, now: int) -> tuple[Fraction, Fraction, Fraction]:
        """Return what valid buckets had for this cycle, have paid of it, and what overage paid."""
        valid = [one for one in self.buckets.values() if one.start <= now < one.end]
        had = sum((one.total - one.before for one in valid), ZERO)
        paid = sum((one.used - one.before for one in valid), ZERO)
        return had, paid, self.unpaid[0] - self.bases[0]

    def what_passes(self, uses: list[Any], now: int, free: tuple[str, ...]) -> list[Any]:
        """Return the uses that may be begun: something pays for them, or they cost nothing."""
        if self.status != "active" or self.limits.cuts("", now):
            return []
        if not self.stops:
            return uses
        valid = [one for one in self.buckets.values() if one.start <= now < one.end]
        live = [] if self.is_crumb(now) else [one for one in valid if one.total > one.used]
        free = () if self.needs_balance else free
        return [
            use
            for use in uses
            if (free and use.among(free)) or any(one.covers(use) for one in live)
        ]

    def in_order(self) -> list[ModelBucket]:
        def rank(one: ModelBucket) -> Any:
            return one.priority, one.end, one.granted_at, one.number

        return sorted(self.buckets.values(), key=rank)

    def payers(self, use: Any, at: int) -> list[ModelBucket]:
        return [bucket for bucket in self.in_order() if bucket.pays(use, at)]

    def is_crumb(self, now: int) -> bool:
        """Say whether what is left is too little for any call, of an account that holds calls."""
        terms = self.terms()
        valid = [one for one in self.buckets.values() if one.start <= now < one.end]
        if (
            not self.stops
            or terms.mode == Mode.POSTPAID
            or any(self.held(one.number) for one in valid)
        ):
            return False
        total = sum((one.total - one.before for one in valid), ZERO)
        usual = min(Fraction(100), Fraction(int(total * MILLION) // 1000, MILLION))
        said = terms.least_call_utok
        crumb = usual if said is None else Fraction(said, MILLION)
        return sum((self.rest(one) for one in valid), ZERO) <= crumb

    # What happens by itself

    def advance(self, now: int) -> None:
        """Do what is due, one moment after the other, each thing at its own."""
        while (due := min(self.dues())) <= now:
            self.looked = at = max(due, self.looked)
            self.end_holds(at)
            for bucket in self.in_order():
                self.close_bucket(bucket, at)
            if self.end <= at:
                for bucket in self.in_order():
                    if bucket.end == NEVER_MS and not self.rest(bucket) and not self.named(bucket):
                        del self.buckets[bucket.number]
                self.begin(cycle(self.zone, self.day, self.end))

    def dues(self) -> list[int]:
        closes = [
            one.end + self.linger
            for one in self.buckets.values()
            if one.end != NEVER_MS and not self.named(one)
        ]
        return [self.end, *(one.due for one in self.holds.values()), *closes]

    def end_holds(self, at: int) -> None:
        while due := [one for one in self.holds.values() if one.due <= at]:
            one = min(due, key=lambda one: (one.due, one.opened, one.session))
            if one.holds:
                self.expire(one, at)
            else:
                del self.holds[one.session]

    def begin(self, span: tuple[int, int]) -> None:
        self.start, self.end = max(span[0], self.end), span[1]
        self.overused = ZERO
        self.bases = dict(self.unpaid)
        for bucket in self.buckets.values():
            bucket.before = bucket.used
        if self.status != "closed":
            self.plan, self.pending = self.pending or self.plan, ""
            self.take_terms()
            self.grant_plan(self.terms().allowance_utok, self.start)

    def close_bucket(self, bucket: ModelBucket, now: int) -> None:
        if bucket.end + self.linger > now or self.named(bucket):
            return
        rest, kept = self.rest(bucket), ZERO
        end = self.end
        if bucket.source is Source.PLAN and bucket.end != self.start:
            end = cycle(self.zone, self.day, bucket.end)[1]
            if end < bucket.end + 2 * 86_400_000:
                end = cycle(self.zone, self.day, end)[1]
        if bucket.source is Source.PLAN and self.status != "closed" and end > now:
            rolled = [
                one.total
                for one in self.buckets.values()
                if one.source is Source.ROLLOVER and one.start == bucket.end
            ]
            kept = max(ZERO, min(rest, bucket.rolls - sum(rolled, ZERO)))
        del self.buckets[bucket.number]
        if kept:
            priority, born = bucket.priority, bucket.granted_at
            self.add(kept, Source.ROLLOVER, priority, bucket.end, end, born, bucket.scope)

    def expire(self, one: ModelHold, now: int) -> None:
        if one.status == "settled":
            self.shrink(one, one.owed)
        elif one.policy is HoldExpiry.RELEASE:
            self.shrink(one, ZERO)
        elif one.policy is HoldExpiry.CHARGE_REPORTED:
            self.shrink(one, one.owed)
        for number, amount in one.parts.items():
            self.use_up(number, amount)
        one.status = "expired"
        self.lose()
        self.limits.count_keys(one.bound, int(sum(one.parts.values()) * MILLION), now)
        one.expires = now
        one.kept = now + self.terms().priced_ahead_ms + self.linger

    # What is done

    def add(
        self,
        amount: Fraction,
        source: Source,
        priority: int,
        start: int,
        end: int,
        now: int,
        scope: Any = None,
        transferable: bool = False,
    ) -> int:
        self.numbers += 1
        self.buckets[self.numbers] = ModelBucket(
            number=self.numbers,
            source=source,
            priority=priority,
            start=start,
            end=end,
            total=amount,
            granted_at=now,
            scope=scope,
            transferable=transferable,
        )
        return self.numbers

    def grant_plan(self, utok: Fraction | int, since: int) -> None:
        if utok > 0:
            terms, gives = self.terms(), Fraction(int(utok), MILLION)
            span = self.start, self.end
            number = self.add(gives, Source.PLAN, terms.priority, *span, since, terms.scope)
            bucket = self.buckets[number]
            bucket.gives, bucket.days = gives, (since, self.end)
            bucket.rolls = Fraction(terms.rollover_utok, MILLION)
            self.pay_debt(bucket)

    # What plans and cycles that change are worth

    def allowances(self, now: int) -> list[ModelBucket]:
        return [one for one in self.in_order() if one.source is Source.PLAN and one.end > now]

    def in_force(self, now: int) -> list[ModelBucket]:
        return [one for one in self.allowances(now) if one.days[1] > now]

    def taken(self, bucket: ModelBucket) -> Fraction:
        return bucket.total - self.rest(bucket)

    def given(self, bucket: ModelBucket, until: int) -> Fraction:
        """Return what it gives for its days until a moment, in whole millionths."""
        part = Fraction(days(self.zone, bucket.days[0], until), days(self.zone, *bucket.days))
        return Fraction(int(bucket.gives * MILLION * part), MILLION)

    def pay_debt(self, bucket: ModelBucket) -> None:
        paid = min(self.debt, self.rest(bucket))
        bucket.total -= paid
        bucket.paid += paid
        self.debt -= paid

    def settle_days(self, one: ModelBucket, whole: bool) -> None:
        """Let an allowance come to what its days are worth, or, granted whole, forgive what was used."""
        taken = self.taken(one)
        used_up = min(taken, one.worth)
        left = one.worth - used_up
        # Of what it paid, as much as its days could pay.
        could = ZERO if whole else min(one.paid, left)
        self.debt += one.paid - could
        one.paid = could
        if not whole:
            self.debt += taken - used_up
            self.overused += taken - used_up
        one.total = taken + left - could

    def share(self, plan: str, now: int) -> Fraction:
        terms = self.terms(plan)
        whole = days(self.zone, self.start, self.end)
        usual = days(self.zone, *cycle(self.zone, self.day, self.end - 1))
        # A cycle that was cut short or drawn out is shared by the days of a usual one.
        per = whole if abs(whole - usual) <= 3 else usual
        left = days(self.zone, now, self.end) if terms.prorated else min(whole, per)
        return Fraction(int(Fraction(terms.allowance_utok * left, per)), MILLION)

    def change_plan(self, plan: str, when: str, now: int) -> None:
        before, after = self.terms(), self.terms(plan)
        upgrade = after.allowance_utok >= before.allowance_utok
        rule = {"upgrade_now": upgrade, "now": True, "next_cycle": False}[after.change]
        self.pending = ""
        if when == "next_cycle" or (not when and not rule):
            self.pending = "" if plan == self.plan else plan
            return
        if plan == self.plan:
            return
        for one in self.in_force(now):
            one.gives, one.days = self.given(one, now), (one.days[0], now)
            self.settle_days(one, not before.prorated)
        self.plan = plan
        self.take_terms()
        share = self.share(plan, now)
        if not after.prorated:
            for one in self.allowances(now):
                one.total = self.taken(one)
            had = sum((one.total for one in self.allowances(now)), ZERO)
            made_up = min(self.debt, self.overused, max(ZERO, share - had + self.overused))
            self.debt, self.overused = self.debt - made_up, self.overused - made_up
            share -= had
        self.grant_plan(share * MILLION, now)

    def change_cycle(self, day: int, now: int) -> None:
        end, in_force = cycle(self.zone, day, now)[1], self.in_force(now)
        for one in in_force:
            given = self.given(one, end)
            one.gives = given if self.terms().prorated else min(given, one.gives)
            one.days = one.days[0], end
            self.settle_days(one, whole=False)
        for one in self.allowances(now):
            one.end = end
        self.day, self.end = day, end
        for one in in_force:
            self.pay_debt(one)

    def use_up(self, number: int, amount: Fraction) -> None:
        if number:
            self.buckets[number].used += amount
            self.buckets[number].before = min(
                self.buckets[number].before, self.buckets[number].used
            )
        else:
            self.unpaid[0] += amount
            self.bases[0] = min(self.bases[0], self.unpaid[0])

    def burn(self, use: Any, amount: Fraction, at: int) -> None:
        for bucket in self.payers(use, at):
            taken = min(amount, self.rest(bucket))
            bucket.used += taken
            amount -= taken
        if not self.stops:
            self.unpaid[0] += amount
            return
        for bucket in self.payers(use, at):
            taken = min(amount, self.held(bucket.number) - bucket.claimed)
            bucket.claimed += taken
            self.unpaid[-3] += taken
            amount -= taken
        self.unpaid[-1] += amount

    def lose(self) -> None:
        """Write off what is claimed of more than is held."""
        for bucket in self.buckets.values():
            lost = bucket.claimed - self.held(bucket.number)
            if lost > 0:
                bucket.claimed -= lost
                self.unpaid[-3] -= lost
                self.unpaid[-1] += lost

    def shrink(self, one: ModelHold, target: Fraction) -> None:
        surplus = sum(one.parts.values(), ZERO) - target
        for number in list(reversed(one.parts)):
            taken = min(max(surplus, ZERO), one.parts[number])
            surplus -= taken
            one.parts[number] -= taken
            if number and one.holds:
                bucket = self.buckets[number]
                paid = min(taken, bucket.claimed)
                bucket.claimed -= paid
                bucket.used += paid
                self.unpaid[-3] -= paid
        one.parts = {number: amount for number, amount in one.parts.items() if amount}

    def there_is(self, one: ModelHold, target: Fraction, use: Any, now: int) -> dict[int, Fraction]:
        missing, found = max(ZERO, target - sum(one.parts.values(), ZERO)), {}
        for bucket in self.payers(use, now):
            if taken := min(missing, self.rest(bucket)):
                found[bucket.number] = taken
                missing -= taken
        return found if self.stops or not missing else found | {0: missing}

    def draw(self, one: ModelHold, use: Any, amount: Fraction, occurred: int, now: int) -> bool:
        late = not one.holds
        one.used += amount
        if late:
            covered = min(amount, sum(one.parts.values(), ZERO))
            self.limits.count_keys(one.bound, -int(covered * MILLION), one.expires)
        for number in list(one.parts):
            if number and not self.buckets[number].covers(use):
                continue
            taken = min(amount, one.parts[number])
            one.parts[number] -= taken
            amount -= taken
            if not late:
                self.use_up(number, taken)
        one.parts = {number: part for number, part in one.parts.items() if part}
        if late:
            # What was charged at the end for what is paid elsewhere now comes back.
            self.give_back(one, sum(one.parts.values(), ZERO) - amount)
        self.lose()
        self.burn(use, amount, min(occurred, now))
        if one.status == "settled" and not one.owed:
            self.shrink(one, ZERO)
            one.status, one.kept = "closed", one.expires
        return late

    def give_back(self, one: ModelHold, target: Fraction) -> None:
        before = dict(one.parts)
        self.shrink(one, max(ZERO, target))
        for number, amount in before.items():
            self.use_up(number, one.parts.get(number, ZERO) - amount)

    def ask(self, order: Any, now: int) -> tuple[Any, ...]:
        """Answer a session: (reason, granted, max tokens, final, late, split)."""
        one = self.holds.get(order.session)
        if one is not None and order.seq == one.seq:
            return one.answer
        if one is not None and order.seq < one.seq:
            return ("stale_seq", ZERO, 0, False, False, {})
        if one is None and order.reported_utok:
            return ("none" if order.settles else "unknown_hold", ZERO, 0, False, True, {})
        fresh = ModelHold(order.session, order.lease, now)
        one = self.holds.setdefault(order.session, fresh)
        one.seq = order.seq
        never_held = not (one.used or one.reported) and one.answer and not one.answer[4]
        if one.status == "closed" and never_held and one.answer[0] != "none":
            one.status, one.opened = "open", now
        one.reported = max(one.reported, Fraction(order.reported_utok, MILLION))
        one.answer = self.settled(one, now) if order.settles else self.asked(one, order, now)
        return one.answer

    def settled(self, one: ModelHold, now: int) -> tuple[Any, ...]:
        late = not one.holds
        if one.status == "expired":
            given = max(ZERO, sum(one.parts.values(), ZERO) - one.owed)
            self.give_back(one, one.owed)
            self.limits.count_keys(one.bound, -int(given * MILLION), one.expires)
        elif not late:
            self.shrink(one, one.owed)
            one.status = "settled" if one.owed else "closed"
            one.kept = now + 2 * self.terms().hold_validity_ms
            if one.owed:
                one.policy, one.expires = self.terms().hold_expiry, one.kept
        return ("none", ZERO, 0, False, late, {})

    def asked(self, one: ModelHold, order: Any, now: int) -> tuple[Any, ...]:
        if one.status == "settled":
            return ("unknown_hold" if order.wanted_utok else "none", ZERO, 0, False, True, {})
        if not one.holds:
            ended = self.settled(one, now)
            return ("unknown_hold", *ended[1:]) if order.wanted_utok else ended
        terms, owed, before = self.terms(), one.owed, dict(one.parts)
        # What is asked for counts from what was reported; what was used beyond that is had already.
        ahead = max(one.reported, one.used) - Fraction(order.reported_utok, MILLION)
        wanted, needed, first, keep = (
            Fraction(n, MILLION) - ahead
            for n in (order.wanted_utok, order.needed_utok, order.first_utok, order.keep_utok)
        )
        room, most, reached = self.limits.bind(one, order, int(needed * MILLION), now)
        reason, asked = {"active": "none"}.get(self.status, self.status), wanted
        if reason == "none" and reached:
            reason = reached
        if reason == "none" and needed > 0 and self.is_crumb(now):
            reason = "balance_used_up"
        if order.lease:
            others = [each for each in self.holds.values() if each is not one or each.expires]
            count = sum(each.lease and each.status == "open" for each in others)
            left = sum(
                (self.rest(each) for each in self.buckets.values() if each.start <= now < each.end),
                ZERO,
            )
            balance = int((left + sum(before.values(), ZERO)) * MILLION) // (2 * max(1, count))
            fair = Fraction(min(balance, room // 2), MILLION)
            wanted = max(needed, min(wanted, max(first, fair)))
        wanted = min(wanted, Fraction(room, MILLION))
        kept = max(ZERO, min(keep, sum(before.values(), ZERO) - owed))
        target = owed + max(ZERO, kept, wanted if reason == "none" else ZERO)
        self.shrink(one, target)
        more = self.there_is(one, target, order.use, now)
        granted = max(ZERO, sum([*one.parts.values(), *more.values()], ZERO) - owed)
        if reason == "none" and granted < needed:
            payers = list(self.payers(order.use, now))
            comes = (self.held(each.number) - each.claimed for each in payers)
            found = sum(comes, ZERO) + sum(map(self.rest, payers), ZERO)
            reason = "balance_held" if found >= needed - kept else "balance_used_up"
            granted = kept
            self.shrink(one, owed + kept)
            more = self.there_is(one, owed + kept, order.use, now)
        for number, amount in more.items():
            one.parts[number] = one.parts.get(number, ZERO) + amount
        one.policy = terms.hold_expiry
        one.expires = now + 2 * terms.hold_validity_ms
        if reason != "none" and not one.parts and not one.owed:
            one.status, one.kept = "closed", one.expires
        split = {
            n: more for n, amount in one.parts.items() if (more := amount - before.get(n, ZERO)) > 0
        }
        # An answer names eight buckets at most, those it took of first.
        split = dict(list(split.items())[:8])
        final = reason == "none" and granted < asked
        most = min(most, most_tokens(order, granted + ahead)) if reason == "none" else 0
        return (reason, granted + ahead, most, final, False, split)


def most_tokens(order: Any, granted: Fraction) -> int:
    if not order.output_utok:
        return order.max_tokens if granted * MILLION >= order.prompt_utok else 0
    if not granted:
        return 0
    room = (granted * MILLION - order.prompt_utok) // order.output_utok
    return max(0, min(order.max_tokens, int(room)))


def cycle(zone: str, day: int, moment: int) -> tuple[int, int]:
    """Walk day by day to the first and the last midnight of a cycle."""
    at = datetime.fromtimestamp(moment // 1000, ZoneInfo(zone)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    start = at
    while not is_anchor(start, day):
        start -= timedelta(days=1)
    end = at + timedelta(days=1)
    while not is_anchor(end, day):
        end += timedelta(days=1)
    return ms(start), ms(end)


def is_anchor(at: datetime, day: int) -> bool:
    last = (at + timedelta(days=1)).month != at.month
    return at.day == day or (last and at.day < day)


def days(zone: str, start: int, end: int) -> int:
    dates = [datetime.fromtimestamp(one // 1000, ZoneInfo(zone)).date() for one in (start, end)]
    return (dates[1] - dates[0]).days


def ms(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp()) * 1000
