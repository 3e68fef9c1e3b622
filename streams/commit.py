"""Hold one step on its way from the fold to the commit of its offset."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tokenline.charging.packs import Message
from tokenline.charging.step import Step


@dataclass(slots=True)
class Commit:
    """Hold one step between its journal batch and its acknowledgement."""

    step: Step
    out: list[Message]
    sent: asyncio.Future[int]
    records: int
    next_usage: int
