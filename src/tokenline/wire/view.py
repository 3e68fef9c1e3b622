"""Keep the newest decision of each account and answer from memory; no Kafka, no clock.

Records arrive in the order of their partition. Three rules make every gateway see the same:
 1 of one account, subscriber or group of models the highest (epoch, version) counts, however late it comes;
 2 a heartbeat of an epoch below the highest seen is the word of an owner that has lost the
   partition and does not know yet: it must not make the view look fresh, so it is ignored;
 3 a tombstone removes the row it is the key of, never a newer owner's.
A limit whose window has ended by the wall clock no longer cuts: no message is needed for that.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from tokenline.wire.plan_terms import NO_PLAN, PlanTerms, plan_terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

State = Literal["open", "warned", "cut", "unknown"]
Identity = tuple[str, str, str]
RESET = "window_reset"
FOR_EVER_MS = 1 << 63
UNKNOWN = "unknown_account"
# Reasons of what the covers of a decision say of one use; then the balance is the rule.
NOT_COVERED, COVERED, BALANCE = "not_covered", "covered", "balance"


class Served(NamedTuple):
    """Name who is served, and by which model."""

    subscriber: str
    provider: str
    model: str

    def is_of(self, subscriber: str, models: frozenset[str]) -> bool:
        """Say whether a limit of a group of models counts it; a limit of nobody's is the account's."""
        if subscriber not in ("", self.subscriber):
            return False
        return f"{self.provider}/{self.model}" in models or f"{self.provider}/*" in models


class Cover(NamedTuple):
    """Name uses that can be paid; an empty set is all."""

    models: frozenset[str]
    subscribers: frozenset[str]

    def pays(self, served: Served) -> bool:
        """Say whether a use can be paid by this."""
        if self.subscribers and served.subscriber not in self.subscribers:
            return False
        return not self.models or served.is_of("", self.models)


class Decision(NamedTuple):
    """Hold what a guard needs of one decision record; times are ms since the epoch, UTC.

    `covers` are the uses that can be paid, where that is not all or, of a cut account, not none.
    """

    state: State
    rule: str
    reason: str
    used: int
    limit: int
    resets_at_ms: int
    as_of_ms: int
    epoch: int
    version: int
    partition: int
    terms: PlanTerms = NO_PLAN
    models: frozenset[str] = frozenset()
    unit: str = ""
    covers: tuple[Cover, ...] = ()

    def of(self, served: Served, now_ms: int) -> Decision:
        """Return what the decision means for one use: it may be the one that can, or cannot, be paid."""
        if not self.covers or 0 < self.resets_at_ms <= now_ms:
            return self
        covered = any(cover.pays(served) for cover in self.covers)
        if self.state != "cut":
            return self if covered else self._replace(state="cut", rule=BALANCE, reason=NOT_COVERED)
        free = covered and self.rule == BALANCE
        return self._replace(state="open", rule="", reason=COVERED) if free else self

    def cuts(self, now_ms: int) -> bool:
        """Tell whether this decision stops the account at `now_ms`."""
        return self.state == "cut" and not 0 < self.resets_at_ms <= now_ms


class Verdict(NamedTuple):
    """Answer one check: whether to go on, why, and how old the knowledge is.

    `used` and `limit` count in `unit`. `fresh_ms` is how far the view of this account lies behind
    now; -1 when nothing was heard.
    """

    allowed: bool
    state: State
    reason: str
    rule: str
    used: int
    limit: int
    resets_at_ms: int
    as_of_ms: int
    fresh_ms: int
    stale: bool
    terms: PlanTerms = NO_PLAN
    unit: str = ""

    @property
    def plan(self) -> str:
        """The plan of the catalog that the account has; empty without one."""
        return self.terms.plan


@dataclass(slots=True)
class _Groups:
    """Hold what was decided of an account's groups of models, and who waits for a cut of his.

    Both by subscriber: of ten thousand members each call looks at its own and at the account's.
    """

    rows: defaultdict[str, dict[str, Decision]] = field(default_factory=lambda: defaultdict(dict))
    waiters: defaultdict[str, dict[asyncio.Future[Decision], Served]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def find(self, subscriber: str, group: str) -> Decision | None:
        """Return the newest decision on a group; of nobody's it is the whole account's."""
        return self.rows.get(subscriber, {}).get(group)

    def of(self, served: Served) -> Iterator[Decision]:
        for subscriber in dict.fromkeys(("", served.subscriber)):
            for decision in self.rows.get(subscriber, {}).values():
                if served.is_of(subscriber, decision.models):
                    yield decision

    def wake(self, subscriber: str, decision: Decision) -> None:
        """Tell those whom a cut is about; one of nobody's is about all."""
        whose = [subscriber] if subscriber else list(self.waiters)
        for waiter, served in [one for name in whose for one in self._waiting(name)]:
            if served.is_of(subscriber, decision.models) and not waiter.done():
                waiter.set_result(decision)

    def forget(self, subscriber: str, group: str) -> None:
        """Forget a decision."""
        del self.rows[subscriber][group]
        if not self.rows[subscriber]:
            del self.rows[subscriber]

    def leave(self, served: Served, waiter: asyncio.Future[Decision]) -> None:
        """Forget one who waits no longer."""
        del self.waiters[served.subscriber][waiter]
        if not self.waiters[served.subscriber]:
            del self.waiters[served.subscriber]

    def _waiting(self, subscriber: str) -> Iterable[tuple[asyncio.Future[Decision], Served]]:
        return self.waiters.get(subscriber, {}).items()


