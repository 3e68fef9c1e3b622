"""Hold the sides of the line against each other; pure.

    emitted + resent + raw = ledger + duplicates + dead letters     in records
    ledger without late    = minute windows = month counters        per account, events and tokens
    minute windows' cost   = what usage took from buckets           per account, in µtok
    numbered entries       = landed entries                         per account's balance
    transferred out        = taken + returned                       per part of a transfer, in µtok
    sealed                 = ledger, duplicates, dead letters       per partition, to Kafka's end
    deleted, unlanded, unjudged, quarantined = 0, or what a person has accepted

`emitted` is what gateways say of themselves, `resent` what they sent again, and `raw` records that
name no gateway with a control total.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# No waiting ends these.
LASTING = frozenset({"deleted", "unlanded", "unjudged", "quarantine"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Count events and their tokens."""

    events: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSides:
    """Hold what three sides say of one account; late events are left out of all."""

    tenant_id: str
    account_id: str
    ledger: Tally
    windows: Tally
    counters: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeSides:
    """Hold what an account's minute windows cost and what its buckets paid for usage, in µtok."""

    tenant_id: str
    account_id: str
    windows_utok: int
    buckets_utok: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySides:
    """Hold the highest number of an account's entries, usage aside, and how many landed."""

    tenant_id: str
    account_id: str
    newest: int
    landed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSides:
    """Hold what one entry of a giver took out for another account, and what arrived of it, in µtok.

    `arrived_utok` is what the receiver took and what came back. `entry` is the giver's.
    """

    tenant_id: str
    giver: str
    entry: int
    given_utok: int
    arrived_utok: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySides:
    """Hold what one life of a gateway says it emitted, and what the warehouse shows of it.

    `records` counts every landed record of the life, `distinct` its different gateway_seq,
    `highest` the greatest of them. `lost` is how many its disk did not keep, at most. `stated` is
    false when there is no control total.
    """

    gateway_id: str
    gateway_epoch: str
    stated: bool
    emitted: int
    acknowledged: int
    records: int
    distinct: int
    highest: int
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Count offsets of usage that did not land, by why; see the seals.

    What was deleted was appended between `since_ms` and `until_ms`, as far as is known (0: it is not).
    """

    deleted: int = 0
    unlanded: int = 0
    unjudged: int = 0
    since_ms: int = 0
    until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSides:
    """Hold what Kafka, the seals and the tables say of one partition of usage, in records.

    `begin` and `end` are Kafka's first and next offset, `sealed_lo` and `sealed_next` those of the
    seals. `lost` is what the seals say did not land.
    """

    partition: int
    begin: int
    end: int
    sealed_lo: int
    sealed_next: int
    sealed: Landed
    landed: Landed
    lost: Lost = field(default_factory=Lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Hold what a person has looked into and takes as lost; another number is accepted for nothing."""

    deleted: int = 0
    quarantined: int = 0
    gateway_lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """Count records by what became of them, and the tokens of the ledger."""

    counted: int = 0
    late: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    tokens: int = 0

    @property
    def ledger(self) -> int:
        """Return the rows of the ledger."""
        return self.counted + self.late

    @property
    def records(self) -> int:
        """Return all records."""
        return self.ledger + self.duplicates + self.dead_letters

    def __add__(self, other: Landed) -> Landed:
        return Landed(
            counted=self.counted + other.counted,
            late=self.late + other.late,
            duplicates=self.duplicates + other.duplicates,
            dead_letters=self.dead_letters + other.dead_letters,
            tokens=self.tokens + other.tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Name one thing that does not agree: `what` of `where` is `left` here and `right` there."""

    kind: str
    where: str
    what: str
    left: int
    right: int

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.what}: {self.left} and {self.right} ({self.left - self.right:+d})"
        )


_DISK = "events lost by the gateway's disk, and none"


def account_differences(accounts: Iterable[AccountSides]) -> Iterator[Difference]:
    """Yield where ledger, windows and counters of an account differ."""
    for one in accounts:
        where = f"{one.tenant_id}/{one.account_id}"
        for side, tally in (("windows", one.windows), ("month counters", one.counters)):
            for unit in ("events", "tokens"):
                left, right = getattr(one.ledger, unit), getattr(tally, unit)
                yield from unequal("account", where, f"{unit} in ledger and {side}", left, right)


def charge_differences(accounts: Iterable[ChargeSides]) -> Iterator[Difference]:
    """Yield where an account's windows cost another amount than its buckets paid."""
    what = "µtok that windows cost and buckets paid"
    for one in accounts:
        where = f"{one.tenant_id}/{one.account_id}"
        yield from unequal("charge", where, what, one.windows_utok, one.buckets_utok)


def entry_differences(accounts: Iterable[EntrySides]) -> Iterator[Difference]:
    """Yield where entries of an account's balance are missing; they are numbered without gaps."""
    for one in accounts:
        where = f"{one.tenant_id}/{one.account_id}"
        yield from unequal("entries", where, "entries numbered and landed", one.newest, one.landed)


def transfer_differences(transfers: Iterable[TransferSides]) -> Iterator[Difference]:
    """Yield where what left an account is not what arrived: still on the way, doubled or from nowhere."""
    what = "µtok given away and arrived or returned"
    for one in transfers:
        where = f"{one.tenant_id}/{one.giver} entry {one.entry}"
        yield from unequal("transfer", where, what, one.given_utok, one.arrived_utok)


def gateway_differences(
    gateways: Iterable[GatewaySides], accepted: int = 0
) -> Iterator[Difference]:
    """Yield where a gateway's own count and the landed records of its life differ.

    A total that lags behind what landed is no difference: the gateway died before it could publish
    the newest. But then its numbers must still be without gaps. What a gateway itself says its disk
    lost is a difference of its own kind, unless exactly so many are `accepted`.
    """
    lost: list[Difference] = []
    for one in (one for one in gateways if one.stated):
        where, emitted = f"{one.gateway_id}/{one.gateway_epoch}", max(one.emitted, one.highest)
        if 0 < emitted - one.distinct <= one.lost:
            lost += unequal("disk", where, _DISK, emitted - one.distinct, 0)
            continue
        unsent = one.emitted - one.acknowledged - one.lost
        hint = f" ({unsent} not acknowledged yet)" if unsent else ""
        what = f"events emitted{hint} and landed"
        yield from unequal("gateway", where, what, emitted, one.distinct)
    total = sum(one.left for one in lost)
    if accepted and total != accepted:
        what = "events lost by disks of gateways and accepted"
        yield from unequal("disk", "all gateways", what, total, accepted)
    yield from lost if total != accepted else ()


def partition_differences(partitions: Iterable[PartitionSides]) -> Iterator[Difference]:
    """Yield where Kafka, seals and tables of a partition differ."""
    for one in partitions:
        where = f"usage[{one.partition}]"
        if one.sealed_lo > one.begin:
            what = "first offset sealed and in Kafka"
            yield from unequal("seal", where, what, one.sealed_lo, one.begin)
        what = "next offset to seal and end of Kafka"
        yield from unequal("lag", where, what, one.sealed_next, one.end)
        for name in ("counted", "late", "duplicates", "dead_letters", "tokens"):
            left, right = getattr(one.sealed, name), getattr(one.landed, name)
            yield from unequal("partition", where, f"{name} in seals and tables", left, right)


def loss_differences(partitions: Iterable[PartitionSides], accepted: int) -> Iterator[Difference]:
    """Yield what is lost of each partition; of what was deleted all or, if so many are accepted, nothing."""
    sides = list(partitions)
    deleted = sum(one.lost.deleted for one in sides)
    if accepted and deleted != accepted:
        yield from unequal("deleted", "usage", "offsets deleted and accepted", deleted, accepted)
    for one in sides:
        where, lost = f"usage[{one.partition}]", one.lost
        if deleted != accepted:
            what = f"offsets deleted before they were charged, appended {_span(lost)}"
            yield from unequal("deleted", where, what, lost.deleted, 0)
        what = "offsets charged, and gone before they landed"
        yield from unequal("unlanded", where, what, lost.unlanded, 0)
        what = "offsets of which no charged range speaks"
        yield from unequal("unjudged", where, what, lost.unjudged, 0)


def quarantine_differences(topics: Mapping[str, int], accepted: int) -> Iterator[Difference]:
    """Yield how many records of each topic are quarantined, unless so many are accepted."""
    total = sum(topics.values())
    if accepted and total != accepted:
        yield from unequal(
            "quarantine", "all topics", "records quarantined and accepted", total, accepted
        )
    for topic, count in sorted(topics.items()) if total != accepted else ():
        yield from unequal("quarantine", topic, "records quarantined", count, 0)


def _span(lost: Lost) -> str:
    return f"from {_moment(lost.since_ms)} to {_moment(lost.until_ms)}"


def _moment(at_ms: int) -> str:
    if not at_ms:
        return "an unknown moment"
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="seconds")


def unequal(kind: str, where: str, what: str, left: int, right: int) -> Iterator[Difference]:
    """Yield a difference where two figures are not equal."""
    if left != right:
        yield Difference(kind=kind, where=where, what=what, left=left, right=right)
