"""Land batches of one partition: rows, then seal, and after that whoever asked may acknowledge.

Blocking; one thread at a time. A crash between any two steps leaves rows without a seal, which the
next lander finds by looking at the rows themselves. No record that says "landed" is ever believed.
What charging judged and Kafka no longer has, or nobody can read, is counted as unlanded: the seal says
so, and landing goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenline.landing.charges import joined_charges
from tokenline.landing.copies import look_back
from tokenline.landing.quarantine import Held
from tokenline.landing.ranges import Fault
from tokenline.landing.row import (
    DUPLICATES_SCHEMA,
    Events,
    Verdict,
    duplicate_rows,
    ledger_rows,
    rows_not_at,
)
from tokenline.landing.seal import GENESIS, Seal, chain_of, digest_of
from tokenline.landing.teller import letters_of
from tokenline.landing.usage_orders import orders_of
from tokenline.metering.spans import size_of

if TYPE_CHECKING:
    from tokenline.clock import Clock
    from tokenline.landing.batch import Batch
    from tokenline.landing.quarantine import Quarantine
    from tokenline.landing.reader import Run
    from tokenline.landing.store import Store
    from tokenline.landing.teller import Teller
    from tokenline.wire.columns import ColumnCodec

# Called after each step with its name; tests end the process there.
Step = Callable[[str], None]


class Lander:
    """Carry one partition's chain of seals on.

    `generation` is that of the consumer group that gave the partition to us; it orders writers.
    """

    def __init__(
        self,
        store: Store,
        codec: ColumnCodec,
        quarantine: Quarantine,
        teller: Teller,
        *,
        topic: str,
        partition: int,
        generation: int,
        clock: Clock,
        step: Step,
    ) -> None:
        self._store = store
        self._codec = codec
        self._quarantine = quarantine
        self._teller = teller
        self._topic = topic
        self._partition = partition
        self._epoch = generation
        self._clock = clock
        self._step = step
        self._chain = GENESIS
        self._landed = np.zeros(0, np.int64)

    def resume(self) -> Seal | None:
        """Return the last seal; None when there is none.

        Raises:
            WarehouseUnavailable: try again.
        """
        newest = self._store.newest_seal(self._topic, self._partition)
        if newest is not None:
            self._chain = newest.chain
            # A group that was made anew counts its generations from 1 again.
            self._epoch = max(self._epoch, newest.writer_epoch + 1)
        self.look(0 if newest is None else newest.hi + 1)
        return newest

    def look(self, lo: int) -> None:
        """Find out which rows from `lo` up are in the ledger; call after any failed `land`.

        Raises:
            WarehouseUnavailable: try again.
        """
        self._landed = self._store.landed_offsets(self._topic, self._partition, lo)

    def land(self, batch: Batch[Any], run: Run) -> Seal:
        """Write the rows of one batch and seal it; it must follow the last one.

        Raises:
            WarehouseUnavailable, BrokerUnavailable: some rows may be in; `look(batch.lo)`, then call again.
        """
        found = look_back(self._store, self._events(batch, run), self._landed)
        events = found.events
        rows = ledger_rows(events)
        # Before the insert, so that waiting for servers is the only thing after it.
        copies = duplicate_rows(events)
        seal = self._seal(batch, events, rows, copies)
        self._step("read")
        self._store.insert("ledger", rows_not_at(rows, self._landed))
        self._step("ledger")
        self._store.insert("duplicates", copies)
        self._step("duplicates")
        # Behind the rows and before the seal: whoever goes on from here tells charging again.
        self._teller.tell(letters_of(events, run), orders_of(self._store, found, rows))
        self._step("orders")
        self._store.put_seal(seal)
        self._step("seal")
        self._chain = seal.chain
        self._landed = self._landed[self._landed > batch.hi]
        return seal

    def _events(self, batch: Batch[Any], run: Run) -> Events:
        codes = batch.verdicts.codes(run.offsets)
        usable = np.flatnonzero(codes < Verdict.REJECTED)
        values = run.values if len(usable) == len(codes) else [run.values[at] for at in usable]
        decoded = self._codec.decode("usage_event", values)
        if decoded.failures:
            faults = [
                Fault(
                    record=Held(
                        offset=int(run.offsets[at]),
                        timestamp=int(run.appended_ms[at]),
                        value=run.values[at],
                    ),
                    reason=failure.reason,
                    detail=f"it was charged and cannot be decoded here: {failure.detail}",
                )
                for failure in decoded.failures
                for at in usable[failure.position : failure.position + 1]
            ]
            self._quarantine.put(self._topic, self._partition, faults)
            usable = usable[decoded.kept]
        return Events(
            topic=self._topic,
            partition=self._partition,
            batch=decoded.batch,
            offsets=run.offsets[usable],
            appended_ms=run.appended_ms[usable],
            late=np.isin(run.offsets[usable], batch.verdicts.late),
            repeats=codes[usable] == Verdict.DUPLICATE,
            held=codes[usable] == Verdict.CORRECTION,
            charges=joined_charges(batch.charges, run.offsets[usable]),
        )

    def _seal(self, batch: Batch[Any], events: Events, rows: Any, copies: Any) -> Seal:  # noqa: ANN401  # Arrow
        late, verdicts = int((events.late & events.kept).sum()), batch.verdicts
        fields: dict[str, Any] = {
            "topic": self._topic,
            "partition": self._partition,
            "lo": batch.lo,
            "hi": batch.hi,
            "counted": rows.num_rows - late,
            "late": late,
            "duplicate": int(events.repeats.sum()),
            "rejected": len(verdicts.rejected) + len(events.refused),
            "absent": size_of(verdicts.absent),
            "deleted": size_of(verdicts.deleted),
            "unjudged": size_of(verdicts.unjudged),
            "tokens": int(rows.column("total_tokens").to_numpy().sum()),
            "digest": digest_of(rows),
            "copies_digest": digest_of(copies, DUPLICATES_SCHEMA),
            "prev": self._chain,
            "writer_epoch": self._epoch,
            "deleted_since_ms": batch.deleted_since_ms,
            "deleted_until_ms": batch.deleted_until_ms,
            "as_of_ms": batch.as_of_ms,
            "landed_at_ms": self._clock.wall_ms(),
        }
        judged = batch.rows - verdicts.without_record - len(verdicts.rejected)
        fields["unlanded"] = judged - len(events.offsets)
        return Seal(**fields, chain=chain_of(Seal(**fields)))
