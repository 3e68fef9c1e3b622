"""Prove that nothing was lost, counted twice or edited: ask all sides, wait for quiet, compare."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field, replace
from time import sleep
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tokenline.audit.reconcile import (
    LASTING,
    Accepted,
    Difference,
    GatewaySides,
    Landed,
    Lost,
    PartitionSides,
    account_differences,
    charge_differences,
    entry_differences,
    gateway_differences,
    loss_differences,
    partition_differences,
    quarantine_differences,
    transfer_differences,
)
from tokenline.audit.tampering import (
    foreign_differences,
    kind_differences,
    paid_differences,
    total_differences,
)
from tokenline.clock import Clock, SystemClock
from tokenline.landing.balances import (
    charged,
    missing_entries,
    transferred,
    unequal_charges,
    unequal_transfers,
)
from tokenline.landing.clickhouse import ClickHouseStore
from tokenline.landing.control_totals import stated_totals
from tokenline.landing.digests import digest_faults, shared_identities, view_faults, walks_of
from tokenline.landing.evidence import (
    kept_totals,
    unequal_buckets,
    unequal_kinds,
    unsealed,
)
from tokenline.landing.kafka_evidence import kafka_faults
from tokenline.landing.line import archives, require_own, warehouse_line
from tokenline.landing.queries import (
    Asker,
    account_totals,
    foreign_totals,
    gateways,
    landed_by_partition,
    quarantined,
    unequal_accounts,
)
from tokenline.landing.seal import Walk
from tokenline.wire.faults import fault_of
from tokenline.wire.kafka import client_options
from tokenline.wire.line import Line, read_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tokenline.landing.seal import Seal
    from tokenline.settings import Settings

LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierLine:
    """State what the books of a line hold whose Kafka is lost; they are held against their seals only."""

    line_id: str
    database: str
    ledger: int
    tokens: int
    seals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """State what was compared and what differs; `ok` when nothing does.

    `totals` are records, except `tokens` (of the ledger), `accounts` and `seals`. `seal_faults` are
    lines for a person. `line_id` is the line that was compared; `foreign` names control totals that count
    for another one, which are left out; `earlier` are the books of the lines from which this one goes on.
    `shared` names events that the ledger has more than once, which all stand: a person says which is right.
    """

    ok: bool
    waited_s: float
    totals: dict[str, int]
    differences: list[Difference] = field(default_factory=list)
    seal_faults: list[str] = field(default_factory=list)
    line_id: str = ""
    foreign: list[str] = field(default_factory=list)
    earlier: list[EarlierLine] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)


def reconcile(
    settings: Settings,
    wait_s: float = 60,
    *,
    digests: bool = True,
    accepted: Accepted | None = None,
) -> Report:
    """Compare all sides; repeat for up to `wait_s` seconds while the line is still catching up.

    `accepted` is what a person takes as lost: exactly so much is no difference.

    With `digests` every seal is recomputed from the rows it covers, and rows that no seal covers are held
    against Kafka, once all else agrees. A line on
    which events keep arriving never becomes quiet: then the report shows what was in flight.

    Raises:
        BrokerUnavailable, WarehouseUnavailable: a side cannot be asked.
        ForeignLine: Kafka and warehouse hold two different lines.
    """
    clock = SystemClock()
    started_s = clock.monotonic_s()
    line = asyncio.run(read_line(settings))
    require_own(settings, line, warehouse_line(settings))
    while True:
        report = _compare(settings, clock, started_s, accepted or Accepted(), line)
        lasting = all(one.kind in LASTING for one in report.differences)
        if lasting or report.seal_faults or clock.monotonic_s() - started_s >= wait_s:
            break
        sleep(LOOK_AGAIN_S)
    faults = [
        *view_faults(settings),
        *(digest_faults(settings) if report.ok and digests else ()),
        *(asyncio.run(kafka_faults(settings)) if report.ok and digests else ()),
    ]
    before, old_faults = _earlier(settings, line, digests=digests)
    faults = [*report.seal_faults, *faults, *old_faults]
    shared = shared_identities(settings)
    return replace(
        report, ok=report.ok and not faults, seal_faults=faults, earlier=before, shared=shared
    )


def _earlier(
    settings: Settings, line: Line, *, digests: bool
) -> tuple[list[EarlierLine], list[str]]:
    """Return the books of lines whose Kafka is lost, and what is wrong with their seals."""
    found, faults = [], []
    for archive in archives(settings, line):
        books = settings.model_copy(update={"clickhouse_database": archive.database})
        store = ClickHouseStore(books)
        walks = walks_of(store, settings.topic("usage"))
        store.close()
        seals = [seal for one in walks.values() for seal in one.kept]
        sealed = _sealed(seals)
        found.append(
            EarlierLine(
                line_id=archive.line_id, database=archive.database, ledger=sealed.ledger,
                tokens=sealed.tokens, seals=len(seals),
            )
        )  # fmt: skip
        wrong = [fault for one in walks.values() for fault in one.faults]
        wrong += digest_faults(books) if digests else ()
        faults += [f"line {archive.line_id}: {fault}" for fault in wrong]
    return found, faults


def render(report: Report) -> RenderableType:
    """Return the report as tables for a terminal."""
    totals = Table("what", "count", title="reconcile")
    for name, count in report.totals.items():
        totals.add_row(name.replace("_", " "), f"{count:,}")
    parts: list[RenderableType] = [Text(f"line {report.line_id}"), totals]
    if report.earlier:
        table = Table("earlier line", "database", "ledger", "tokens", "seals")
        for old in report.earlier:
            table.add_row(
                old.line_id, old.database, f"{old.ledger:,}", f"{old.tokens:,}", f"{old.seals:,}"
            )
        parts.append(table)
    parts.extend(Text(f"left out: {one}", style="yellow") for one in report.foreign)
    parts.extend(Text(f"to be looked into: {one}", style="yellow") for one in report.shared)
    if report.differences:
        table = Table("where", "what", "one side", "other side", "difference", title="differences")
        for one in report.differences:
            table.add_row(
                one.where, one.what, f"{one.left:,}", f"{one.right:,}", f"{one.left - one.right:+,}"
            )
        parts.append(table)
    parts.extend(Text(fault, style="red") for fault in report.seal_faults)
    verdict = (
        "nothing lost, nothing counted twice, seals unbroken" if report.ok else "the sides differ"
    )
    parts.append(Text(verdict, style="bold green" if report.ok else "bold red"))
    return Group(*parts)


async def usage_bounds(settings: Settings) -> dict[int, tuple[int, int]]:
    """Return first and next offset of each partition of usage.

    Raises:
        BrokerUnavailable: no broker answers.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False)
    places = [TopicPartition(settings.topic("usage"), at) for at in range(settings.partitions)]
    try:
        await consumer.start()
        begin = await consumer.beginning_offsets(places)
        end = await consumer.end_offsets(places)
    except KafkaError as error:
        raise await fault_of(settings, error) from error
    finally:
        await consumer.stop()
    return {place.partition: (int(begin[place]), int(end[place])) for place in places}


