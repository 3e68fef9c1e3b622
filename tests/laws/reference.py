"""Count usage the slow, obvious way: one event at a time, with dictionaries and sets."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tests.strategies import BOUNDS, MINUTE, Record, key_of
from tokenline.event import TOKEN_KINDS

TEXTS = ("tenant_id", "source", "event_id", "account_id", "gateway_id", "provider", "model")


class Reference:
    """Hold what the records say, as the issue and DESIGN put it."""

    def __init__(self, zones: dict[str, str]) -> None:
        self.zones = zones
        self.seen: set[tuple[str, str, str]] = set()
        self.verdicts: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self.windows: dict[tuple[Any, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
        self.months: dict[tuple[Any, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
        self.tokens = 0

    def read(self, records: list[Record]) -> Reference:
        """Count all of them."""
        for one in records:
            reason = self.fault_of(one)
            if reason:
                self.verdicts[one.offset], self.reasons[one.offset] = "rejected", reason
            else:
                self.verdicts[one.offset] = self.count(one)
        return self

    def fault_of(self, one: Record) -> str:
        """Return why the record is refused, or nothing."""
        said = one.event
        if said is None:
            return "undecodable"
        counts = [said[kind] for kind in TOKEN_KINDS] + list(said["other_units"].values())
        age_ms = one.appended_ms - said["occurred_at"]
        faults = {
            "bad_name": any(not said[name] for name in TEXTS),
            "key_mismatch": one.key != key_of(said),
            "negative_count": min(counts) < 0,
            "absurd_count": max(counts) > BOUNDS.max_tokens,
            "future_time": age_ms < -BOUNDS.future_skew_ms,
            "too_old": age_ms > BOUNDS.max_age_ms,
            "unknown_account": key_of(said) not in self.zones,
        }
        return next((name for name, wrong in faults.items() if wrong), "")

    def count(self, one: Record) -> str:
        """Count a good event if it is on time and new; say what became of it."""
        said = one.event
        assert said is not None
        if one.appended_ms - said["occurred_at"] > BOUNDS.horizon_ms:
            return "late"
        identity = (said["tenant_id"], said["source"], said["event_id"])
        if identity in self.seen:
            return "duplicate"
        self.seen.add(identity)
        tokens = sum(said[kind] for kind in TOKEN_KINDS)
        account, at_ms = key_of(said), said["occurred_at"]
        window = (said["subscriber_id"], said["provider"], said["model"], at_ms // MINUTE * MINUTE)
        _add(self.windows, (account, *window), tokens)
        _add(self.months, (account, month_start_ms(self.zones[account], at_ms)), tokens)
        self.tokens += tokens
        return "counted"

    def offsets(self, verdict: str) -> set[int]:
        """Return the offsets judged so."""
        return {offset for offset, said in self.verdicts.items() if said == verdict}


def month_start_ms(zone: str, moment_ms: int) -> int:
    """Return when the month of a moment began, where the account lives."""
    local = datetime.fromtimestamp(moment_ms // 1000, ZoneInfo(zone))
    start = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)
    return int(start.astimezone(UTC).timestamp()) * 1000


def _add(sums: dict[tuple[Any, ...], tuple[int, int]], key: tuple[Any, ...], tokens: int) -> None:
    events, total = sums[key]
    sums[key] = (events + 1, total + tokens)
