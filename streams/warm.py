"""Do everything once before the first record, so that no gateway waits for a library to load itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from streams.intake import decode_usage
from streams.stretch import Stretch
from streams.totals import encode_totals, totals_of
from tokenline.charging.commands import fold_commands
from tokenline.charging.fold import fold_usage
from tokenline.charging.journal import JournalWriter
from tokenline.charging.partition import PartitionState
from tokenline.charging.step import Commanded
from tokenline.wire.avro import Codec
from tokenline.wire.columns import ColumnCodec
from tokenline.wire.registry import FileRegistry

if TYPE_CHECKING:
    from streams.charging import ChargingWorker

# What charging writes: their ids must be at hand before the first record, or be waited for.
WRITTEN = (
    *("quota_decision", "charging_heartbeat", "account_window", "balance_change", "charged_range"),
    *("dead_letter", "order_reply", "account_order", "clock_tick"),
)
MINUTE_MS = 60_000
NOW_MS = 1_790_000_000_000


def warm_up(worker: ChargingWorker) -> None:
    """Charge a made-up account on a state of its own; nothing of it is written or sent.

    The first minute flushed cost 1.4 s of a worker's loop, the first chunk as much.
    """
    for name in WRITTEN:
        worker.registry.newest_id(name)
    state, files = PartitionState(worker.bounds), FileRegistry()
    codec, columns = Codec(files), ColumnCodec(files)
    limits = dict.fromkeys(("minute_tokens", "hour_tokens", "day_tokens", "minute_requests"), -1)
    limits |= {"month_tokens": 1, "hour_requests": -1, "day_requests": -1}
    fields = {"tenant_id": "t", "account_id": "a", "time_zone": "Asia/Shanghai", **limits}
    fold_commands(state, [Commanded(offset=0, appended_ms=NOW_MS, fields=fields)], 0)
    writer = JournalWriter(1, MINUTE_MS)
    for offset in range(2):
        record = _record(codec, offset, NOW_MS + offset * MINUTE_MS)
        step = fold_usage(
            state, decode_usage(columns, Stretch(lo=offset, hi=offset, records=[record]))
        )
        writer.records(state, step, [])
        if step.flush is not None:
            rows = totals_of(worker.columns, state, step.flush, 0)
            list(encode_totals(worker.columns, rows))


def _record(codec: Codec, offset: int, now_ms: int) -> SimpleNamespace:
    event = {
        "source": "warm-up",
        "event_id": str(offset),
        "account_id": "a",
        "tenant_id": "t",
        "gateway_id": "g",
        "provider": "p",
        "model": "m",
        "occurred_at": now_ms,
        "input_tokens": 1,
    }
    value = codec.encode("usage_event", event)
    return SimpleNamespace(offset=offset, timestamp=now_ms, key=b"t/a", value=value)
