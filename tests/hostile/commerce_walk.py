"""Walk an account at random through a day's and a year's business, on paper and in the model at once."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.hostile.commerce_model import MILLION, USES, Account, Catalogs, No, Use
from tests.orders import catalog_version, hold_order, order, tick
from tests.paper_line import Books, Journal, PaperLine
from tests.strategies import DAY, HOUR, MINUTE, NOON, record
from tokenline.quota.entries import ChangeKind
from tokenline.rating.catalog import Catalog

CATALOG = """
version = 1
effective_from = 2026-01-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"
rates = [
    { provider = "p", model = "max", input_tokens = 1, output_tokens = 2 },
    { provider = "p", model = "mini", input_tokens = "0.1", output_tokens = "0.25" },
    { provider = "p", model = "gift", input_tokens = 0, output_tokens = 0 },
    { provider = "q", model = "*", input_tokens = "0.5", output_tokens = 1 },
]
groups = { minis = ["p/mini", "q/*"] }

[plans.owed]
title = "goes on"
fee = "1"
tokens = 1000
mode = "postpaid"
used_up = "overage"
overage_price = "2"
thresholds = [50, 80, 100, 150]
rollover_tokens = 200

[plans.paid]
title = "stops, whole"
fee = "1"
tokens = 500
mode = "prepaid"
proration = "full"
thresholds = [80]
hold_expiry = "charge_granted"
rollover_tokens = 50
least_call_tokens = 3

[plans.strict]
title = "stops, by days, small models only"
fee = "1"
tokens = 3100
mode = "strict"
groups = ["minis"]
rollover_tokens = 3100
hold_validity_s = 30
priority = 70

[plans.stops]
title = "stops, nothing is held"
fee = "1"
tokens = 620
mode = "postpaid"
hold_expiry = "release"
limits = [{ requests = 4, per = "hour" }, { tokens = 700, per = "day" }]

[packs.coupon]
title = "a day or two"
fee = "1"
tokens = 20
valid_days = 2
priority = 50

