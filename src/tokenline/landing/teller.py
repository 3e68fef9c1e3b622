"""Tell others what landing found out: charging by orders, people by dead letters."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokenline.landing.row import IDENTITY
from tokenline.wire.kafka import account_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.landing.reader import Run
    from tokenline.landing.row import Events

Fields = dict[str, Any]
_NAMED = (*IDENTITY, "gateway_id", "gateway_epoch", "gateway_seq")
OF_ANOTHER_ACCOUNT = "correction_of_another_account"


class Teller(Protocol):
    """Send records in their order, and return when all of them are acknowledged; blocking."""

    def tell(self, letters: Sequence[Fields], orders: Sequence[Fields]) -> None:
        """Send dead letters, and orders to charging.

        Raises:
            BrokerUnavailable: some may have been sent; try again with the same.
        """
        ...


def letters_of(events: Events, run: Run) -> list[Fields]:
    """Return the dead letter of each event that was refused, with its bytes."""
    refused = sorted(events.refused)
    if not refused:
        return []
    said = events.batch.select([*_NAMED, "corrects"]).take(refused).to_pylist()
    places = np.searchsorted(run.offsets, events.offsets[refused]).tolist()
    return [
        {
            "topic": events.topic,
            "partition": events.partition,
            "offset": int(run.offsets[place]),
            "reason": OF_ANOTHER_ACCOUNT,
            "detail": f"{one['corrects']} stands in the ledger of another account, and not of this one",
            "appended_at": int(run.appended_ms[place]),
            "key_base64": base64.b64encode(
                account_key(one["tenant_id"], one["account_id"])
            ).decode(),
            "value_base64": base64.b64encode(run.values[place] or b"").decode(),
            **{name: one[name] for name in _NAMED},
        }
        for one, place in zip(said, places, strict=True)
    ]
