"""Say what an account has to be, from the rules alone: slow, obvious, and without a line of the engine.

Nothing here imports `tokenline`. Rates are fractions, moments are ms, amounts are µtok. What is due is
looked for in everything, the burn order is sorted each time, what is held is summed over the holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

MILLION = 1_000_000
DAY = 86_400_000
NEVER = 10**18
LINGER = 61 * 60_000
HORIZON = 60 * 60_000
OVERAGE, WRITTEN_OFF, LATE, CLAIM = 0, -1, -2, -3
SOURCES = {OVERAGE: "overage", WRITTEN_OFF: "written_off", LATE: "late_adjustment", CLAIM: "claim"}


class No(Exception):
    """Refuse, with the reason's name."""


def begin_of(day: date, zone: str) -> int:
    """Return the first moment of a local day, in ms."""
    local = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    return round(local.timestamp()) * 1000


def day_of(at: int, zone: str) -> date:
    """Return the local day of a moment."""
    return datetime.fromtimestamp(at // 1000, UTC).astimezone(ZoneInfo(zone)).date()


def begins_of_cycles(day: int, around: date) -> Iterator[date]:
    """Yield the days on which cycles begin near a date, ascending."""
    for months in range(-2, 4):
        year, month = divmod(around.year * 12 + around.month - 1 + months, 12)
        first = date(year, month + 1, 1)
        last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
        yield first.replace(day=min(day, last.day))


def cycle_days(day: int, around: date) -> tuple[date, date]:
    """Return the first day of the cycle that holds a date, and of the next."""
    return next(
        pair for pair in pairwise(begins_of_cycles(day, around)) if pair[0] <= around < pair[1]
    )


@dataclass(frozen=True)
class Use:
    """Name what is paid for."""

    provider: str
    model: str
    subscriber: str


USES = [
    Use(provider, model, subscriber)
    for provider, model in (("p", "max"), ("p", "mini"), ("p", "gift"), ("q", "x"))
    for subscriber in ("", "ann", "bob")
]


@dataclass
class Terms:
    """Hold what one version of a catalog says of a plan."""

    plan: str
    version: int
    said: dict[str, Any]
    models: tuple[str, ...]

    @property
    def allowance(self) -> int:
        return int(self.said["tokens"]) * MILLION

    @property
    def overage(self) -> bool:
        return self.said.get("used_up") == "overage"

    @property
    def holds(self) -> bool:
        return self.said["mode"] in ("prepaid", "strict")

    @property
    def full(self) -> bool:
        return self.said.get("proration") == "full"

    @property
    def validity(self) -> int:
        return int(self.said.get("hold_validity_s", 60)) * 1000

    @property
    def longest(self) -> int:
        """Return how long after its question a call may still run."""
        call = int(self.said.get("longest_call_s", 600)) * 1000
        return max(2 * self.validity, call if self.said["mode"] == "strict" else 0)

    def same(self, other: Terms) -> bool:
        """Say whether both mean the same to an account that has them."""
        apart = ("title", "fee", "overage_price", "running_accounts")
        mine, theirs = (
            {name: value for name, value in one.said.items() if name not in apart}
            for one in (self, other)
        )
        return (self.plan, mine, self.models) == (other.plan, theirs, other.models)

    def share(self, days: int, of: int) -> int:
        """Return what the plan gives for some days of a cycle."""
        return self.allowance if self.full else self.allowance * days // of


class Catalogs:
    """Hold the versions that were published, each with its moment."""

    def __init__(self) -> None:
        self.versions: list[tuple[int, dict[str, Any]]] = []

    def add(self, said: dict[str, Any]) -> None:
        self.versions.append((int(said["effective_from"].timestamp()) * 1000, said))
        self.versions.sort(key=lambda one: (one[0], one[1]["version"]))

    def at(self, moment: int) -> dict[str, Any] | None:
        found = [said for since, said in self.versions if since <= moment]
        return found[-1] if found else None

    def terms(self, plan: str, moment: int) -> Terms | None:
        """Return what the version in force says of a plan, None if it has none of the name."""
        said = self.at(moment)
        if said is None or plan not in said["plans"]:
            return None
        plan_said = said["plans"][plan]
        models = [m for group in plan_said.get("groups", ()) for m in said["groups"][group]]
        return Terms(plan, said["version"], plan_said, tuple(dict.fromkeys(models)))

    def rate(self, use: Use, moment: int) -> tuple[Fraction, Fraction] | None:
        """Return standard tokens for a token of input and of output."""
        said = self.at(moment)
        for name in (use.model, "*"):
            for one in said["rates"] if said else ():
                if (one["provider"], one["model"]) == (use.provider, name):
                    return Fraction(one["input_tokens"]), Fraction(one["output_tokens"])
        return None

    def dearest(self, use: Use, since: int, until: int) -> tuple[Fraction, Fraction] | None:
        """Return the most that a token of input and of output costs in a stretch of time."""
        if self.rate(use, since) is None:
            return None
        moments = [since, *(begins for begins, _ in self.versions if since < begins <= until)]
        rates = [rate for moment in moments if (rate := self.rate(use, moment))]
        return max(rate[0] for rate in rates), max(rate[1] for rate in rates)

    @staticmethod
    def cost(rate: tuple[Fraction, Fraction], tokens: tuple[int, int]) -> int:
        cost = (rate[0] * tokens[0] + rate[1] * tokens[1]) * MILLION
        assert cost.denominator == 1
        return int(cost)


@dataclass
class Bucket:
    number: int
    source: str
    priority: int
    since: int
    until: int
    total: int
    models: tuple[str, ...] = ()
    subscribers: tuple[str, ...] = ()
    transferable: bool = False
    used: int = 0
    base: int = 0
    held: int = 0
    claimed: int = 0
    rolls: int = 0
    # Of an allowance: its days, what it gives for them, what orders added, what of it paid debts.
    days: tuple[date, date] = (date.min, date.min)
    gives: int = 0
    adjusted: int = 0
    paid: int = 0
    full: bool = False
    # When it was granted; of what rolled over, when the allowance was that it comes from.
    granted: int = -1

    @property
    def free(self) -> int:
        return self.total - self.used - self.held

    @property
    def order(self) -> tuple[int, int, int, int]:
        return self.priority, self.until, self.granted, self.number

    def valid(self, at: int) -> bool:
        return self.since <= at < self.until

    def covers(self, use: Use) -> bool:
        names = {f"{use.provider}/{use.model}", f"{use.provider}/*"}
        return (not self.models or bool(names & set(self.models))) and (
            not self.subscribers or use.subscriber in self.subscribers
        )


@dataclass
class Hold:
    session: str
    use: Use
    expires: int
    policy: str
    number: int
    seq: int = 0
    reported: int = 0
    used: int = 0
    kept: int = 0
    status: str = "open"
    parts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def held(self) -> int:
        return sum(amount for _, amount in self.parts)


@dataclass
class Limit:
    """Count tokens or requests of an account in windows of its local calendar."""

    unit: str
    per: str
    ceiling: int
    zone: str
    used: int = 0
    window: object = None

    def key(self, now: int) -> object:
        local = datetime.fromtimestamp(now // 1000, UTC).astimezone(ZoneInfo(self.zone))
        if self.per == "day":
            return local.date()
        # An hour is cut where the zone's clock moves.
        return local.date(), local.hour, local.utcoffset()

    def at(self, now: int) -> int:
        """Return what is used of the window that a moment lies in."""
        return self.used if self.window == self.key(now) else 0

    def count(self, tokens: int, now: int) -> None:
        self.used = self.at(now) + (tokens if self.unit == "tokens" else 1)
        self.window = self.key(now)


@dataclass
class Account:
    """Be one account; every entrance first does what is due, due by due."""

    catalogs: Catalogs
    zone: str
    day: int
    terms: Terms
    looked: int
    status: str = "active"
    buckets: list[Bucket] = field(default_factory=list)
    holds: dict[str, Hold] = field(default_factory=dict)
    entries: list[tuple[str, int, int, int]] = field(default_factory=list)
    numbers: int = 0
    before: int = 0
    start: int = 0
    end: int = 0
    last: date = date.min
    pending: str = ""
    versions_until: int = 0
    debt: int = 0
    overused: int = 0
    limits: dict[str, Limit] = field(default_factory=dict)
    rolled: dict[int, int] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    bases: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))

    # Time

    def limit(self) -> None:
        """Count by the limits of the present terms; one that was there goes on."""
        found = {}
        for said in self.terms.said.get("limits", ()):
            unit = "tokens" if "tokens" in said else "requests"
            name = f"{said['per']}_{unit}"
            limit = Limit(unit, said["per"], said[unit], self.zone)
            if name in self.limits:
                limit.used, limit.window = self.limits[name].used, self.limits[name].window
            found[name] = limit
        self.limits = found

    def open(self, now: int) -> None:
        self.limit()
        self.versions_until = now
        first, self.last = cycle_days(self.day, today := day_of(now, self.zone))
        self.start, self.end = begin_of(first, self.zone), begin_of(self.last, self.zone)
        left, usual = (self.last - today).days, (self.last - first).days
        self.grant_plan(now, self.terms.share(left, usual), "grant")

    def grant_plan(self, now: int, amount: int, kind: str) -> None:
        terms = self.terms
        priority = terms.said.get("priority", 100)
        bucket = Bucket(0, "plan", priority, self.start, self.end, amount, terms.models)
        bucket.rolls = int(terms.said.get("rollover_tokens", 0)) * MILLION
        bucket.days, bucket.gives, bucket.full = (
            (day_of(now, self.zone), self.last),
            amount,
            terms.full,
        )
        if amount:
            self.add(bucket, kind, now)
        self.pay_debt(bucket, now)

    def pay_debt(self, bucket: Bucket, now: int) -> None:
        paid = min(self.debt, max(0, bucket.free))
        self.debt -= paid
        bucket.total -= paid
        bucket.paid += paid
        self.enter("debt", bucket.number, -paid, now)

    def add(self, bucket: Bucket, kind: str, now: int) -> Bucket:
        self.numbers += 1
        bucket.number = self.numbers
        bucket.granted = now if bucket.granted < 0 else bucket.granted
        self.buckets.append(bucket)
        self.enter(kind, bucket.number, bucket.total, now)
        return bucket

    def enter(self, kind: str, bucket: int, amount: int, at: int) -> None:
        if amount:
            self.entries.append((kind, bucket, amount, at))

    def dues(self) -> Iterator[tuple[int, int, tuple[int, ...], Any]]:
        for hold in self.holds.values():
            if hold.status in ("open", "settled"):
                yield hold.expires, 0, (hold.number,), hold
            elif hold.status == "expired":
                yield hold.kept, 0, (hold.number,), hold
        for bucket in self.buckets:
            if bucket.until < NEVER:
                yield bucket.until + LINGER, 1, bucket.order, bucket
        yield self.end, 2, (), None
        begins = [one for one, _ in self.catalogs.versions if one > self.versions_until]
        if begins and self.status != "closed":
            yield min(begins), 3, (), None

    def advance(self, now: int) -> None:
        while True:
            due = min(self.dues(), key=lambda one: one[:3], default=None)
            if due is None or due[0] > now:
                break
            self.do(due)
        self.looked = now

    def do(self, due: tuple[int, int, tuple[int, ...], Any]) -> None:
        at, kind, _, what = due
        if kind == 0:
            self.expire(what, at)
        elif kind == 1:
            self.close_bucket(what, at)
        elif kind == 2:
            self.begin_cycle(at)
        else:
            self.versions_until = at
            terms = self.catalogs.terms(self.terms.plan, at)
            if terms and terms.said.get("running_accounts") == "now":
                if not terms.same(self.terms):
                    self.change_now(terms, at)
                self.terms = terms

    def close_bucket(self, bucket: Bucket, at: int) -> None:
        for hold in self.holds.values():
            hold.parts = [one for one in hold.parts if one[0] != bucket.number]
        self.lose(bucket, bucket.claimed, at)
        left = bucket.total - bucket.used
        self.buckets.remove(bucket)
        rolls = 0
        if self.status != "closed" and bucket.source == "plan":
            # The allowances of one cycle have one cap together.
            rolls = min(left, max(0, bucket.rolls - self.rolled.get(bucket.until, 0)))
            self.rolled[bucket.until] = self.rolled.get(bucket.until, 0) + rolls
        self.enter("rollover_out", bucket.number, -rolls, at)
        self.enter("expiry", bucket.number, rolls - left, at)
        if rolls:
            rolled = Bucket(0, "rollover", bucket.priority, 0, self.end, rolls, bucket.models)
            rolled.since, rolled.granted = self.start, bucket.granted
            self.add(rolled, "rollover_in", at)

    def begin_cycle(self, at: int) -> None:
        self.last = cycle_days(self.day, day_of(at, self.zone))[1]
        self.before, self.start, self.end = self.start, at, begin_of(self.last, self.zone)
        if self.status != "closed":
            chosen = self.catalogs.terms(self.pending, at)
            self.terms = chosen or self.catalogs.terms(self.terms.plan, at) or self.terms
            if self.pending and chosen:
                self.limits = {}
            self.pending = ""
            self.limit()
        # One without an end that is used up ends with the cycle.
        self.buckets = [one for one in self.buckets if one.until < NEVER or one.used < one.total]
        for bucket in self.buckets:
            bucket.base = bucket.used
        self.bases, self.overused = dict(self.counters), 0
        if self.status != "closed":
            self.grant_plan(at, self.terms.allowance, "grant")

    # Paying

    def named(self, number: int) -> Bucket:
        return next(one for one in self.buckets if one.number == number)

    def use(self, use: Use, tokens: tuple[int, int], hold: str, occurred: int, now: int) -> None:
        self.advance(now)
        rate = self.catalogs.rate(use, occurred)
        assert rate is not None
        at, left = min(occurred, now), self.catalogs.cost(rate, tokens)
        if now - occurred > HORIZON:
            # Late: it counts in no limit; of a cycle that is closed it is for the next statement.
            if self.is_closed(occurred, now):
                self.counters[LATE] += left
                return
        else:
            for limit in self.limits.values():
                limit.count(sum(tokens), now)
        if hold in self.holds:
            left = self.draw(self.holds[hold], use, left, now)
        for bucket in self.payers(use, at):
            taken = min(left, max(0, bucket.free))
            bucket.used += taken
            left -= taken
        self.unpaid(use, left, at)

    def is_closed(self, occurred: int, now: int) -> bool:
        """Say whether the bill cycle of a moment is closed: the one before lingers."""
        if occurred >= self.start:
            return False
        return occurred < self.before or now >= self.start + LINGER

    def payers(self, use: Use, at: int) -> list[Bucket]:
        found = [one for one in self.buckets if one.valid(at) and one.covers(use)]
        return sorted(found, key=lambda one: one.order)

    def draw(self, hold: Hold, use: Use, amount: int, now: int) -> int:
        left, parts = amount, []
        for number, held in hold.parts:
            bucket = self.named(number) if number > 0 else None
            taken = min(left, held) if bucket is None or bucket.covers(use) else 0
            left -= taken
            if held > taken:
                parts.append((number, held - taken))
            if hold.status == "expired":
                # It is usage now, and no longer the closing's charge.
                self.enter("hold_refund", number, taken, now)
            if hold.status == "expired" or not taken:
                continue
            if bucket is None:
                self.counters[OVERAGE] += taken
            else:
                bucket.used += taken
                bucket.held -= taken
                self.lose(bucket, bucket.claimed - bucket.held, now)
        hold.parts = parts
        hold.used += amount
        if hold.status == "expired":
            self.own_up(hold, left, now)
        return left

    def own_up(self, hold: Hold, amount: int, now: int) -> None:
        """Give back of a closing's charge what turns out to be usage that other buckets pay."""
        parts = []
        for number, charged in hold.parts:
            back = min(amount, charged)
            amount -= back
            self.refund(number, back, now)
            if charged > back:
                parts.append((number, charged - back))
        hold.parts = parts

    def unpaid(self, use: Use, left: int, at: int) -> None:
        if self.terms.overage:
            self.counters[OVERAGE] += left
            return
        for bucket in self.payers(use, at):
            claimed = min(left, bucket.held - bucket.claimed)
            bucket.claimed += claimed
            self.counters[CLAIM] += claimed
            left -= claimed
        self.counters[WRITTEN_OFF] += left

    def give_back(self, bucket: Bucket, amount: int, now: int) -> None:
        """Let go of held units: claims on them are paid first."""
        bucket.held -= amount
        paid = min(amount, bucket.claimed)
        bucket.used += paid
        bucket.claimed -= paid
        self.counters[CLAIM] -= paid
        self.enter("claim_paid", bucket.number, -paid, now)
        self.enter("claim_paid", CLAIM, paid, now)

    def lose(self, bucket: Bucket, amount: int, now: int) -> None:
        if amount <= 0:
            return
        bucket.claimed -= amount
        self.counters[CLAIM] -= amount
        self.counters[WRITTEN_OFF] += amount
        self.enter("claim_lost", CLAIM, amount, now)
        self.enter("claim_lost", WRITTEN_OFF, -amount, now)

    # Holds

    def expire(self, hold: Hold, at: int) -> None:
        if hold.status == "expired":
            hold.status, hold.parts = "forgotten", []
            return
        hold.kept = hold.expires + LINGER + self.terms.longest
        charge = {"charge_granted": hold.held, "release": 0}.get(hold.policy)
        owed = max(0, hold.reported - hold.used)
        if charge is None or hold.status == "settled":
            charge = min(owed, hold.held)
        hold.parts = self.split(hold, charge, at)
        hold.status = "expired"

    def split(self, hold: Hold, charge: int, at: int) -> list[tuple[int, int]]:
        charged = []
        for number, held in hold.parts:
            taken = min(charge, held)
            charge -= taken
            if taken:
                charged.append((number, taken))
            if number == OVERAGE:
                self.counters[OVERAGE] += taken
                self.enter("hold_charge", OVERAGE, -taken, at)
                continue
            bucket = self.named(number)
            bucket.used += taken
            bucket.held -= taken
            self.enter("hold_charge", number, -taken, at)
            self.give_back(bucket, held - taken, at)
        for number, _ in charged:
            if number > 0:
                bucket = self.named(number)
                self.lose(bucket, bucket.claimed - bucket.held, at)
        return charged

    def ask(self, session: str, use: Use, tokens: tuple[int, int], now: int) -> dict[str, Any]:
        """Hold a call's units; as much of the answer's tokens as is left pays for."""
        self.advance(now)
        if self.status != "active":
            raise No(self.status)
        if session in self.holds:
            raise No("unknown_hold")
        rate = self.catalogs.dearest(use, now, now + self.terms.longest)
        if rate is None:
            raise No("unknown_model")
        if self.reached(now):
            raise No("limit")
        counted = [one for one in self.limits.values() if one.unit == "tokens"]
        room = min((one.ceiling - one.at(now) for one in counted), default=NEVER)
        tokens = (tokens[0], min(tokens[1], room - tokens[0]))
        if tokens[1] <= 0:
            raise No("limit")
        wanted = self.catalogs.cost(rate, tokens)
        free = [(one, max(0, one.free)) for one in self.payers(use, now)]
        left = wanted if self.terms.overage else min(wanted, sum(much for _, much in free))
        prompt = self.catalogs.cost(rate, (tokens[0], 0))
        answer = tokens[1]
        if left < wanted:
            if left < prompt or not rate[1]:
                raise No("balance")
            answer = int(Fraction(left - prompt, MILLION) // rate[1])
            if not answer:
                raise No("balance")
        granted, parts = left, []
        for bucket, much in free:
            if taken := min(left, much):
                parts.append((bucket.number, taken))
                bucket.held += taken
                left -= taken
        if left:
            parts.append((OVERAGE, left))
        expires = now + 2 * self.terms.validity
        policy = self.terms.said.get("hold_expiry", "charge_reported")
        hold = Hold(session, use, expires, policy, len(self.holds), parts=parts)
        self.holds[session] = hold
        return {"granted": granted, "max_tokens": answer, "split": parts}

    def settle(self, session: str, reported: int, now: int) -> None:
        self.advance(now)
        hold = self.holds.get(session)
        if hold is None:
            # Its question may still be under way: it comes too late.
            nothing = Use("", "", "")
            self.holds[session] = Hold(session, nothing, now, "release", 0, status="forgotten")
            return
        if hold.status not in ("open", "expired"):
            return
        hold.reported = max(hold.reported, reported)
        was, hold.status = hold.status, "settled"
        if was == "expired":
            hold.status = "expired"
        else:
            hold.expires = now + 2 * self.terms.validity
        keep, parts = min(hold.held, max(0, hold.reported - hold.used)), []
        for number, held in hold.parts:
            kept = min(keep, held)
            keep -= kept
            if kept:
                parts.append((number, kept))
            if was == "expired":
                self.refund(number, held - kept, now)
            elif number > 0:
                self.give_back(self.named(number), held - kept, now)
        hold.parts = parts

    def refund(self, number: int, amount: int, now: int) -> None:
        """Give back what an expired hold was charged."""
        if number == OVERAGE:
            self.counters[OVERAGE] -= amount
        elif bucket := next((one for one in self.buckets if one.number == number), None):
            bucket.used -= amount
        else:
            return
        self.enter("hold_refund", number, amount, now)

    # Orders

    def must_live(self, now: int) -> None:
        self.advance(now)
        if self.status == "closed":
            raise No("closed")

    def grant(self, said: dict[str, Any], now: int) -> int:
        self.must_live(now)
        until = said["valid_to"] or NEVER
        bucket = Bucket(0, said["source"], said["priority"], said["valid_from"], until, 0)
        bucket.total = said["amount_utok"]
        bucket.models, bucket.subscribers = tuple(said["models"]), tuple(said["subscribers"])
        if said.get("valid_days"):
            bucket.until = self.days_end(said["valid_days"], now)
        return self.add(bucket, "grant", now).number

    def days_end(self, days: int, now: int) -> int:
        """Return the end of the last of so many days, the first of which is tomorrow."""
        return begin_of(day_of(now, self.zone) + timedelta(days=days + 1), self.zone)

    def grant_pack(self, name: str, now: int) -> int:
        self.must_live(now)
        catalog = self.catalogs.at(now)
        if catalog is None or name not in catalog["packs"]:
            raise No("unknown_pack")
        pack = catalog["packs"][name]
        models = [m for group in pack.get("groups", ()) for m in catalog["groups"][group]]
        until, priority = self.days_end(pack["valid_days"], now), pack.get("priority", 100)
        source = pack.get("source", "pack")
        bucket = Bucket(0, source, priority, 0, until, pack["tokens"] * MILLION, tuple(models))
        return self.add(bucket, "grant", now).number

    def adjust(self, number: int, amount: int, now: int) -> None:
        self.must_live(now)
        bucket = next((one for one in self.buckets if one.number == number), None)
        if bucket is None or bucket.until <= now:
            raise No("expired")
        if amount < 0 and bucket.free < -amount:
            raise No("balance")
        bucket.total += amount
        if bucket.source == "plan":
            bucket.adjusted += amount
        self.enter("adjustment", number, amount, now)

    def set_status(self, status: str, now: int) -> None:
        self.must_live(now)
        needed = {"suspended": "active", "active": "suspended"}.get(status, self.status)
        if self.status != needed:
            raise No("wrong_status")
        self.status = status

    def change_plan(self, plan: str, when: str, now: int) -> None:
        self.must_live(now)
        terms = self.catalogs.terms(plan, now)
        if terms is None and plan != self.terms.plan:
            raise No("unknown_plan")
        if terms is None:
            self.pending = ""
            return
        when = when or terms.said.get("change", "upgrade_now")
        if when == "upgrade_now":
            when = "now" if terms.allowance >= self.terms.allowance else "next_cycle"
        if terms.same(self.terms):
            self.terms, self.pending = terms if when == "now" else self.terms, ""
            return
        # Its own plan comes with the next cycle in any case.
        self.pending = plan if when == "next_cycle" and plan != self.terms.plan else ""
        if when == "now":
            self.change_now(terms, now)

    def of_cycle(self) -> list[Bucket]:
        """Return the plan allowances of the present cycle."""
        return [one for one in self.buckets if one.source == "plan" and one.until == self.end]

    @staticmethod
    def taken(bucket: Bucket) -> int:
        return bucket.used - bucket.base + bucket.held

    def end_days(self, old: Bucket, now: int) -> None:
        """Let an allowance keep the share of its days before today."""
        today, (begun, ended) = day_of(now, self.zone), old.days
        taken, share = self.taken(old), old.gives * (today - begun).days // (ended - begun).days
        old.gives, old.days = share, (begun, today)
        if old.full:
            # No debt comes of it; what it paid of one, it paid as a whole.
            self.debt += old.paid
            old.paid = 0
            self.keep(old, max(taken, share + old.adjusted), "plan_change", now)
        else:
            self.settle_days(old, "plan_change", now)

    def settle_days(self, bucket: Bucket, kind: str, now: int) -> None:
        """Let an allowance have what its days are worth; what was used beyond is a debt."""
        taken, worth = self.taken(bucket), bucket.gives + bucket.adjusted
        self.overused += max(0, taken - worth)
        paid = min(bucket.paid, max(0, worth - taken))
        self.debt += max(0, taken - worth) + bucket.paid - paid
        bucket.paid = paid
        self.keep(bucket, max(taken, worth - paid), kind, now)

    def keep(self, bucket: Bucket, total: int, kind: str, now: int) -> None:
        total += bucket.base
        self.enter(kind, bucket.number, total - bucket.total, now)
        bucket.total = total

    def usual_days(self) -> int:
        """Return by how many days an allowance is shared: those of the cycle, if it is about a month."""
        first, following = cycle_days(self.day, self.last - timedelta(days=1))
        usual = (following - first).days
        days = (self.last - day_of(self.start, self.zone)).days
        return days if abs(days - usual) <= 3 else usual

    def in_force(self) -> list[Bucket]:
        """Return the allowance of the present plan, if it gave any."""
        return [one for one in self.of_cycle() if one.days[1] == self.last]

    def change_now(self, terms: Terms, now: int) -> None:
        if terms.plan != self.terms.plan:
            self.limits = {}
        today = day_of(now, self.zone)
        self.terms = terms
        self.limit()
        for bucket in self.in_force():
            self.end_days(bucket, now)
        if terms.full:
            spent = sum(self.taken(one) for one in self.of_cycle())
            for bucket in self.of_cycle():
                self.keep(bucket, self.taken(bucket), "plan_change", now)
            usual = self.usual_days()
            days = (self.last - day_of(self.start, self.zone)).days
            whole = terms.allowance * min(days, usual) // usual
            amount = max(0, whole - spent)
            # What was used beyond its days is in what was spent: it is not owed besides.
            made_up = min(self.debt, self.overused)
            made_up = min(made_up, max(0, whole - spent + self.overused))
            self.debt -= made_up
            self.overused -= made_up
        else:
            amount = terms.allowance * (self.last - today).days // self.usual_days()
        self.grant_plan(now, amount, "grant")

    def change_cycle(self, day: int, now: int) -> None:
        self.must_live(now)
        today = day_of(now, self.zone)
        self.day = day
        current, in_force = self.of_cycle(), self.in_force()
        self.last = next(one for one in begins_of_cycles(day, today) if one > today)
        self.end = begin_of(self.last, self.zone)
        for bucket in current:
            bucket.until = self.end
        for bucket in in_force:
            begun, ended = bucket.days
            gives = bucket.gives * (self.last - begun).days // (ended - begun).days
            bucket.gives = min(bucket.gives, gives) if bucket.full else gives
            bucket.days = begun, self.last
            self.settle_days(bucket, "cycle_change", now)
            self.pay_debt(bucket, now)

    # What is seen

    def valid(self, now: int) -> list[Bucket]:
        return [one for one in self.buckets if one.valid(now)]

    def owed_held(self) -> int:
        """Return what sessions hold beyond all buckets."""
        parts = [
            one for hold in self.holds.values() if hold.status != "expired" for one in hold.parts
        ]
        return sum(much for number, much in parts if number == OVERAGE)

    def figures(self, now: int) -> dict[str, int]:
        valid = self.valid(now)
        counted = {name: self.counters[each] - self.bases[each] for each, name in SOURCES.items()}
        return {
            "allowance_utok": sum(one.total - one.base for one in valid),
            "used_utok": sum(one.used - one.base for one in valid),
            "held_utok": sum(one.held for one in valid),
            "rest_utok": sum(max(0, one.free) for one in valid),
            "overage_utok": counted["overage"],
            "written_off_utok": counted["written_off"],
            "claimed_utok": self.counters[CLAIM],
            "late_adjustment_utok": counted["late_adjustment"],
        }

    # Decisions

    def crumbs(self, now: int) -> int:
        """Return how much is too little for any call."""
        if not self.terms.holds:
            return 0
        said = self.terms.said.get("least_call_tokens")
        if said is not None:
            return int(said) * MILLION
        return min(100 * MILLION, sum(one.total for one in self.valid(now)) // 1000)

    def left(self, now: int, use: Use | None = None) -> int:
        """Return what buckets have that is not used: who holds it may go on, claimed or not."""
        found = [one for one in self.valid(now) if use is None or one.covers(use)]
        return sum(max(0, one.total - one.used) for one in found)

    def used_up(self, now: int) -> bool:
        return not self.terms.overage and self.left(now) <= self.crumbs(now)

    def state(self, now: int) -> tuple[str, str]:
        if self.status != "active":
            return "cut", self.status
        reached = self.reached(now)
        if self.used_up(now):
            # Of two that cut, what lasts longer is named: when that is, is not modelled.
            return "cut", "balance or limit" if reached else "balance"
        if reached:
            return "cut", reached
        figures = self.figures(now)
        used, had = figures["used_utok"] + figures["overage_utok"], figures["allowance_utok"]
        first = min(self.terms.said.get("thresholds", [50, 80, 100]), default=NEVER)
        if had and used * 100 >= had * first:
            return "warned", "balance"
        return "open", ""

    def unsure(self, now: int) -> set[Use]:
        """Return what costs nothing, of an account that is used up and whose limits may have cut it too.

        When the limit ends, nobody tells that these may go on: a decision of something else does.
        """
        free = {use for use in USES if not any(self.catalogs.rate(use, now) or (1,))}
        return free if self.limits and self.used_up(now) else set()

    def reached(self, now: int) -> str:
        """Return the limit that is used up for longest, empty if none is."""
        return min(
            (name for name, one in self.limits.items() if one.at(now) >= one.ceiling), default=""
        )

    def passes(self, use: Use, now: int) -> bool:
        """Say whether a use may go on."""
        if self.status != "active" or self.reached(now):
            return False
        rate = self.catalogs.rate(use, now)
        if self.terms.overage or not any(rate or (1,)):
            return True
        return not self.used_up(now) and self.left(now, use) > 0

    def view(self, now: int) -> dict[str, Any]:
        self.advance(now)
        rows = {
            one.number: (one.source, one.priority, one.total, one.used, one.held, one.claimed)
            for one in self.buckets
            if one.until < NEVER or one.used < one.total
        }
        holds = sorted(
            (one.status, one.held, one.used, one.expires)
            for one in self.holds.values()
            if one.parts
        )
        return {
            **self.figures(now),
            "decided": self.state(now),
            "refused": {use for use in USES if not self.passes(use, now)} - self.unsure(now),
            "status": self.status,
            "limits": {name: (one.at(now), one.ceiling) for name, one in self.limits.items()},
            "plan": self.terms.plan,
            "pending_plan": self.pending,
            "debt_utok": self.debt,
            "terms_version": self.terms.version,
            "cycle": (self.start, self.end),
            "buckets": rows,
            "pseudo": {each: much for each, much in self.counters.items() if much},
            "owed_held": self.owed_held(),
            "holds": holds,
        }