[packs.trial]
title = "small models"
fee = 0
tokens = 90
valid_days = 31
priority = 10
source = "free"
groups = ["minis"]
"""
ORDERS = {"look": "show", "pack": "grant", "plan": "change_plan", "cycle": "change_cycle"}
ALWAYS = ["settle", "grant", "tick", "look", "pack", "adjust", "plan", "cycle", "status", "catalog"]
MOODS = {
    "calls": ["use"] * 8 + ["hold"] * 6 + ["settle"] * 2,
    "orders": ["use"] * 6 + ["hold"] * 2 + ["plan"] * 5 + ["cycle"] * 3 + ["adjust"] * 2,
    "usage": ["use"] * 30,
    "claims": ["use"] * 50 + ["hold"] * 60 + ["settle"] * 20,
}
MODELS = [("p", "max"), ("p", "mini"), ("p", "gift"), ("q", "x")]
ZONES = ["Asia/Shanghai", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"]
PLANS = ["owed", "paid", "strict", "stops"]


@dataclass(frozen=True)
class Step:
    """Be one record of the line, or what happens to a worker in between."""

    kind: str
    at: int
    said: dict[str, Any] = field(default_factory=dict)


def catalog_of(said: dict[str, Any]) -> dict[str, Any]:
    """Return the version of the catalog that a step publishes."""
    found = tomllib.loads(CATALOG)
    found["version"] = said["version"]
    found["effective_from"] = datetime.fromtimestamp(said["begins"] // 1000, UTC)
    for plan, changed in said["plans"].items():
        found["plans"][plan] |= changed
    found["plans"].pop(said["gone"], None)
    found["groups"]["minis"] = said["minis"]
    found["rates"][0]["input_tokens"] = said["max_input"]
    return found


class Walk:
    """Draw steps; it knows only times, names and what it drew before."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now, self.sessions, self.versions, self.begins = NOON, 0, 1, 0
        self.mood = self.draw.choice(sorted(MOODS))
        self.zone = self.draw.choice(ZONES)
        self.steps = [self.opening()]

    def opening(self) -> Step:
        said = {"plan": self.draw.choice(PLANS), "time_zone": self.zone}
        said["cycle_day"] = self.draw.choice([1, 1, 15, 29, 31])
        return Step("open", self.now, said)

    def take(self, count: int) -> list[Step]:
        while len(self.steps) < count:
            self.pass_time()
            kinds = MOODS[self.mood] + ALWAYS
            self.steps.append(getattr(self, self.draw.choice(kinds))())
        return self.steps

    def pass_time(self) -> None:
        steps = [0, 0, 1, 999, 5000, MINUTE, 2 * MINUTE, 20 * MINUTE, HOUR, 61 * MINUTE]
        ahead = self.draw.choice(
            [*steps, DAY, 4 * DAY, 40 * DAY] if self.draw.random() < 0.3 else steps
        )
        self.now += ahead
        if self.draw.random() < 0.1:
            self.now = self.at_bound()

    def at_bound(self) -> int:
        """Return a moment beside a boundary that lies ahead."""
        bound = -(-self.now // (30 * MINUTE)) * 30 * MINUTE
        return max(self.now, bound + self.draw.choice([-1, 0, 1]))

    def named_use(self) -> dict[str, Any]:
        provider, model = self.draw.choice(MODELS)
        subscriber = self.draw.choice(["", "ann", "bob"])
        return {"provider": provider, "model": model, "subscriber_id": subscriber}

    def session(self) -> str:
        return f"s{self.sessions - self.draw.choice([0, 0, 0, 1, 2])}"

    def use(self) -> Step:
        tokens = {
            "input_tokens": self.draw.choice([0, 10, 50, 300]),
            "output_tokens": self.draw.choice([0, 20, 40, 200]),
        }
        hold = self.session() if self.draw.random() < 0.5 else ""
        ago = self.draw.choice([0, 0, 0, 1, MINUTE, 30 * MINUTE, HOUR, -MINUTE])
        if self.mood == "late" and self.draw.random() < 0.4:
            ago = self.draw.choice([HOUR + 1, 2 * HOUR, DAY, 10 * DAY, 40 * DAY])
        said = self.named_use() | tokens | {"hold_id": hold, "occurred_at": self.now - ago}
        return Step("use", self.now, said)

    def hold(self) -> Step:
        self.sessions += 1
        said = self.named_use() | {
            "session": f"s{self.sessions}",  # from 1: s0 and s-1 are nobody's
            "prompt_tokens": self.draw.choice([0, 10, 100]),
            "max_tokens": self.draw.choice(
                [400, 4000] if self.mood == "claims" else [20, 100, 400]
            ),
        }
        return Step("hold", self.now, said)

    def settle(self) -> Step:
        reported = self.draw.choice([0, 10, 50, 500]) * MILLION
        return Step("settle", self.now, {"session": self.session(), "reported_utok": reported})

    def grant(self) -> Step:
        starts = self.draw.choice([0, 0, self.now, self.now + 2 * HOUR])
        ends = self.draw.choice([0, self.now + 3 * HOUR, self.now + DAY, self.now + 30 * DAY])
        said = {
            "amount_utok": self.draw.choice([1, 30 * MILLION, 400 * MILLION]),
            "priority": self.draw.choice([50, 100, 150]),
            "source": self.draw.choice(["top_up", "gift", "free"]),
            "valid_from": starts,
            "valid_to": ends,
            "valid_days": 0 if ends else self.draw.choice([0, 0, 1, 9]),
            "models": self.draw.choice([[], [], ["p/max"], ["q/*", "p/mini"]]),
            "subscribers": self.draw.choice([[], [], ["ann"]]),
        }
        return Step("grant", self.now, said)

    def pack(self) -> Step:
        return Step("pack", self.now, {"pack": self.draw.choice(["coupon", "trial", "none"])})

    def adjust(self) -> Step:
        bucket = self.draw.randrange(1, 6)
        amount = self.draw.choice([-100, -1, 7, 200]) * MILLION
        return Step("adjust", self.now, {"bucket": bucket, "amount_utok": amount})

    def plan(self) -> Step:
        when = self.draw.choice(["", "", "now", "next_cycle"])
        return Step("plan", self.now, {"plan": self.draw.choice(PLANS), "when": when})

    def cycle(self) -> Step:
        return Step("cycle", self.now, {"cycle_day": self.draw.choice([1, 10, 20, 31])})

    def status(self) -> Step:
        kinds = ["suspend", "resume", "resume", "resume"] + ["close"] * (self.draw.random() < 0.2)
        return Step("status", self.now, {"kind": self.draw.choice(kinds)})

    def catalog(self) -> Step:
        """Draw a version that begins soon: some plans say something else, one may be gone."""
        self.versions += 1
        ahead = self.draw.choice([1, 2, 60, 60 * 24]) * MINUTE
        self.begins = max(self.begins, -(-self.now // MINUTE) * MINUTE + ahead)
        plans = {
            plan: {
                "tokens": self.draw.choice([310, 900, 2000]),
                "running_accounts": self.draw.choice(["now", "now", "next_cycle"]),
            }
            for plan in self.draw.sample(PLANS, 2)
        }
        said = {"version": self.versions, "begins": self.begins, "plans": plans}
        said["gone"] = self.draw.choice([*PLANS, "", "", "", "", "", ""])
        said["minis"] = self.draw.choice([["p/mini", "q/*"], ["p/mini", "q/*"], ["p/mini"]])
        said["max_input"] = self.draw.choice([1, 1, 0, "0.5", 3])
        return Step("catalog", self.now, said)

    def tick(self) -> Step:
        return Step("tick", self.now)

    def look(self) -> Step:
        return Step("look", self.now)


class Modelled:
    """Do steps in the model; say what each has to answer."""

    def __init__(self) -> None:
        self.catalogs = Catalogs()
        self.catalogs.add(tomllib.loads(CATALOG))
        self.account: Account

    def do(self, step: Step) -> dict[str, Any]:
        try:
            return {"outcome": 0} | (getattr(self, step.kind)(step.at, step.said) or {})
        except No:
            return {"outcome": 1}

    def open(self, now: int, said: dict[str, Any]) -> None:
        terms = self.catalogs.terms(said["plan"], now)
        assert terms is not None
        self.account = Account(self.catalogs, said["time_zone"], said["cycle_day"], terms, now)
        self.account.open(now)

    def use(self, now: int, said: dict[str, Any]) -> None:
        use = Use(said["provider"], said["model"], said["subscriber_id"])
        tokens = said["input_tokens"], said["output_tokens"]
        self.account.use(use, tokens, said["hold_id"], said["occurred_at"], now)

    def hold(self, now: int, said: dict[str, Any]) -> dict[str, Any]:
        use = Use(said["provider"], said["model"], said["subscriber_id"])
        tokens = said["prompt_tokens"], said["max_tokens"]
        found = self.account.ask(said["session"], use, tokens, now)
        return {"granted_utok": found["granted"], "max_tokens": found["max_tokens"]}

    def settle(self, now: int, said: dict[str, Any]) -> None:
        self.account.settle(said["session"], said["reported_utok"], now)

    def grant(self, now: int, said: dict[str, Any]) -> dict[str, Any]:
        return {"bucket": self.account.grant(said, now)}

    def pack(self, now: int, said: dict[str, Any]) -> dict[str, Any]:
        return {"bucket": self.account.grant_pack(said["pack"], now)}

    def adjust(self, now: int, said: dict[str, Any]) -> None:
        self.account.adjust(said["bucket"], said["amount_utok"], now)

    def plan(self, now: int, said: dict[str, Any]) -> None:
        self.account.change_plan(said["plan"], said["when"], now)

    def cycle(self, now: int, said: dict[str, Any]) -> None:
        self.account.change_cycle(said["cycle_day"], now)

    def status(self, now: int, said: dict[str, Any]) -> None:
        became = {"suspend": "suspended", "resume": "active", "close": "closed"}[said["kind"]]
        self.account.set_status(became, now)

    def catalog(self, _now: int, said: dict[str, Any]) -> None:
        self.catalogs.add(catalog_of(said))

    def tick(self, now: int, said: dict[str, Any]) -> None:
        """Do nothing: what is due is done whoever looks."""

    def look(self, now: int, said: dict[str, Any]) -> None:
        """Do nothing."""


class Engine:
    """Do steps on a line of paper."""

    def __init__(self) -> None:
        self.journal, self.books = Journal(), Books()
        self.line = PaperLine(self.journal, self.books)
        self.offsets = dict.fromkeys(("usage", "commands", "holds"), 0)
        catalog = Catalog.model_validate(tomllib.loads(CATALOG))
        self.line.command([catalog_version(self.next("commands"), NOON - DAY, catalog)])

    def next(self, topic: str) -> int:
        self.offsets[topic] += 1
        return self.offsets[topic]

    def crash(self) -> None:
        self.line = PaperLine(self.journal, self.books)

    def do(self, step: Step) -> dict[str, Any]:
        if step.kind == "use":
            offset = self.next("usage")
            self.line.charge([record(offset, step.at, event_id=f"e{offset}", **step.said)])
            return {"outcome": int(self.books.verdicts[offset] not in {"counted", "late"})}
        topic = "holds" if step.kind in {"hold", "settle"} else "commands"
        offset = self.next(topic)
        if step.kind == "catalog":
            catalog = Catalog.model_validate(catalog_of(step.said))
            self.line.command([catalog_version(offset, step.at, catalog)])
            return {"outcome": 0}
        if step.kind == "tick":
            self.line.command([tick(offset, step.at)])
            return {"outcome": 0}
        if topic == "holds":
            said = {"seq": int(step.kind == "settle"), "action": step.kind} | step.said
            self.line.command([hold_order(offset, step.at, **said)])
        else:
            said = {"kind": ORDERS.get(step.kind, step.kind)} | step.said
            self.line.command([order(offset, step.at, **said)])
        return self.books.replies[topic, offset]

    def view(self, now: int) -> dict[str, Any]:
        for _ in range(3):
            # What a worker does of itself within two seconds: nobody need ask.
            if self.line.state.is_due(now):
                self.do(Step("tick", now))
        assert not self.line.state.is_due(now)
        shown = json.loads(self.do(Step("look", now))["detail"])
        names = ("source", "priority", "total_utok", "used_utok", "held_utok", "claimed_utok")
        # One without an end that is used up may be kept or not.
        rows = {
            row["bucket"]: tuple(row[name] for name in names)
            for row in shown["buckets"]
            if row["bucket"] <= 0 or row["valid_to_ms"] or row["used_utok"] < row["total_utok"]
        }
        holds = ("status", "held_utok", "used_utok", "expires_at_ms")
        return shown | {
            "limits": {row["limit"]: (row["used"], row["ceiling"]) for row in shown["limits"]},
            "decided": (shown["state"], shown["why"].removeprefix("limit: ")),
            "refused": {use for use in USES if not self.passes(shown, use)},
            "cycle": (shown["cycle_start_ms"], shown["cycle_end_ms"]),
            "buckets": {number: row for number, row in rows.items() if number > 0},
            "pseudo": {number: row[3] for number, row in rows.items() if number <= 0 and row[3]},
            "owed_held": rows[0][4] if 0 in rows else 0,
            "holds": sorted(tuple(row[name] for name in holds) for row in shown["holds"]),
        }

    @staticmethod
    def passes(shown: dict[str, Any], use: Use) -> bool:
        """Say what a guard does that goes by what is decided."""
        names = {f"{use.provider}/{use.model}", f"{use.provider}/*"}
        covered = any(
            (not one["models"] or names & set(one["models"]))
            and (not one["subscribers"] or use.subscriber in one["subscribers"])
            for one in shown["covers"]
        )
        if shown["state"] == "cut":
            return shown["why"] == "balance" and covered
        return not shown["covers"] or covered

    def entries(self) -> list[tuple[str, int, int, int]]:
        """Return the entries of the account but those of usage."""
        return [
            (
                ChangeKind(said["kind"]).name.lower(),
                said["bucket"],
                said["amount_utok"],
                said["at_ms"],
            )
            for said in self.books.changes.values()
        ]


def summed(entries: list[tuple[str, int, int, int]]) -> Counter[tuple[str, int, int]]:
    """Return what was entered of a kind, on a bucket, at a moment, in all."""
    sums: Counter[tuple[str, int, int]] = Counter()
    for kind, bucket, amount, at in entries:
        sums[kind, bucket, at] += amount
    return Counter({name: amount for name, amount in sums.items() if amount})


def difference(steps: list[Step], variant: random.Random | None = None) -> str:
    """Return where engine and model differ first, empty if nowhere.

    Without a variant both are compared after each step; with one, looks, ticks and crashes come at random.
    """
    model, engine = Modelled(), Engine()
    for number, step in enumerate(steps):
        expected, seen = model.do(step), engine.do(step)
        wrong = {
            name: (said, seen.get(name))
            for name, said in expected.items()
            if seen.get(name) != said
        }
        if wrong:
            return f"step {number} {step}: (expected, seen): {wrong}\n{seen}"
        if variant is not None:
            if variant.random() < 0.05:
                engine.crash()
            if variant.random() < 0.9 and number + 1 < len(steps):
                continue
        expected, seen = model.account.view(step.at), engine.view(step.at)
        if expected["decided"] == ("cut", "balance or limit"):
            seen["decided"] = (seen["state"], "balance or limit")
        seen["refused"] -= model.account.unsure(step.at)
        wrong = {
            name: (said, seen.get(name))
            for name, said in expected.items()
            if seen.get(name) != said
        }
        if wrong:
            return f"step {number} {step}: (expected, seen): {wrong}"
        more, fewer = summed(engine.entries()), summed(model.account.entries)
        if more != fewer:
            wrong = {name: (fewer[name], more[name]) for name in fewer | more}
            wrong = {name: pair for name, pair in wrong.items() if pair[0] != pair[1]}
            return f"step {number} {step}: entries (expected, seen): {wrong}"
    return ""


def smallest(steps: list[Step]) -> list[Step]:
    """Drop steps while engine and model still differ."""
    size = len(steps) // 2
    while size:
        at = 1
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            try:
                differs = bool(difference(fewer))
            except Exception:  # noqa: BLE001  a shorter script may make no sense
                differs = False
            if differs:
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def check(seed: int, count: int) -> None:
    """Walk; fail with the seed and the smallest script that shows the difference."""
    steps = Walk(seed).take(count)
    said = difference(steps)
    if said:
        at = int(said.split()[1]) + 1
        script = smallest(steps[:at])
        lines = "\n".join(f"  {one}" for one in script)
        raise AssertionError(f"seed {seed}, {said}\nshortest:\n{lines}\n{difference(script)}")
    assert not difference(steps, random.Random(seed)), f"seed {seed}: it matters who looked"
