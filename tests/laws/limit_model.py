"""Be what limits must equal: every count is kept with its moment, and summed anew each time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tokenline.quota.terms import SUBSCRIBER_CAP, LimitSpec, Per, Unit, Use

MILLION = 1_000_000
PLENTY = 10**30
LENGTHS = {Per.MINUTE: 60_000, Per.HOUR: 3_600_000, Per.DAY: 86_400_000, Per.WEEK: 604_800_000}
Key = tuple[str, str, str]


class ModelLimits:
    """Count for one account of the model; a key is a limit's name, whom it names, and who used."""

    def __init__(self, account: Any) -> None:
        self.account = account
        self.counted: dict[Key, list[tuple[int, int]]] = {}
        # What the account itself allows a subscriber, whatever its plan.
        self.own: dict[str, int] = {}

    def in_force(self, subscriber: str) -> list[tuple[LimitSpec, int]]:
        found = dict(self.account.terms().limits)
        if subscriber in self.own:
            found[SUBSCRIBER_CAP] = self.own[subscriber]
        return list(found.items())

    def cap(self, name: str, ceiling: int | None) -> None:
        if ceiling is not None:
            self.own[name] = ceiling
            return
        del self.own[name]
        key = (*SUBSCRIBER_CAP.identity, name)
        if SUBSCRIBER_CAP not in dict(self.account.terms().limits) and not self.held(key):
            self.forget({key})

    def of(self, use: Use) -> list[tuple[LimitSpec, int, Key]]:
        """Return the limits that `use` falls under."""
        found = []
        for spec, ceiling in self.in_force(use.subscriber):
            named = not spec.each or (use.subscriber and spec.subscriber in ("", use.subscriber))
            models = {f"{use.provider}/{use.model}", f"{use.provider}/*"}
            if named and (not spec.models or models & set(spec.models)):
                whose = use.subscriber if spec.each else ""
                found.append((spec, ceiling, (spec.name, spec.subscriber, whose)))
        return found

    def every(self, subscriber: str) -> list[tuple[LimitSpec, int, Key]]:
        """Return all limits that count this subscriber, or nobody's, of any model."""
        found = []
        for spec, ceiling in self.in_force(subscriber):
            if spec.each == bool(subscriber) and spec.subscriber in ("", subscriber):
                found.append((spec, ceiling, (spec.name, spec.subscriber, subscriber)))
        return found

    def start(self, spec: LimitSpec, now: int) -> int:
        """Return the first moment that counts at `now`."""
        if spec.rolling:
            step = LENGTHS[spec.per] // 12
            return (now // step - 12) * step
        if spec.per is Per.CYCLE:
            return int(self.account.start_at(now))
        if spec.per in (Per.MINUTE, Per.HOUR):
            return now // LENGTHS[spec.per] * LENGTHS[spec.per]
        at = datetime.fromtimestamp(now // 1000, ZoneInfo(self.account.zone))
        at = at.replace(hour=0, minute=0, second=0, microsecond=0)
        while (spec.per is Per.WEEK and at.weekday()) or (spec.per is Per.MONTH and at.day > 1):
            at -= timedelta(days=1)
        return int(at.astimezone(UTC).timestamp()) * 1000

    def used(self, spec: LimitSpec, key: Key, now: int) -> int:
        start = self.start(spec, now)
        return sum(amount for at, amount in self.counted.get(key, []) if at >= start)

    def held(self, key: Key) -> int:
        holds = self.account.holds.values()
        return sum(
            int(sum(one.parts.values()) * MILLION)
            for one in holds
            if one.holds and key in one.bound
        )

    def count(self, use: Use, tokens: int, utok: int, now: int) -> None:
        amounts = {Unit.TOKENS: tokens, Unit.UTOK: utok, Unit.REQUESTS: 1}
        for spec, _, key in self.of(use):
            self.counted.setdefault(key, []).append((now, amounts[spec.unit]))

    def count_keys(self, keys: list[Key], utok: int, at: int) -> None:
        for key in keys:
            self.counted.setdefault(key, []).append((at, utok))

    def put_in_force(self) -> None:
        """Forget what no limit of the plan counts, as long as nothing is held against it."""
        self.forget(
            {
                key
                for key in self.keys()
                if key[:2] not in {spec.identity for spec, _ in self.in_force(key[2])}
                and not self.held(key)
            }
        )

    def forget(self, gone: set[Key]) -> None:
        for key in gone:
            self.counted.pop(key, None)
        for one in self.account.holds.values():
            one.bound = [key for key in one.bound if key not in gone]

    def keys(self) -> set[Key]:
        bound = {key for one in self.account.holds.values() for key in one.bound}
        return bound | set(self.counted)

    def bind(self, one: Any, order: Any, needed: int, now: int) -> tuple[int, int, str]:
        """Return the room in utok and in tokens of an answer, and why there is too little of it."""
        one.bound = []
        room, most, reached, held = PLENTY, PLENTY, False, False
        for spec, ceiling, key in self.of(order.use):
            left = ceiling - self.used(spec, key, now)
            if spec.unit is Unit.UTOK:
                one.bound.append(key)
                own = int(sum(one.parts.values()) * MILLION)
                others = self.held(key) - own
                left -= others + int(one.owed * MILLION)
                reached |= left + others < needed
                held |= left < needed
                room = min(room, left)
            elif spec.unit is Unit.TOKENS and not order.lease:
                answer = left - order.prompt_tokens
                reached |= left <= 0 or answer < min(1, order.max_tokens)
                most = min(most, answer)
                if order.output_utok:
                    room = min(room, order.prompt_utok + answer * order.output_utok)
            else:
                reached |= left <= 0
        why = "limit_reached" if reached else "limit_held" if held else ""
        return max(0, room), max(0, most), why

    def cut_groups(self, subscribers: tuple[str, ...], now: int) -> set[tuple[str, str]]:
        """Return for whom which limits of groups of models are reached; a limit of each one has met."""
        return {
            (name, spec.name)
            for name in subscribers
            for spec, ceiling, key in self.every(name)
            if spec.models and self.used(spec, key, now) >= ceiling
        }

    def cuts(self, subscriber: str, now: int) -> bool:
        """Say whether a subscriber, or the whole account, is cut."""
        use = Use("nobody", "none", subscriber)
        return any(
            self.used(spec, key, now) >= ceiling
            for spec, ceiling, key in self.of(use)
            if spec.each == bool(subscriber) and not spec.models
        )