class View:
    """Fold decision records; ask with `find`, follow with `wait_cut`. Single-threaded."""

    def __init__(self) -> None:
        self.rows: dict[Identity, Decision] = {}
        # Of most accounts there is none.
        self._groups: defaultdict[tuple[str, str], _Groups] = defaultdict(_Groups)
        self._epochs: dict[int, int] = {}
        self.heard_by_partition: dict[int, int] = {}
        self._waiters: defaultdict[Identity, _Waiting] = defaultdict(dict)

    def __len__(self) -> int:
        """Return how many accounts and subscribers have a decision."""
        return len(self.rows)

    def find(self, identity: Identity) -> Decision | None:
        """Return the newest decision on (tenant, account, subscriber)."""
        return self.rows.get(identity)

    def find_group_cut(
        self, tenant: str, account: str, served: Served, now_ms: int
    ) -> Decision | None:
        """Return the decision that cuts an account, or its subscriber, for the model that serves."""
        groups = self._groups.get((tenant, account))
        if groups is None:
            return None
        cuts = [one for one in groups.of(served) if one.cuts(now_ms)]
        # The one that ends last, 0 being never.
        return max(cuts, key=lambda one: one.resets_at_ms or FOR_EVER_MS, default=None)

    def has_groups(self, tenant: str, account: str) -> bool:
        """Say whether anything was ever decided of an account's groups of models: of most it was not."""
        return (tenant, account) in self._groups

    def heard_ms(self, partition: int) -> int:
        """Return up to when all usage of this partition is charged; 0 when nothing was heard."""
        return self.heard_by_partition.get(partition, 0)

    def oldest_heard_ms(self, partitions: int) -> int:
        """Return the least of `heard_ms` over all partitions: what is known of unknown accounts."""
        return min((self.heard_ms(partition) for partition in range(partitions)), default=0)

    def apply_decision(self, partition: int, record: Mapping[str, object], now_ms: int) -> bool:
        """Take one decision; wake who waits for a cut. False when it was old and is ignored."""
        decision = _decision_of(partition, record)
        self._epochs[partition] = max(self._epochs.get(partition, 0), decision.epoch)
        identity = (
            str(record["tenant_id"]),
            str(record["account_id"]),
            str(record["subscriber_id"]),
        )
        if group := str(record["model_group"]):
            return self._apply_group(identity, group, decision, now_ms)
        if _is_older(decision, self.rows.get(identity)):
            return False
        self.rows[identity] = decision
        if decision.covers or decision.cuts(now_ms):
            self._wake(identity, decision, now_ms)
        return True

    def _apply_group(self, identity: Identity, group: str, decision: Decision, now_ms: int) -> bool:
        tenant, account, subscriber = identity
        groups = self._groups[tenant, account]
        if _is_older(decision, groups.find(subscriber, group)):
            return False
        groups.rows[subscriber][group] = decision
        if decision.cuts(now_ms):
            groups.wake(subscriber, decision)
        return True

    def apply_heartbeat(self, partition: int, epoch: int, as_of_ms: int) -> bool:
        """Take one heartbeat; False when it is a late one of an old owner."""
        if epoch < self._epochs.get(partition, 0):
            return False
        self._epochs[partition] = epoch
        self.heard_by_partition[partition] = max(self.heard_ms(partition), as_of_ms)
        return True

    def apply_tombstone(self, key: bytes) -> None:
        """Forget the row that was written under this key, if it is still the one we hold."""
        account_key, _, epoch = key.rpartition(b"#")
        tenant, slash, account = account_key.decode(errors="replace").partition("/")
        if not slash or not epoch.isdigit() or tenant.startswith("~"):
            return
        account, _, own = account.partition("\0")
        subscriber, _, group = own.partition("\0")
        if group:
            self._forget_group((tenant, account), subscriber, group, int(epoch))
            return
        known = self.rows.get((tenant, account, subscriber))
        if known is not None and known.epoch == int(epoch):
            del self.rows[tenant, account, subscriber]

    async def wait_cut(
        self, identities: tuple[Identity, ...], now_ms: int, served: Served | None = None
    ) -> Decision:
        """Return the decision that cuts any of these, or who is served, at once if one does already.

        Cheap by the thousand: one future and an entry or two a waiter.
        """
        tenant, account, _ = identities[0]
        if served is not None:
            known = self.find_group_cut(tenant, account, served, now_ms)
            if known is not None:
                return known
        for identity in identities:
            known = self.rows.get(identity)
            known = known if known is None or served is None else known.of(served, now_ms)
            if known is not None and known.cuts(now_ms):
                return known
        waiter: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        for identity in identities:
            self._waiters[identity][waiter] = served
        if served is not None:
            self._groups[tenant, account].waiters[served.subscriber][waiter] = served
        try:
            return await waiter
        finally:
            if served is not None:
                self._forget_served((tenant, account), served, waiter)
            for identity in identities:
                self._forget(identity, waiter)

    def _wake(self, identity: Identity, decision: Decision, now_ms: int) -> None:
        """Wake the calls that a decision stops; for a call without a model the state alone counts."""
        for waiter, served in self._waiters.get(identity, {}).items():
            found = decision if served is None else decision.of(served, now_ms)
            if found.cuts(now_ms) and not waiter.done():
                waiter.set_result(found)

    def _forget_group(
        self, whose: tuple[str, str], subscriber: str, group: str, epoch: int
    ) -> None:
        groups = self._groups.get(whose)
        known = None if groups is None else groups.find(subscriber, group)
        if groups is not None and known is not None and known.epoch == epoch:
            groups.forget(subscriber, group)
            self._tidy(whose)

    def _forget_served(
        self, whose: tuple[str, str], served: Served, waiter: asyncio.Future[Decision]
    ) -> None:
        self._groups[whose].leave(served, waiter)
        self._tidy(whose)

    def _tidy(self, whose: tuple[str, str]) -> None:
        groups = self._groups[whose]
        if not groups.rows and not groups.waiters:
            del self._groups[whose]

    def _forget(self, identity: Identity, waiter: asyncio.Future[Decision]) -> None:
        waiters = self._waiters.get(identity)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiters[identity]