def _compare(
    settings: Settings, clock: Clock, started_s: float, accepted: Accepted, line: Line
) -> Report:
    topic = settings.topic("usage")
    bounds, stated = asyncio.run(usage_bounds(settings)), asyncio.run(stated_totals(settings, line))
    store, asker = ClickHouseStore(settings), Asker(settings)
    walks = walks_of(store, topic)
    partitions = _partition_sides(bounds, walks, landed_by_partition(asker, topic))
    lives, foreign = gateways(asker, topic, line.line_id), foreign_totals(asker, line.line_id)
    accounts, sums = account_totals(asker)
    differences = [
        *partition_differences(partitions),
        *gateway_differences(lives, accepted.gateway_lost),
        # The sums were read a moment earlier: when they differ and no account does, rows were
        # landing in between.
        *account_differences(unequal_accounts(asker) or [sums]),
        *charge_differences(unequal_charges(asker)),
        *entry_differences(missing_entries(asker)),
        *transfer_differences(unequal_transfers(asker)),
        *loss_differences(partitions, accepted.deleted),
        *quarantine_differences(aside := quarantined(asker), accepted.quarantined),
        *foreign_differences(unsealed(asker, topic, walks.keys())),
        *total_differences(stated, kept_totals(asker)),
    ]
    if all(one.kind in LASTING for one in differences):
        # They read all of the ledger: while it is still catching up nobody needs their answer.
        differences += kind_differences(unequal_kinds(asker))
        differences += paid_differences(unequal_buckets(asker))
    totals = {
        "records_in_kafka": sum(end - begin for begin, end in bounds.values()),
        **_record_totals(partitions, lives),
        "counted_tokens": sums.ledger.tokens,
        "window_tokens": sums.windows.tokens,
        "counter_tokens": sums.counters.tokens,
        **_balance_totals(asker),
        "accounts": accounts,
        **_seal_totals(walks),
        "quarantined": sum(aside.values()),
    }
    faults = [fault for found in walks.values() for fault in found.faults]
    store.close()
    asker.close()
    return Report(
        ok=not differences and not faults,
        waited_s=round(clock.monotonic_s() - started_s, 3),
        totals=totals,
        differences=differences,
        seal_faults=faults,
        line_id=line.line_id,
        foreign=foreign,
    )


