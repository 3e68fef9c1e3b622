"""A partition on paper whose decisions reach a guard, byte for byte as the broker has them."""

from __future__ import annotations

import json
import tomllib
from types import SimpleNamespace

from streams.outputs import Outputs
from tests.orders import catalog_version, hold_order, order, tick
from tests.strategies import BOUNDS, NOON, chunk_of, record
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.partition import PartitionState
from tokenline.clock import FrozenClock
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.guard import Guard
from tokenline.wire.registry import open_registry

MILLION = 1_000_000
HEAD = """
version = 1
effective_from = 2026-10-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"
rates = [
    { provider = "p", model = "pp", input_tokens = 1, output_tokens = 1 },
    { provider = "p", model = "max", input_tokens = 1, output_tokens = 1 },
    { provider = "p", model = "dear", input_tokens = 100, output_tokens = 100 },
    { provider = "p", model = "gift", input_tokens = 0, output_tokens = 0 },
    { provider = "open", model = "*", input_tokens = 0, output_tokens = 0 },
]
[groups]
pp = ["p/pp"]
"""


def catalog(plan, **more):
    """Return a catalog with one plan, `plan`, whose allowance of 1,000 tokens is granted whole."""
    said = {"title": "t", "fee": "0", "tokens": 1000, "proration": "full"} | plan
    plans = {"plan": said} | {name: said | other for name, other in more.items()}
    return Catalog.model_validate(tomllib.loads(HEAD) | {"plans": plans})


class ToldLine:
    """Charge account `t/a`, on a plan of its own; amounts are standard tokens, offsets count themselves."""

    def __init__(self, other_plans=None, bounds=BOUNDS, **plan):
        self.state, self.offset, self.now = PartitionState(bounds), 0, NOON
        settings = Settings()
        registry = open_registry(settings)
        self.codec = Codec(registry)
        self.outputs = Outputs(settings, self.codec, ColumnCodec(registry), None, 0)
        self.guard = Guard(settings, clock=(clock := FrozenClock(NOON)), stale_after_ms=10**12)
        self.clock = clock
        self.guard._positions = {0: 0}
        self.guard._view.apply_heartbeat(0, 0, NOON)
        self.decisions, self.changes, self.burns = [], [], {}
        version = catalog({"mode": "postpaid"} | plan, **(other_plans or {}))
        fold_commands(self.state, [catalog_version(0, NOON, version)], 0)
        self.order(kind="open", plan="plan")

    def take(self, step):
        """Read what a step tells."""
        raw = [SimpleNamespace(offset=one.offset, key=b"", value=b"") for one in step.refused]
        for message in self.outputs.messages(self.state, step, raw):
            if message.topic == "decisions" and message.value:
                said = self.codec.decode(message.value)[1]
                self.guard._view.apply_decision(0, said, self.now)
                self.decisions.append(said)
        self.changes += step.changes
        for _, bucket, amount in step.burns.tolist():
            self.burns[bucket] = self.burns.get(bucket, 0) + amount
        return step

    def order(self, **fields):
        self.offset += 1
        return self.take(
            fold_commands(self.state, [order(self.offset, self.now, **fields)], self.offset)
        )

    def hold(self, tokens=0, **fields):
        self.offset += 1
        said = {"prompt_tokens": tokens, "max_tokens": 0} | fields
        step = fold_commands(self.state, [hold_order(self.offset, self.now, **said)], self.offset)
        return self.take(step).replies[0].answer

    def use(self, *tokens, at_ms=0, **fields):
        """Charge events at once, of these many tokens each."""
        records = []
        for count in tokens:
            self.offset += 1
            said = {"occurred_at": at_ms or self.now, "event_id": f"e{self.offset}"}
            said |= {"input_tokens": count, "model": "max", "subscriber_id": ""} | fields
            records.append(record(self.offset, self.now, **said))
        return self.take(fold_usage(self.state, chunk_of(records)))

    def tick(self):
        """Let time pass by a record of its own, as on an idle partition."""
        self.offset += 1
        return self.take(fold_commands(self.state, [tick(self.offset, self.now)], self.offset))

    def wait(self, ms):
        self.now += ms
        self.clock.advance_ms(ms)

    def shown(self):
        return json.loads(self.order(kind="show").replies[0].answer.detail)

    def used(self):
        """Return what is used of each source, in tokens."""
        return {
            one["source"]: one["used_utok"] // MILLION
            for one in self.shown()["buckets"]
            if one["used_utok"]
        }

    def figures(self, *names):
        """Return figures of the balance, in tokens."""
        shown = self.shown()
        return [shown[f"{name}_utok"] // MILLION for name in names]

    def allows(self, model="max", provider="p", subscriber=""):
        """Say whether the guard lets a use pass."""
        return self.guard.check("a", subscriber, "t", provider=provider, model=model).allowed

    def thresholds(self):
        return [one["threshold_percent"] for one in self.decisions if one["threshold_percent"]]
