"""Pay into accounts with plans while the line is being killed, as a payment system would.

An order that nobody answers is sent again with its id until somebody does. In the end every order is
sent once more: whoever answers by then must say what was said the first time.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenline.clock import SystemClock
from tokenline.demo.stories import MILLION, STORIES, VALIDITY_S, overshoot_tokens
from tokenline.errors import Unavailable
from tokenline.landing.queries import sql
from tokenline.wire.orders import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenline.settings import Settings
    from tokenline.wire.orders import Reply

GIVER, TAKER, STRICT = "story-agent", "story-person", "story-agent"
TOP_UP_TOKENS = 12_000
TRANSFER_TOKENS = 2_000
ANSWER_S = 5.0
ANSWERED_WITHIN_S = 90.0
GRANTED = """
SELECT sum(toInt128(amount_utok)) AS utok FROM v_balance_changes
WHERE kind = 'grant' AND startsWith(command_id, 'top-up-')
"""
# Who asks, when and where: that is of the question, and all the rest of the answer, but for the words:
# they are for people and not remembered.
OF_THE_QUESTION = {"reply_to", "as_of", "cause_offset", "detail"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Hold one order to an account: its id and its fields."""

    account: str
    command_id: str
    fields: dict[str, Any]


class Payments:
    """Send the orders of each round and keep what was answered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._answers: dict[str, tuple[Order, Reply]] = {}
        self._clock = SystemClock()

    def pay(self, number: int) -> None:
        """Top every account up and move units from one to another; return when all is answered.

        Raises:
            Unavailable: an order was not answered in 90 s.
        """
        asyncio.run(self._pay(number))

    def result(self) -> dict[str, Any]:
        """Send every order that was done once more, wait until nothing is held, and return what a report says of it.

        `answered_otherwise` counts second answers that differ; `overshoot_tokens` is what accounts used
        beyond what they had, `held_tokens` what is held still, after twice the validity of any hold.

        Raises:
            Unavailable: an order was not answered in 90 s.
        """
        return asyncio.run(self._result())

    async def _pay(self, number: int) -> None:
        for order in _orders(number):
            self._answers[order.command_id] = order, await self._answer(order)

    async def _result(self) -> dict[str, Any]:
        otherwise = [
            order.command_id
            for order, said in self._answers.values()
            # A refused one is judged again, and may be carried out by now.
            if said["outcome"] == "done" and _said(await self._answer(order)) != _said(said)
        ]
        stands = {account: await self._quiet(account) for account in STORIES}
        return {
            "orders": len(self._answers),
            "paid_tokens": TOP_UP_TOKENS
            * sum(order.fields["kind"] == "grant" for order, _ in self._answers.values()),
            "answered_otherwise": len(otherwise),
            "overshoot_tokens": {name: overshoot_tokens(shown) for name, shown in stands.items()},
            "held_tokens": sum(int(shown["held_utok"]) for shown in stands.values()) // MILLION,
        }

    async def _answer(self, order: Order) -> Reply:
        """Send an order until it is answered."""
        until_s = self._clock.monotonic_s() + ANSWERED_WITHIN_S
        while True:
            try:
                async with Orders(self._settings) as orders:
                    return await orders.order(
                        order.account,
                        command_id=order.command_id,
                        timeout_s=ANSWER_S,
                        **order.fields,
                    )
            except Unavailable:
                if self._clock.monotonic_s() > until_s:
                    raise
                await asyncio.sleep(0.2)

    async def _quiet(self, account: str) -> dict[str, Any]:
        """Look at an account until nothing is held of it, for no longer than holds may last."""
        until_s = self._clock.monotonic_s() + 2 * VALIDITY_S + ANSWER_S
        async with Orders(self._settings) as orders:
            while True:
                shown = await orders.show(account)
                if not shown["held_utok"] or self._clock.monotonic_s() > until_s:
                    return shown
                await asyncio.sleep(0.5)


def granted_tokens(settings: Settings) -> int:
    """Return what top-ups have granted, by the entries in ClickHouse."""
    [row] = json.loads(sql(settings, GRANTED, "json"))["data"]
    return int(row["utok"]) // MILLION


def _orders(number: int) -> Iterator[Order]:
    """Yield the orders of a round."""
    grant = {"kind": "grant", "amount_utok": TOP_UP_TOKENS * MILLION, "transferable": 1}
    for account in STORIES:
        yield Order(account=account, command_id=f"top-up-{number}-{account}", fields=grant)
    move = {"kind": "transfer", "to_account": TAKER, "amount_utok": TRANSFER_TOKENS * MILLION}
    yield Order(account=GIVER, command_id=f"move-{number}", fields=move)


def _said(reply: Reply) -> Reply:
    return {name: value for name, value in reply.items() if name not in OF_THE_QUESTION}