def _record_totals(partitions: list[PartitionSides], lives: list[GatewaySides]) -> dict[str, int]:
    landed = sum((one.landed for one in partitions), start=Landed())
    stated = [one for one in lives if one.stated]
    shown = sum(one.records for one in stated)
    return {
        "emitted": sum(max(one.emitted, one.highest) for one in stated),
        "resent": shown - sum(one.distinct for one in stated),
        "raw": landed.records - shown,
        "ledger": landed.ledger,
        "late": landed.late,
        "duplicates": landed.duplicates,
        "dead_letters": landed.dead_letters,
        "tokens": landed.tokens,
        "gateway_lives": len(stated),
    }


def _balance_totals(asker: Asker) -> dict[str, int]:
    transferred_utok, on_the_way_utok = transferred(asker)
    return {
        "charged_utok": charged(asker),
        "transferred_utok": transferred_utok,
        "on_the_way_utok": on_the_way_utok,
    }


def _seal_totals(walks: dict[int, Walk]) -> dict[str, int]:
    seals = [seal for found in walks.values() for seal in found.kept]
    lost = ("absent", "deleted", "unlanded", "unjudged")
    return {"seals": len(seals)} | {
        name: sum(getattr(seal, name) for seal in seals) for name in lost
    }


def _partition_sides(
    bounds: dict[int, tuple[int, int]], walks: dict[int, Walk], landed: dict[int, Landed]
) -> list[PartitionSides]:
    return [
        PartitionSides(
            partition=partition,
            begin=begin,
            end=end,
            sealed_lo=walks[partition].kept[0].lo if partition in walks else begin,
            sealed_next=walks[partition].next_offset if partition in walks else begin,
            sealed=_sealed(walks[partition].kept) if partition in walks else Landed(),
            landed=landed.get(partition, Landed()),
            lost=_lost(walks[partition].kept) if partition in walks else Lost(),
        )
        for partition, (begin, end) in bounds.items()
    ]


def _sealed(seals: list[Seal]) -> Landed:
    return Landed(
        counted=sum(seal.counted for seal in seals),
        late=sum(seal.late for seal in seals),
        duplicates=sum(seal.duplicate for seal in seals),
        dead_letters=sum(seal.rejected for seal in seals),
        tokens=sum(seal.tokens for seal in seals),
    )


def _lost(seals: list[Seal]) -> Lost:
    gone = [seal for seal in seals if seal.deleted]
    return Lost(
        deleted=sum(seal.deleted for seal in gone),
        unlanded=sum(seal.unlanded for seal in seals),
        unjudged=sum(seal.unjudged for seal in seals),
        since_ms=min((seal.deleted_since_ms for seal in gone), default=0),
        until_ms=max((seal.deleted_until_ms for seal in gone), default=0),
    )
