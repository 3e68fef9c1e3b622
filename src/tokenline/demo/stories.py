"""Tell the stories of the demo's accounts with plans: used up, cut, topped up, resumed.

Each has a plan of another kind. They are watched as an operator would: `show`, and when one is cut, a
grant. What an account was cut by and when it went on is kept for the result.
"""

from __future__ import annotations

import asyncio
import tomllib
from dataclasses import asdict, dataclass
from typing import Any

from tokenline.demo.call import MODELS
from tokenline.errors import Unavailable
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.orders import Orders

LOOK_S = 1.0
# An account that is cut stays so for a moment, so that one can see it.
CUT_S = 2.0
SHOW_S = 5.0
PACK = "mobile-400k"
MILLION = 1_000_000
# Of the plans below: a hold ends by its policy after twice that.
VALIDITY_S = 10

_HEAD = f"""
version = 1
effective_from = 2026-01-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[plans.agent]
title = "Agent, strictly what was paid"
fee = "1"
tokens = 6_000
mode = "strict"
proration = "full"
least_call_tokens = 500
hold_validity_s = {VALIDITY_S}

[plans.person]
title = "Personal, prepaid"
fee = "1"
tokens = 6_000
mode = "prepaid"
proration = "full"
least_call_tokens = 500
hold_validity_s = {VALIDITY_S}

[plans.developer]
title = "Developer, postpaid, stops when used up; thinks only so often"
fee = "1"
tokens = 6_000
mode = "postpaid"
proration = "full"
limits = [{{ requests = 5, per = "hour", group = "reasoners" }}]

[plans.family]
title = "Household: one pool, a cap for each member"
fee = "1"
tokens = 12_000
mode = "prepaid"
proration = "full"
least_call_tokens = 500
subscriber_tokens = 8_000
hold_validity_s = {VALIDITY_S}

[groups]
reasoners = ["deepseek/deepseek-reasoner"]

[packs.mobile-400k]
title = "400,000 tokens for 1 yuan"
fee = "1"
tokens = 400_000
valid_days = 30
priority = 50
"""
_RATE = """
[[rates]]
provider = "{}"
model = "{}"
input_tokens = 1
cache_read_tokens = "0.1"
output_tokens = 2
"""


@dataclass(slots=True)
class Story:
    """Hold what became of one account; `cut_by` is the rule of its first cut."""

    account: str
    plan: str
    cut: bool = False
    cut_by: str = ""
    topped_up: bool = False
    resumed: bool = False
    used_tokens: int = 0
    overshoot_tokens: int = 0
    cut_at_s: float = 0.0


HOUSEHOLD, CHILD, CHILD_TOKENS = "story-family", "user-3", 3_000
STORIES = {
    "story-agent": "agent",
    "story-person": "person",
    "story-developer": "developer",
    HOUSEHOLD: "family",
}


def catalog() -> Catalog:
    """Return the demo's catalog: a rate for each model, plans of each mode, a pack."""
    rates = "".join(_RATE.format(provider, model) for provider, model, _ in MODELS)
    return Catalog.model_validate(tomllib.loads(_HEAD + rates))


async def open_stories(settings: Settings) -> None:
    """Publish the catalog and open the accounts."""
    said = catalog()
    async with Orders(settings) as orders:
        await orders.publish_catalog(said.version, said.effective_ms, said.to_json())
        for account, plan in STORIES.items():
            await orders.order(account, kind="open", plan=plan, cycle_day=0)
        # The household lets its child use less than the plan gives each.
        most_utok = CHILD_TOKENS * MILLION
        await orders.order(HOUSEHOLD, kind="cap", subscribers=[CHILD], amount_utok=most_utok)


class Stories:
    """Follow the accounts; `look` is called now and then."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.stories = {name: Story(name, plan) for name, plan in STORIES.items()}

    def look(self, now_s: float) -> str:
        """Look at all accounts, top up those that were cut for a while; return what is new."""
        try:
            return asyncio.run(self._look(now_s))
        except Unavailable:
            return ""

    def result(self) -> list[dict[str, Any]]:
        """Return the stories for JSON."""
        return [asdict(story) for story in self.stories.values()]

    async def _look(self, now_s: float) -> str:
        notes = []
        async with Orders(self._settings) as orders:
            for story in self.stories.values():
                self._note(story, await orders.show(story.account, timeout_s=SHOW_S), now_s)
                if story.cut and not story.topped_up and now_s - story.cut_at_s >= CUT_S:
                    await orders.order(
                        story.account,
                        kind="grant",
                        pack=PACK,
                        command_id=f"top-up-{story.account}",
                        timeout_s=SHOW_S,
                    )
                    story.topped_up = True
                    notes.append(f"{story.account} was cut by {story.cut_by}, topped up")
        return "; ".join(notes)

    def _note(self, story: Story, shown: dict[str, Any], now_s: float) -> None:
        story.used_tokens = sum(int(one["used_utok"]) for one in shown["buckets"]) // MILLION
        story.overshoot_tokens = overshoot_tokens(shown)
        cut = shown["state"] == "cut"
        if cut and not story.cut:
            story.cut, story.cut_at_s = True, now_s
            story.cut_by = shown["why"] or "balance"
        story.resumed |= story.topped_up and not cut


def overshoot_tokens(shown: dict[str, Any]) -> int:
    """Return what no bucket of an account paid, in tokens begun."""
    unpaid = (int(one["used_utok"]) for one in shown["buckets"] if int(one["bucket"]) < 1)
    return -(-sum(unpaid) // MILLION)
