"""Count what a guard sees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class GuardStats:
    """Count what a guard has seen; all but the first four grow for ever."""

    accounts: int = 0
    partitions: int = 0
    caught_up: bool = False
    oldest_as_of_ms: int = 0
    decisions: int = 0
    heartbeats: int = 0
    tombstones: int = 0
    ignored_old: int = 0
    bad_records: int = 0
    reconnects: int = 0
    last_error: str = ""