def _is_older(decision: Decision, known: Decision | None) -> bool:
    return known is not None and (decision.epoch, decision.version) < (known.epoch, known.version)


def _decision_of(partition: int, record: Mapping[str, object]) -> Decision:
    # The codec checked the types; the shared strings keep a million rows small.
    return Decision(
        state=_STATES[str(record["state"])],
        rule=_shared(record["rule"]),
        reason=_shared(record["reason"]),
        used=_whole(record["used"]),
        limit=_whole(record["limit"]),
        resets_at_ms=_whole(record["resets_at"]),
        as_of_ms=_whole(record["as_of"]),
        epoch=_whole(record["epoch"]),
        version=_whole(record["version"]),
        partition=partition,
        terms=plan_terms(record),
        models=_names(record["models"]),
        unit=_shared(record.get("unit", "")),
        covers=_covers_of(record.get("covers", [])),
    )


_STATES: dict[str, State] = {"open": "open", "warned": "warned", "cut": "cut"}
_SHARED: dict[str, str] = {}
_SHARED_SETS: dict[frozenset[str], frozenset[str]] = {}
_SHARED_COVERS: dict[tuple[Cover, ...], tuple[Cover, ...]] = {}
_SHARED_MAX = 1000
_Waiting = dict[asyncio.Future["Decision"], "Served | None"]


def _shared(value: object) -> str:
    text = str(value)
    return _SHARED.setdefault(text, text) if len(_SHARED) < _SHARED_MAX else text


def _names(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of names")
    found = frozenset(map(_shared, value))
    # Each member of an account may have a decision of its own on the same group.
    return _SHARED_SETS.setdefault(found, found) if len(_SHARED_SETS) < _SHARED_MAX else found


def _covers_of(value: object) -> tuple[Cover, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of what can be paid")
    found = tuple(Cover(_names(one["models"]), _names(one["subscribers"])) for one in value)
    # All accounts of a plan have the same.
    return _SHARED_COVERS.setdefault(found, found) if len(_SHARED_COVERS) < _SHARED_MAX else found


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value
