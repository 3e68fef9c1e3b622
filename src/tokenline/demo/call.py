"""Draw one LLM call: who, which model, how long, how many tokens, and how it ends."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from tokenline.demo.plans import account_name
from tokenline.event import Outcome, UsageEvent

MODELS = (
    ("alibaba", "qwen-max", "hangzhou"),
    ("alibaba", "qwen-plus", "hangzhou"),
    ("deepseek", "deepseek-chat", "guizhou"),
    ("deepseek", "deepseek-reasoner", "guizhou"),
    ("tencent", "hunyuan-large", "shenzhen"),
    ("huawei", "pangu-pro", "guizhou"),
)
Fault = Literal["none", "duplicate", "late", "unknown_account"]
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Hold what a call would use if it ran to its end; `stream_s` is how long it streams."""

    account: str
    subscriber: str
    provider: str
    model: str
    serving_domain: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    stream_s: float
    outcome: Outcome
    fault: Fault

    @property
    def answer_tokens(self) -> int:
        """What it would answer, thoughts included."""
        return self.output_tokens + self.reasoning_tokens

    def of(self, account: str) -> Call:
        """Return the same call of another account, without a fault."""
        return replace(self, account=account, fault="none", outcome="completed")

    def event(self, share: float, outcome: Outcome, now_ms: int) -> UsageEvent:
        """Return the usage after `share` of the stream; the prompt counts whole."""
        return UsageEvent(
            account_id=self.account,
            subscriber_id=self.subscriber,
            provider=self.provider,
            model=self.model,
            model_requested=self.model,
            home_domain="shanghai",
            serving_domain=self.serving_domain,
            occurred_at=now_ms - (3 * HOUR_MS if self.fault == "late" else 0),
            started_at=now_ms - int(self.stream_s * share * 1000),
            input_tokens=self.input_tokens,
            cache_read_tokens=self.cached_tokens,
            output_tokens=0 if outcome == "upstream_error" else int(self.output_tokens * share),
            reasoning_tokens=0
            if outcome == "upstream_error"
            else int(self.reasoning_tokens * share),
            usage_source="reported" if outcome == "completed" else "partial",
            outcome=outcome,
        )


def draw_call(rng: random.Random, accounts: int) -> Call:
    """Draw a call: accounts by 1/rank, lengths lognormal, one in twelve does not end well."""
    number = min(int(accounts ** rng.random()), accounts) - 1
    provider, model, domain = rng.choice(MODELS)
    output = int(rng.lognormvariate(5.3, 0.9)) + 1
    reasons = model == "deepseek-reasoner"
    prompt = int(rng.lognormvariate(6.3, 1.0)) + 1
    cached = int(prompt * rng.random()) if rng.random() < 0.3 else 0
    fault: Fault = rng.choices(
        ("none", "duplicate", "late", "unknown_account"), (0.965, 0.02, 0.01, 0.005)
    )[0]
    return Call(
        account="nobody" if fault == "unknown_account" else account_name(number),
        subscriber=f"user-{rng.randrange(4)}",
        provider=provider,
        model=model,
        serving_domain=domain,
        input_tokens=prompt - cached,
        cached_tokens=cached,
        output_tokens=output,
        reasoning_tokens=output * 2 if reasons else 0,
        stream_s=min(0.2 + output / 120, 6.0),
        outcome=rng.choices(("completed", "client_abort", "upstream_error"), (0.92, 0.06, 0.02))[0],
        fault=fault,
    )
