"""Land on paper: charged ranges become rows of a store in memory, and what landing tells waits on a list.

It does what `landing.lander` does around the pure core, step by step. A death leaves what was done; the
next one looks at the rows and begins behind the last seal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tests.paper_line import Books
from tests.strategies import Record
from tokenline.charging.step import Commanded
from tokenline.event import TOKEN_KINDS
from tokenline.landing.charges import RangeCharges, joined_charges
from tokenline.landing.copies import look_back
from tokenline.landing.memory import MemoryStore
from tokenline.landing.row import LEDGER_SCHEMA, Events, duplicate_rows, ledger_rows, rows_not_at
from tokenline.landing.usage_orders import orders_of
from tokenline.landing.verdicts import Verdicts
from tokenline.quota.entries import ChangeKind

TOPIC = "usage"
EVENT_FIELDS = LEDGER_SCHEMA.names[: LEDGER_SCHEMA.names.index("topic")]
STEPS = ("read", "ledger", "duplicates", "orders")
Int64s = Any


class Died(Exception):
    """End at a step."""


class PaperLanding:
    """Follow charged ranges; `commands` is what lies on the topic, `letters` the dead letters told."""

    def __init__(self, books: Books, usage: list[Record], commands: list[Commanded]) -> None:
        self.books, self.usage, self.commands = books, usage, commands
        self.store = MemoryStore()
        self.letters: dict[int, str] = {}
        self.next_lo = 0
        self.told: list[str] = []
        self._entries = self._windows = 0

    def land(self, most: int = 10**9, die: str = "", sends: int = 10**9) -> None:
        """Land ranges from behind the last seal, `most` at once; dead at a step it seals nothing.

        Of the orders of a batch in which it dies `sends` are sent.
        """
        while ranges := [one for one in self.books.ranges if one["lo"] >= self.next_lo][:most]:
            try:
                self._land(ranges, die, sends)
            except Died:
                die = ""
                continue
            self.next_lo = ranges[-1]["hi"] + 1

    def take_tables(self) -> None:
        """Take in what charging said of balances and windows until now, as other flows do beside."""
        windows = [
            {
                "tenant_id": said["account"].partition("/")[0],
                "account_id": said["account"].partition("/")[2],
                "grain": said["grain"],
                "cause": cause,
                "window_start": said["window_start_ms"],
                "segment_start": 0,
                **{name: said[name] for name in ("provider", "model", "events", "total_tokens")},
                "subscriber_id": said["subscriber"],
                **{name: said[name] for name in ("charge_utok", "catalog_version")},
                "version": 1,
            }
            for (cause, _), said in self.books.window_changes.items()
        ]
        entries = [
            {
                "tenant_id": account.partition("/")[0],
                "account_id": account.partition("/")[2],
                "bucket": said["bucket"],
                "entry": str(number),
                "kind": ChangeKind(said["kind"]).name.lower(),
                "amount_utok": said["amount_utok"],
                "at": said["at_ms"],
                "command_id": said["cause"]["command_id"],
                "version": 1,
            }
            for (account, number), said in self.books.changes.items()
        ]
        for table, rows in (("windows", windows), ("balance_changes", entries)):
            if rows:
                self.store.insert(table, pa.Table.from_pylist(rows))

    def _land(self, ranges: list[dict[str, Any]], die: str, sends: int) -> None:
        def step(name: str) -> None:
            if name == die:
                raise Died

        events = self._events(ranges)
        landed = self.store.landed_offsets(TOPIC, 0, self.next_lo)
        found = look_back(self.store, events, landed)
        rows = ledger_rows(found.events)
        step("read")
        self.store.insert("ledger", rows_not_at(rows, landed))
        step("ledger")
        self.store.insert("duplicates", duplicate_rows(found.events))
        step("duplicates")
        for at in found.events.refused:
            self.letters[int(events.offsets[at])] = "correction_of_another_account"
        orders = orders_of(self.store, found, rows)
        for order in orders[:sends] if die == "orders" else orders:
            self._send(order)
        step("orders")

    def _send(self, order: dict[str, Any]) -> None:
        self.told.append(order["command_id"])
        appended_ms = max(one.appended_ms for one in [*self.usage, *self.commands])
        self.commands.append(
            Commanded(
                offset=len(self.commands),
                appended_ms=appended_ms,
                fields=order,
                name="usage_order",
            )
        )

    def _events(self, ranges: list[dict[str, Any]]) -> Events:
        lo, hi = ranges[0]["lo"], ranges[-1]["hi"]
        judged = [_verdicts(one) for one in ranges]
        named = {
            name: np.concatenate([getattr(one, name) for one in judged])
            for name in ("late", "correction", "duplicate", "rejected")
        }
        there = [
            one
            for one in self.usage[lo : hi + 1]
            if one.offset not in set(named["rejected"].tolist())
        ]
        offsets = np.array([one.offset for one in there], np.int64)
        charges = [_charges(one, verdicts) for one, verdicts in zip(ranges, judged, strict=True)]
        assert not [one.fault() for one in charges if one.fault()]
        return Events(
            topic=TOPIC,
            partition=0,
            batch=pa.RecordBatch.from_pylist([_said(one) for one in there], schema=_SCHEMA),
            offsets=offsets,
            appended_ms=np.array([one.appended_ms for one in there], np.int64),
            late=np.isin(offsets, named["late"]),
            repeats=np.isin(offsets, named["duplicate"]),
            held=np.isin(offsets, named["correction"]),
            charges=joined_charges(charges, offsets),
        )


_SCHEMA = pa.schema([LEDGER_SCHEMA.field(name) for name in EVENT_FIELDS])


def _zero(kind: pa.DataType) -> Any:
    if pa.types.is_map(kind):
        return []
    return "" if pa.types.is_string(kind) else 0


_BLANK = {field.name: _zero(field.type) for field in _SCHEMA}


def _said(one: Record) -> dict[str, Any]:
    assert one.event is not None
    said = {name: value for name, value in one.event.items() if name in _BLANK}
    return _BLANK | said | {"other_units": list(one.event["other_units"].items())}


def _verdicts(said: dict[str, Any]) -> Verdicts:
    names = ("late", "correction", "duplicate", "rejected")
    return Verdicts(**{name: np.array(said[name], np.int64) for name in names})


def _charges(said: dict[str, Any], verdicts: Verdicts) -> RangeCharges:
    columns = said["charges"]
    runs = [part for version in columns["versions"] for part in (version, 1)]
    return RangeCharges(
        lo=said["lo"],
        hi=said["hi"],
        verdicts=verdicts,
        utok=np.array(columns["utok"], np.int64),
        version_runs=np.array(runs, np.int64),
        buckets=np.array(columns["buckets"], np.int64),
        splits=np.array(columns["splits"], np.int64).reshape(-1, 3),
    )


def tokens_of(row: dict[str, Any]) -> int:
    """Return the sum over all kinds of a row."""
    return sum(int(row[kind]) for kind in TOKEN_KINDS)
