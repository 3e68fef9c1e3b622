"""Keep what landing tells, in place of a broker."""

from __future__ import annotations

from typing import Any


class PaperTeller:
    """Be told; with `fails` set it raises that instead, once, after it has kept what was sent."""

    def __init__(self) -> None:
        self.letters: list[dict[str, Any]] = []
        self.orders: list[dict[str, Any]] = []
        self.fails: Exception | None = None

    def tell(self, letters: Any, orders: Any) -> None:
        self.letters += letters
        self.orders += orders
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
