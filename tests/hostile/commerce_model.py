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
NEVER = 10**18
LINGER = 61 * 60_000
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

    def cost(self, use: Use, tokens: tuple[int, int], moment: int) -> int | None:
        rate = self.rate(use, moment)
        if rate is None:
            return None
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
    start: int = 0
    end: int = 0
    counters: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    bases: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))

    # Time

    def open(self, now: int) -> None:
        first, following = cycle_days(self.day, today := day_of(now, self.zone))
        self.start, self.end = begin_of(first, self.zone), begin_of(following, self.zone)
        self.grant_plan(now, self.terms.share((following - today).days, (following - first).days))

    def grant_plan(self, now: int, amount: int) -> None:
        rolls = int(self.terms.said.get("rollover_tokens", 0)) * MILLION
        priority = self.terms.said.get("priority", 100)
        bucket = Bucket(0, "plan", priority, self.start, self.end, amount, self.terms.models)
        bucket.rolls = rolls
        self.add(bucket, "grant", now)

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
        if self.status != "closed":
            yield self.end, 2, (), None

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
        else:
            self.begin_cycle(at)

    def close_bucket(self, bucket: Bucket, at: int) -> None:
        for hold in self.holds.values():
            hold.parts = [one for one in hold.parts if one[0] != bucket.number]
        self.lose(bucket, bucket.claimed, at)
        left = bucket.total - bucket.used
        self.buckets.remove(bucket)
        rolls = (
            min(left, bucket.rolls) if self.status != "closed" and bucket.source == "plan" else 0
        )
        self.enter("rollover_out", bucket.number, -rolls, at)
        self.enter("expiry", bucket.number, rolls - left, at)
        if rolls:
            rolled = Bucket(0, "rollover", bucket.priority, 0, self.end, rolls, bucket.models)
            rolled.since, rolled.granted = self.start, bucket.granted
            self.add(rolled, "rollover_in", at)

    def begin_cycle(self, at: int) -> None:
        following = cycle_days(self.day, day_of(at, self.zone))[1]
        self.start, self.end = at, begin_of(following, self.zone)
        self.terms = self.catalogs.terms(self.terms.plan, at) or self.terms
        for bucket in self.buckets:
            bucket.base = bucket.used
        self.bases = dict(self.counters)
        self.grant_plan(at, self.terms.allowance)

    # Paying

    def named(self, number: int) -> Bucket:
        return next(one for one in self.buckets if one.number == number)

    def use(self, use: Use, tokens: tuple[int, int], hold: str, occurred: int, now: int) -> None:
        self.advance(now)
        cost = self.catalogs.cost(use, tokens, occurred)
        assert cost is not None
        at = min(occurred, now)
        left = cost
        if hold in self.holds:
            left = self.draw(self.holds[hold], use, left, now)
        for bucket in self.payers(use, at):
            taken = min(left, max(0, bucket.free))
            bucket.used += taken
            left -= taken
        self.unpaid(use, left, at)

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
        rate = self.catalogs.rate(use, now)
        if rate is None:
            raise No("unknown_model")
        wanted = self.catalogs.cost(use, tokens, now) or 0
        free = [(one, max(0, one.free)) for one in self.payers(use, now)]
        left = wanted if self.terms.overage else min(wanted, sum(much for _, much in free))
        prompt = self.catalogs.cost(use, (tokens[0], 0), now) or 0
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

    def grant(self, said: dict[str, Any], now: int) -> int:
        self.advance(now)
        if self.status == "closed":
            raise No("closed")
        until = said["valid_to"] or NEVER
        bucket = Bucket(0, said["source"], said["priority"], said["valid_from"], until, 0)
        bucket.total = said["amount_utok"]
        bucket.models, bucket.subscribers = tuple(said["models"]), tuple(said["subscribers"])
        return self.add(bucket, "grant", now).number

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
            "status": self.status,
            "plan": self.terms.plan,
            "terms_version": self.terms.version,
            "cycle": (self.start, self.end),
            "buckets": rows,
            "pseudo": {each: much for each, much in self.counters.items() if much},
            "owed_held": self.owed_held(),
            "holds": holds,
        }
