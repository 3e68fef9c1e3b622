"""Say whether a worker does its work, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """Hold the answer of /readyz; `why` is one line for people, empty when there is nothing to say."""

    ready: bool
    why: str = ""


READY = Readiness(ready=True)
SPARE = Readiness(ready=True, why="spare: takes over when another worker ends")
UNASSIGNED = Readiness(ready=False, why="the group has not dealt out the partitions yet")
